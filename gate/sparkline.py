"""A series as a line of block letters, for a report that has no pictures.

Not covered: axes; the words beside a sparkline say what it is of.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

BLOCKS: Final = "▁▂▃▄▅▆▇█"
BROKEN: Final = "×"  # a number that is not finite
MISSING: Final = " "


def sparkline(values: ArrayLike, width: int = 32) -> str:
    """Draw a series in at most ``width`` letters; each stands for the largest value of its stretch.

    Args:
        values: ``(N,)``; NaN is drawn as a gap, infinity as a cross.
        width: Letters.

    >>> sparkline([0.0, 1.0, 2.0, 7.0]), sparkline([1.0, np.inf, np.nan, 3.0]), sparkline([])
    ('▁▂▃█', '▁× █', '')
    """
    series = np.asarray(values, np.float64)
    if not series.size:
        return ""
    parts = np.array_split(series, min(width, series.size))
    tops = np.array([np.nanmax(part) if not np.isnan(part).all() else np.nan for part in parts])
    finite = tops[np.isfinite(tops)]
    if not finite.size:
        return "".join(MISSING if np.isnan(top) else BROKEN for top in tops)
    low, span = float(finite.min()), float(np.ptp(finite)) or 1.0
    return "".join(
        MISSING if np.isnan(top) else BROKEN if np.isinf(top) else BLOCKS[round((float(top) - low) / span * 7)]
        for top in tops
    )
