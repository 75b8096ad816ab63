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
DRAWN: Final[frozenset[Format]] = frozenset({"markdown", "github"})


def with_trends(result: GateResult) -> GateResult:
    """Return the result with the sparklines of every run that can be read."""
    return replace(result, runs=[replace(run, trends=_of_run(run.path, result.at_step)) for run in result.runs])


def _line(values: NDArray[np.float64]) -> str:
    """Return a series as a sparkline with its first and last number: each line has a scale of its own.

    >>> _line(np.array([0.5, 1.0, 2.0]))
    '▁▃█ 0.5 → 2'
    """
    drawn = sparkline(values)
    given = values[~np.isnan(values)]
    return f"{drawn} {given[0]:.3g} → {given[-1]:.3g}" if len(given) else drawn


def _of_run(path: Path, at_step: int | None) -> Mapping[str, str]:
    """Return the sparklines of a run; none where it cannot be read, which its verdict says."""
    try:
        with open_run(path) as opened:
            run = opened if at_step is None else until(opened, at_step)
            return {name: _line(run[name]) for name in SERIES if name in run}
    except RunFileError:
        return {}
