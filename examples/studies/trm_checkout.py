"""TRM's own code at small sizes: how it is built and trained, and its loop written out by hand.

Nothing of that code is here: it is read from a checkout of SamsungSAILMontreal/TinyRecursiveModels. The loop by hand
calls the network of the model in two nested loops of our own, in float32 or float64, and nothing of loopscope.

Not covered: its data sets, its puzzle embeddings, its EMA, bfloat16.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

REPOSITORY = "SamsungSAILMontreal/TinyRecursiveModels"
LENGTH, VALUES, BATCH = 9, 12, 16  # of the sorting task: tokens, vocabulary, sequences of a step
H_CYCLES, L_CYCLES, HALT_AFTER = 3, 6, 4
KINDS = ("trm", "trm_singlez", "trm_hier6", "hrm")


def missing(checkout: Path | None) -> str:
    """Return why the code cannot be run; empty where it can."""
    if checkout is None:
        return f"skipped: no checkout of {REPOSITORY} was given (--checkout)"
    if not (checkout / "models" / "recursive_reasoning" / "trm.py").is_file():
        return f"skipped: {checkout} is no checkout of {REPOSITORY}"
    lacking = [name for name in ("einops", "pydantic") if importlib.util.find_spec(name) is None]
    return f"skipped: its code needs {' and '.join(lacking)}" if lacking else ""


def theirs(checkout: Path, name: str) -> Any:
    """Return a module of the checkout."""
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return importlib.import_module(f"models.{name}")


def build(
    checkout: Path,
    seed: int,
    *,
    kind: str = "trm",
    width: int = 32,
    heads: int = 2,
    length: int = LENGTH,
    dtype: str = "float32",
) -> nn.Module:
    """Return a model of theirs under its own loss: one of `KINDS`."""
    torch.manual_seed(seed)
    config = {
        "batch_size": BATCH, "seq_len": length, "num_puzzle_identifiers": 1, "vocab_size": VALUES,
        "puzzle_emb_ndim": 0, "pos_encodings": "rope", "forward_dtype": dtype,
        "H_cycles": H_CYCLES, "L_cycles": L_CYCLES, "H_layers": 2, "L_layers": 2,
        "hidden_size": width, "expansion": 4, "num_heads": heads,
        "halt_max_steps": HALT_AFTER, "halt_exploration_prob": 0.1,
    }  # fmt: skip
    module = theirs(checkout, f"recursive_reasoning.{kind}")
    name, more = ("HierarchicalReasoningModel", {}) if kind == "hrm" else (
        "TinyRecursiveReasoningModel", {"puzzle_emb_len": 0})  # fmt: skip
    model = getattr(module, f"{name}_ACTV1")(config | more)
    head: nn.Module = theirs(checkout, "losses").ACTLossHead(model, "stablemax_cross_entropy")
    return head


def batches(seed: int, length: int = LENGTH, largest: int = 3) -> Iterator[dict[str, Tensor]]:
    """Yield sequences of random numbers from 1 on, and the same sorted; 3 are learnt in 300 steps, 11 in part."""
    draw = torch.Generator().manual_seed(1000 + seed)
    while True:
        given = torch.randint(1, largest + 1, (BATCH, length), generator=draw)
        yield {
            "inputs": given,
            "labels": given.sort(dim=1).values,
            "puzzle_identifiers": torch.zeros(BATCH, dtype=torch.int64),
        }


def optimizer_of(head: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW with the settings of TRM's own training script."""
    return torch.optim.AdamW(head.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)


@dataclass(frozen=True, slots=True)
class ByHand:
    """The loop of such a model on some sequences, written out.

    Attributes:
        high: What makes z_H.
        low: What makes z_L, or six of them in turn; the same network in TRM.
        e: The embedded input ``(B, S, D)``.
        start: The variables before the loop, by name, those of the low level first.
        rotation: Cosines and sines of the positions.
        code: The module of the checkout, which holds their ``rms_norm``.
    """

    high: nn.Module
    low: nn.Module
    e: Tensor
    start: dict[str, Tensor]
    rotation: tuple[Tensor, Tensor]
    code: Any

    @staticmethod
    @torch.no_grad()
    def of(head: Any, batch: dict[str, Tensor], dtype: torch.dtype) -> ByHand:
        """Return the loop in a number format; the weights and the embedded input are those of the model."""
        inner = head.model.inner
        e = inner._input_embeddings(batch["inputs"], batch["puzzle_identifiers"]).to(dtype)
        firsts = {"z_L": inner.L_init} if hasattr(inner, "L_init") else {
            f"z_L_{at}": getattr(inner, f"L{at + 1}_init") for at in range(L_CYCLES)
        }  # fmt: skip
        firsts |= {"z_H": inner.H_init} if hasattr(inner, "H_init") else {}
        start = {name: first.to(dtype).expand_as(e) for name, first in firsts.items()}
        cos, sin = (part.to(dtype) for part in inner.rotary_emb())
        code = sys.modules[type(inner).__module__]
        return ByHand(getattr(inner, "H_level", inner.L_level), inner.L_level, e, start, (cos, sin), code)

    def one_pass(self, *variables: Tensor) -> tuple[Tensor, ...]:
        """Return all variables after one pass: six updates of the low level, then one of z_H, or of z_L without e."""
        *low, high = variables
        with wide_norm(self.code) if self.e.dtype == torch.float64 else nullcontext():
            if not low:
                for _ in range(L_CYCLES):
                    high = self.low(high + self.e, cos_sin=self.rotation)
                return (self.low(high, cos_sin=self.rotation),)
            for at in range(L_CYCLES):
                low[at % len(low)] = self.low(reduce(add, low), high + self.e, cos_sin=self.rotation)
            return (*low, self.high(high, reduce(add, low), cos_sin=self.rotation))

    @torch.no_grad()
    def states(self, passes: int) -> dict[str, Tensor]:
        """Return every variable before and after every pass, ``(passes + 1, B, S, D)`` each."""
        seen = [tuple(self.start.values())]
        for _ in range(passes):
            seen.append(self.one_pass(*seen[-1]))
        return {name: torch.stack(own) for name, own in zip(self.start, zip(*seen, strict=True), strict=True)}


@contextmanager
def wide_norm(code: Any) -> Iterator[None]:
    """Let the norm of their code compute in the format of the state: its own one goes through float32."""
    usual, code.rms_norm = code.rms_norm, rms_norm
    try:
        yield
    finally:
        code.rms_norm = usual


def rms_norm(hidden_states: Tensor, variance_epsilon: float) -> Tensor:
    """Return a state over its root mean square."""
    return hidden_states * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + variance_epsilon)
