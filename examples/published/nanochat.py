"""looped nanochat: depth drawn by its trainer, for every step."""

from pathlib import Path
from typing import Any

from runner import Published, Training, importable, pair, visited
from torch import Tensor


def make(checkout: Path) -> Training:
    importable(checkout)
    from nanochat.gpt import GPT, GPTConfig

    config = GPTConfig(
        sequence_len=32,
        vocab_size=64,
        n_head=2,
        n_kv_head=2,
        n_embd=32,
        n_prelude=1,
        n_recur_block=2,
        n_coda=1,
    )
    model = GPT(config)
    model.init_weights()

    def loss(called: Any, number: int) -> Tensor:
        given, targets = pair(number)
        return called(given, targets, num_recur=4 + number % 3)

    def by_hand() -> dict[str | None, list[Tensor]]:
        return {None: visited(model, model.inject, model.norm_recur, slice(32, None))}

    return Training(model, loss, call=pair(0)[0], by_hand=by_hand)


MODELS = [Published("looped nanochat", "kschwethelm/looped_nanochat", "bdfb4ca", make)]
