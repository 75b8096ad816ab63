"""The states of a loop as they come: which variable each one is of, which pass it belongs to, and how far into it.

`StateHooks` registers where a `LoopSite` with variables says that they are seen. `Passes` counts: a pass is over when
every variable has been updated, at least as often as `Variable.per_pass` says, and the first of them begins again; what
a variable does more than once within a pass is an inner loop of that pass.

Not covered: loops read at the entry of their body; those are `hooks.LoopHooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .hooks import Off, hook_before, hook_behind, state_in
from .marked import MarkWatcher
from .nested import replaced
from .site import Item, LoopSite, Place, Variable, argument, modules_of


class Seen(NamedTuple):
    """A state of a variable.

    Args:
        variable: Its number in ``site.variables``.
        state: The value.
        before: What its module received as the value before; None where that is not known.
        given: The input that a mark names.
    """

    variable: int
    state: Tensor
    before: Tensor | None = None
    given: Tensor | None = None


class Roles:
    """Which variable a call of a module updates.

    A module that updates one variable is easy. Where one updates several in turn, what it receives decides: the
    variable whose last value comes in where `Variable.argument` says. What comes in and is no value of a variable is
    the first value of the next variable that has none yet. Where the argument does not tell, the turn does.

    Args:
        variables: Those of the site.
    """

    def __init__(self, variables: Sequence[Variable]) -> None:
        self._of: dict[str, list[int]] = {}
        for number, variable in enumerate(variables):
            if variable.output is not None:
                self._of.setdefault(variable.source, []).append(number)
        self._variables = variables
        self.begin()

    def begin(self) -> None:
        """Begin a forward."""
        self._held: dict[int, Tensor] = {}
        self._calls = dict.fromkeys(self._of, 0)

    def of(self, source: str, before: Tensor | None, *, copied: bool = False) -> int | None:
        """Return the number of the variable that a call of a module updates; None where it updates none.

        Args:
            source: Which tensor that the module returns it is about (`Variable.source`).
            before: What it received as the value before; None where no variable of it says where.
            copied: Whether ``before`` is a copy, as in a compiled graph, so that it is no value that was held.
        """
        call, numbers = self._calls[source], self._of[source]
        self._calls[source] = call + 1
        if len(numbers) == 1 and not self._variables[numbers[0]].turns:
            return numbers[0]
        told = [n for n in numbers if self._variables[n].argument is not None]
        if before is not None and not copied:
            for number in told:
                if is_same(before, self._held.get(number)):
                    return number
            if told == numbers and (unseen := [n for n in numbers if n not in self._held]):
                return unseen[0]
        in_turn = [n for n in numbers if (turns := self._variables[n].turns) and call % self._variables[n].of in turns]
        others = [n for n in numbers if not self._variables[n].turns]
        return in_turn[0] if in_turn else others[0] if len(others) == 1 else None

    def hold(self, number: int, state: Tensor) -> None:
        """Take note of the value that a variable has now."""
        self._held[number] = state


class Passes:
    """Where in its loop each state is.

    Args:
        least: How often each variable is updated in a pass, at least.

    >>> passes = Passes([1, 1])
    >>> [passes.update(variable) for variable in (1, 1, 0, 1, 1, 0)]  # two inner steps of z_L, then z_H
    [(0, 0), (0, 1), (0, 0), (1, 0), (1, 1), (1, 0)]
    >>> passes.whole
    True
    """

    def __init__(self, least: Sequence[int]) -> None:
        self._least = tuple(least)
        self.begin()

    @classmethod
    def of(cls, variables: Sequence[Variable]) -> Passes:
        """Return those of a loop with these variables, before its first state."""
        return cls([variable.per_pass for variable in variables])

    def begin(self) -> None:
        """Begin a forward."""
        self.number = 0  # of the pass under way
        self.updates = [0] * len(self._least)  # of every variable, in that pass
        self._first: int | None = None

    @property
    def whole(self) -> bool:
        """Whether every variable has been updated in the pass under way, often enough."""
        return all(done >= least for done, least in zip(self.updates, self._least, strict=True))

    def ends_before(self, variable: int) -> bool:
        """Return whether the pass under way is over, as this variable is about to be updated."""
        return variable == self._first and self.whole

    def update(self, variable: int) -> tuple[int, int]:
        """Take note of an update; return its pass, and how many the variable had before in that pass."""
        if self.ends_before(variable):
            self.number += 1
            self.updates = [0] * len(self._least)
        if self._first is None:
            self._first = variable
        self.updates[variable] += 1
        return self.number, self.updates[variable] - 1


class StateHooks:
    """Sees the states of all variables of a site while a model runs.

    Args:
        model: The user's module, unwrapped.
        site: A site with variables.
        returned: Called as a module of a variable returns: ``(source, received, returned)``, where received is the
            value before, if the site says where. What it returns takes the tensor's place, if it is not None.
        marked: Called with every mark of a variable of the site: ``(number, state, input)``.
        shown: As ``marked``, inside of compiled graphs.
        unread: Called with the error where a value is not where the site says; without it the error is raised.
    """

    def __init__(
        self,
        model: nn.Module,
        site: LoopSite,
        *,
        returned: Callable[[str, Tensor | None, Tensor], Tensor | None],
        marked: Callable[[int, Tensor, Tensor | None], Tensor | None],
        shown: Callable[[int, Tensor, Tensor | None], Tensor | None] | None = None,
        unread: Callable[[Exception], None] | None = None,
    ) -> None:
        modules = modules_of(model)
        self._offs: list[Off] = []
        self._watcher: MarkWatcher | None = None
        for name in dict.fromkeys(v.output for v in site.variables if v.output is not None):
            of_module = [v for v in site.variables if v.output == name]
            self._watch(modules[name], of_module, returned, unread)
        numbers = {v.name: number for number, v in enumerate(site.variables) if v.output is None}
        if numbers:

            def only_known(see: Callable[[int, Tensor, Tensor | None], Tensor | None]) -> Any:
                return lambda name, h, given: see(numbers[name], h, given) if name in numbers else None

            self._watcher = MarkWatcher(only_known(marked), only_known(shown or marked))

    def _watch(
        self,
        module: nn.Module,
        variables: Sequence[Variable],
        returned: Callable[[str, Tensor | None, Tensor], Tensor | None],
        unread: Callable[[Exception], None] | None,
    ) -> None:
        """Put hooks on a module that returns variables."""
        places = places_before(variables)
        inside = {source: place for source, (_, place) in places.items() if isinstance(place, Item)}
        received: dict[str, Tensor | None] = {}

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            # Before the call: a module may write the next value into the very object that it received.
            received.update((source, before(args, kwargs, place)) for source, place in inside.items())

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            whole, exchanged = output, False
            for source, (item, place) in places.items():
                last = received.pop(source, None)
                if place is not None and source not in inside:
                    last = before(args, kwargs, place)
                try:
                    state = state_in(whole, item)
                except _NOT_THERE as error:
                    _told(unread, error)
                    continue
                other = returned(source, last, state)
                if other is not None:
                    whole, exchanged = replaced(whole, item, other), True
            return whole if exchanged else None

        if inside:
            self._offs.append(hook_before(module, enter))
        self._offs.append(hook_behind(module, leave))

    def remove(self) -> None:
        """Take the hooks off; does nothing when they are off already."""
        for off in self._offs:
            off()
        self._offs.clear()
        if self._watcher is not None:
            self._watcher.close()


def before(args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> Tensor | None:
    """Return the value that a module received; None where it received none, as a recurrence may at its first call."""
    try:
        value: Any = argument(args, kwargs, place)
    except _NOT_THERE:
        return None
    return value if isinstance(value, Tensor) else None


def is_same(state: Tensor, held: Tensor | None) -> bool:
    """Return whether two tensors are the same memory, as far as the host can tell."""
    if held is None or state.shape != held.shape or state.stride() != held.stride():
        return False
    try:
        return state.data_ptr() == held.data_ptr()
    except RuntimeError:  # tensors of a transform have no memory of their own
        return False


_NOT_THERE = (TypeError, IndexError, KeyError)  # what it is to look for a tensor where there is none


def _told(unread: Callable[[Exception], None] | None, error: Exception) -> None:
    """Hand an error on to who wants it, or raise it."""
    if unread is None:
        raise error
    unread(error)


def places_before(variables: Sequence[Variable]) -> dict[str, tuple[int, Place | None]]:
    """Return of each tensor that a module returns as a variable its number, and where the value before comes in.

    Args:
        variables: Those of one module.
    """
    places: dict[str, tuple[int, Place | None]] = {}
    for variable in variables:
        if places.get(variable.source, (0, None))[1] is None:
            places[variable.source] = variable.item, variable.argument
    return places
