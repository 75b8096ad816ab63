"""Parcae: three injections, and depth drawn per batch, per sequence or per token."""

from functools import partial
from pathlib import Path

from runner import Published, Training, importable, pair, received
from torch import Tensor


def make(checkout: Path, *, injection: str, drawn: str) -> Training:
    importable(checkout)
    from parcae_lm.models.parcae.config import ParcaeConfig

    config = ParcaeConfig(
        block_size=32,
        vocab_size=64,
        padded_vocab_size=64,
        n_embd=32,
        num_attention_heads=2,
        intermediate_size=64,
        recurrent_embedding_dimension=32,
        recurrent_intermediation_embedding_dimension=64,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2,
        n_layers_in_coda=1,
        norm_class_name="RMSNorm",
        nonlin_name="ReLU2",
        init_strategy="scaled",
        qk_norm=True,
        prelude_norm=True,
        mean_recurrence=6,
        mean_backprop_depth=3,
        injection_type=injection,
        recurrent_iteration_method=f"per-{drawn}",
    )
    model = config.construct_model()

    def loss(called: object, number: int) -> Tensor:
        model.step = number  # as its trainer does; the depth is drawn from it
        given, labels = pair(number)
        return called(given, labels=labels)["loss"]

    def by_hand() -> dict[str | None, list[Tensor]]:
        """The states that the injection is given, and what the read-out is given behind the loop."""
        states = received(model.transformer.adapter)
        model.transformer.C.register_forward_pre_hook(lambda _, given: states.append(given[0].detach().clone()))
        return {None: states}

    return Training(model, loss, call=pair(0)[0], by_hand=by_hand)


SETTINGS = [("diagonal", "batch"), ("linear", "batch"), ("add", "batch")]
SETTINGS += [("diagonal", "sequence"), ("linear", "sequence"), ("add", "sequence"), ("diagonal", "token")]
MODELS = [
    Published(
        f"Parcae, {injection}, per {drawn}",
        "sandyresearch/parcae",
        "dee8363",
        partial(make, injection=injection, drawn=drawn),
    )
    for injection, drawn in SETTINGS
]
