"""MoEUT: a universal transformer of mixtures of experts; its CUDA kernel by a product of our own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from runner import Published, Training, importable, pair, stand_in, visited
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Selection:
    """Which expert goes with which row, sorted by expert, as the kernel wants it.

    Attributes:
        raw_sel: Experts, unsorted.
        sel: The same, sorted.
        sel_index: Of each, the row that it multiplies.
        out_index: Of each, the row where the product goes; as ``sel_index`` where None.
        reduction_weight: Weights with which products are summed.
    """

    raw_sel: Tensor
    sel: Tensor
    sel_index: Tensor
    out_index: Tensor | None = None
    reduction_weight: Tensor | None = None

    def clone(self) -> "Selection":
        return replace(self)


def prepare(sel: Tensor, weights: Tensor | None = None) -> Selection:
    """Several experts for every row."""
    ordered, at = sel.flatten().sort(stable=True)
    return Selection(sel, ordered.view_as(sel), at // sel.shape[-1], at, weights)


def product(x: Tensor, sel: Selection, keys: Tensor) -> Tensor:
    """Multiply each row by the matrix of its expert."""
    rows = x.flatten(end_dim=-2)[sel.sel_index]
    made = torch.einsum("ni,nio->no", rows, keys[sel.sel.flatten()])
    goes_to = sel.sel_index if sel.out_index is None else sel.out_index
    out = made[goes_to.argsort()].view(*sel.sel.shape, keys.shape[-1])
    if sel.reduction_weight is None:
        return out
    out = out.view(*sel.reduction_weight.shape, out.shape[-1])
    return (sel.reduction_weight.unsqueeze(-2).type_as(out) @ out).squeeze(-2)


def make(checkout: Path) -> Training:
    importable(checkout)
    stand_in("moeut.cvmm", CVMMSel=Selection, cvmm=product, cvmm_prepare_sel2=prepare)
    from moeut import MoEUTLM

    model = MoEUTLM(
        64, d_model=32, n_layers=8, n_heads=2, ff_n_experts=4, att_n_experts=2, d_head=16, group_size=2, ff_k=2,
        att_k=1, ff_expert_size=16,
    )  # fmt: skip

    def loss(called: Any, number: int) -> Tensor:
        given, targets = pair(number)
        out = called(given)
        return F.cross_entropy(out.outputs.flatten(0, 1), targets.flatten()) + out.reg_loss.sum()

    def by_hand() -> dict[str | None, list[Tensor]]:
        layers = model.transformer.layers
        return {None: visited(model, layers[0], layers[-1])}

    return Training(model, loss, call=pair(0)[0], by_hand=by_hand)


MODELS = [Published("MoEUT", "RobertCsordas/moeut", "87f0497", make)]
