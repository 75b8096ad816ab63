"""TRM and its variants, HRM (in TRM's repository and its own), EqR: two or more states, and a carry across steps."""

import importlib
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from runner import Published, Training, importable, returned, stand_in, tokens
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, LENGTH, WIDTH = 4, 16, 32
SIZES = {
    "batch_size": BATCH, "seq_len": LENGTH, "vocab_size": 64, "num_puzzle_identifiers": 1,
    "H_cycles": 3, "L_cycles": 6, "H_layers": 2, "L_layers": 2,
    "hidden_size": WIDTH, "expansion": 4, "num_heads": 2, "pos_encodings": "rope",
    "halt_max_steps": 4, "halt_exploration_prob": 0.1, "forward_dtype": "float32",
}  # fmt: skip


def batch(number: int, size: int = BATCH) -> dict[str, Tensor]:
    """A batch as its data sets have it: the answer is the question in reverse."""
    given = tokens(number, size, LENGTH)
    return {"inputs": given, "labels": given.flip(1), "puzzle_identifiers": torch.zeros(size, dtype=torch.long)}


def dealt(module: nn.Module, names: list[str]) -> dict[str | None, list[Tensor]]:
    """What one network returns at its calls, dealt in turn to the variables that it makes."""
    states: dict[str | None, list[Tensor]] = {name: [] for name in names}
    turn = cycle(names)
    module.register_forward_hook(lambda _, __, out: states[next(turn)].append(out.detach().clone()))
    return states


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention of torch in the place of flash attention's: ``(B, S, H, D)``."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).contiguous()


def make(checkout: Path, *, module: str, name: str, made_by: Any, **more: Any) -> Training:
    """Build one under its own loss; its carry goes on from step to step, as its trainer has it."""
    importable(checkout)
    stand_in("flash_attn_interface", flash_attn_func=flash_attn_func)
    stand_in("colorama", Fore=Empty(), Style=Empty(), init=lambda *_, **__: None)
    model = getattr(importlib.import_module(f"models.{module}"), name)(SIZES | more)
    whole = importlib.import_module("models.losses").ACTLossHead(model, "stablemax_cross_entropy").train()
    held: dict[str, Any] = {"carry": whole.initial_carry(batch(0))}

    def loss(called: Any, number: int) -> Tensor:
        held["carry"], value, *_ = called(return_keys=[], carry=held["carry"], batch=batch(number))
        return value / BATCH

    call = {"return_keys": [], "carry": whole.initial_carry(batch(0, 2)), "batch": batch(0, 2)}
    return Training(whole, loss, call=call, budget=40.0, by_hand=lambda: made_by(model.inner))


class Empty:
    """What a package of colours has: of any name, nothing."""

    def __getattr__(self, name: str) -> str:
        return ""


def two_networks(inner: Any) -> dict[str | None, list[Tensor]]:
    return {"z_L": returned(inner.L_level), "z_H": returned(inner.H_level)}


def one_network(inner: Any) -> dict[str | None, list[Tensor]]:
    return dealt(inner.L_level, ["z_L"] * 6 + ["z_H"])


def one_network_six(inner: Any) -> dict[str | None, list[Tensor]]:
    return dealt(inner.L_level, [f"z_L_{at}" for at in range(6)] + ["z_H"])


def one_state(inner: Any) -> dict[str | None, list[Tensor]]:
    return {None: returned(inner.L_level)}


TRM, HRM = "TinyRecursiveReasoningModel_ACTV1", "HierarchicalReasoningModel_ACTV1"
MADE: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: repository, commit, arguments of `make`
    "TRM `trm`": ("SamsungSAILMontreal/TinyRecursiveModels", "e7b6871", {
        "module": "recursive_reasoning.trm", "name": TRM, "made_by": one_network, "puzzle_emb_len": 0}),
    "TRM `trm_singlez`": ("SamsungSAILMontreal/TinyRecursiveModels", "e7b6871", {
        "module": "recursive_reasoning.trm_singlez", "name": TRM, "made_by": one_state, "puzzle_emb_len": 0}),
    "TRM `trm_hier6`": ("SamsungSAILMontreal/TinyRecursiveModels", "e7b6871", {
        "module": "recursive_reasoning.trm_hier6", "name": TRM, "made_by": one_network_six, "puzzle_emb_len": 0}),
    "HRM `hrm`": ("SamsungSAILMontreal/TinyRecursiveModels", "e7b6871", {
        "module": "recursive_reasoning.hrm", "name": HRM, "made_by": two_networks}),
    "HRM `hrm_act_v1`": ("sapientinc/HRM", "42410da", {
        "module": "hrm.hrm_act_v1", "name": HRM, "made_by": two_networks}),
    "EqR": ("locuslab/EqR", "4d45856", {"module": "eqr", "name": "EqRModel", "made_by": one_network}),
}  # fmt: skip
MODELS = [Published(name, where, commit, partial(make, **how)) for name, (where, commit, how) in MADE.items()]
