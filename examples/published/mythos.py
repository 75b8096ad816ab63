"""OpenMythos: a looped model with halting, from the package index."""

from pathlib import Path
from typing import Any

from runner import Published, Training, pair, visited
from torch import Tensor
from torch.nn import functional as F


def make(_: Path) -> Training:
    from open_mythos.main import MythosConfig, OpenMythos

    config = MythosConfig(
        vocab_size=64,
        dim=32,
        n_heads=2,
        n_kv_heads=2,
        max_seq_len=32,
        max_loop_iters=4,
        prelude_layers=1,
        coda_layers=1,
        attn_type="gqa",
        n_experts=4,
        n_shared_experts=1,
        n_experts_per_tok=2,
        expert_dim=16,
        lora_rank=4,
    )
    model = OpenMythos(config)

    def loss(called: Any, number: int) -> Tensor:
        given, targets = pair(number)
        return F.cross_entropy(called(given).flatten(0, 1), targets.flatten())

    def by_hand() -> dict[str | None, list[Tensor]]:
        return {None: visited(model, model.recurrent.injection, model.recurrent.injection)}

    return Training(model, loss, call=pair(0)[0], by_hand=by_hand)


MODELS = [Published("OpenMythos", "package open-mythos", "0.5.0", make, folder="")]
