"""What a run was started with, read out of an `info` that anybody may have written.

A run of loopscope's own training says its configuration under known names; a foreign one under names of its own, of
which the usual ones are understood. Nothing here fails on a malformed `info`: what cannot be read is left out.

Not covered: what the run did (`tracks`, `story`).
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from ..runfile.nested import flat
from .text import shown, size

ENTRIES_LIMIT: Final = 2000
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "injection": ("injection", "injection_type"),
    "norm": ("norm", "norm_placement"),
    "width": ("width", "d_model", "hidden_size", "n_embd", "dim"),
    "lr": ("lr", "learning_rate", "max_lr"),
    "seed": ("seed",),
    "mean_depth": ("mean_depth", "mean_recurrence", "num_loops"),
    "steps": ("steps", "max_steps"),
    "optimizer": ("optimizer",),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What tells runs apart; None where the run does not say.

    Attributes:
        injection: ``addition``, ``concatenation``, ``parcae``, or a word of somebody else.
        norm: ``pre`` or ``sandwich``.
        width: Width of the state.
        lr: Peak learning rate.
        seed: Of weights, data and depths.
        mean_depth: μ_rec.
        steps: How many it was started for.
        parameters: How many the model has.
        started: Seconds since 1970.
        model: Name of the model's class.
    """

    injection: str | None = None
    norm: str | None = None
    width: float | None = None
    lr: float | None = None
    seed: float | None = None
    mean_depth: float | None = None
    steps: float | None = None
    parameters: float | None = None
    started: float | None = None
    model: str | None = None

    def chips(self) -> list[str]:
        """Return what tells this run apart in a few words.

        >>> Settings(injection="parcae", lr=0.05, width=32, parameters=42_240).chips()
        ['parcae', 'width 32', 'lr 0.05', '42.2k parameters']
        """
        words = [
            self.injection,
            f"{self.norm} norm" if self.norm else None,
            f"width {self.width:g}" if self.width is not None else None,
            f"lr {self.lr:g}" if self.lr is not None else None,
            f"μ_rec {self.mean_depth:g}" if self.mean_depth is not None else None,
            f"seed {self.seed:g}" if self.seed is not None else None,
            f"{size(self.parameters)} parameters" if self.parameters is not None else None,
        ]
        return [word for word in words if word]


def settings_of(info: Mapping[str, Any]) -> Settings:
    """Read the settings out of a run's `info`.

    >>> settings_of({"config": {"train": {"lr": 0.1}, "d_model": 64}, "parameters": "many"})
    Settings(injection=None, norm=None, width=64.0, lr=0.1, seed=None, mean_depth=None, steps=None, parameters=None, \
started=None, model=None)
    """
    config = info.get("config")
    known = {name.rpartition(".")[2]: value for name, value in reversed(list(flat(config)))}

    def first(name: str) -> Any:
        return next((known[alias] for alias in _ALIASES[name] if alias in known), None)

    return Settings(
        injection=_word(first("injection")),
        norm=_word(first("norm")),
        width=_number(first("width")),
        lr=_number(first("lr")),
        seed=_number(first("seed")),
        mean_depth=_number(first("mean_depth")),
        steps=_number(first("steps")),
        parameters=_number(info.get("parameters")),
        started=_number(info.get("started")),
        model=_word(info.get("model")),
    )


def _word(value: Any) -> str | None:
    """Return a short text, None for anything else."""
    return shown(value, 40) if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def table(info: Mapping[str, Any]) -> dict[str, str]:
    """Return every setting of a run as text, by its dotted name.

    >>> table({"config": {"lr": 0.1, "model": {"injection": "parcae"}}, "torch": "2.13"})
    {'config.lr': '0.1', 'config.model.injection': 'parcae', 'torch': '2.13'}
    """
    entries: dict[str, str] = {}
    for name, value in flat(dict(info)):
        if len(entries) >= ENTRIES_LIMIT:
            break
        if name == "started" and (moment := _number(value)) is not None and 0 <= moment < 4e9:
            value = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
        elif isinstance(value, list) and len(value) > 8:
            value = f"{len(value)} entries: {', '.join(map(str, value[:4]))}, …"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        entries[shown(name, 120)] = shown(value, 400) or "none"
    return entries


def command(info: Mapping[str, Any], *, resume: bool) -> str:
    """Return the command that the run was started with, ready for a shell; empty where it is not known.

    Args:
        info: What the run says.
        resume: Whether the command should go on with the run, as far as that is known to be possible.

    >>> command({"command": ["/usr/bin/loopscope", "train", "--out", "my runs/a.h5"]}, resume=True)
    "loopscope train --out 'my runs/a.h5' --resume"
    """
    words = info.get("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return ""
    words = [PurePath(words[0]).name, *words[1:]]
    if resume and words[:2] == ["loopscope", "train"]:
        words = [word for word in words if word not in ("--resume", "--overwrite")] + ["--resume"]
    return shown(shlex.join(words), 1000)
