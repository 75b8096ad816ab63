"""A log as columns: which of its names is the loss, and one row for each step.

Logs name the same number in many ways; `ALIASES` has the usual ones. A log that has no loss under a known name, or two
that could be it with equal right, is refused with what it has. Records of one step that follow each other are one row:
trainers log evaluation, rate and loss separately. A log that goes back some steps was resumed from there; what came
after that step before does not count.

Not covered: other columns than these; what the numbers mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..layout import LARGEST_STEP, RunFileError
from ..source import State
from ..text import plain

LARGEST: Final = 256 << 20  # bytes of a log
MOST_ROWS: Final = 1_000_000
MOST_NAMES: Final = 10_000
"""Different names in a log; each gradient's histogram can have one."""

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "step": ("step", "global_step", "_step", "iteration", "iter", "steps", "update", "num_updates", "batch"),
    "loss": ("loss", "train_loss", "training_loss", "loss/train", "loss/train/total", "lm_loss", "crossentropyloss",
             "train/crossentropyloss", "loss_train", "total_loss", "nll_loss"),
    "grad_norm": ("grad_norm", "gradient_norm", "global_grad_norm", "gnorm", "total_grad_norm", "optim/total_grad_norm",
                  "l2_norm/grad/global", "grad_norm/total", "gradnorm", "norm"),
    "lr": ("lr", "learning_rate", "optim/learning_rate_group0", "lr_adamw", "lr_adam", "lr_sgd", "lr/adamw", "lr_0",
           "lr_decoupledadamw/group0", "optim/lr"),
    "tokens": ("tokens", "tokens_seen", "total_tokens", "num_input_tokens_seen", "throughput/total_tokens"),
    "time": ("time", "_timestamp", "timestamp", "wall_time"),
}  # fmt: skip
"""The names that a column of ours goes by elsewhere, the likeliest first, as `normal` gives them."""
COLUMNS: Final = tuple(ALIASES)
_HELD_OUT: Final = re.compile(r"(^|[/_.])(val|valid|validation|eval|test|dev)([/_.]|$)")
"""Names of what was measured on other data than that of training."""
_PREFIX: Final = re.compile(r"^(train(ing)?|metrics?|trainer)[/._](?=.)")


class LogError(RunFileError):
    """A log cannot be read; the message names the file, the line, and what to do."""


class NoLoss(LogError):
    """A log has no loss under a known name: it may be no log of a training at all."""


class Record(NamedTuple):
    """Some numbers of a log, and where they stand."""

    where: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LogTable:
    """A log as columns.

    Attributes:
        kind: What it is, for a person.
        columns: `COLUMNS` but for those it does not have, each ``(rows,)``; NaN where nothing was logged.
        nonfinite: ``(rows,)``, how many logged numbers were NaN or infinite.
        names: The names that the columns have in the log.
        config: Settings, where the log has them.
        state: How the run ended, as far as the log says.
        reason: Why it was interrupted.
    """

    kind: str
    columns: Mapping[str, NDArray[np.float64]]
    nonfinite: NDArray[np.float64]
    names: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    state: State = "finished"
    reason: str = ""


def normal(name: str) -> str:
    """Return a name as `ALIASES` spells it.

    >>> normal("train/Learning Rate"), normal("lr-AdamW"), normal("Loss/train")
    ('learning_rate', 'lr_adamw', 'loss/train')
    """
    lower = re.sub(r"[\s-]+", "_", name.strip().lower())
    return _PREFIX.sub("", lower)


def _is_whole(names: Sequence[str], last: str) -> bool:
    """Return whether one of some names is all that it says, and not the end of a longer one."""
    return any(normal(name) == last for name in names)


def choose(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return which names of a log are which column of ours.

    Raises:
        NoLoss: There is no loss.
        LogError: Two could be it with equal right.
    """
    spelt: dict[str, list[str]] = {}
    known = list(dict.fromkeys(names))
    for name in known:
        spelt.setdefault(normal(name), []).append(name)
    for name in known:  # opt/grad_norm, where nothing is called grad_norm alone
        last = normal(name).rpartition("/")[2]
        if last != normal(name) and not _HELD_OUT.search(name.lower()) and not _is_whole(spelt.get(last, ()), last):
            spelt.setdefault(last, []).append(name)
    chosen = {}
    for column, aliases in ALIASES.items():
        alias = next((alias for alias in aliases if alias in spelt), None)
        if alias is None:
            continue
        if len(spelt[alias]) > 1:
            exact = [name for name in spelt[alias] if name == alias]
            if not exact and column not in ("loss", "step"):
                continue  # the rate of which group? nobody can say, and the loss can be judged without
            if not exact:
                both = " and ".join(plain(name[:60]) for name in spelt[alias][:3])
                raise LogError(f"{plain(path)}: {both} could both be the {column}; rename one of them")
            spelt[alias] = exact
        chosen[column] = spelt[alias][0]
    if "loss" not in chosen:
        has = ", ".join(plain(name[:60]) for name in known[:12]) or "nothing"
        more = f" and {len(known) - 12} more" if len(known) > 12 else ""
        raise NoLoss(f"{plain(path)}: no loss under a known name; it has {has}{more}; name one of them loss")
    return chosen


def table(
    path: Path,
    kind: str,
    records: Iterable[Record],
    names: Mapping[str, str],
    *,
    config: Mapping[str, Any] | None = None,
    state: State = "finished",
    reason: str = "",
) -> LogTable:
    """Return records as columns.

    Args:
        path: The log.
        kind: What it is.
        records: In the order of the log, by the names of the log.
        names: As `choose` gives them; without a step, records are counted.
        config: Settings of the run.
        state: How the run ended, as far as the log says.
        reason: Why it was interrupted.

    Raises:
        LogError: A step is no whole number, there are too many rows, or none with a loss.
    """
    rows = _standing(list(_rows(path, records, names)))
    if not rows:
        raise LogError(f"{plain(path)}: no row of it has a loss")
    given = [column for column in COLUMNS if column in names or column == "step"]
    columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in given}
    odd = np.array([sum(not math.isfinite(value) for value in row.values()) for row in rows], dtype=np.float64)
    return LogTable(kind, columns, odd, dict(names), dict(config or {}), state, reason)


def _rows(path: Path, records: Iterable[Record], names: Mapping[str, str]) -> Iterator[dict[str, float]]:
    """Yield one row for each step: records of one step that follow each other are put together."""
    row: dict[str, float] = {}
    count = 0
    for record in records:
        given = {column: record.values[name] for column, name in names.items() if name in record.values}
        if "step" in names and "step" not in given:
            continue  # of no step: a summary at the end, a line about the machine
        step = _step(record.where, given["step"]) if "step" in names else float(count)
        if row and row["step"] != step:
            yield row
            row = {}
        count += 1
        if count > MOST_ROWS:
            raise LogError(f"{plain(path)}: more than {MOST_ROWS:,} records; log more rarely, or cut the file")
        row = {**row, **given, "step": step}
    if row:
        yield row


def _step(where: str, value: float) -> float:
    """Return a step, once it is certain that it is one."""
    if not (math.isfinite(value) and value == int(value) and 0 <= value < LARGEST_STEP):
        raise LogError(f"{where}: step = {value:g} is no whole number from 0 on")
    return value


def _standing(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return the rows that no later one takes back, of those that have more to tell than their step."""
    telling = [row for row in rows if row.keys() & {"loss", "grad_norm", "lr"}]
    if not any("loss" in row for row in telling):
        return []
    standing: list[dict[str, float]] = []
    for row in telling:
        while standing and standing[-1]["step"] >= row["step"]:
            before = standing.pop()
            if before["step"] == row["step"]:
                row = {**before, **row}
        standing.append(row)
    return standing


def number(where: str, name: str, text: str) -> float | None:
    """Return a number of a text log; None where nothing was logged.

    Raises:
        LogError: The text is no number.

    >>> number("a.csv:2", "loss", " 1e-3 "), number("a.csv:2", "loss", "NaN"), number("a.csv:2", "loss", "")
    (0.001, nan, None)
    """
    shown = text.strip()
    if shown.lower() in ("", "none", "null", "-"):
        return None
    try:
        if "_" in shown:  # Python reads 1_000 as a number, which no log means
            raise ValueError
        return float(shown)
    except ValueError:
        raise LogError(f"{where}: {plain(name[:60])} = {plain(repr(shown[:40]))} is no number") from None


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a file of limited size.

    Raises:
        LogError: It cannot be read, is no file, or is larger.
    """
    try:
        if not path.is_file():
            raise LogError(f"{plain(path)}: no such file; expected a log, check the path")
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise LogError(f"{plain(path)}: cannot be read: {error.strerror}") from None
    if len(content) > largest:
        raise LogError(f"{plain(path)}: larger than {largest >> 20} MiB; log more rarely, or cut the file")
    if content.count(b"\n") > 2 * MOST_ROWS:
        raise LogError(f"{plain(path)}: more than {2 * MOST_ROWS:,} lines; log more rarely, or cut the file")
    return content
