"""What a training run must offer so that its steps can be run again, and the test that they are the same steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runfile.run import Run

PLACEBO: Final = "draws"
"""The change that changes nothing on purpose: other random draws. An alert that goes with it came by chance."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that can be changed about a run.

    Attributes:
        words: What it is: "the learning rate halved".
        another_model: Whether another architecture is trained. That cures a lot of what it did not cause: it is called
            the cause of what the loop does, never of a loss that jumped.
    """

    words: str
    another_model: bool = False


class Replayable(Protocol):
    """A training run whose steps can be run again, recorded by a probe of its own each time.

    `loopscope.causes.trained.TrainedRun` is one, for runs of ``loopscope train``. For a run of your own:

    >>> class Mine:
    ...     changes = {"rate": Change("the learning rate halved")}
    ...     def load(self, step, change, out):
    ...         # build model, data and optimizer from the latest checkpoint at or before `step`, seeds included;
    ...         # halve the rate if change == "rate"; self.probe = loopscope.attach(self.model, out, preset="inspect")
    ...         self.at = 0
    ...         return self.at                # the step it is at
    ...     def step(self):
    ...         ...                           # one training step, with self.probe.step(...) at its end
    ...         self.at += 1
    ...     def close(self):
    ...         ...                           # self.probe.close()
    >>> run: Replayable = Mine()
    """

    @property
    def changes(self) -> Mapping[str, Change]:
        """What can be changed, one at a time, by a short name; one called ``draws`` is taken as the placebo."""
        ...

    def load(self, step: int, change: str, out: Path) -> int:
        """Put everything back as it was before a step, or before an earlier one, and record to a new file.

        Args:
            step: The step that is wanted.
            change: Name of the thing to change from then on; empty for none.
            out: Run file of the replay.

        Returns:
            The step that will be run next, at most ``step``.
        """
        ...

    def step(self) -> None:
        """Run one training step."""
        ...

    def close(self) -> None:
        """End the replay and seal its run file."""
        ...


def first_difference(recorded: Run, again: Run, until: int) -> str:
    """Return the first number in which a replay differs from the recording, in words; empty when all are equal.

    Loss, gradient norm, depth and the norms of every loop are compared bit for bit, over the steps both have.

    Args:
        recorded: The run as it was recorded.
        again: The replay of some of its steps.
        until: Last step compared.
    """
    mine, theirs = (np.asarray(run["step"]) for run in (again, recorded))
    steps = np.intersect1d(mine, theirs)
    steps = steps[steps <= until]
    if not len(steps):
        return "the replay has none of the recorded steps"
    rows, other = np.searchsorted(mine, steps), np.searchsorted(theirs, steps)
    worst: list[tuple[int, str]] = []
    for name in ("loss", "grad_norm", "depth"):
        if name in again.names and name in recorded.names:
            worst += _differs(steps, name, again[name][rows], recorded[name][other])
    for name in ("state_norm", "residual_norm"):
        a, b = again.loops(name)[rows], recorded.loops(name)[other]
        wide = max(a.shape[1], b.shape[1])
        a, b = (np.pad(x, ((0, 0), (0, wide - x.shape[1])), constant_values=np.nan) for x in (a, b))
        worst += _differs(steps, name, a, b)
    return min(worst)[1] if worst else ""


def _differs(steps: NDArray[Any], name: str, a: NDArray[Any], b: NDArray[Any]) -> list[tuple[int, str]]:
    """Return the first step at which two recordings of a series differ, and the sentence about it."""
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    wrong = np.flatnonzero(~equal.reshape(len(steps), -1).all(axis=1))
    if not len(wrong):
        return []
    row = int(wrong[0])
    place = int(np.flatnonzero(~equal.reshape(len(steps), -1)[row])[0])
    x, y = (float(np.asarray(side).reshape(len(steps), -1)[row, place]) for side in (a, b))
    return [
        (int(steps[row]), f"{name} of step {int(steps[row])} is {x:.9g} in the replay and {y:.9g} in the recording")
    ]
