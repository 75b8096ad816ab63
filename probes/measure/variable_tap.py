"""The tap of a loop whose variables are named: marked in the forward, or returned by modules.

What a forward is, and which forwards belong to a step, is as in `tap.LoopTap`. Here the states of every variable are
summed on their own (`VariableSums`), and the joint state of all of them once per pass, in the rows that a loop of one
tensor has.

Not covered: gradients at states, and what goes on inside the body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from ...loops.hooks import LoopHooks, state_in
from ...loops.neutral import looking
from ...loops.states import Passes, Roles, StateHooks, before, places_before
from .internals import in_backward
from .tap import LoopTap, Report, Spot
from .variables import VariableSums

if TYPE_CHECKING:
    from ...loops.site import LoopSite
    from .sums import LoopSums

STATE: Final[Spot] = "state"
COPIED: Final[Spot] = "copied"
"""A state as a compiled graph hands it over: a copy, so that nothing tells whose value a module received."""
MARK: Final[Spot] = "mark"


class VariableTap(LoopTap):
    """Hooks on the variables of a loop.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is; it has variables.
        make: Makes the sums that the rows of training forwards go to.
        report: As that of `LoopTap`.

    Attributes:
        variables: The sums of every variable in the step under way.
    """

    def __init__(self, model: nn.Module, site: LoopSite, make: Callable[[], LoopSums], report: Report) -> None:
        self._roles = Roles(site.variables)
        self._sources = list(dict.fromkeys(v.source for v in site.variables if v.output is not None))
        self.variables = VariableSums(site, make)
        self._make = make
        self._active = self.variables  # of the forward under way
        self._passes = Passes.of(site.variables)  # of an evaluation's forward under way
        self._begun: set[int] = set()  # variables whose first value that forward has shown
        super().__init__(model, site, make(), report)

    def _hook(self) -> None:
        """Put the hooks on the modules that the site names now."""
        nothing = self._site
        self._hooks = LoopHooks(self._model, nothing, begin=self._begin, end=self._end)
        self._states = StateHooks(
            self._model,
            self._site,
            returned=self._returned,
            marked=self._marked,
            shown=self._marked,
            unread=self._unread,
        )
        self._note_modules()
        self._passing = None

    def _unhook(self) -> None:
        """Take the hooks of the loop off."""
        super()._unhook()
        self._states.remove()

    def _returned(self, source: str, last: Tensor | None, state: Tensor) -> None:
        # Memory of a compiled graph may be used again before the forward is over.
        compiling = torch.compiler.is_dynamo_compiling()
        states = [state] if last is None else [state, last]
        place: Spot = COPIED if compiling else STATE
        number = self._sources.index(source)
        states = [s.detach().clone() for s in states] if compiling else states
        self._pass_on(place, _as_they_are, states, None, number)

    def _unread(self, error: Exception) -> None:
        if self._target is not None:
            self._miss(STATE, error)

    def _marked(self, number: int, state: Tensor, given: Tensor | None) -> None:
        if self._target is not None or self._runs is not None:
            self.see(MARK, [state] if given is None else [state, given], number)
        # In backward the map is called to be solved with; what a forward keeps for that is a leaf with gradients.
        solved = in_backward()
        if (solved or state.is_leaf) and self.enabled and not isinstance(state, nn.Parameter) and not looking():
            self.backward.watch(state, kept=not solved)

    def _replay(
        self, kind: str, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Take in that a module was left."""
        if kind == "leave":
            of_module = [variable for variable in self._site.variables if variable.output == name]
            for source, (item, place) in places_before(of_module).items():
                last = None if place is None else before(args, kwargs, place)
                self._returned(source, last, state_in(output, item))

    def _replay_mark(self, name: str, state: Tensor, given: Tensor | None) -> None:
        """Take in a mark."""
        numbers = [number for number, v in enumerate(self._site.variables) if v.output is None and v.name == name]
        for number in numbers:
            self._marked(number, state, given)

    def _begin_forward(self, seen: list[Tensor], number: int) -> None:
        super()._begin_forward(seen, number)
        self._roles.begin()
        if self._runs is not None:
            self._passes.begin()
            self._begun.clear()
        if self._target is None:
            return
        if self._target is not self.sums:
            self._active = VariableSums(self._site, self._make)  # of a pass on the side: kept apart, and let go
        elif not self.sums.cursor:
            self.variables.reset()
        self._active = self._active if self._target is not self.sums else self.variables
        self._active.begin(has_gradients=True)

    def _end_forward(self, sums: LoopSums, *, raised: bool) -> None:
        if not raised:
            self._add_joint(sums, self._active.due())
        super()._end_forward(sums, raised=raised)
        self._active.end(raised=raised)

    def _count(self, runs: list[int], place: Spot, seen: list[Tensor], number: int) -> None:
        """Count the passes of a forward in evaluation mode."""
        if place == "end":
            self._roles.begin()  # lets go of the states
            self._end_evaluation(runs, raised=bool(number))
        elif not looking() and (variable := self._variable(place, seen, number)) is not None:
            of = self._site.variables[variable]
            begun, returned = variable in self._begun, place != MARK
            self._begun.add(variable)
            if begun or returned or of.first != 0:  # else it is the value before the loop
                self._passes.update(variable)
                runs[0] = self._passes.number + self._passes.whole

    def _variable(self, place: Spot, seen: list[Tensor], number: int) -> int | None:
        """Return the number of the variable that a state is of; None where it is of none."""
        if place == MARK:
            return number
        last = seen[1] if len(seen) > 1 else None
        variable = self._roles.of(self._sources[number], last, copied=place == COPIED)
        if variable is not None:
            self._roles.hold(variable, seen[0])
        return variable

    def _see(self, sums: LoopSums, place: Spot, seen: list[Tensor], number: int) -> None:
        """Record a state of the variable that it is of."""
        if sums is self.sums and looking():
            return
        given: Tensor | None = None
        variable = self._variable(place, seen, number)
        if variable is None:
            return
        if place in (STATE, COPIED):
            last = seen[1] if len(seen) > 1 else None
            receives = self._site.variables[variable].argument is not None
            if receives and last is not None and not self._active.sums[variable].loop:
                self._add_first(sums, variable, last)
        else:
            given = seen[1] if len(seen) > 1 else None
        first = place == MARK and self._site.variables[variable].first == 0
        self._add_joint(sums, self._active.add(variable, seen[0], marks_first=first), given)

    def _add_first(self, sums: LoopSums, variable: int, state: Tensor) -> None:
        """Record the value that a variable has before the loop."""
        first = self._active.add_first(variable, state)
        self._add_joint(sums, [] if first is None else [first])

    def _add_joint(self, sums: LoopSums, states: list[Tensor | None], given: Tensor | None = None) -> None:
        """Record joint states; None is one that is not known, with as many tokens as the next."""
        for state in states:
            if state is None:
                sums.add_missing(states[-1])
            else:
                sums.add(state, given if not sums.loop else None)


def _as_they_are(states: Any, _: Any) -> list[Tensor]:
    """Return what was seen."""
    return list(states)
