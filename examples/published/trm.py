"""TRM, three of its models, and HRM, from TRM's repository and its own: one carry over all steps, halting after 4."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from runner import Published, Training, importable, returned, stand_in, tokens
from torch import Tensor

BATCH, LENGTH, VALUES = 4, 16, 64


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """In the place of flash attention, by torch's own; sequences stand before heads."""
    heads_first = (one.transpose(1, 2) for one in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)


def make(checkout: Path, *, module: str, model: str) -> Training:
    importable(checkout)
    stand_in("flash_attn", flash_attn_func=attention)
    config: dict[str, Any] = {
        "batch_size": BATCH,
        "seq_len": LENGTH,
        "num_puzzle_identifiers": 1,
        "vocab_size": VALUES,
        "puzzle_emb_ndim": 0,
        "pos_encodings": "rope",
        "forward_dtype": "float32",
        "H_cycles": 3,
        "L_cycles": 6,
        "H_layers": 2,
        "L_layers": 2,
        "hidden_size": 32,
        "expansion": 4,
        "num_heads": 2,
        "halt_max_steps": 4,
        "halt_exploration_prob": 0.1,
    }
    if not model.startswith("Hierarchical"):
        config["puzzle_emb_len"] = 0
    inner = getattr(importlib.import_module(f"models.{module}"), f"{model}_ACTV1")(config)
    head = importlib.import_module("models.losses").ACTLossHead(inner, "stablemax_cross_entropy")

    def batch(number: int) -> dict[str, Tensor]:
        given = tokens(number, BATCH, LENGTH, VALUES)
        identifiers = torch.zeros(BATCH, dtype=torch.int64)
        return {"inputs": given, "labels": given.sort(dim=1).values, "puzzle_identifiers": identifiers}

    carried: list[Any] = [head.initial_carry(batch(0))]

    def loss(called: Any, number: int) -> Tensor:
        carried[0], value, *_ = called(carry=carried[0], batch=batch(number), return_keys=[])
        return value

    def by_hand() -> dict[str | None, list[Tensor]]:
        """The last state of each variable is what its network returned last; TRM calls one network for both."""
        low, high = inner.inner.L_level, getattr(inner.inner, "H_level", None)
        if high is None:
            return {}
        return {"z_L": returned(low), "z_H": returned(high)}

    call = {"carry": head.initial_carry(batch(0)), "batch": batch(0), "return_keys": []}
    return Training(head, loss, call=call, by_hand=by_hand, budget=150.0)


OF_TRM = ("SamsungSAILMontreal/TinyRecursiveModels", "e7b6871")
MODELS = [
    Published(
        f"TRM `{name}`",
        *OF_TRM,
        partial(make, module=f"recursive_reasoning.{name}", model="TinyRecursiveReasoningModel"),
    )
    for name in ("trm", "trm_singlez", "trm_hier6")
]
HRM = "HierarchicalReasoningModel"
MODELS += [
    Published("HRM `hrm`", *OF_TRM, partial(make, module="recursive_reasoning.hrm", model=HRM)),
    Published("HRM `hrm_act_v1`", "sapientinc/HRM", "newest", partial(make, module="hrm.hrm_act_v1", model=HRM)),
]
