"""Rows of sums for a loop that carries several tensors: one table for each, and one for all of them together.

The joint state is what the loop as a dynamical system moves: the variables side by side along their channels where they
have the same tokens, else all numbers of a sequence in one row. It counts once per pass.

Not covered: where the states come from (`tap`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...loops.states import Passes
from .sums import LoopSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...loops.site import LoopSite


@dataclass(frozen=True, slots=True, eq=False)
class VariablePart:
    """What was seen of one variable in a step; the sums are still on the device.

    Args:
        sums: Rows of sums (`LoopSums`).
        counts: Over how many tokens each is.
        places: Of every row of the longest forward, the pass it belongs to and how far into the pass it is, ``(R, 2)``.
    """

    sums: Tensor
    counts: NDArray[np.int64]
    places: NDArray[np.int64]


class VariableSums:
    """The sums of every variable, in the forwards of one step.

    Args:
        site: Where the variables are.
        make: Makes the sums of one variable.
    """

    def __init__(self, site: LoopSite, make: Callable[[], LoopSums]) -> None:
        self._variables = site.variables
        self.sums = [make() for _ in self._variables]
        self.passes = Passes.of(self._variables)
        self._places: list[list[tuple[int, int]]] = [[] for _ in self._variables]
        self._longest: list[list[tuple[int, int]]] = [[] for _ in self._variables]
        self._held: list[Tensor | None] = [None for _ in self._variables]
        self._firsts: list[Tensor | None] = [None for _ in self._variables]

    def reset(self) -> None:
        """Forget the rows; the next one is the first."""
        for sums in self.sums:
            sums.reset()
        self._longest = [[] for _ in self._variables]

    def begin(self, *, has_gradients: bool) -> None:
        """Begin a forward."""
        for sums in self.sums:
            sums.begin(has_gradients=has_gradients)
        self.passes.begin()
        self._places = [[] for _ in self._variables]
        self._held, self._firsts = [None for _ in self._variables], [None for _ in self._variables]

    def add_first(self, variable: int, state: Tensor) -> Tensor | None:
        """Add the value that a variable has before the loop; return the joint one once all are known."""
        self._note(variable, state, (0, 0))
        self._firsts[variable] = state.detach()
        return _together(self._firsts)

    def add(self, variable: int, state: Tensor, *, marks_first: bool) -> list[Tensor | None]:
        """Add the next value of a variable; return the joint states that are due, None for one that is not known.

        Args:
            variable: Its number.
            state: The value.
            marks_first: Whether the first value of it that is seen is the one before the loop.
        """
        sums = self.sums[variable]
        if not sums.loop and marks_first:
            first = self.add_first(variable, state)
            return [] if first is None else [first]
        if not sums.loop:
            sums.add_missing(state)
            self._places[variable].append((0, 0))
        due = self.due() if self.passes.ends_before(variable) else []
        number, inner = self.passes.update(variable)
        self._note(variable, state, (number + 1, inner + 1))
        return due

    def due(self) -> list[Tensor | None]:
        """Return the joint states at the end of a pass: before the first, that of the beginning where it is missing."""
        if not self.passes.whole:
            return []
        unseen = self.passes.number == 0 and any(first is None for first in self._firsts)
        return [*([None] if unseen else []), _together(self._held)]

    def end(self, *, raised: bool) -> None:
        """End the forward under way."""
        self._held, self._firsts = [None for _ in self._variables], [None for _ in self._variables]
        for number, sums in enumerate(self.sums):
            if raised:
                sums.drop_from(sums.first)
            elif len(self._places[number]) > len(self._longest[number]):
                self._longest[number] = self._places[number]

    def part(self) -> list[VariablePart]:
        """Return what was seen in the step."""
        return [
            VariablePart(sums.device_rows()["sums"], sums.counts, np.array(places, dtype=np.int64).reshape(-1, 2))
            for sums, places in zip(self.sums, self._longest, strict=True)
        ]

    def _note(self, variable: int, state: Tensor, place: tuple[int, int]) -> None:
        self.sums[variable].add(state)
        self._places[variable].append(place)
        self._held[variable] = state.detach()


def _together(states: list[Tensor | None]) -> Tensor | None:
    """Return the state of all variables; None where one of them is not known."""
    known = [state for state in states if state is not None]
    return None if len(known) < len(states) else known[0] if len(known) == 1 else joined(known)


@torch.no_grad()
def joined(states: list[Tensor]) -> Tensor:
    """Return several states as one: side by side along their channels, or all numbers of a sequence in one row.

    Where they do not even have the same sequences, all numbers are one row.

    >>> joined([torch.ones(2, 3, 4), torch.ones(2, 3, 5)]).shape, joined([torch.ones(2, 3, 4), torch.ones(2, 7)]).shape
    (torch.Size([2, 3, 9]), torch.Size([2, 1, 19]))
    """
    shape = states[0].shape[:-1]
    if all(state.shape[:-1] == shape for state in states):
        return torch.cat([state.detach() for state in states], dim=-1)
    alike = all(state.shape[:1] == shape[:1] for state in states)
    rows = [state.detach().flatten(1) if alike else state.detach().reshape(1, -1) for state in states]
    return torch.cat(rows, dim=-1)[:, None]
