"""What a run has come to: one number for each quantity, and how far healthy runs of one configuration lie apart.

A level is the median over the last quarter of a run's steps, at least `FEWEST` of them. Quantities that range over
orders of magnitude are compared by their logarithm. How far runs lie apart is estimated from few runs, so that the
estimate leans on what is usual (`Quantity.spread`) as on `USUAL_RUNS` further runs: three seeds alone say next to
nothing of a spread, and a check that believed them would fail on the fourth.

Not covered: what the numbers mean (`rules`), whether one run is a copy of another.

Source of the interval: prediction interval of Student's t; Gelman et al., Bayesian Data Analysis (2013), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..runfile.reader import Run

FEWEST: Final = 20  # steps of which a level is the median, where the run has them
USUAL_RUNS: Final = 8  # runs that the usual spread counts for
CONFIDENCE: Final = 0.9995
"""One-sided; over ten quantities a sound run is then outside in one check of two hundred."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is compared between runs.

    Attributes:
        name: Series of the run file.
        spread: Usual standard deviation between runs that differ by their seed: of the number, of its logarithm, or as
            a part of it.
        scale: ``absolute``, ``relative`` or ``log``.
    """

    name: str
    spread: float
    scale: str


QUANTITIES: Final = (
    Quantity("loss", 0.03, "relative"),
    Quantity("grad_norm", 0.25, "log"),
    Quantity("a_bar_radius", 0.052, "absolute"),
    Quantity("residual_ratio", 0.059, "absolute"),
    Quantity("growth_ratio", 0.03, "absolute"),
    Quantity("last_state_norm", 0.47, "log"),
    Quantity("last_residual_norm", 0.81, "log"),
    Quantity("jacobian_radius", 0.05, "absolute"),
    Quantity("lyapunov_max", 0.058, "absolute"),
    Quantity("c_out_gain", 0.25, "log"),
)
"""What is compared, with what is taken as usual between seeds: what was measured, or what was set by hand where the
measured was less; `docs/gate.md` has both."""
BY_NAME: Final = {quantity.name: quantity for quantity in QUANTITIES}


def levels(run: Run, until: int | None = None) -> dict[str, float]:
    """Return the level of every quantity that a run has recorded.

    Args:
        run: An opened run.
        until: Last step that counts; by default the last one.

    Returns:
        By name; infinite where most of the recorded values are not finite. What was not recorded is left out.
    """
    steps = run["step"]
    last = float(steps[-1]) if until is None and len(steps) else float(until or 0)
    within = np.flatnonzero(steps <= last)
    if not len(within):
        return {}
    first = float(steps[within[-max(FEWEST, len(within) // 4) :][0]])
    known = {quantity.name: _level(run, quantity.name, first, last) for quantity in QUANTITIES}
    return {name: value for name, value in known.items() if not math.isnan(value)}


def _level(run: Run, name: str, first: float, last: float) -> float:
    """Return the level of a series, NaN where it was not recorded; of one recorded rarely, its last value counts."""
    if name not in run.names:
        return math.nan
    steps, values = run.series(name)
    before = np.flatnonzero(steps <= last)
    if not len(before):
        return math.nan
    recent = values[before][steps[before] >= first]
    return float(np.median(recent if len(recent) else values[before[-1:]]))


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the level of one more run is expected.

    Attributes:
        quantity: Of what.
        centre: The expected level.
        tolerance: How far from it a level may lie, in the units of the quantity's scale.
        runs: Of how many runs it was learned.
    """

    quantity: Quantity
    centre: float
    tolerance: float
    runs: int

    @property
    def low(self) -> float:
        """The lowest level that is expected."""
        return self._at(-self.tolerance)

    @property
    def high(self) -> float:
        """The highest level that is expected."""
        return self._at(self.tolerance)

    def score(self, value: float) -> float:
        """Return how far a level lies from the expected one, in tolerances; above 1 is outside, infinite not finite.

        >>> round(expected(Quantity("loss", 0.03, "relative"), [2.0, 2.0, 2.0]).score(2.6), 1)
        2.1
        """
        if not math.isfinite(value):
            return math.inf
        if self.quantity.scale == "log":
            distance = math.log(max(value, 1e-300)) - math.log(max(self.centre, 1e-300))
        else:
            distance = value - self.centre
        return distance / self.tolerance

    def _at(self, distance: float) -> float:
        if self.quantity.scale == "log":
            return self.centre * math.exp(min(distance, 700.0))
        return self.centre + distance


def expected(quantity: Quantity, values: Sequence[float]) -> Spread:
    """Return where one more run's level is expected, from those of some runs; what is not finite is left out.

    Args:
        quantity: Of what.
        values: ``(n,)``, n >= 1.

    Raises:
        ValueError: None of them is finite.
    """
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        raise ValueError(f"{quantity.name} is not finite in any of the runs")
    logs = quantity.scale == "log"
    given = np.log(np.maximum(finite, 1e-300)) if logs else finite
    centre = float(np.median(given))
    usual = quantity.spread * (abs(centre) if quantity.scale == "relative" else 1.0)
    usual = max(usual, float(np.finfo(np.float64).tiny))
    measured = 1.4826 * float(np.median(np.abs(given - centre))) if len(given) > 1 else 0.0
    freedom = USUAL_RUNS + len(given) - 1
    variance = (USUAL_RUNS * usual**2 + (len(given) - 1) * measured**2) / freedom
    tolerance = student_quantile(CONFIDENCE, freedom) * math.sqrt(variance * (1 + 1 / len(given)))
    return Spread(quantity, math.exp(centre) if logs else centre, tolerance, len(given))


def student_quantile(part: float, freedom: int) -> float:
    """Return the quantile of Student's t, to 0.1 % from 8 degrees of freedom on; the gate runs without scipy.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.5.

    >>> round(student_quantile(0.975, 10), 3)
    2.228
    """
    from statistics import NormalDist  # only where runs are compared: a check of one run starts without it

    z = NormalDist().inv_cdf(part)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))
