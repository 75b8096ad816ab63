"""A training run described in a TOML file: which model, which text, which optimizer.

    preset = "demo"
    seed = 0

    [model]                        # fields of LoopedConfig that differ from the preset
    injection = "concatenation"

    [data]
    source = "standard-library"    # or a folder written by `loopscope tokenize`, or files to be read as bytes
    sequence_length = 32

    [train]                        # fields of TrainConfig that differ from the preset's recipe
    lr = 0.05
    steps = 200

Not covered: what happens around a run (where it is recorded, which device it runs on); those are flags.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import torch

from .config import LoopedConfig
from .data import ByteText, Data, standard_library
from .documents import read_documents
from .looped import LoopedTransformer
from .packed import PackedText
from .presets import preset, recipe
from .train_config import TrainConfig

LARGEST: Final = 1 << 20  # bytes of a configuration

STANDARD_LIBRARY = "standard-library"
_TABLES = ("model", "data", "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which text a run reads.

    Args:
        source: ``"standard-library"``, a folder written by `write_corpus`, or a file or folder whose texts are read as
            bytes.
        sequence_length: Positions of a training sequence; 0 means the longest the model can take.
    """

    source: str = STANDARD_LIBRARY
    sequence_length: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.sequence_length < 0:
            raise ValueError(f"sequence_length: expected at least 0, found {self.sequence_length}")


DATA_FIELDS = tuple(each.name for each in fields(DataConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run: a preset, what differs from it, the text, and the seed of weights, text order and draws.

    What was asked for is in the fields; what it comes to, defaults included, is resolved once, when the run is built:
    ``looped``, ``data_config()`` and ``train_config()``.

    Args:
        preset: Name of the model.
        seed: Of everything random.
        model: Fields of `LoopedConfig` that differ from the preset.
        data: Fields of `DataConfig`.
        train: Fields of `TrainConfig` that differ from the preset's recipe.

    Raises:
        ValueError: A field that does not exist or is out of range; the message names it.

    >>> run = RunConfig(train={"lr": 0.05}).updated(model={"injection": "addition"})
    >>> run.train_config().lr, run.build_model().config.injection
    (0.05, 'addition')
    """

    preset: str = "demo"
    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    looped: LoopedConfig = field(init=False, repr=False, compare=False)
    _train: TrainConfig = field(init=False, repr=False, compare=False)
    _data: DataConfig = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Resolve every part, so that a mistake shows before anything runs."""
        if unknown := [name for name in self.data if name not in DATA_FIELDS]:
            raise ValueError(f"{unknown[0]}: not a field of [data]; it has {', '.join(DATA_FIELDS)}")
        object.__setattr__(self, "looped", preset(self.preset, **self.model))
        object.__setattr__(self, "_train", recipe(self.preset, **{"seed": self.seed, **self.train}))
        object.__setattr__(self, "_data", DataConfig(**self.data))

    def train_config(self) -> TrainConfig:
        """Return the preset's recipe with this run's changes."""
        return self._train

    def data_config(self) -> DataConfig:
        """Return the text with this run's changes."""
        return self._data

    def build_model(self) -> LoopedTransformer:
        """Build the model with weights drawn from the run's seed, on the current default device; seeds torch."""
        torch.manual_seed(self.seed)
        return LoopedTransformer(self.looped)

    def open_data(self) -> Data:
        """Open the text, ready for batches.

        Raises:
            ValueError: Nothing readable at the source, too little text, or more token kinds than the model has.
        """
        source, longest, most = self._data.source, self.looped.max_length, self.looped.vocab_size
        length = self._data.sequence_length or longest
        if length > longest:
            raise ValueError(f"sequence_length: expected at most the model's max_length = {longest}, found {length}")
        data = _open(source, length, self.seed)
        if data.vocab_size > most:
            raise ValueError(
                f"vocab_size: {source} has {data.vocab_size} tokens, the model {most}; "
                f"override the model's vocab_size or use a smaller tokenizer"
            )
        return data

    def updated(self, **changes: Any) -> RunConfig:
        """Return a copy with some fields replaced, as flags do with a file; tables are merged key by key."""
        merged: dict[str, Any] = {name: {**getattr(self, name), **changes.pop(name, {})} for name in _TABLES}
        return replace(self, **merged, **changes)

    def describe(self) -> dict[str, object]:
        """Return everything, defaults included, as plain values for the run file."""
        parts = {"model": asdict(self.looped), "data": asdict(self._data), "train": asdict(self._train)}
        return {"preset": self.preset, "seed": self.seed, **parts}


def load_run_config(path: str | os.PathLike[str]) -> RunConfig:
    """Read a run's TOML file.

    Args:
        path: The file.

    Raises:
        ValueError: Not TOML, an unknown key or table, or a value out of range; the message names file and key.
        OSError: The file cannot be read.
    """
    read = read_toml(path)
    try:
        for name, value in read.items():
            if name not in ("preset", "seed", *_TABLES):
                raise ValueError(
                    f"{name}: not a key of a run; it has preset, seed, {', '.join(f'[{t}]' for t in _TABLES)}"
                )
            if name in _TABLES and not isinstance(value, dict):
                raise ValueError(f"{name}: expected a table [{name}], found {value!r}")
        return RunConfig(**read)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file of the user's, of limited size and depth.

    Raises:
        ValueError: It is no TOML; the message names the file.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path}: larger than {LARGEST >> 20} MiB; this is no configuration")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as TOML: {error}") from error


def _open(source: str, sequence_length: int, seed: int) -> Data:
    """Open the text of a source."""
    if source == STANDARD_LIBRARY:
        return standard_library(sequence_length=sequence_length, seed=seed)
    if (Path(source) / "corpus.json").exists():
        return PackedText(source, sequence_length=sequence_length, seed=seed)
    documents = (text.encode() for text in read_documents(source))
    return ByteText(documents, sequence_length=sequence_length, seed=seed, source=source)
