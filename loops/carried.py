"""What a loop carries, and where a probe can see it: which module returns it, as which tensor, in which of its calls.

Where a module makes several variables in turn, what it receives decides: a call updates the variable whose last value
comes in. Where no module returns a variable, the line says where the user's code makes it.

Not covered: which values a loop carries (``lineage``).
"""

# Indices: i functions (`Flow.events`).

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .flow import Flow
from .marked import has_norms
from .site import Place, Variable
from .source_lines import names_assigned, statement_at, whole
from .states import Passes
from .trace import Event, Line, Value


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor that a loop carries.

    Args:
        name: What the user's code calls it, with a number where two are called the same.
        shape: Its shape.
        variable: Where a probe sees it; None where no module returns it.
        line: Where it is made and can be marked; None where no statement of the user's names it.
        spelt: What the user's code calls it.
    """

    name: str
    shape: tuple[int, ...]
    variable: Variable | None
    line: Line | None
    spelt: str


@dataclass(slots=True)
class Track:
    """One variable: in which blocks it was made anew, and the values it had."""

    blocks: list[int]
    keys: list[int]


def maker_of(flow: Flow, key: int) -> tuple[Hashable, ...]:
    """Return what made a value: the function, which of its results it is, and the modules that it ran in."""
    i = flow.made[key]
    return (flow.events[i].name, flow.writes[i].index(key), *(event.name for event in flow.owners[i]))


def carried_by(flow: Flow, tracks: list[Track], passes: int) -> Iterator[Carried]:
    """Yield what a loop of so many passes carries, and where it is seen."""
    calls = Counter(call.name for call in calls_in(flow))
    sources = [returner_of(flow, track.keys) for track in tracks]
    taken: Counter[str] = Counter()
    shapes = [flow.values[track.keys[-1]].shape for track in tracks]
    for track, source in zip(tracks, sources, strict=True):
        output = None if source is None else source[0]
        spelt = spelt_in(flow, track.keys, output)
        taken[spelt] += 1
        name = spelt if taken[spelt] == 1 else f"{spelt}_{taken[spelt]}"
        variable: Variable | None = None
        sharing = [other for other, o in zip(tracks, sources, strict=True) if o == source]
        if source is not None and calls[source[0]] >= passes - 1:  # tied layers run once each: none sees every pass
            variable = _variable(flow, name, source, track, sharing)
        last = flow.values[track.keys[-1]]
        if not has_norms(last) or any(last.shape == shape[:-1] for shape in shapes):
            continue  # a mask of the tokens that go on; a number for each token, as the chance to go on
        line = _line_of(flow, track.keys[-1], output)
        if line is not None:
            before = spelt
            spelt, line = _assigned(spelt, line, last)
            name = spelt if variable is None and spelt != before else name
        yield Carried(name, tuple(last.shape), variable, line, spelt)


def passes_of(flow: Flow, carried: Sequence[Carried], blocks: int) -> int:
    """Return how often a loop ran: where it carries several variables, how often all of them were updated.

    Args:
        flow: The forward.
        carried: What the loop carries.
        blocks: Passes as the uses of parameters show them; the answer where the calls of modules give none.
    """
    variables = [one.variable for one in carried if one.variable is not None]
    # As `states.Roles` has it, what is no variable's turn is that of the one without turns.
    told = all(sum(not v.turns for v in of_source) <= 1 for of_source in _by_source(variables).values())
    if len(carried) < 2 or len(variables) < len(carried) or not told:
        return blocks
    passes, count = Passes.of(variables), Counter[str]()
    for call in calls_in(flow):
        for source, of_source in _by_source(v for v in variables if v.output == call.name).items():
            own = [v for v in of_source if v.turns and count[source] % v.of in v.turns]
            count[source] += 1
            for variable in own or [v for v in of_source if not v.turns]:
                passes.update(variables.index(variable))
    return passes.number + passes.whole


def _by_source(variables: Iterable[Variable]) -> dict[str, list[Variable]]:
    """Return variables by where their values are seen."""
    by_source: dict[str, list[Variable]] = {}
    for variable in variables:
        by_source.setdefault(variable.source, []).append(variable)
    return by_source


def _variable(flow: Flow, name: str, source: tuple[str, int], track: Track, sharing: list[Track]) -> Variable | None:
    """Return where a variable is seen that a module returns, as one of the tensors that it returns."""
    output, item = source
    calls = [call for call in calls_in(flow) if call.name == output and len(call.writes) > item]
    made = [flow.key(call.writes[item]) for call in calls]
    argument = own_argument(flow, calls, made, track)
    if len(sharing) == 1:
        extra = [key for key in made if key not in track.keys]
        if not extra or _is_chain(flow, made):
            first = 0 if argument is not None else 1
            return Variable(name=name, output=output, item=item, argument=argument, first=first)
    elif argument is not None:
        turns, of = _turns(flow, calls, made, track, sharing, argument)
        return Variable(name=name, output=output, item=item, argument=argument, turns=turns, of=of)
    every = _period_of(_own_calls(flow, made, track, sharing))
    if every is None:
        return None
    turns, of = every if every[1] > 1 else ((), 1)  # one that makes all of them needs no turns
    return Variable(name=name, output=output, item=item, turns=turns, of=of, first=1)


def _turns(
    flow: Flow, calls: list[Event], made: list[int], track: Track, sharing: list[Track], argument: Place
) -> tuple[tuple[int, ...], int]:
    """Return which calls of a module update a variable, of how many each, its inner updates among them.

    A call goes on with the variable whose last value it receives; one that receives none begins a variable. Nothing
    where there is no rule.
    """
    last: dict[int, int] = {}  # the newest value of each chain, and where the chain ends
    chain: list[int] = []
    for call, key in zip(calls, made, strict=True):
        value = call.places.get(argument)
        before = None if value is None else flow.key(value)
        number = next((n for n, held in last.items() if held == before), len(last))
        chain.append(number)
        last[number] = key
    own = next((n for n, key in last.items() if key == track.keys[-1]), None)
    if own is None:
        own = next((n for n, key in zip(chain, made, strict=True) if key in track.keys), None)
    if own is None or len(last) != len(sharing):
        return (), 1
    for period in range(2, len(made) // 2 + 1):
        if len(made) % period == 0 and all(chain[i] == chain[i - period] for i in range(period, len(made))):
            return tuple(i for i in range(period) if chain[i] == own), period
    return (), 1


def _own_calls(flow: Flow, made: list[int], track: Track, sharing: list[Track]) -> list[bool]:
    """Return which calls of a module make a variable, its inner updates among them.

    A value that is no variable's at the end of a pass, and that the next call alone reads, is one of the next call's.
    """
    roles = [next((n for n, other in enumerate(sharing) if key in other.keys), -1) for key in made]
    for i in range(len(made) - 2, -1, -1):
        if roles[i] < 0 and max(flow.read_at.get(made[i], [-1])) <= flow.made[made[i + 1]]:
            roles[i] = roles[i + 1]
    return [role >= 0 and sharing[role] is track for role in roles]


def _period_of(own: list[bool]) -> tuple[tuple[int, ...], int] | None:
    """Return which calls of a module make a variable, of how many each; None where there is no rule.

    >>> _period_of([False, True, False, True]), _period_of([True, False, False, True, True, True])
    (((1,), 2), None)
    """
    mine = [i for i, is_own in enumerate(own) if is_own]
    known = max(mine, default=0) + 1
    for period in range(1, known - min(mine, default=0)):
        if all(own[i] == own[i - period] for i in range(period, known)) and len(own) % period == 0:
            return tuple(i for i in range(period) if own[i]), period
    return None


def _is_chain(flow: Flow, made: list[int]) -> bool:
    """Return whether every value that a module makes is dead when the one after the next is made."""
    return all(max(flow.read_at.get(a, [-1])) <= flow.made[c] for a, c in zip(made, made[2:], strict=False))


def own_argument(flow: Flow, calls: list[Event], made: list[int], track: Track) -> Place | None:
    """Return where a module receives the last value of the variable it updates, if it does every time."""
    mine = set(track.keys)
    places: set[Place] | None = None
    last: int | None = None
    for call, key in zip(calls, made, strict=True):
        if key in mine:
            if last is not None:
                here = {place for place, value in call.places.items() if flow.key(value) == last}
                places = here if places is None else places & here
            last = key
    return min(places, key=str) if places else None


def returner_of(flow: Flow, keys: list[int]) -> tuple[str, int] | None:
    """Return the outermost module that returns all of these values, one at a time, and as which of its tensors."""
    sources: set[tuple[str, int]] | None = None
    calls = calls_in(flow)
    for key in keys:
        here = {(call.name, n) for call in calls for n, value in enumerate(call.writes) if flow.key(value) == key}
        sources = here if sources is None else sources & here
    return min(sources, key=lambda source: (source[0].count("."), len(source[0]), source[1])) if sources else None


def calls_in(flow: Flow) -> list[Event]:
    """Return the calls of modules, in the order in which they end."""
    ended: dict[int, Event] = {}
    for owners in flow.owners:
        for event in owners:
            ended.pop(id(event), None)
            ended[id(event)] = event
    return list(ended.values())


def spelt_in(flow: Flow, keys: list[int], output: str | None) -> str:
    """Return what the user's code calls a variable, in the code that runs the loop."""
    names: Counter[str] = Counter()
    for key in keys:
        value = flow.values[key]
        line = _line_of(flow, key, output)
        named = value.names.get(line.code) if line is not None else None
        for name in [named] if named else list(value.names.values())[:1]:
            names[name] += 1
    return names.most_common(1)[0][0] if names else "h"


def _line_of(flow: Flow, key: int, output: str | None) -> Line | None:
    """Return where a value is made: where the module that returns it is called, else the function itself.

    Args:
        flow: The forward.
        key: The value.
        output: The module that returns it every time; None where none does. Then any that returned it this time will
            do, but the model itself.
    """
    i = flow.made[key]
    for level, event in enumerate(flow.owners[i]):
        returned = output is None and level > 0 and any(flow.key(value) == key for value in event.writes)
        if event.name == output or returned:
            return event.line
    return flow.events[i].line


def _assigned(spelt: str, line: Line, value: Value) -> tuple[str, Line | None]:
    """Return what a value is called by the statement that assigns it, and where that ends.

    A helper that returns it is left for the line that called it. No line where no statement names the value.
    """
    at: Line | None = line
    known = False
    while at is not None:
        statement = statement_at(at.file, at.number)
        known |= statement is not None
        names = set() if statement is None else names_assigned(statement)
        called = value.names.get(at.code)
        name = called if called in names else min(names) if len(names) == 1 else None  # it goes into that one
        if statement is not None and name is not None:
            start, end = whole(at.file, statement)
            return name, at._replace(number=end, start=start)
        if not isinstance(statement, ast.Return):
            break
        at = at.outer
    return spelt, None if known else line


def call_at(flow: Flow, i: int) -> Line | None:
    """Return where the module is called in which a function runs."""
    return flow.owners[i][-1].line if flow.owners[i] else flow.events[i].line
