"""A committed baseline: where the levels of runs of one configuration lie, and whether a new run has left them.

The file is JSON that people read in a diff. For each configuration it holds the runs that it was learned from, with
their levels, and the limits that follow (`levels.expected`); a new run is compared with the limits. Only what is higher
than its upper limit is a regression: all quantities here are worse when they are larger. What is below its lower limit
is noted, so that the baseline can follow. A run whose configuration is not in the file, or that has not recorded what
the baseline has, was not compared: that is evidence which is missing, never a pass.

Not covered: how fast training is; a CI machine's speed is nobody's baseline.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..rules.completeness import gap
from ..rules.findings import Finding, Judgement
from ..runfile.layout import RunFileError
from ..runfile.open import open_run
from ..runfile.reader import Run
from ..runfile.text import plain
from .levels import BY_NAME, Spread, expected, levels
from .settings import configuration_of

FORMAT: Final = "loopscope-baseline"
VERSION: Final = 1
LARGEST: Final = 4 << 20  # bytes
SAME_LENGTH: Final = 0.05  # part of the steps by which runs of one configuration may differ
REGRESSION, IMPROVED, NOT_COMPARED = "LS091", "LS092", "LS094"


class BaselineError(ValueError):
    """A baseline file is not valid; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The limits of one quantity.

    Attributes:
        expected: The level that is expected.
        low: Below it a run has become better.
        high: Above it a run has become worse.
    """

    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One configuration of a baseline.

    Attributes:
        configuration: What its runs have in common.
        steps: How many steps they have.
        runs: Each run's path, commit and levels.
        limits: By quantity.
    """

    configuration: Mapping[str, Any]
    steps: int
    runs: Sequence[Mapping[str, Any]]
    limits: Mapping[str, Limit]

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as the file holds it."""
        limits = {name: {"expected": _short(limit.expected), "low": _short(limit.low), "high": _short(limit.high)}
                  for name, limit in self.limits.items()}  # fmt: skip
        return {"configuration": dict(self.configuration), "steps": self.steps, "limits": limits,
                "runs": [dict(run) for run in self.runs]}  # fmt: skip


class Baseline:
    """A baseline file.

    Args:
        path: The file.
        entries: Its configurations.
    """

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self.path = path
        self.entries = list(entries)

    def findings(self, run: Run) -> list[Finding]:
        """Return where a run has left the limits of its configuration, or why it was not compared."""
        step = int(run["step"][-1]) if len(run) else 0
        entry = self._entry_of(run)
        if entry is None:
            said = (f"{self.path.name} has no configuration like this run's ({len(self.entries)} others), "
                    f"with {len(run)} steps")  # fmt: skip
            return [gap(NOT_COMPARED, "not-in-baseline", said, "learn it with --update-baseline", step)]
        measured = levels(run)
        told = []
        for name, limit in entry.limits.items():
            if name not in measured:
                said = f"{name} is in the baseline and was not recorded in this run"
                told.append(gap(NOT_COMPARED, "not-recorded", said, "record it, or learn the baseline again", step))
            elif not measured[name] <= limit.high:
                told.append(_finding(REGRESSION, "baseline-regression", name, measured[name], limit.high, limit, step))
            elif measured[name] < limit.low:
                told.append(_finding(IMPROVED, "baseline-improved", name, measured[name], limit.low, limit, step))
        return told

    def judgement(self, run: Run) -> Judgement | None:
        """Return what a run was compared in; None where it was not compared."""
        entry = self._entry_of(run)
        if entry is None:
            return None
        count = f"{len(entry.runs)} run{'' if len(entry.runs) == 1 else 's'}"
        said = f"{', '.join(entry.limits)}: against {count} of {self.path.name}"
        return Judgement(REGRESSION, "baseline-regression", "error", "judged", len(run), said)

    def learn(self, runs: Sequence[Run], commit: str) -> list[Entry]:
        """Take runs in, in the place of earlier ones of the same configurations, and return what was learned.

        Args:
            runs: Opened runs.
            commit: The commit that is checked out; empty where it is not known.
        """
        groups: list[list[Run]] = []
        for run in runs:
            group = next(
                (group for group in groups if _same(configuration_of(group[0].info), len(group[0]), run)), None
            )
            groups.append([run]) if group is None else group.append(run)
        learned = [_learned(group, commit) for group in groups]
        new = [run for group in groups for run in group[:1]]
        kept = [each for each in self.entries if not any(_same(each.configuration, each.steps, run) for run in new)]
        self.entries = kept + learned
        return learned

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        whole = {"format": FORMAT, "version": VERSION, "configurations": [entry.as_dict() for entry in self.entries]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self.path)

    def _entry_of(self, run: Run) -> Entry | None:
        return next((each for each in self.entries if _same(each.configuration, each.steps, run)), None)


def read_baseline(path: Path, *, must_exist: bool = True) -> Baseline:
    """Read a baseline file.

    Args:
        path: The file.
        must_exist: Whether a file that is not there is an error, or an empty baseline.

    Raises:
        BaselineError: It cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        if not must_exist:
            return Baseline(path, [])
        raise BaselineError(f"{plain(path)}: no such baseline; make it with --update-baseline") from None
    except OSError as error:
        raise BaselineError(f"{plain(path)}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise BaselineError(f"{plain(path)}: larger than {LARGEST} bytes; this is no baseline")
    try:
        whole = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"{plain(path)}: no JSON: {plain(error)}") from None
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise BaselineError(f'{plain(path)}: no baseline; it begins with "format": "{FORMAT}"')
    if whole.get("version") != VERSION:
        raise BaselineError(
            f"{plain(path)}: version {plain(whole.get('version'))} is not known; this loopscope reads 1"
        )
    entries = whole.get("configurations")
    if not isinstance(entries, list):
        raise BaselineError(f"{plain(path)}: 'configurations' must be a list")
    return Baseline(path, [_entry(path, number, each) for number, each in enumerate(entries)])


def update(path: Path, runs: Sequence[Path], commit: str) -> str:
    """Learn a baseline from runs and write it; return what was learned, for a person.

    Raises:
        BaselineError: The file that is there is none, or a run cannot be learned from.
        OSError: It cannot be written.
    """
    baseline = read_baseline(path, must_exist=False)
    opened: list[Run] = []
    try:
        opened.extend(open_run(each) for each in runs)
        learned = baseline.learn(opened, commit)
    except RunFileError as error:
        raise BaselineError(str(error)) from None
    finally:
        for run in opened:
            run.close()
    baseline.write()
    counts = ", ".join(f"{len(e.runs)} run{'s' if len(e.runs) > 1 else ''} of {e.steps} steps" for e in learned)
    alone = any(len(entry.runs) == 1 for entry in learned)
    advice = "; one run says little of what seeds do, learn from three or more" if alone else ""
    return f"{path}: learned {counts or 'nothing'}{advice}"


def _learned(runs: Sequence[Run], commit: str) -> Entry:
    """Return the entry of runs of one configuration."""
    of_each = [levels(run) for run in runs]
    names = [name for name in BY_NAME if all(math.isfinite(own.get(name, math.nan)) for own in of_each)]
    limits = {name: _limit(expected(BY_NAME[name], [own[name] for own in of_each])) for name in names}
    said = [
        {"path": run.path.as_posix(), "commit": str(run.info.get("commit") or commit)[:64],
         "levels": {name: _short(own[name]) for name in names}}
        for run, own in zip(runs, of_each, strict=True)
    ]  # fmt: skip
    return Entry(configuration_of(runs[0].info), len(runs[0]), said, limits)


def _limit(spread: Spread) -> Limit:
    return Limit(spread.centre, spread.low, spread.high)


def _finding(rule: str, kind: str, name: str, value: float, threshold: float, limit: Limit, step: int) -> Finding:
    """Return that a level has left its limits."""
    worse = rule == REGRESSION
    side = "above" if worse else "below"
    said = f"{name} = {value:.4g} at the end, {side} {threshold:.4g}; the baseline is {limit.expected:.4g}"
    remedy = (
        "find the change that did it; where it is meant, learn the baseline again with --update-baseline"
        if worse
        else "where it is meant, learn the baseline again with --update-baseline, so that it cannot be lost again"
    )
    return Finding(rule, kind, "error" if worse else "note", step, step, value, threshold, said, remedy, 1)


def _same(configuration: Mapping[str, Any], steps: int, run: Run) -> bool:
    """Return whether a run has a configuration, and about as many steps: some rows may have been dropped."""
    return abs(len(run) - steps) <= SAME_LENGTH * steps and dict(configuration) == configuration_of(run.info)


def _entry(path: Path, number: int, given: object) -> Entry:
    """Return one configuration of a file, every field checked."""
    where = f"{plain(path)}: configuration {number + 1}"
    if not isinstance(given, dict):
        raise BaselineError(f"{where}: must be an object")
    configuration, steps, runs, limits = (given.get(k) for k in ("configuration", "steps", "runs", "limits"))
    if not isinstance(configuration, dict) or not isinstance(runs, list) or not isinstance(limits, dict):
        raise BaselineError(f"{where}: must have configuration, runs and limits")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise BaselineError(f"{where}: 'steps' must be a whole number above 0")
    if not limits:
        raise BaselineError(f"{where}: has no limits, so that it would let everything pass")
    checked = {}
    for name, limit in limits.items():
        if name not in BY_NAME:
            raise BaselineError(f"{where}: unknown quantity {plain(name[:60])}; known: {', '.join(BY_NAME)}")
        numbers = [limit.get(key) for key in ("expected", "low", "high")] if isinstance(limit, dict) else [None]
        if not all(_is_number(n) for n in numbers):
            raise BaselineError(f"{where}: {name}: must have the numbers expected, low and high")
        checked[name] = Limit(*(float(n) for n in numbers if n is not None))
    return Entry(configuration, steps, [run for run in runs if isinstance(run, dict)], checked)


def _is_number(value: object) -> bool:
    """Return whether a value of JSON is a number that float64 can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _short(value: float) -> float:
    """Return a number to six digits, which is what a diff should show."""
    return float(f"{value:.6g}")
