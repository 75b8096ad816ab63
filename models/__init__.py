"""Looped language models, their data and their training. Networks import nothing else of this project.

    config.py      every choice that defines a model
    looped.py      the model, one file to read top to bottom
    presets.py     the paper's models by name
    parcae_lm.py   weights of the authors' implementation, in and out
    data.py        real text as batches
    train.py       the training loop, which knows an observer and no probe
    optimizers.py  parameter groups and schedules
    checkpoint.py  atomic checkpoints

Names resolve on first use, so that importing this package costs nothing. The function `train` stays in its module of
the same name: ``from loopscope.models.train import train``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import LoopedConfig
    from .data import ByteText, Data, standard_library
    from .looped import LoopedTransformer
    from .parcae_lm import from_parcae_lm, from_pretrained, to_parcae_lm
    from .presets import PRESETS, build, recipe
    from .train import NullObserver, Observer, Progress, TrainConfig, TrainResult

_EXPORTS = {
    "ByteText": "data",
    "Data": "data",
    "standard_library": "data",
    "LoopedConfig": "config",
    "LoopedTransformer": "looped",
    "from_parcae_lm": "parcae_lm",
    "from_pretrained": "parcae_lm",
    "to_parcae_lm": "parcae_lm",
    "PRESETS": "presets",
    "build": "presets",
    "recipe": "presets",
    "NullObserver": "train",
    "Observer": "train",
    "Progress": "train",
    "TrainConfig": "train",
    "TrainResult": "train",
}

__all__ = [
    "PRESETS",
    "ByteText",
    "Data",
    "LoopedConfig",
    "LoopedTransformer",
    "NullObserver",
    "Observer",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "build",
    "from_parcae_lm",
    "from_pretrained",
    "recipe",
    "standard_library",
    "to_parcae_lm",
]


def __getattr__(name: str) -> Any:
    """Imports the module that holds ``name`` when it is first asked for."""
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
