"""The paper's models by name, and the training recipe that goes with each."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .config import LoopedConfig
from .looped import LoopedTransformer
from .train_config import TrainConfig

# The Parcae paper's set-up for language models at scale; a preset adds blocks, width and heads.
_PARCAE = {
    "vocab_size": 32_768,
    "max_length": 2048,
    "mlp": "relu2",
    "injection": "parcae",
    "prelude_norm": True,
    "read_out": True,
    "qk_norm": True,
    "output_init": "zero",
    "mean_depth": 8,
    "backward_depth": 4,
    "depth_sampling": "per-sequence",
}
# A model of fixed depth is one loop from the zero state: 0 + e is the input of the core blocks, nothing else is added.
_FIXED_DEPTH = {
    **_PARCAE,
    "injection": "addition",
    "prelude_norm": False,
    "read_out": False,
    "state_init": "zero",
    "mean_depth": 1,
    "backward_depth": 1,
    "depth_distribution": "fixed",
    "depth_sampling": "per-batch",
}
_SIZES = {"140m": (2, 768), "370m": (4, 1024), "770m": (6, 1280), "1.3b": (8, 1536)}  # blocks per part, width

# The set-up of recurrent-depth models. The paper gives no number of heads; a head is as wide as in the other set-up.
_RDM: dict[str, Any] = {"vocab_size": 65_536, "max_length": 2048, "mlp": "swiglu"}
_RDM_SIZES: dict[str, dict[str, Any]] = {
    "100m": {"width": 1024, "heads": 8, "mlp_width": 3520, "mean_depth": 16, "backward_depth": 8},
    "350m": {"width": 2048, "heads": 16, "mlp_width": 7040, "core_layers": 2, "mean_depth": 8, "backward_depth": 4},
}
_RDM_KINDS: dict[str, dict[str, Any]] = {
    "rdm": {"injection": "concatenation", "norm": "sandwich"},
    "addition": {"injection": "addition", "norm": "sandwich"},
    "parcae": {"injection": "parcae", "norm": "pre", "depth_sampling": "per-sequence"},
}

# Toys with every option of the real ones, for tests and first steps.
_TINY: dict[str, Any] = {"vocab_size": 256, "width": 64, "heads": 2, "mlp_width": 128, "max_length": 64}


def _equal_parts(setup: dict[str, Any], blocks: int, width: int) -> LoopedConfig:
    """As many blocks in prelude, core and coda, and value embeddings in every second layer up to the last."""
    parts = {"prelude_layers": blocks, "core_layers": blocks, "coda_layers": blocks}
    tables = tuple(layer for layer in range(3 * blocks) if layer % 2 == (3 * blocks - 1) % 2)
    sizes = {"width": width, "heads": width // 128, "mlp_width": 4 * width, "value_embeddings": tables}
    return LoopedConfig(**{**setup, **parts, **sizes})


PRESETS: dict[str, LoopedConfig] = {
    # The small setting in which the instability shows within seconds: a toy's widths, the structure of the real one.
    "demo": LoopedConfig(
        vocab_size=256, width=32, heads=2, mlp_width=64, max_length=32, prelude_norm=True, read_out=True
    ),
    **{f"parcae-{size}": _equal_parts(_PARCAE, *shape) for size, shape in _SIZES.items()},
    **{f"transformer-{size}": _equal_parts(_FIXED_DEPTH, *shape) for size, shape in _SIZES.items()},
    **{
        f"{kind}-{size}": LoopedConfig(**{**_RDM, **shape, **options})
        for size, shape in _RDM_SIZES.items()
        for kind, options in _RDM_KINDS.items()
    },
    "parcae-tiny": replace(_equal_parts(_PARCAE, 2, 128), **_TINY),
    "transformer-tiny": replace(_equal_parts(_FIXED_DEPTH, 2, 128), **_TINY),
    "rdm-tiny": LoopedConfig(**{**_RDM, **_RDM_KINDS["rdm"], **_TINY}),
    "addition-tiny": LoopedConfig(**{**_RDM, **_RDM_KINDS["addition"], **_TINY}),
}


_BATCH = 32  # sequences in a micro-batch; with accumulation 8 the paper's 256 sequences on one device


def recipe(name: str, **overrides: Any) -> TrainConfig:
    """Return the training run that goes with a preset: the paper's optimizer and schedule for its models.

    Steps and micro-batch size are not part of a recipe: override them for your budget and device.

    Args:
        name: A key of `PRESETS`.
        overrides: Fields of `TrainConfig` that replace the recipe's.

    Raises:
        ValueError: No such preset, or a field that does not exist or is out of range.

    >>> recipe("demo", lr=0.05).warmup_steps
    10
    >>> recipe("parcae-1.3b").optimizer, recipe("parcae-1.3b").lr
    ('muon', 0.006)
    """
    config = preset(name)
    chosen: dict[str, Any] = {}
    if config.vocab_size == _PARCAE["vocab_size"]:
        chosen = {
            "optimizer": "muon",
            "lr": 6e-3 if config.width >= 1280 else 8e-3,
            "betas": (0.8, 0.95),
            "eps": 1e-10,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "cooldown": 0.5,
        }
    elif config.vocab_size == _RDM["vocab_size"]:
        steps = overrides.get("steps", 40_960)
        chosen = {"lr": 4e-4, "steps": steps, "warmup_steps": 4096, "cooldown": min(1.0, 4096 / steps)}
    if chosen:
        chosen |= {"batch_size": _BATCH, "accumulation": 8, "precision": "bf16", "compile": True}
    _known(TrainConfig, overrides)
    return TrainConfig(**{**chosen, **overrides})


def build(name: str, **overrides: Any) -> LoopedTransformer:
    """Build a model by name, on the current default device (``torch.device("meta")`` included).

    Args:
        name: A key of `PRESETS`.
        overrides: Fields of `LoopedConfig` that replace the preset's.

    Raises:
        ValueError: No such preset, or a field that does not exist or is out of range.

    >>> build("demo", injection="concatenation").injection.a_bar().shape
    torch.Size([32, 32])
    """
    return LoopedTransformer(preset(name, **overrides))


def preset(name: str, **overrides: Any) -> LoopedConfig:
    """Return the configuration behind `build`."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    _known(LoopedConfig, overrides)
    return replace(PRESETS[name], **overrides)


def _known(kind: type[LoopedConfig] | type[TrainConfig], given: dict[str, Any]) -> None:
    """Refuse a keyword that is not a field, naming the fields there are."""
    names = [field.name for field in fields(kind)]
    for name in given:
        if name not in names:
            raise ValueError(f"{name}: not a field of {kind.__name__}; it has {', '.join(names)}")
