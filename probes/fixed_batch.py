"""The fixed probe batch: the same input at the same depth again and again, so that trajectories can be compared.

Training steps have random depths and other tokens each time; ratios between them say nothing. So a small batch is run
beside training at twice the mean depth. Its tokens are the beginnings of the first training batch's first sequences,
which keeps a pass far below the cost of a step, or what the user gave.

Not covered: models whose depth cannot be set by an argument.
"""

# Shapes: n sequences, S positions, T loops.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .neutral import undisturbed
from .reduction import EagerReduction, reduction_for
from .site import LoopSite
from .sums import LoopSums
from .tap import LoopTap

SEQUENCES = 2  # of the batch that are used
POSITIONS = 64  # of each, where it is the first training batch
MAP_POSITIONS = 256  # of each, in maps of every token's steps: 64 KB for 32 loops
TOKEN_STEPS = "token_steps"


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass left behind.

    Args:
        rows: On the device: sums as `LoopSums.device_rows` gives them, and ``token_steps (T, n, S)`` where asked for.
        counts: Over how many tokens each sum is.
        rows_cut: Rows that did not fit.
    """

    rows: dict[str, Tensor]
    counts: NDArray[np.int64]
    rows_cut: int


class FixedBatch:
    """Keeps the batch and runs it.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        device: Where it computes.
        given: The user's own batch.

    Attributes:
        tokens: The batch; None as long as there is none.
    """

    def __init__(self, model: nn.Module, site: LoopSite, device: torch.device, given: Tensor | None) -> None:
        self._model, self._site, self._device = model, site, device
        self.tokens = None if given is None else given[:SEQUENCES]
        self._whole: Tensor | None = None  # what it was cut from

    def take(self, batch: Tensor) -> None:
        """Keeps the beginning of a training batch, where there is no batch yet."""
        if self.tokens is None:
            self._whole = batch.detach()[:SEQUENCES].clone()
            self.tokens = self._whole[:, :POSITIONS] if batch.ndim > 1 else self._whole

    def run(
        self, tap: LoopTap, *, token_steps: bool = False, together: Callable[[], bool] | None = None
    ) -> Pass | None:
        """Runs the batch at depth 2·μ_rec and records its loop; training notices nothing.

        Args:
            tap: The tap of the loop.
            token_steps: Keep the step norm of every token besides.
            together: Where a forward takes all ranks: whether all are about to run it. Asked when all else is ready.

        Returns:
            What was recorded; None where there is no batch, the depth cannot be set or not all ranks are there.
        """
        site, tokens = self._site, self.tokens
        if tokens is None or site.depth_argument is None or site.mean_depth is None:
            return None
        depth = 2 * site.mean_depth
        tokenwise = EagerReduction(keep_steps=MAP_POSITIONS if token_steps else 0)
        sums = LoopSums(depth + 1, self._device, tokenwise if token_steps else reduction_for(self._device))
        if together is not None and not together():
            return None
        try:
            with undisturbed(self._model, self._device), tap.into(sums):
                self._model(tokens, **{site.depth_argument: depth})
        except Exception:
            if self._whole is None or self._whole.shape == tokens.shape:
                raise
            self.tokens = self._whole  # the model takes sequences of one length only
            if together is not None:  # the batches of other ranks may have been taken: next time, then
                return None
            return self.run(tap, token_steps=token_steps)
        rows = sums.device_rows()
        if tokenwise.steps:
            rows[TOKEN_STEPS] = torch.stack(tokenwise.steps)
        return Pass(rows, sums.counts, sums.rows_cut)
