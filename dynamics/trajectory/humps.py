"""Growing steps that may be no more than a hump of a long transient.

Steps that fall by powers of ten, rise a little and fall again are common where several directions decay, and a loop
that settles was called an explosion on the way up. Growth is believed where it has gone far, or where the state grows
by it.

Not covered: a hump higher than that.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FALLEN: Final = 5.0
"""Factor by which the largest step is above the last one, for the steps to have fallen far."""
RISEN: Final = 10.0
"""Factor from the smallest step to the last one from which on growth behind a fall is believed."""
PART_OF_STATE: Final = 0.1
"""Part of the state that the growing steps must have made before they are believed without having risen as far."""
LONGEST: Final = 8
"""How many times the loops run are looked ahead."""


def humps(residual: Floats, state: Floats, grows: Bools, rate: Floats) -> tuple[Bools, NDArray[np.int64]]:
    """Return which rows of growing steps may be humps, and about how many more loops would tell.

    Steps that grow by a factor r have made r / (r - 1) times the last of them.

    Args:
        residual: ``(N, T)``.
        state: ``(N, T + 1)``.
        grows: ``(N,)``, rows whose late steps grow, of known states.
        rate: ``(N,)``, by which factor per loop.

    >>> steps = np.array([[2.0, 0.1, 0.002, 0.001, 0.0011, 0.0012]])
    >>> doubt, more = humps(steps, np.ones((1, 7)), np.array([True]), np.array([1.1]))
    >>> bool(doubt[0]), bool(0 < more[0] < 100)
    (True, True)
    """
    last, factor = residual[:, -1], np.maximum(rate, 1 + 1e-9)
    fell = (residual.max(axis=1) > FALLEN * last) & (last < RISEN * residual.min(axis=1))
    made = last * factor / (factor - 1)
    doubt = grows & fell & (made < PART_OF_STATE * state[:, -1])
    lacking = np.where(doubt, np.log(state[:, -1] / made) / np.log(factor), 0.0)
    return doubt, np.minimum(np.ceil(lacking), LONGEST * residual.shape[1]).astype(np.int64)
