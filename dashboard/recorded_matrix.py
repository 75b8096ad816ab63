"""A̅ of a run at a step, to go on from in the explorer.

Where the matrix itself was not recorded, a normal matrix with its recorded eigenvalues stands for it; the page says so.

Not covered: what is done with it (`explorer`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import A_BAR
from .opened import OpenRun

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RecordedMatrix:
    """A̅ ``(d, d)`` or ``(d,)``, the step it is of, and what has to be known about it."""

    values: Floats
    step: int
    words: str


def recorded_matrix(held: OpenRun, at: str, widest: int) -> RecordedMatrix | None:
    """Return the last A̅ that was recorded at or before a step; None where there is none.

    Args:
        held: The run.
        at: The step as text; anything else than a number is the newest.
        widest: Eigenvalues that a stand-in may have.
    """
    step = float(at) if at.isdecimal() and len(at) < 18 else math.inf
    known = held.array_at(A_BAR, step)
    if known is not None and known[1].ndim in (1, 2) and np.isfinite(known[1]).all():
        where = f"A̅ as recorded at step {known[0]:,.0f}"
        return RecordedMatrix(known[1].astype(np.float64), int(known[0]), f"{where}, width {len(known[1])}.")
    steps, spectra = held.spectra()
    row = int(np.searchsorted(steps, step, side="right")) - 1
    if row < 0:
        return None
    eigenvalues = spectra[row][np.isfinite(spectra[row])][:widest]
    if not eigenvalues.size:
        return None
    words = (
        f"A̅ itself was not recorded at step {int(steps[row]):,}: a normal matrix with its {eigenvalues.size} leading "
        "eigenvalues stands for it, so growth that passes is not shown."
    )
    return RecordedMatrix(normal_matrix(eigenvalues), int(steps[row]), words)


def normal_matrix(eigenvalues: NDArray[np.complex128]) -> Floats:
    """Return a real normal matrix with some eigenvalues; of a complex one, its conjugate is added where it is missing.

    >>> normal_matrix(np.array([0.5 + 0.5j, 0.5 - 0.5j, -0.2])).tolist()
    [[0.5, 0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, -0.2]]
    """
    blocks: list[Floats] = []
    for value in eigenvalues:
        if abs(value.imag) <= 1e-12 * abs(value):
            blocks.append(np.array([[value.real]]))
        elif value.imag > 0 or not np.isclose(eigenvalues, value.conjugate()).any():
            turn = abs(value.imag)
            blocks.append(np.array([[value.real, turn], [-turn, value.real]]))
    matrix = np.zeros((sum(map(len, blocks)),) * 2)
    start = 0
    for block in blocks:
        matrix[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return matrix
