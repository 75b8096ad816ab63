"""The fixed probe batch: the same input at the same depth again and again, so that trajectories can be compared.

Training steps have random depths and other tokens each time; ratios between them say nothing. So a small batch is run
beside training at twice the mean depth. Its tokens are the beginnings of the first training batch's first sequences,
which keeps a pass far below the cost of a step, or what the user gave. Compiled parts run eagerly in a pass: compiling
them for another shape and depth would take longer than all passes of the run. Whatever else training calls the model
with (targets, masks) is given to it too.

A loop that the first training batch showed says nothing of its depth yet: then the batch itself shows which argument or
attribute sets it. Where nothing does, or the model cannot run twice as deep (it has an embedding for each loop), the
batch runs as deep as the model runs by itself: a shorter look at the same loop. Of fewer than eight loops a pass would
tell nothing, for the first steps of many a bounded loop grow: where the depth can be set it is never less. A model that
draws random numbers may draw its depth, or that of each sequence; one whose depth nothing sets is then left alone.

Not covered: models that draw their depth and let nobody set it.
"""

# Shapes: n sequences, S positions, T loops.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...loops.call import Call, Input
from ...loops.neutral import LookError, on_the_side, random_states
from ...loops.site import LoopSite, LoopSiteError
from .acting import Autocast, SeenInjection
from .fastest import reduction_for
from .reduction import EagerReduction
from .sums import GOES_ON, LoopSums
from .tap import LoopTap

SEQUENCES = 2  # of the batch that are used
POSITIONS = 64  # of each, where it is the first training batch
MAP_POSITIONS = 256  # of each, in maps of every token's steps: 64 KB for 32 loops
DEEPEST = 128  # loops of a pass that are kept, where nothing says how many there will be
MOST_DEPTHS = 3  # of passes as deep as the model runs: a schedule changes it a few times, chance again and again
FEWEST = 8  # loops of a pass; of 5, a loop that tanh bounds counted as exploding
TOKEN_STEPS = "token_steps"


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass left behind.

    Args:
        rows: On the device: sums as `LoopSums.device_rows` gives them, and ``token_steps (T, n, S)`` where asked for.
        counts: Over how many tokens each sum is.
        rows_cut: Rows that did not fit.
        disagreement: How far the injection is from the A̅ of the site (`SeenInjection`); None where that was not seen.
    """

    rows: dict[str, Tensor]
    counts: NDArray[np.int64]
    rows_cut: int
    disagreement: Tensor | None = None


class FixedBatch:
    """Keeps the batch and runs it.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        device: Where it computes.
        given: The user's own batch.

    Attributes:
        call: The model's call on the batch; None as long as there is none.
        failed: Why the batch is not run any more; empty as long as it is.
        shallow: Why the batch runs no deeper than training does; empty where it runs at twice the mean depth.
        shown: What the batch itself showed to set the depth; empty where that was known before, or is not.
        unsteady: Why passes as deep as the model runs cannot be compared with each other; empty as long as they can.
        site: Where the loop is, and the A̅ that the injection is compared with.
    """

    def __init__(self, model: nn.Module, site: LoopSite, device: torch.device, given: Input | None) -> None:
        self.site = site
        self._model, self._device = model, device
        whole = None if given is None else Call.of(model, given)
        self.call = None if whole is None else whole.cut(SEQUENCES).kept()
        self._whole: Call | None = None  # what it was cut from, where it was made shorter
        if whole is not None and self.call is not None and whole.tokens.shape != self.call.tokens.shape:
            self._whole = whole.kept()  # the nodes of a graph cannot be cut
        self._deep = site.sets_depth and site.mean_depth is not None  # whether it is run at twice the mean depth
        self.shallow = "" if self._deep else "no way to run the loop deeper is known"
        self._may_find = site.was_found and not site.sets_depth  # whether the batch may show what sets the depth
        self._depths: list[int] = []  # of passes as deep as the model runs by itself, as they changed
        self.failed = self.unsteady = self.shown = ""
        self._looked = False  # whether a pass was run, and seen to leave every bit as it was
        self._training: Autocast | None = None  # under which training calls the model

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the beginning of a training batch, given the arguments of a forward; not where there is a batch.

        Call it as training calls the model: the autocast that holds then is kept too.
        """
        self._training = Autocast.now(self._device.type)
        if self.call is not None:
            return
        given = Call(args, kwargs)
        try:
            whole = given.cut(SEQUENCES).kept()
        except LoopSiteError as error:  # something among them that cannot be kept: the tokens alone, which may do
            tokens = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if tokens is None:
                self.failed = str(error)
                return
            whole = Call.of(self._model, tokens[:SEQUENCES].detach().clone())
        self.call = whole.cut(SEQUENCES, POSITIONS)
        self._whole = whole if whole.tokens.shape != self.call.tokens.shape else None

    def run(
        self, tap: LoopTap, *, token_steps: bool = False, together: Callable[[], bool] | None = None
    ) -> Pass | None:
        """Run the batch at depth 2·μ_rec, or as deep as the model runs, and record its loop; training notices nothing.

        Args:
            tap: The tap of the loop.
            token_steps: Keep the step norm of every token besides.
            together: Where a forward takes all ranks: whether all are about to run it. Asked when all else is ready.

        Returns:
            What was recorded; None where there is no batch, its depth is another one every time, not all ranks are
            there, or the model once failed on the batch (`failed` says how).
        """
        if self.failed or self.unsteady or self.call is None:
            return None
        if together is not None and not self._deep:  # a depth that another rank might not run to would leave it waiting
            return None
        try:
            done = self._passed(self.call, tap, token_steps, together)
        except LookError as error:
            self.failed = str(error)
            return None
        except Exception as error:
            if not self._has_another_way(error, alone=together is None):
                self.failed = f"{type(self._model).__name__} failed on it ({error!r})"
                return None
            if together is not None:  # the batches of other ranks may have been taken: next time, then
                return None
            return self.run(tap, token_steps=token_steps)
        if done is None or self._deep:
            return done
        if self._finds_depth(self.call):
            return self.run(tap, token_steps=token_steps)
        begins = [*np.flatnonzero(done.counts[:, 0] != GOES_ON), len(done.counts)]  # of its runs
        loops = max(int(b - a) - 1 for a, b in pairwise(begins))
        if loops not in self._depths[-1:]:
            self._depths.append(loops)
        if len(self._depths) > MOST_DEPTHS:
            self.unsteady = f"passes had {', '.join(map(str, self._depths))} loops"
        elif loops < FEWEST:
            self.unsteady = f"of {loops} loops a pass no deeper than training would tell too little"
        return None if self.unsteady else done

    def _finds_depth(self, call: Call) -> bool:
        """Look, once, for what sets the depth; where the loop is run anyway, behind a pass that left all as it was."""
        if not self._may_find:
            return False
        from ...loops.discovery import with_own_depth

        self._may_find = False
        site = with_own_depth(self._model, self.site, call)
        if site.sets_depth:
            self.site, self._deep, self.shallow, self.unsteady = site, True, "", ""
            self.shown = site.depth_argument or site.depth_attribute or ""
        return self._deep

    @property
    def depth(self) -> int:
        """Loops of a pass: twice the mean depth; where nothing sets it, as many as are kept."""
        if self._deep and self.site.mean_depth is not None:
            return max(2 * self.site.mean_depth, FEWEST)
        return DEEPEST

    def _has_another_way(self, error: Exception, *, alone: bool) -> bool:
        """Go on with what was given as it is, or else, alone, with the depth of training."""
        if self._whole is not None:  # the model takes sequences of one length only, or nothing less than a whole batch
            self.call, self._whole = self._whole, None
            return True
        if not self._deep or not alone:
            return False
        self.shallow = f"{type(self._model).__name__} fails at {self.depth} loops ({error!r})"
        self._deep = False
        return True

    def _passed(self, call: Call, tap: LoopTap, token_steps: bool, together: Callable[[], bool] | None) -> Pass | None:
        """Run the batch once; None where not all ranks are about to."""
        site = self.site
        depth = self.depth
        tokenwise = EagerReduction(keep_steps=MAP_POSITIONS if token_steps else 0)
        verify, self._looked = not self._looked, True
        with on_the_side(self._model, verify=verify):
            if together is not None and not together():
                return None
            # Made inside: what is written to anything older is put back.
            sums = LoopSums(depth + 1, self._device, tokenwise if token_steps else reduction_for(self._device))
            seen = SeenInjection(self._model, site, self._training)
            with tap.into(sums), seen.watched():
                if self._deep:
                    call.run_at(self._model, site, depth)
                else:
                    before = random_states(self._model)
                    call.run(self._model)
                    if before != random_states(self._model):
                        self.unsteady = "the model draws random numbers, its depth may be one of them"
            disagreement = None if together is not None else _or_none(seen.disagreement)
        rows = sums.device_rows()
        if tokenwise.steps:
            rows[TOKEN_STEPS] = torch.stack(tokenwise.steps)
        return Pass(rows, sums.counts, sums.rows_cut, disagreement)


def _or_none(compare: Callable[[], Tensor | None]) -> Tensor | None:
    """Return what a comparison gives; None where the module cannot be called a second time."""
    try:
        return compare()
    except LookError:
        raise
    except Exception:
        return None
