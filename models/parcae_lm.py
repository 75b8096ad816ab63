"""Weights of the Parcae authors' implementation, in and out.

The reference is the public package ``parcae_lm`` of sandyresearch/parcae; checked against it at commit dee8363. What
differs from ours in substance: its squared ReLU carries a factor 1/2, which is folded into the matrix behind it (exact
in binary floating point), and a value table or gate without its partner has no effect, so it is left out.

Not covered: grouped-query attention, biases, query and key biases, soft-capped logits, a state wider than the model,
and initialisation schemes that scale embeddings or logits; each is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import GATE_CHANNELS, LoopedConfig
from .looped import LoopedTransformer, rope_table

_INJECTIONS = {"diagonal": "parcae", "linear": "concatenation", "add": "addition"}
_SHARED_STATES = ("like-init", "normal", "zero")
_MLPS = {("BaseMLP", "ReLU2"): "relu2", ("GatedMLP", "SiLU"): "swiglu"}
# Fields with one value that we can represent, and what the field is worth when a config leaves it out.
_REQUIRED: dict[str, tuple[Any, Any]] = {
    "norm_class_name": ("RMSNorm", "LayerNorm"),
    "block_class_name": ("TransformerPreNormBlock", "TransformerPreNormBlock"),
    "bias": (False, False),
    "qk_bias": (False, False),
    "clip_qkv": (None, None),
    "logit_softcap": (None, None),
    "mup_model_scaling_factor": (1, 1),
    "randomize_positions_from": (None, None),
}
_PLAIN_INITS = ("scaled", "scaled-zero", "scaled-geiping", "small", "normal", "bert", "mitchell")


def from_parcae_lm(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> LoopedTransformer:
    """Build our model with the weights of a ``parcae_lm`` Parcae.

    For the same tokens, depth and initial state its logits equal the original's to float32 round-off.

    Args:
        state_dict: Of the original model, wrappers' prefixes (``_orig_mod.``, ``module.``) allowed.
        config: Its configuration as a dictionary: fields of ``ParcaeConfig``, defaults may be missing.

    Returns:
        A model in evaluation mode, float32, on the CPU.

    Raises:
        ValueError: The configuration uses something we do not have (named), or the weights do not fit it.
    """
    weights = {_unwrapped(name): tensor.detach().float().cpu() for name, tensor in state_dict.items()}
    ours = LoopedTransformer(_our_config(weights, config))
    wanted = ours.state_dict()
    translated = {name: _theirs_to_ours(name, ours.config, weights) for name in wanted}
    for name, tensor in translated.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name}: expected shape {tuple(wanted[name].shape)}, found {tuple(tensor.shape)}")
    ours.load_state_dict(translated)
    return ours.eval()


def to_parcae_lm(model: LoopedTransformer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the reverse of `from_parcae_lm`.

    Args:
        model: A pre-norm model with a read-out whose value embeddings, if any, are where the original can have them.

    Returns:
        State dict (float32, on the CPU) and configuration for ``ParcaeConfig(**config)``.

    Raises:
        ValueError: The model has something the original cannot express (named).
    """
    ours = model.config
    _expect("norm", ours.norm, "pre")
    _expect("read_out", ours.read_out, True)
    theirs = _their_config(ours)
    possible = sorted(set(_their_tables(ours)) & set(_their_gates(ours)))
    if not set(ours.value_embeddings) <= set(possible):
        raise ValueError(
            f"value_embeddings: the original can have them in layers {possible}, found {ours.value_embeddings}"
        )
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        state.update(_ours_to_theirs(name, tensor, ours, weights))
    for layer in _their_tables(ours):
        state.setdefault(f"value_embeds.{layer}.weight", torch.zeros(ours.vocab_size, ours.width))
    for layer in _their_gates(ours):
        state.setdefault(f"{_block_name(layer, ours)}.attn.ve_gate.weight", torch.zeros(ours.heads, GATE_CHANNELS))
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    cosine, sine = rope_table(ours.max_length, ours.width // ours.heads, ours.rope_base)
    state["freqs_cis"] = torch.stack([cosine, sine], dim=-1)[None, :, None]
    return state, theirs


def from_pretrained(repository: str) -> LoopedTransformer:
    """Download a checkpoint of the authors from the Hugging Face hub and convert it.

    Args:
        repository: ``"SandyResearch/parcae-140m"``, ``-370m``, ``-770m`` or ``-1.3b``, or another with the same files.

    Raises:
        ModuleNotFoundError: ``huggingface_hub`` is not installed.
        OSError: The hub cannot be reached or does not have these files.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("from_pretrained needs huggingface_hub: pip install huggingface_hub") from error
    config = json.loads(Path(hf_hub_download(repository, "config.json")).read_text())
    try:
        path = hf_hub_download(repository, "pytorch_model.bin")
    except EntryNotFoundError:
        path = hf_hub_download(repository, "model.pt")
    return from_parcae_lm(torch.load(path, map_location="cpu", weights_only=True), config)


def _our_config(weights: Mapping[str, Tensor], theirs: Mapping[str, Any]) -> LoopedConfig:
    """Return our configuration of an original model; sizes are read from the weights themselves."""
    for name, (value, default) in _REQUIRED.items():
        _expect(name, theirs.get(name, default), value)
    if theirs.get("init_strategy", "scaled") not in _PLAIN_INITS:
        raise ValueError(f"init_strategy: expected one of {', '.join(_PLAIN_INITS)}, found {theirs['init_strategy']!r}")
    vocab, width = weights["transformer.wte.weight"].shape
    heads = int(theirs["num_attention_heads"])
    _expect("num_key_value_heads", theirs.get("num_key_value_heads") or heads, heads)
    _expect("recurrent_num_attention_heads", theirs.get("recurrent_num_attention_heads") or heads, heads)
    _expect("recurrent_embedding_dimension", weights["transformer.C.weight"].shape[1], width)
    mlp = (theirs.get("mlp_class_name", "BaseMLP"), theirs.get("nonlin_name", "GELU"))
    if mlp not in _MLPS:
        raise ValueError(f"mlp_class_name, nonlin_name: expected one of {sorted(_MLPS)}, found {mlp}")
    state = theirs.get("state_init", "like-init")
    if state not in _SHARED_STATES:
        raise ValueError(f"state_init: expected one of {', '.join(_SHARED_STATES)}, found {state!r}")
    rope = theirs.get("rope_settings") or {}
    rope = rope if isinstance(rope, Mapping) else vars(rope)
    _expect("rope_settings.use_rope", rope.get("use_rope", True), True)
    _expect("rope_settings.rope_condense_ratio", rope.get("rope_condense_ratio", 1), 1)
    sizes = {
        "prelude_layers": theirs.get("n_layers_in_prelude", 1),
        "core_layers": theirs.get("n_layers_in_recurrent_block", 4),
        "coda_layers": theirs.get("n_layers_in_coda", 1),
    }
    plain = LoopedConfig(
        vocab_size=vocab,
        width=width,
        heads=heads,
        **sizes,
        max_length=theirs.get("block_size", 4096),
        mlp=_MLPS[mlp],  # type: ignore[arg-type]  # the table holds our names
        mlp_width=weights["transformer.core_block.0.mlp.proj.weight"].shape[1],
        injection=_INJECTIONS[theirs.get("injection_type", "diagonal")],  # type: ignore[arg-type]
        norm_eps=theirs.get("norm_eps", 1e-5),
        prelude_norm=theirs.get("prelude_norm", False),
        read_out=True,
        qk_norm=theirs.get("qk_norm", False),
        tie_embeddings=theirs.get("tie_embeddings", False),
        rope_base=float(rope.get("rope_base", 50_000)),
        output_init="zero" if theirs.get("init_strategy") == "scaled-zero" else "scaled",
        state_init=state,
        mean_depth=theirs.get("mean_recurrence", 32),
        backward_depth=theirs.get("mean_backprop_depth", 8),
        depth_distribution="fixed" if theirs.get("sampling_scheme") == "fixed" else "poisson",
        depth_sampling="per-sequence" if theirs.get("recurrent_iteration_method") == "per-sequence" else "per-batch",
    )
    with_both = [
        layer
        for layer in range(plain.layers)
        if f"value_embeds.{layer}.weight" in weights and f"{_block_name(layer, plain)}.attn.ve_gate.weight" in weights
    ]
    return replace(plain, value_embeddings=tuple(with_both))


def _their_config(ours: LoopedConfig) -> dict[str, Any]:
    """Return the original's configuration of one of our models."""
    mlp_class, nonlinearity = next(key for key, value in _MLPS.items() if value == ours.mlp)
    return {
        "block_size": ours.max_length,
        "vocab_size": ours.vocab_size,
        "padded_vocab_size": ours.vocab_size,
        "n_embd": ours.width,
        "num_attention_heads": ours.heads,
        "num_key_value_heads": ours.heads,
        "intermediate_size": ours.mlp_width,
        "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": ours.rope_base},
        "bias": False,
        "tie_embeddings": ours.tie_embeddings,
        "block_class_name": "TransformerPreNormBlock",
        "norm_class_name": "RMSNorm",
        "norm_eps": ours.norm_eps,
        "mlp_class_name": mlp_class,
        "nonlin_name": nonlinearity,
        "qk_norm": ours.qk_norm,
        "prelude_norm": ours.prelude_norm,
        "init_strategy": "scaled-zero" if ours.output_init == "zero" else "scaled",
        "injection_type": next(key for key, value in _INJECTIONS.items() if value == ours.injection),
        "state_init": ours.state_init,
        "recurrent_embedding_dimension": ours.width,
        "recurrent_intermediation_embedding_dimension": ours.mlp_width,
        "n_layers_in_prelude": ours.prelude_layers,
        "n_layers_in_recurrent_block": ours.core_layers,
        "n_layers_in_coda": ours.coda_layers,
        "mean_recurrence": ours.mean_depth,
        "mean_backprop_depth": ours.backward_depth,
        "sampling_scheme": "fixed" if ours.depth_distribution == "fixed" else "poisson-truncated-full",
        "recurrent_iteration_method": ours.depth_sampling,
    }


_TOP = {
    "embedding.weight": "transformer.wte.weight",
    "prelude_norm.weight": "transformer.ln_prelude.weight",
    "injection.log_a": "transformer.adapter.A_log",
    "injection.dt_bias": "transformer.adapter.dt_bias",
    "injection.b": "transformer.adapter.B",
    "injection.adapter.weight": "transformer.adapter.adapter.weight",
    "read_out.weight": "transformer.C.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "head.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attention_norm.weight": "norm_1.weight",
    "attention.query.weight": "attn.c_q.weight",
    "attention.key.weight": "attn.c_k.weight",
    "attention.value.weight": "attn.c_v.weight",
    "attention.output.weight": "attn.c_proj.weight",
    "attention.gate.weight": "attn.ve_gate.weight",
    "mlp_norm.weight": "norm_2.weight",
    "mlp.gate.weight": "mlp.fc.weight",
    "mlp.up.weight": "mlp.fc.weight",
    "mlp.output.weight": "mlp.proj.weight",
}


def _their_name(name: str) -> str:
    """Return the original's name of one of our tensors."""
    if name in _TOP:
        return _TOP[name]
    part, index, rest = name.split(".", 2)
    if part == "value_tables":
        return f"value_embeds.{index}.{rest}"
    return f"transformer.{'core_block' if part == 'core' else part}.{index}.{_IN_BLOCK[rest]}"


def _theirs_to_ours(name: str, config: LoopedConfig, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor that goes under one of our names."""
    theirs = _their_name(name)
    if theirs not in weights:
        raise ValueError(f"state_dict: expected {theirs}, which is missing")
    tensor = weights[theirs]
    if config.mlp == "swiglu" and name.endswith(("mlp.gate.weight", "mlp.up.weight")):
        gate, up = tensor.chunk(2)
        return gate if name.endswith("gate.weight") else up
    return tensor / 2 if config.mlp == "relu2" and name.endswith("mlp.output.weight") else tensor


def _ours_to_theirs(
    name: str, tensor: Tensor, config: LoopedConfig, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what one of our tensors becomes in the original."""
    if config.mlp == "swiglu" and name.endswith("mlp.up.weight"):
        return {}  # goes with its gate
    if config.mlp == "swiglu" and name.endswith("mlp.gate.weight"):
        tensor = torch.cat([tensor, weights[name.replace("gate", "up")]])
    if config.mlp == "relu2" and name.endswith("mlp.output.weight"):
        tensor = tensor * 2
    return {_their_name(name): tensor}


def _their_tables(config: LoopedConfig) -> list[int]:
    """Return the layers for which the original makes a value table: every second one, ending with the last."""
    return [layer for layer in range(config.layers) if layer % 2 == (config.layers - 1) % 2]


def _their_gates(config: LoopedConfig) -> list[int]:
    """Return the layers whose attention has a gate in the original, which numbers the coda after the unrolled loop."""
    parity = (config.core_layers * config.backward_depth - 1) % 2
    core_end = config.prelude_layers + config.core_layers
    unrolled = config.core_layers * (config.mean_depth - 1)
    return [layer for layer in range(config.layers) if (layer + (unrolled if layer >= core_end else 0)) % 2 == parity]


def _block_name(layer: int, config: LoopedConfig) -> str:
    """Return the original's name of the block at a place counted through prelude, core and coda."""
    for part, count in (("prelude", config.prelude_layers), ("core_block", config.core_layers)):
        if layer < count:
            return f"transformer.{part}.{layer}"
        layer -= count
    return f"transformer.coda.{layer}"


def _unwrapped(name: str) -> str:
    """Return a tensor's name without the prefixes of compile and data-parallel wrappers."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _expect(name: str, actual: object, expected: object) -> None:
    """Refuse a field that has another value than the one we can represent."""
    if actual != expected:
        raise ValueError(f"{name}: expected {expected!r}, found {actual!r}")
