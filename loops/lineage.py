"""Loops told by parameters and data flow: the same parameters used on what they made, and what is carried in between.

A forward is a sequence of functions; some use parameters. A loop is a stretch in which these uses repeat on their own
results, whatever else differs from pass to pass: norms, routers or projections of each pass, values that are there at
the first visit only. What is alive between two passes, made before and read after, is what the loop carries. Where one
module makes several of these in turn, a call updates the variable whose last value nobody reads any more after it.

Not covered: loops of compiled or scripted modules, whose calls count as one function.
"""
# Indices: i functions (`Flow.events`); u uses among them; k passes.

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .flow import Flow, ancestry, flow_of, uses_of
from .naming import assigned, call_at, line_of, name_of
from .site import Variable
from .trace import Event, Line

LONGEST = 4000  # uses of parameters that are looked at
GATES = frozenset(
    (
        "add",
        "addcmul",
        "lerp",
        "mul",
        "multiply",
        "where",
        "__add__",
        "__mul__",
        "__radd__",
        "__rmul__",
        "__iadd__",
        "__imul__",
    )
)
"""Functions that join one tensor to another number by number: with a parameter, a gate."""
_UNRETURNED = 1000  # how deep a value lies that no module returns


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor that a loop carries.

    Args:
        name: What the user's code calls it, with a number where two are called the same.
        shape: Its shape.
        variable: Where a probe sees it; None where no module returns it.
        line: Where it is made.
        spelt: What the user's code calls it.
    """

    name: str
    shape: tuple[int, ...]
    variable: Variable | None
    line: Line | None
    spelt: str


@dataclass(frozen=True, slots=True)
class LineageLoop:
    """A loop as parameters and data flow show it.

    Args:
        passes: How often it ran.
        modules: The modules of one pass.
        carried: What it carries.
        line: Where its body is called.
        skips: Whether passes besides hand on values to passes that come later than the next.
    """

    passes: int
    modules: tuple[str, ...]
    carried: tuple[Carried, ...]
    line: Line | None
    skips: bool = False


def lineage_loops(root: Event) -> list[LineageLoop]:
    """Return the loops of a forward, in running order.

    Args:
        root: The model's own call, from `trace`.
    """
    flow = flow_of(root)
    flow.behind, named = ancestry(flow)
    flow.bit = {i: 1 << number for number, i in enumerate(uses_of(flow))}
    uses, labels = _repeated_uses(flow, named)
    if not 2 <= len(uses) <= LONGEST:
        return []
    loops = _loops(flow, uses, labels)
    repeating = sum(period * passes for _, period, passes in _stretches(labels))
    if len(loops) == 1 and _is_seen(loops[0]) and repeating == len(labels):
        return loops
    count = Counter(labels)
    if len(loops) != 1:
        # A learned first value is used in the first pass only, and makes that pass look like another one.
        often = [i for i, label in enumerate(labels) if 2 * count[label] > max(count.values())]
        without = _loops(flow, [uses[i] for i in often], [labels[i] for i in often])
        if len(without) == 1 and _is_seen(without[0]):
            return without
    # The gate of skips is used wherever one comes in, and not once in every pass.
    uses_at = Counter(count[label] for label in labels)  # how many uses are of labels that are used so often
    for times in sorted(set(count.values()) - {1}, key=lambda times: -uses_at[times]):
        steady = [i for i, label in enumerate(labels) if count[label] == times]
        besides = [i for i in range(len(labels)) if not steady[0] <= i <= steady[-1]]
        sides = Counter((labels[i], i < steady[0]) for i in besides if flow.events[uses[i]].name not in GATES)
        if len(steady) == len(labels) or max(sides.values(), default=0) > 1:
            continue  # what repeats besides is another loop
        without = _loops(flow, [uses[i] for i in steady], [labels[i] for i in steady])
        if len(without) == 1 and without[0].passes == times and _is_seen(without[0]):
            return without
    return loops


def _is_seen(loop: LineageLoop) -> bool:
    """Return whether modules return all that a loop carries."""
    return all(each.variable for each in loop.carried)


def _loops(flow: Flow, uses: list[int], labels: list[int]) -> list[LineageLoop]:
    """Return the loops of a forward, given its repeated uses of parameters and their labels."""
    loops = []
    for start, period, count in _stretches(labels):
        passes = [uses[start + k * period : start + (k + 1) * period] for k in range(count)]
        readings = [_loop(flow, passes, returned=returned) for returned in (False, True)]
        seen = [loop for loop in readings if loop is not None and any(each.variable for each in loop.carried)]
        loops += seen[:1] or [loop for loop in readings[:1] if loop is not None]
    return loops


def _repeated_uses(flow: Flow, labels: list[Hashable]) -> tuple[list[int], list[int]]:
    """Return the functions that use parameters on what the same parameters made before or after, and their labels.

    Args:
        flow: The forward, its ancestry worked out.
        labels: Of every use.
    """
    behind, label_of = flow.behind, dict(zip(uses_of(flow), labels, strict=True))
    before: dict[Hashable, int] = {}
    recurrent: set[Hashable] = set()
    for number, (i, label) in enumerate(label_of.items()):
        bits = 0
        for key in flow.reads[i]:
            bits |= behind.get(key, 0)
        if bits & before.get(label, 0):
            recurrent.add(label)
        before[label] = before.get(label, 0) | 1 << number
    numbers: dict[Hashable, int] = {}
    uses = [i for i, label in label_of.items() if label in recurrent]
    return uses, [numbers.setdefault(label_of[i], len(numbers)) for i in uses]


def _stretches(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the stretches ``(start, period, count)`` in which a sequence repeats, the longest of its kind each.

    >>> _stretches([0, 0, 1, 0, 0, 1, 2, 2, 2])
    [(0, 3, 2), (6, 1, 3)]
    """
    best = (0, 0, 0, 0)
    row = np.asarray(labels)
    for period in range(1, len(row) // 2 + 1):
        equal = np.concatenate([[0], (row[:-period] == row[period:]).astype(np.int8), [0]])
        edges = np.flatnonzero(np.diff(equal))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            count = (int(stop - start) + period) // period
            if count >= 2 and count * period > best[0]:
                best = (count * period, int(start), period, count)
    length, start, period, count = best
    if not length:
        return []
    end = start + length
    rest = [(s + end, p, c) for s, p, c in _stretches(labels[end:])]
    return [*_stretches(labels[:start]), (start, period, count), *rest]


def _loop(flow: Flow, passes: list[list[int]], *, returned: bool) -> LineageLoop | None:
    """Return the loop of these passes; None where it carries nothing.

    Args:
        flow: The forward.
        passes: The uses of parameters of every pass.
        returned: Whether passes end where most of what is alive was returned by modules, not where least is alive.
    """
    bounds = [uses[0] for uses in passes]
    own = 0
    for i in (i for uses in passes for i in uses):
        own |= flow.bit[i]
    span = _Span(bounds[0], passes[-1][-1] + 1, own)
    cuts = [_cut(flow, span, one[-1], other[0], returned) for one, other in pairwise(passes)]
    live = [sorted(_live(flow, span, cut), key=lambda key: flow.made[key]) for cut in cuts]
    inner = live[len(live) // 2 :] or live
    count = Counter(len(keys) for keys in inner).most_common(1)[0][0]
    if not count:
        return None
    while len(live[-1]) < count:  # in the last passes, what nobody reads any more is joined to what goes on
        live.pop()
    tracks = _without_history(flow, _tracks(flow, live))
    carried = tuple(_carried(flow, tracks))
    seen = all(each.variable for each in carried)
    chain = None if seen else _chain_of_passes(flow, span, passes, {key for keys in live for key in keys})
    if chain is not None:
        tracks, carried = [chain], tuple(_carried(flow, [chain]))
    names = tuple(dict.fromkeys(event.name for i in range(bounds[0], bounds[1]) for event in flow.owners[i][-1:]))
    body = call_at(flow, bounds[0])
    return LineageLoop(_passes(tracks, len(bounds)), names, carried, body, chain is not None)


def _chain_of_passes(flow: Flow, span: _Span, passes: list[list[int]], live: set[int]) -> _Track | None:
    """Return the one value that every pass returns and the next one reads; None where there is none, or several.

    Skips differ: a pass hands them on to any later one. None too where no module made what is alive between passes, but
    for skips: those that later passes make none of.
    """
    first, last = [uses[0] for uses in passes], [uses[-1] for uses in passes]
    ends = [*first[1:], len(flow.events)]
    calls: dict[str, list[int]] = {}
    for call in _calls(flow):
        if call.writes and flow.made.get(key := flow.key(call.writes[0]), -1) >= first[0]:
            calls.setdefault(call.name, []).append(key)
    chains: dict[str, list[int]] = {}
    returned = {key for keys in calls.values() for key in keys}
    for name, keys in sorted(calls.items()):  # a module before those inside of it
        if len(keys) != len(passes) or any(name.startswith(f"{outer}.") for outer in chains):
            continue
        in_turn = all(a <= flow.made[key] <= b for key, a, b in zip(keys, first, ends, strict=True))
        to_next = zip(keys, last, last[1:], strict=False)
        handed = all(any(a < i <= b for i in flow.read_at.get(key, ())) for key, a, b in to_next)
        alone = live <= returned or _makes_no_more(flow, span, keys)
        if in_turn and handed and alone and all(_is_wide(flow, key) for key in keys):
            chains[name] = keys
    return _Track(list(range(len(passes))), *chains.values()) if len(chains) == 1 else None


def _makes_no_more(flow: Flow, span: _Span, keys: list[int]) -> bool:
    """Return whether the later passes leave nothing behind but the one value of each: the rest is older."""
    half = len(keys) // 2
    since = flow.made[keys[half - 1]] if half else 0
    later = keys[half:]
    return len(later) > 1 and all(
        flow.made[other] <= since for key in later for other in _live(flow, span, flow.made[key] + 1) if other != key
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """The functions of a loop.

    Args:
        start: The first one.
        stop: Behind the last one.
        uses: Its uses of parameters, as bits.
    """

    start: int
    stop: int
    uses: int


def _passes(tracks: list[_Track], blocks: int) -> int:
    """Return how often all variables were updated; in the last pass some may be no longer alive."""
    return min(len(track.blocks) for track in tracks) if len(tracks) > 1 else blocks


def _cut(flow: Flow, span: _Span, low: int, high: int, returned: bool) -> int:
    """Return where between two uses the fewest values are alive, returned by the outermost modules."""
    depth: dict[int, int] = {}
    for owners in flow.owners:
        for level, call in enumerate(owners):
            if call.writes:
                key = flow.key(call.writes[0])
                depth[key] = min(depth.get(key, _UNRETURNED), level)

    def cost(at: int) -> tuple[int, int, int, int]:
        live = _live(flow, span, at)
        seen = sum(key in depth for key in live)
        return -seen if returned else 0, len(live), sum(depth.get(key, _UNRETURNED) for key in live), at

    return min(range(low + 1, high + 1), key=cost)


def _live(flow: Flow, span: _Span, at: int) -> list[int]:
    """Return the values made in the loop before ``at`` that the loop reads from there on.

    What no use of the loop's parameters made is no state: an input that a pass works out anew, say.
    """
    keys = dict.fromkeys(key for i in range(span.start, at) for key in flow.writes[i] if flow.made[key] == i)
    read = [key for key in keys if any(at <= i < span.stop for i in flow.read_at.get(key, ()))]
    return [key for key in read if _is_wide(flow, key) and flow.behind.get(key, 0) & span.uses]


def _is_wide(flow: Flow, key: int) -> bool:
    """Return whether a value can be a state: real numbers with channels."""
    value = flow.values[key]
    return value.is_floating_point() and value.ndim >= 2 and value.shape[-1] > 1


@dataclass(slots=True)
class _Track:
    """One variable: in which blocks it was made anew, and the values it had."""

    blocks: list[int]
    keys: list[int]


def _tracks(flow: Flow, live: list[list[int]]) -> list[_Track]:
    """Follow what is carried from block to block: what is born takes the place of what dies, where the shapes agree."""
    tracks: list[_Track] = []
    holding: dict[int, _Track] = {}
    for block, keys in enumerate(live):
        born = [key for key in keys if key not in holding]
        dead = [key for key in holding if key not in keys]
        for key in born:
            shape = flow.values[key].shape
            heirs = [old for old in dead if flow.values[old].shape == shape]
            alike = [old for old in heirs if _maker(flow, old) == _maker(flow, key)] or heirs
            if alike:
                track = holding.pop(alike[-1])
                dead.remove(alike[-1])
            else:
                track = _Track([], [])
                tracks.append(track)
            track.blocks.append(block)
            track.keys.append(key)
            holding[key] = track
        for key in dead:
            holding.pop(key, None)
    steady = max((len(track.keys) for track in tracks), default=0)
    return [track for track in tracks if len(track.keys) > 1 or steady < 2]


def _without_history(flow: Flow, tracks: list[_Track]) -> list[_Track]:
    """Return the variables, where a loop that goes on from its last few states is not taken for several.

    There one place makes all of them, each takes the turn of the oldest, and none is handed back to where it was made.
    """
    makers = {_maker(flow, key) for track in tracks for key in track.keys}
    order = sorted((block, number) for number, track in enumerate(tracks) for block in track.blocks)
    turns = [number for _, number in order]
    rotates = all(a == b for a, b in zip(turns, turns[len(tracks) :], strict=False))
    if len(tracks) < 2 or len(makers) > 1 or not rotates:
        return tracks
    output = _returner(flow, [key for track in tracks for key in track.keys])
    calls = [call for call in _calls(flow) if call.name == output and call.writes]
    made = [flow.key(call.writes[0]) for call in calls]
    if any(_own_argument(flow, calls, made, track) is not None for track in tracks):
        return tracks
    keys = {block: key for track in tracks for block, key in zip(track.blocks, track.keys, strict=True)}
    return [_Track(sorted(keys), [keys[block] for block in sorted(keys)])]


def _maker(flow: Flow, key: int) -> tuple[Hashable, ...]:
    """Return what made a value: the function and the modules that it ran in."""
    i = flow.made[key]
    return (flow.events[i].name, *(event.name for event in flow.owners[i]))


def _carried(flow: Flow, tracks: list[_Track]) -> Iterator[Carried]:
    """Yield what a loop carries and where it is seen."""
    outputs = [_returner(flow, track.keys) for track in tracks]
    taken: Counter[str] = Counter()
    for track, output in zip(tracks, outputs, strict=True):
        spelt = name_of(flow, track.keys, output)
        taken[spelt] += 1
        name = spelt if taken[spelt] == 1 else f"{spelt}_{taken[spelt]}"
        variable: Variable | None = None
        sharing = [other for other, o in zip(tracks, outputs, strict=True) if o == output]
        if output is not None:
            variable = _variable(flow, name, output, track, sharing)
        line, last = line_of(flow, flow.made[track.keys[-1]], output), flow.values[track.keys[-1]]
        if line is not None:
            before = spelt
            spelt, line = assigned(spelt, line, last)
            name = spelt if variable is None and spelt != before else name
        yield Carried(name, tuple(last.shape), variable, line, spelt)


def _variable(flow: Flow, name: str, output: str, track: _Track, sharing: list[_Track]) -> Variable | None:
    """Return where a variable is seen that a module returns."""
    calls = [call for call in _calls(flow) if call.name == output and call.writes]
    made = [flow.key(call.writes[0]) for call in calls]
    argument = _own_argument(flow, calls, made, track)
    if len(sharing) == 1:
        extra = [key for key in made if key not in track.keys]
        if not extra or _is_chain(flow, made):
            return Variable(name=name, output=output, argument=argument, first=0 if argument is not None else 1)
    elif argument is not None:
        turns, of = _turns(flow, calls, made, track, sharing, argument)
        return Variable(name=name, output=output, argument=argument, turns=turns, of=of)
    every = _period_of(_own_calls(flow, made, track, sharing))
    return None if every is None else Variable(name=name, output=output, turns=every[0], of=every[1], first=1)


def _turns(
    flow: Flow, calls: list[Event], made: list[int], track: _Track, sharing: list[_Track], argument: int | str
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


def _own_calls(flow: Flow, made: list[int], track: _Track, sharing: list[_Track]) -> list[bool]:
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


def _own_argument(flow: Flow, calls: list[Event], made: list[int], track: _Track) -> int | str | None:
    """Return where a module receives the last value of the variable it updates, if it does every time."""
    mine = set(track.keys)
    places: set[int | str] | None = None
    last: int | None = None
    for call, key in zip(calls, made, strict=True):
        if key in mine:
            if last is not None:
                here = {place for place, value in call.places.items() if flow.key(value) == last}
                places = here if places is None else places & here
            last = key
    return min(places, key=str) if places else None


def _returner(flow: Flow, keys: list[int]) -> str | None:
    """Return the outermost module that returns all of these values, and one at a time."""
    names: set[str] | None = None
    for key in keys:
        here = {call.name for call in _calls(flow) if call.writes and flow.key(call.writes[0]) == key}
        names = here if names is None else names & here
    return min(names, key=lambda name: (name.count("."), len(name))) if names else None


def _calls(flow: Flow) -> list[Event]:
    """Return the calls of modules, in the order in which they end."""
    ended: dict[int, Event] = {}
    for owners in flow.owners:
        for event in owners:
            ended.pop(id(event), None)
            ended[id(event)] = event
    return list(ended.values())
