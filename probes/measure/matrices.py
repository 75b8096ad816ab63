"""The matrices of the loop's linear part, read as the next forward will use them.

Read before the forward, on the training thread, and copied: whatever training does to the parameters afterwards, the
row of a step holds the matrices of that step. Solving them is the recorder's work.

Not covered: whether a matrix is what the loop applies; `acting` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

from ...loops.site import LoopSite
from ..schedule import every, matrix_interval
from .group import Together
from .sharded import gathered, is_spread

STEPS_PER_NORM: Final = 10  # ‖B̅e‖, σ_max(B̅) and σ_max(C_out) move slowly and cost a pass or more each
BYTES_UNDER_WAY: Final = 64 << 20  # of dense A̅ on their way to the file before one is left out

MatrixName = Literal["a_bar", "b_bar", "c_out"]


class MatrixReader:
    """Reads A̅, B̅ and C_out of one loop when they are due.

    A dense A̅ is copied to the host in every step (1024 wide: 4 MB, about 0.2 ms of the stream on CUDA, a few
    milliseconds on the CPU) and tracked there by the recorder's thread. Tracking on the device would cost the
    training thread some hundred small kernels and a wait for each. Where the recorder is behind, or the matrix is
    sharded and each reading a collective, A̅ is read when it is due only.

    Args:
        site: Where the loop is.
        together: Asked before a sharded matrix is read.
    """

    def __init__(self, site: LoopSite, together: Together) -> None:
        self._together = together
        self.use(site)

    def use(self, site: LoopSite) -> None:
        """Read the matrices of this site from now on."""
        self._reads: dict[MatrixName, Callable[[], Tensor] | None] = {
            "a_bar": site.a_bar,
            "b_bar": site.b_bar,
            "c_out": site.c_out,
        }
        # Structures do not change in training, and reading them in every step would cost more than the answer.
        axes = {name: 0 if read is None else read().ndim for name, read in self._reads.items()}
        self.a_bar_is_cheap = axes["a_bar"] < 2
        self.b_bar_is_cheap = axes["b_bar"] < 2
        interval = _interval(site)
        self._solve_due = every(interval)
        self._norm_due = every(max(interval, STEPS_PER_NORM))
        self._injection_due = every(STEPS_PER_NORM)

    def spectrum_due(self, step: int) -> bool:
        """Return whether A̅ may be solved exactly in this step."""
        return self.a_bar_is_cheap or self._solve_due(step)

    def injection_due(self, step: int) -> bool:
        """Return whether ‖B̅e‖ is due in this step."""
        return self.b_bar_is_cheap or self._injection_due(step)

    @torch.no_grad()
    def read(self, step: int, records_waiting: int, forwards: int) -> dict[MatrixName, Tensor]:
        """Return copies of the matrices that are due in a step, in float32.

        Args:
            step: The step whose forward comes next.
            records_waiting: Rows that are not written yet: where there are many, a dense A̅ waits for its turn.
            forwards: Forwards of the model so far, by which ranks tell whether they are at the same place.
        """
        due: dict[MatrixName, bool] = {
            "a_bar": self._solve_due(step) or self._is_affordable(records_waiting),
            "b_bar": self._norm_due(step),
            "c_out": self._norm_due(step),
        }
        reads = {name: read for name, read in self._reads.items() if read is not None and due[name]}
        if self._together.sharded and reads:
            if not self._together.agree(f"read {', '.join(reads)}", step, forwards):
                return {}
            whole = {name: gathered(read()) for name, read in reads.items()}
        else:
            whole = {name: read() for name, read in reads.items()}
        # A probe that was attached to sharded parameters cannot read them before the first step.
        return {name: matrix.detach().float().clone() for name, matrix in whole.items() if not is_spread(matrix)}

    def _is_affordable(self, records_waiting: int) -> bool:
        """Return whether A̅ can be read between the steps in which it is due."""
        read = self._reads["a_bar"]
        if self.a_bar_is_cheap or read is None:
            return True
        return not self._together.sharded and records_waiting * read().numel() * 4 < BYTES_UNDER_WAY


def _interval(site: LoopSite) -> int:
    """Return the steps between exact spectra of this loop's matrices."""
    for read in (site.a_bar, site.b_bar, site.c_out):
        if read is not None and read().ndim:
            return matrix_interval(read().shape[0])
    return 1
