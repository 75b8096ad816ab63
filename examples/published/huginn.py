"""Huginn: the minimal file of its model repository, and the model that it was trained with (recpre)."""

from pathlib import Path
from typing import Any

from runner import Published, Training, importable, pair, stand_in, visited
from torch import Tensor


def make_minimal(checkout: Path) -> Training:
    importable(checkout)
    stand_in("recpre", checkout / "recpre")  # its own imports a trainer
    from recpre.raven_config_minimal import RavenConfig
    from recpre.raven_modeling_minimal import RavenForCausalLM, RavenPreTrainedModel

    RavenPreTrainedModel._tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # as transformers 5 has it
    config = RavenConfig(
        n_embd=32,
        n_heads=2,
        n_layers=4,
        block_size=32,
        vocab_size=64,
        intermediate_size=64,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2,
        n_layers_in_coda=1,
        mean_recurrence=6,
        mean_backprop_depth=3,
        torch_dtype="float32",
    )
    model = RavenForCausalLM(config).train()

    def loss(called: Any, number: int) -> Tensor:
        given, labels = pair(number)
        return called(given, labels=labels).loss

    return Training(model, loss, call=pair(0)[0], by_hand=lambda: by_hand(model))


def by_hand(model: Any) -> dict[str | None, list[Tensor]]:
    """The first half of what the adapter is given, and what the last block of the loop returns last."""
    parts = model.transformer
    return {None: visited(model, parts.adapter, parts.core_block[-1], slice(model.config.n_embd))}


def find_multiple(n: int, k: int) -> int:
    return n if n % k == 0 else n + k - n % k


def make_recpre(checkout: Path) -> Training:
    importable(checkout)
    stand_in("recpre", checkout / "recpre")
    stand_in("recpre.utils", find_multiple=find_multiple)  # its own imports a trainer
    stand_in("recpre.checkpoint_patch", _checkpoint_without_reentrant_generator=None)  # for another release of torch
    from recpre.config_dynamic import RecurrentConfig

    config = RecurrentConfig(
        block_size=32,
        vocab_size=64,
        padded_vocab_size=64,
        n_embd=32,
        num_attention_heads=2,
        intermediate_size=64,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2,
        n_layers_in_coda=1,
        block_class_name="SandwichBlock",
        norm_class_name="RMSNorm",
        nonlin_name="SiLU",
        mlp_class_name="GatedMLP",
        init_strategy="takase",
        injection_type="linear",
        mean_recurrence=6,
        mean_backprop_depth=3,
    )
    model = config.construct_model(objective={"ignore_index": -100, "z_regularization": 0.0}).train()

    def loss(called: Any, number: int) -> Tensor:
        model.step = number  # as its trainer does; the depth is drawn from it
        given, labels = pair(number)
        return called(given, labels=labels)["loss"]

    return Training(model, loss, call=pair(0)[0], by_hand=lambda: by_hand(model))


MODELS = [
    Published("Huginn, the minimal file", "seal-rg/recurrent-pretraining", "59e0b69", make_minimal),
    Published("recpre RecurrentGPT, linear", "seal-rg/recurrent-pretraining", "59e0b69", make_recpre),
]
