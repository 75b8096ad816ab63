"""Steps of a run: the recorded one nearest to another, and the range there is."""

import numpy as np

from ..runfile.reader import Run


def resolve(run: Run, selected: float | None) -> float | None:
    """Return the recorded step nearest to the selected one, the newest when none is selected, None without rows."""
    steps = run["step"]
    if len(steps) == 0:
        return None
    if selected is None:
        return float(steps[-1])
    after = int(np.clip(np.searchsorted(steps, selected), 0, len(steps) - 1))
    before = max(after - 1, 0)
    return float(steps[before if selected - steps[before] < steps[after] - selected else after])


def bounds(run: Run) -> tuple[int, int]:
    """Return the first and the newest step; a run without rows has step 0 only."""
    steps = run["step"]
    return (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
