"""HRM-Text, from transformers."""

from pathlib import Path
from typing import Any

from runner import Published, Training, pair, returned
from torch import Tensor


def make(_: Path) -> Training:
    from transformers import HrmTextConfig, HrmTextForCausalLM

    config = HrmTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
        max_position_embeddings=64, H_cycles=2, L_cycles=3, pad_token_id=0,
    )  # fmt: skip
    model = HrmTextForCausalLM(config).train()

    def loss(called: Any, number: int) -> Tensor:
        given, _ = pair(number)
        return called(given, labels=given).loss

    def by_hand() -> dict[str | None, list[Tensor]]:
        low, high = "hidden_states_low_cycle", "hidden_states_high_cycle"
        return {low: returned(model.model.L_module), high: returned(model.model.H_module)}

    return Training(model, loss, call=pair(0, 2)[0], by_hand=by_hand)


MODELS = [Published("HRM-Text", "package transformers", "5.23.0", make, folder="")]
