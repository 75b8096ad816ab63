"""A number together with what is known about it.

Not covered: statistical uncertainty of measured averages; ``lower`` and ``upper`` enclose, they are no confidence
interval.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated quantity with its enclosure, its residual, and how it was obtained.

    ``lower <= exact <= upper`` is meant to hold whatever the method did, so the bounds are wide where nothing sharper
    is known (a Ritz value of a non-normal matrix proves little) and NaN where the value itself is missing.
    ``converged`` says whether the method met its own tolerance: an unconverged value is recorded as such and never
    passes for a measurement.

    Attributes:
        value: Best value, in the unit of the quantity; NaN when there is none.
        lower: Lower bound of the exact quantity.
        upper: Upper bound of the exact quantity.
        residual: Size of what the method left unexplained, relative to the matrix norm (a backward error); NaN if it
            has none.
        method: How the value was obtained, in words.
        converged: Whether the method reached its own tolerance.

    Source: the habit of returning failure as a named value; backward error in the sense of Wilkinson.

    >>> radius = Estimate(0.447, 0.446, 0.448, 0.0, "exact", True)
    >>> float(radius), str(radius)
    (0.447, '0.447 [0.446, 0.448] (exact)')
    """

    value: float
    lower: float
    upper: float
    residual: float
    method: str
    converged: bool

    @classmethod
    def exact(cls, value: float, method: str) -> "Estimate":
        """Wrap a number known exactly, up to the rounding of the number itself."""
        return cls(value, value, value, 0.0, method, True)

    @classmethod
    def missing(cls, method: str) -> "Estimate":
        """Stand for a number that could not be computed; ``method`` says why."""
        return cls(math.nan, math.nan, math.nan, math.nan, method, False)

    def __float__(self) -> float:
        """Return the value alone."""
        return self.value

    def __str__(self) -> str:
        """Show value, bounds, method and a warning when the method did not converge."""
        status = self.method if self.converged else f"{self.method}, not converged"
        return f"{self.value:.4g} [{self.lower:.4g}, {self.upper:.4g}] ({status})"
