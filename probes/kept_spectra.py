"""What is kept of A̅ itself: its eigenvalues where they are due, and the whole of a small one at few steps.

Not covered: its radius and its norm, which every row has (`recorder`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import A_BAR
from ..runfile.writer import RunWriter

EIGENVALUES_KEPT: Final = 64
MATRIX_WIDTH: Final = 64  # up to it A̅ itself is kept: to look at it, and to go on from it, without the training
MATRIX_LATER: Final = 1.1  # each of the steps at which it is kept is so many times the one before


class KeptSpectra:
    """Writes eigenvalues, and at steps that get rarer the matrix they are of."""

    def __init__(self) -> None:
        self._due = -math.inf

    def write(
        self, writer: RunWriter, step: int, a_bar: NDArray[np.generic], eigenvalues: NDArray[np.complex128]
    ) -> None:
        """Write what is kept of a step at which eigenvalues are due."""
        writer.append_spectrum(step, eigenvalues[:EIGENVALUES_KEPT])
        if a_bar.ndim and a_bar.shape[-1] <= MATRIX_WIDTH and step >= self._due:
            self._due = max(step + 1.0, MATRIX_LATER * step)
            writer.append_array(step, A_BAR, a_bar.astype(np.float32))
