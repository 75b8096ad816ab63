"""Looped language models, their data and their training. Networks import nothing else of this project.

    config.py       every choice that defines a model
    looped.py       the model, one file to read top to bottom
    presets.py      the paper's models by name, and their training recipes
    parcae_lm.py    weights of the authors' implementation, in and out
    data.py         text as numbered batches; the standard library's source
    documents.py    texts from files and from the hub
    tokenizer.py    a byte-pair tokenizer
    packed.py       tokenised text in a file, packed into sequences
    train.py        the training loop, which knows an observer and no probe
    train_config.py every choice that defines a training run
    run_config.py   a run described in TOML
    optimizers.py   parameter groups and schedules
    muon.py         orthogonalised momentum
    distributed.py  several processes: DDP and FSDP2
    checkpoint.py   atomic checkpoints
    depth.py        held-out loss against the number of loops
    flops.py        training compute and utilisation

Names resolve on first use, so that importing this package costs nothing. The function `train` stays in its module of
the same name: ``from loopscope.models.train import train``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load_model
    from .config import LoopedConfig
    from .data import ByteText, Data, standard_library
    from .depth import loss_at_depths
    from .documents import read_documents, stream_documents
    from .looped import LoopedTransformer
    from .packed import PackedText, tokenize, write_corpus
    from .parcae_lm import from_parcae_lm, from_pretrained, to_parcae_lm
    from .presets import PRESETS, build, recipe
    from .run_config import RunConfig, load_run_config
    from .tokenizer import TextTokenizer, train_tokenizer
    from .train import NullObserver, Observer, Progress, TrainResult
    from .train_config import TrainConfig

_EXPORTS = {
    "load_model": "checkpoint",
    "LoopedConfig": "config",
    "ByteText": "data",
    "Data": "data",
    "standard_library": "data",
    "loss_at_depths": "depth",
    "read_documents": "documents",
    "stream_documents": "documents",
    "LoopedTransformer": "looped",
    "PackedText": "packed",
    "tokenize": "packed",
    "write_corpus": "packed",
    "from_parcae_lm": "parcae_lm",
    "from_pretrained": "parcae_lm",
    "to_parcae_lm": "parcae_lm",
    "PRESETS": "presets",
    "build": "presets",
    "recipe": "presets",
    "RunConfig": "run_config",
    "load_run_config": "run_config",
    "TextTokenizer": "tokenizer",
    "train_tokenizer": "tokenizer",
    "NullObserver": "train",
    "Observer": "train",
    "Progress": "train",
    "TrainConfig": "train_config",
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
    "PackedText",
    "Progress",
    "RunConfig",
    "TextTokenizer",
    "TrainConfig",
    "TrainResult",
    "build",
    "from_parcae_lm",
    "from_pretrained",
    "load_model",
    "load_run_config",
    "loss_at_depths",
    "read_documents",
    "recipe",
    "standard_library",
    "stream_documents",
    "to_parcae_lm",
    "tokenize",
    "train_tokenizer",
    "write_corpus",
]


def __getattr__(name: str) -> Any:
    """Imports the module that holds ``name`` when it is first asked for."""
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
