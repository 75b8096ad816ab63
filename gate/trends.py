"""The main series of every run as sparklines, for reports that show them.

They are drawn only where a report wants them: the verdict of a finished run may come from an earlier check, without
a look at its series.

Not covered: pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import RunFileError
from ..runfile.open import open_run
from ..runfile.until import until
from .formats import Format
from .result import GateResult
from .sparkline import sparkline

SERIES: Final = ("loss", "a_bar_radius", "last_state_norm")
DECADES: Final = 3
DRAWN: Final[frozenset[Format]] = frozenset({"markdown", "github"})


def with_trends(result: GateResult) -> GateResult:
    """Return the result with the sparklines of every run that can be read."""
    return replace(result, runs=[replace(run, trends=_of_run(run.path, result.at_step)) for run in result.runs])


def _line(values: NDArray[np.float64]) -> str:
    """Return a series as a sparkline with its first and last number: each line has a scale of its own.

    What spans more than `DECADES` is drawn by its logarithm, or growth over the whole run would look like one peak.

    >>> _line(np.array([0.5, 1.0, 2.0])), _line(np.array([1.0, 1e3, 1e6]))
    ('▁▃█ 0.5 → 2', '▁▅█ 1 → 1e+06 (log scale)')
    """
    drawn, scale = sparkline(values), ""
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 10.0**DECADES * finite.min():
        drawn, scale = sparkline(np.log(np.maximum(values, finite.min()))), " (log scale)"
    given = values[~np.isnan(values)]
    return f"{drawn} {given[0]:.3g} → {given[-1]:.3g}{scale}" if len(given) else drawn


def _of_run(path: Path, at_step: int | None) -> Mapping[str, str]:
    """Return the sparklines of a run; none where it cannot be read, which its verdict says."""
    try:
        with open_run(path) as opened:
            run = opened if at_step is None else until(opened, at_step)
            return {name: _line(run[name]) for name in SERIES if name in run}
    except RunFileError:
        return {}
