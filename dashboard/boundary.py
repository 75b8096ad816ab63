"""Where along one number an architecture begins to fail, and how sure that is.

At every value tried, the share of runs that fail gets the posterior that its seeds allow, Beta(k + ½, n − k + ½); each
draw is made monotone, since more of the number is taken to be no safer, and crosses one half somewhere. The middle of
those places is the boundary, and nine tenths of them are its interval.

Source: Lin and Dunson, Biometrika 101 (2014) 303-317, for drawing first and projecting on monotone functions then.

Not covered: failures that come back at higher values; the interval widens there, and the boundary lies between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS: Final = 400
INTERVAL: Final = (0.05, 0.95)
FEWEST: Final = 2
"""Runs that an architecture needs, one that fails and one that does not."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where one architecture begins to fail.

    Attributes:
        architecture: Its name.
        at: The value at which half of the runs fail; infinite where that is beyond what was tried.
        low: Lower end of the interval; minus infinite where it is below what was tried.
        high: Its upper end; infinite where it is beyond what was tried.
        runs: How many runs it rests on.
        values: How many different values were tried.
        stable: The largest value tried at which no run fails; NaN where there is none.
        unstable: The smallest value tried at which a run fails.
        lowest: The smallest value tried.
        highest: The largest value tried.
    """

    architecture: str
    at: float
    low: float
    high: float
    runs: int
    values: int
    stable: float
    unstable: float
    lowest: float
    highest: float

    @property
    def band(self) -> tuple[float, float]:
        """The interval as far as values were tried: what a map can draw and a sentence can name."""
        low = self.low if math.isfinite(self.low) else self.lowest
        return low, self.high if math.isfinite(self.high) else self.highest


def boundary(architecture: str, values: Iterable[float], failed: Iterable[bool], *, log: bool) -> Boundary | None:
    """Return where an architecture begins to fail; None where no run fails, or all do, or one value was tried only.

    Args:
        architecture: Its name.
        values: The number of every run, finite.
        failed: Whether the run failed.
        log: Whether places between two values are on a logarithmic scale; all values must be positive then.

    >>> found = boundary("a", [0.1] * 9 + [0.4] * 9, [False] * 9 + [True] * 9, log=True)
    >>> round(found.at, 2), 0.1 <= found.low < found.at < found.high <= 0.4
    (0.2, True)
    """
    x, bad = np.array(list(values), np.float64), np.array(list(failed), bool)
    levels, which = np.unique(x, return_inverse=True)
    if len(levels) < FEWEST or bad.all() or not bad.any():
        return None
    counts = np.bincount(which).astype(np.float64)
    fails = np.bincount(which, weights=bad)
    rng = np.random.default_rng(0)  # the same runs have the same interval
    places = np.log(levels) if log else levels
    drawn = rng.beta(fails + 0.5, counts - fails + 0.5, size=(DRAWS, len(levels)))
    crossed = np.array([_crossing(places, monotone(share, counts)) for share in drawn])
    at, low, high = (float(np.quantile(crossed, q, method="nearest")) for q in (0.5, *INTERVAL))
    scale = math.exp if log else float
    at, low, high = (scale(one) if math.isfinite(one) else one for one in (at, low, high))
    sound = levels[fails == 0]
    stable = float(sound[-1]) if len(sound) else math.nan
    ends = float(levels[0]), float(levels[-1])
    return Boundary(architecture, at, low, high, len(x), len(levels), stable, float(levels[fails > 0][0]), *ends)


def monotone(shares: Floats, weights: Floats) -> Floats:
    """Return the non-decreasing numbers nearest to some: weighted least squares, by pooling neighbours that fall.

    >>> monotone(np.array([0.1, 0.5, 0.3, 0.9]), np.ones(4)).tolist()
    [0.1, 0.4, 0.4, 0.9]
    """
    blocks: list[tuple[float, float, int]] = []
    for share, weight in zip(shares.tolist(), weights.tolist(), strict=True):
        block = (share, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            before = blocks.pop()
            total = before[1] + block[1]
            block = ((before[0] * before[1] + block[0] * block[1]) / total, total, before[2] + block[2])
        blocks.append(block)
    return np.repeat([share for share, _, _ in blocks], [count for _, _, count in blocks])


def _crossing(places: Floats, shares: Floats) -> float:
    """Return where shares that do not fall pass one half; infinite where they do not within the places."""
    above = np.flatnonzero(shares >= 0.5)
    if not len(above):
        return math.inf
    first = int(above[0])
    if first == 0:
        return -math.inf
    left, right = shares[first - 1], shares[first]
    return float(places[first - 1] + (places[first] - places[first - 1]) * (0.5 - left) / (right - left))


def boundaries(architectures: Sequence[str], values: Sequence[float], failed: Sequence[bool]) -> list[Boundary]:
    """Return the boundary of every architecture that has one; on a logarithmic scale where all values are positive.

    Args:
        architectures: Of every run.
        values: Of every run.
        failed: Of every run.
    """
    log = all(value > 0 for value in values)
    fitted = []
    for name in dict.fromkeys(architectures):
        own = [i for i, one in enumerate(architectures) if one == name]
        one = boundary(name, [values[i] for i in own], [failed[i] for i in own], log=log)
        if one is not None:
            fitted.append(one)
    return sorted(fitted, key=lambda one: one.architecture)
