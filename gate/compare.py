"""Which of several runs is the odd one, and in what: each run's levels against those of all the others.

Runs are compared at the last step that all of them have. A run is odd in a quantity where its level lies outside of
what the others lead one to expect of one more run (`levels.expected`). Of two runs nobody can say which is the odd one;
the report says that they differ.

Not covered: why. What the configurations of the runs differ in is listed beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..rules.findings import Finding
from ..runfile.nested import flat
from ..runfile.reader import Run
from .levels import BY_NAME, expected, levels

ODD_RUN: Final = "LS093"
MOST_DIFFERENCES: Final = 20  # settings listed


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of all runs.

    Attributes:
        name: Of the quantity.
        values: Of each run; NaN where it was not recorded.
        scores: How far each lies from what the others lead one to expect, in tolerances: above 1 is odd.
    """

    name: str
    values: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        runs: Their paths.
        step: The step at which they are compared.
        rows: One for each quantity that two runs or more have.
        odd: The runs that are odd in something, the oddest first, each with the names of what.
        settings: Settings in which they differ, with the value of each run.
    """

    runs: tuple[Path, ...]
    step: int
    rows: tuple[Row, ...]
    odd: tuple[tuple[int, tuple[str, ...]], ...]
    settings: Mapping[str, tuple[str, ...]]

    @property
    def sentence(self) -> str:
        """Which run is the odd one, in what, in one line."""
        if len(self.runs) < 2:
            return "There is only one run that can be compared."
        if len(self.runs) == 2:
            names = [row.name for row in self.rows if max(map(abs, row.scores)) > 1]
            said = f"differ in {', '.join(names)}" if names else "are alike"
            return f"At step {self.step} the two runs {said}; of two runs nobody can say which is the odd one."
        if not self.odd:
            return f"At step {self.step} the {len(self.runs)} runs are alike in all that was compared."
        run, quantities = self.odd[0]
        more = len(self.odd) - 1
        others = f"; {more} more {'is' if more == 1 else 'are'} odd, too" if more else ""
        return f"At step {self.step} {self.runs[run]} is the odd one, in {', '.join(quantities)}{others}."

    def findings(self, run: int) -> list[Finding]:
        """Return what there is to tell of one run: that it is odd, and in what."""
        if len(self.runs) < 3:
            return []
        rows = {row.name: row for row in self.rows}
        told = []
        for _, quantities in (each for each in self.odd if each[0] == run):
            worst = max(quantities, key=lambda name: abs(rows[name].scores[run]))
            said = "; ".join(
                f"{name} = {rows[name].values[run]:.4g}, {_others(rows[name], run)}" for name in quantities
            )
            told.append(Finding(ODD_RUN, "odd-run", "warning", self.step, self.step, rows[worst].values[run],
                                _middle(rows[worst], run), f"unlike the {len(self.runs) - 1} others: {said}",
                                "compare its settings, its data and its machine with the others'", 1))  # fmt: skip
        return told

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON; what is not finite is null."""
        return {
            "step": self.step,
            "sentence": self.sentence,
            "odd": [{"path": str(self.runs[run]), "quantities": list(names)} for run, names in self.odd],
            "quantities": [
                {
                    "name": row.name,
                    "values": [_finite(v) for v in row.values],
                    "scores": [_finite(v) for v in row.scores],
                }
                for row in self.rows
            ],
            "settings": {name: list(values) for name, values in self.settings.items()},
        }


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side.

    Args:
        runs: Opened runs, each with at least one step.
    """
    step = min((int(run["step"][-1]) for run in runs), default=0)
    of_each = [levels(run, step) for run in runs]
    rows = [
        _row(name, [own.get(name, math.nan) for own in of_each])
        for name in BY_NAME
        if sum(name in own for own in of_each) > 1
    ]
    odd = {}
    for number in range(len(runs)):
        names = [row.name for row in rows if abs(row.scores[number]) > 1]
        if names:
            odd[number] = tuple(names)
    by_oddness = sorted(odd, key=lambda n: -max(abs(row.scores[n]) for row in rows if abs(row.scores[n]) > 1))
    return Comparison(tuple(run.path for run in runs), step, tuple(rows), tuple((n, odd[n]) for n in by_oddness),
                      _different(runs))  # fmt: skip


def _row(name: str, values: Sequence[float]) -> Row:
    """Return a quantity with each run's score against the others."""
    scores = []
    for number, value in enumerate(values):
        others = [each for at, each in enumerate(values) if at != number and math.isfinite(each)]
        if math.isnan(value):
            scores.append(math.nan)
        elif not others:
            scores.append(0.0 if math.isinf(value) else math.nan)  # all the others are not finite either, or not there
        else:
            scores.append(expected(BY_NAME[name], others).score(value))
    return Row(name, tuple(values), tuple(0.0 if math.isnan(score) else score for score in scores))


def _different(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Return the settings in which the runs that have any differ."""
    settings = [{name: str(value)[:80] for name, value in flat(run.info.get("config"))} for run in runs]
    names = sorted({name for each in settings for name in each})
    rows = {name: tuple(each.get(name, "") for each in settings) for name in names}
    known = [number for number, each in enumerate(settings) if each]
    differ = [name for name, values in rows.items() if len({values[number] for number in known}) > 1]
    return {name: rows[name] for name in differ[:MOST_DIFFERENCES]}


def _middle(row: Row, run: int) -> float:
    """Return the median of the others' levels."""
    others = sorted(v for number, v in enumerate(row.values) if number != run and math.isfinite(v))
    return others[len(others) // 2] if others else math.nan


def _others(row: Row, run: int) -> str:
    """Return where the others are."""
    others = [v for number, v in enumerate(row.values) if number != run and math.isfinite(v)]
    return f"the others {min(others):.4g} to {max(others):.4g}" if others else "not finite in the others"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
