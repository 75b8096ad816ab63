"""Ouro: the copy that its reinforcement learning was done with."""

from pathlib import Path
from typing import Any

import torch
from runner import Published, Training, edited, importable, pair, visited
from torch import Tensor


def rotations(config: Any, device: Any = None, **_: Any) -> tuple[Tensor, float]:
    """Frequencies of rotary positions, which transformers 5 has no function for any more."""
    width = config.hidden_size // config.num_attention_heads
    return 1.0 / config.rope_theta ** (torch.arange(0, width, 2, device=device).float() / width), 1.0


def make(checkout: Path) -> Training:
    importable(checkout)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ROPE_INIT_FUNCTIONS.setdefault("default", rotations)
    from ouro_rl.modeling.configuration_ouro import OuroConfig

    changes = {'"input_embeds": inputs_embeds,\n': '"inputs_embeds": inputs_embeds,\n'}  # as transformers 5.23 has it
    changes['                "cache_position": cache_position,\n                "past_key_values"'] = (
        '                "past_key_values"'
    )
    path = checkout / "ouro_rl" / "modeling" / "modeling_ouro.py"
    module = edited("ouro_rl.modeling.modeling_ouro", path, changes)
    config = OuroConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        use_cache=False,
        total_ut_steps=4,
    )
    config.pad_token_id = None  # transformers 5.23 has no such attribute by itself
    model = module.OuroForCausalLM(config).train()

    def loss(called: Any, number: int) -> Tensor:
        given, labels = pair(number)
        return called(input_ids=given, labels=labels).loss

    def by_hand() -> dict[str | None, list[Tensor]]:
        return {None: visited(model, model.model.layers[0], model.model.norm)}

    return Training(model, loss, call=pair(0)[0], by_hand=by_hand)


MODELS = [Published("Ouro, local copy", "LoopedLMs/ouro_rl", "531187b", make)]
