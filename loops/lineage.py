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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from .carried import Carried, Track, call_at, calls_in, carried_by, maker_of, own_argument, passes_of, returner_of
from .flow import Flow, ancestry, flow_of, uses_of
from .trace import Event, Line

LONGEST = 4000  # uses of parameters that are looked at
GATES = frozenset(
    {
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
    }
)
"""Functions that join one tensor to another number by number: with a parameter, a gate."""
_UNRETURNED = 1000  # how deep a value lies that no module returns


@dataclass(frozen=True, slots=True)
class LineageLoop:
    """A loop as parameters and data flow show it.

    Args:
        passes: How often it ran.
        modules: The modules of one pass.
        carried: What it carries.
        line: Where its body is called.
        skips: Whether passes besides hand on values to passes that come later than the next.
        runs: How often it runs in the forward, each time from a beginning of its own; the rest is of the longest run.
        least: What it carries where least is alive between two passes, whether modules return that or not.
    """

    passes: int
    modules: tuple[str, ...]
    carried: tuple[Carried, ...]
    line: Line | None
    skips: bool = False
    least: tuple[Carried, ...] = ()
    runs: int = 1


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
        all_passes = [uses[start + k * period : start + (k + 1) * period] for k in range(count)]
        runs = _runs(flow, all_passes)
        passes = _whole_passes(flow, max(runs, key=len))
        readings = [loop for ends in _ENDS if (loop := _loop(flow, passes, ends)) is not None]
        known = [loop for loop in readings if any(each.variable for each in loop.carried)]
        if readings:
            best = min(known, key=lambda loop: not _is_seen(loop), default=readings[0])
            loops.append(replace(best, least=readings[0].least, runs=len(runs)))
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


Ends = Literal["least", "returned"]
"""Where passes end: where least is alive, or most of what is alive was returned by modules."""
_ENDS: tuple[Ends, ...] = ("least", "returned")


def _loop(flow: Flow, passes: list[list[int]], ends: Ends) -> LineageLoop | None:
    """Return the loop of these passes; None where it carries nothing.

    Args:
        flow: The forward.
        passes: The uses of parameters of every pass.
        ends: Where passes end.
    """
    bounds, span = [uses[0] for uses in passes], _span(flow, passes)
    cuts = [_cut(flow, span, one[-1], other[0], ends) for one, other in pairwise(passes)]
    live = [sorted(_live(flow, span, cut), key=lambda key: flow.made[key]) for cut in cuts]
    inner = live[len(live) // 2 :] or live
    count = Counter(len(keys) for keys in inner).most_common(1)[0][0]
    if not count:
        return None
    while len(live[-1]) < count:  # in the last passes, what nobody reads any more is joined to what goes on
        live.pop()
    tracks = _without_history(flow, _tracks(flow, live))
    carried = least = tuple(carried_by(flow, tracks, len(passes)))
    seen = all(each.variable for each in carried)
    chain = None if seen else _chain_of_passes(flow, span, passes, {key for keys in live for key in keys})
    if chain is not None:
        tracks, carried = [chain], tuple(carried_by(flow, [chain], len(passes)))
    names = tuple(dict.fromkeys(event.name for i in range(bounds[0], bounds[1]) for event in flow.owners[i][-1:]))
    body = call_at(flow, bounds[0])
    whole = replace(span, stop=len(flow.events))
    skips = chain is not None and any(_live(flow, whole, flow.made[key] + 1) != [key] for key in chain.keys[:-1])
    return LineageLoop(passes_of(flow, carried, len(bounds)), names, carried, body, skips, least)


def _runs(flow: Flow, passes: list[list[int]]) -> list[list[list[int]]]:
    """Return the runs of a loop: between two of them nothing is alive that it made."""
    alive = _alive(flow, passes)
    if not any(alive):  # it hands on what cannot be a state
        return [passes]
    ends = [0, *(k for k, number in enumerate(alive, 1) if not number), len(passes)]
    return [passes[a:b] for a, b in pairwise(ends)]


def _alive(flow: Flow, passes: list[list[int]]) -> list[int]:
    """Return how many values are alive between two passes, at the least, as `_live` has it."""
    span = _span(flow, passes)
    change = np.zeros(len(flow.events) + 2, dtype=np.int64)
    for i in range(span.start, span.stop):
        for key in flow.writes[i]:
            last = max((at for at in flow.read_at.get(key, ()) if at < span.stop), default=i)
            if flow.made[key] == i < last and _is_wide(flow, key) and flow.behind.get(key, 0) & span.uses:
                change[i + 1] += 1
                change[last + 1] -= 1
    alive = np.cumsum(change)
    return [int(alive[a[-1] + 1 : b[0] + 1].min()) for a, b in pairwise(passes)]


def _whole_passes(flow: Flow, passes: list[list[int]]) -> list[list[int]]:
    """Return passes that are whole: a step of a solver that asks for its field several times is one of them.

    Between two of its questions more is alive than between two steps. The first step tells nothing, for what it begins
    with was made before the loop, and nor does the last one, of which only what it asks with is read in the loop.
    """
    alive = _alive(flow, passes)
    for size in range(2, len(passes) // 3 + 1):
        later = [(alive[k - 1], k % size == 0) for k in range(size, len(passes) - size + 1)]
        at_ends, inside = ({number for number, is_end in later if is_end is which} for which in (True, False))
        if len(passes) % size == 0 and len(at_ends) == 1 and min(inside) > max(at_ends) > 0:
            return [[i for one in passes[k : k + size] for i in one] for k in range(0, len(passes), size)]
    return passes


def _with_tail(flow: Flow, span: _Span) -> _Span:
    """Return a loop with what comes behind its last use of parameters, until others are used."""
    return replace(span, stop=next((i for i in uses_of(flow) if i >= span.stop), len(flow.events)))


def _span(flow: Flow, passes: list[list[int]]) -> _Span:
    """Return the functions of a loop, given the uses of parameters of every pass."""
    own = 0
    for i in (i for uses in passes for i in uses):
        own |= flow.bit[i]
    return _Span(passes[0][0], passes[-1][-1] + 1, own)


def _chain_of_passes(flow: Flow, span: _Span, passes: list[list[int]], live: set[int]) -> Track | None:
    """Return the one value that every pass returns and the next one reads; None where there is none, or several.

    Skips differ: a pass hands them on to any later one. None too where no module made what is alive between passes, but
    for skips: those that later passes make none of.
    """
    first, last = [uses[0] for uses in passes], [uses[-1] for uses in passes]
    ends = [*first[1:], len(flow.events)]
    calls: dict[str, list[int]] = {}
    for call in calls_in(flow):
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
    return Track(list(range(len(passes))), *chains.values()) if len(chains) == 1 else None


def _makes_no_more(flow: Flow, span: _Span, keys: list[int]) -> bool:
    """Return whether the later passes leave nothing behind but the one value of each: the rest is older."""
    half = len(keys) // 2
    since = flow.made[keys[half - 1]] if half else 0
    later = keys[half:]
    whole = _with_tail(flow, span)
    return len(later) > 1 and all(
        flow.made[other] <= since for key in later for other in _live(flow, whole, flow.made[key] + 1) if other != key
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


def _cut(flow: Flow, span: _Span, low: int, high: int, ends: Ends) -> int:
    """Return where between two uses the fewest values are alive, returned by the outermost modules."""
    depth: dict[int, int] = {}
    for owners in flow.owners:
        for level, call in enumerate(owners):
            for key in map(flow.key, call.writes):
                depth[key] = min(depth.get(key, _UNRETURNED), level)

    def cost(at: int) -> tuple[int, int, int, int]:
        live = _live(flow, span, at)
        seen = sum(key in depth for key in live)
        return -seen if ends == "returned" else 0, len(live), sum(depth.get(key, _UNRETURNED) for key in live), at

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


def _tracks(flow: Flow, live: list[list[int]]) -> list[Track]:
    """Follow what is carried from block to block: what is born takes the place of what dies, where the shapes agree."""
    tracks: list[Track] = []
    holding: dict[int, Track] = {}
    for block, keys in enumerate(live):
        born = [key for key in keys if key not in holding]
        dead = [key for key in holding if key not in keys]
        for key in born:
            shape = flow.values[key].shape
            heirs = [old for old in dead if flow.values[old].shape == shape]
            alike = [old for old in heirs if maker_of(flow, old) == maker_of(flow, key)] or heirs
            alike = alike or [old for old in dead if _is_longer(flow, old, key)]
            if alike:
                track = holding.pop(alike[-1])
                dead.remove(alike[-1])
            else:
                track = Track([], [])
                tracks.append(track)
            track.blocks.append(block)
            track.keys.append(key)
            holding[key] = track
        for key in dead:
            holding.pop(key, None)
    steady = [track for track in tracks if len(track.keys) > 1]
    for track in tracks:
        if len(track.keys) == 1 and (last := _handed_back(flow, track, steady)) is not None:
            track.keys.append(last)
            track.blocks.append(len(live))
    return [track for track in tracks if len(track.keys) > 1 or not steady]


def _is_longer(flow: Flow, one: int, other: int) -> bool:
    """Return whether two values made at one place differ in how many tokens they have: a sequence that grows."""
    a, b = flow.values[one].shape, flow.values[other].shape
    return len(a) == len(b) and a[-1] == b[-1] and maker_of(flow, one) == maker_of(flow, other)


def _handed_back(flow: Flow, track: Track, others: list[Track]) -> int | None:
    """Return the next value of a variable that is alive between two passes only, as the slower one of two passes is.

    The module that made it receives it again, where it receives the variable that it makes in turn with this one.
    """
    if (source := returner_of(flow, track.keys)) is None:
        return None
    calls = [call for call in calls_in(flow) if call.name == source[0] and len(call.writes) > source[1]]
    made = [flow.key(call.writes[source[1]]) for call in calls]
    for other in others:
        place = own_argument(flow, calls, made, other) if returner_of(flow, other.keys) == source else None
        for call, key in zip(calls, made, strict=True):
            value = None if place is None else call.places.get(place)
            if value is not None and flow.key(value) == track.keys[0]:
                return key
    return None


def _without_history(flow: Flow, tracks: list[Track]) -> list[Track]:
    """Return the variables, where a loop that goes on from its last few states is not taken for several.

    There one place makes all of them, each takes the turn of the oldest, and none is handed back to where it was made.
    """
    makers = {maker_of(flow, key) for track in tracks for key in track.keys}
    order = sorted((block, number) for number, track in enumerate(tracks) for block in track.blocks)
    turns = [number for _, number in order]
    rotates = all(a == b for a, b in zip(turns, turns[len(tracks) :], strict=False))
    shapes = {flow.values[key].shape for track in tracks for key in track.keys}
    if len(tracks) < 2 or len(makers) > 1 or len(shapes) > 1 or not rotates:
        return tracks
    source = returner_of(flow, [key for track in tracks for key in track.keys])
    output, item = source or ("", 0)
    calls = [call for call in calls_in(flow) if call.name == output and len(call.writes) > item]
    made = [flow.key(call.writes[item]) for call in calls]
    if any(own_argument(flow, calls, made, track) is not None for track in tracks):
        return tracks
    keys = {block: key for track in tracks for block, key in zip(track.blocks, track.keys, strict=True)}
    return [Track(sorted(keys), [keys[block] for block in sorted(keys)])]
