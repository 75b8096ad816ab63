"""The paper's models by name, and the training recipe that goes with each."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from .config import LoopedConfig
from .looped import LoopedTransformer
from .train import TrainConfig

# The small setting in which the instability shows within seconds: the widths of a toy, the structure of the real one.
_DEMO = LoopedConfig(
    vocab_size=256,
    width=32,
    heads=2,
    mlp_width=64,
    max_length=32,
    mean_depth=8,
    backward_depth=4,
    prelude_norm=True,
    read_out=True,
)

PRESETS: dict[str, LoopedConfig] = {"demo": _DEMO}


def recipe(name: str, **overrides: Any) -> TrainConfig:
    """The training run that goes with a preset.

    Args:
        name: A key of `PRESETS`.
        overrides: Fields of `TrainConfig` that replace the recipe's.

    >>> recipe("demo", lr=0.05).warmup_steps
    10
    """
    return replace(TrainConfig(), **overrides)


def build(name: str, **overrides: Any) -> LoopedTransformer:
    """Builds a model by name, on the current default device (``torch.device("meta")`` included).

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
    """The configuration behind `build`."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    unknown = sorted(set(overrides) - set(asdict(PRESETS[name])))
    if unknown:
        raise ValueError(f"{unknown[0]}: not a field of LoopedConfig; it has {', '.join(asdict(PRESETS[name]))}")
    return replace(PRESETS[name], **overrides)
