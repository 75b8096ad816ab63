"""Whether a pass of a loop is several calls of one network: every so many are fed in another way than the others.

TRM with one variable calls ``z = level(z + e)`` six times and then ``z = level(z)``: the calls are not one map, and
seven of them are. The calls are then an inner loop of the pass, as those of a low level are.

Not covered: calls that differ in their weights alone, or in a value of their own (an embedding of the loop's number).
"""

# Indices: i functions (`Flow.events`).

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from .carried import calls_in, spelt_in
from .flow import Flow, flow_of
from .site import LoopSite, Variable

if TYPE_CHECKING:
    from .trace import Event


def with_inner_calls(site: LoopSite, root: Event) -> LoopSite:
    """Return a site of one state, the calls of its network as an inner loop where they are no map each.

    Args:
        site: What was discovered.
        root: The forward in which it was.
    """
    known = site.variables[0] if site.variables else None
    source = known.output if known is not None else site.output or site.body
    if len(site.variables) > 1 or source is None or (known is not None and known.turns):
        return site
    flow, item = flow_of(root), known.item if known is not None else 0
    calls = [call for call in calls_in(flow) if call.name == source and len(call.writes) > item]
    made = [flow.key(call.writes[item]) for call in calls]
    ways = ways_between(flow, calls)
    of = period_of(fed_by(flow, ways, calls[1:]))
    goes_on = [_reaches(flow, *one) for one in zip(made, ways, calls[1:], strict=False)]
    if of < 2 or not all(goes_on):
        return site
    if known is None:
        name = spelt_in(flow, made, source)
        place = site.state_argument if site.output in (None, site.body) else None
        known = Variable(name=name, output=source, argument=place, first=1 if place is None else 0)
    return LoopSite(
        variables=(replace(known, of=of),),
        mean_depth=len(calls) // of,
        found=site.found,
        notes=(f"a pass is {of} calls of {source!r}, which are not all fed alike: they are its inner loop",),
    )


def ways_between(flow: Flow, calls: Sequence[Event]) -> list[list[int]]:
    """Return the functions between each call and the next that lead to it: a loss of every other loop does not.

    Args:
        flow: The forward.
        calls: Those of one module, in order.
    """
    own = [[i for i, owners in enumerate(flow.owners) if any(event is call for event in owners)] for call in calls]
    ways = []
    for (one, other), call in zip(pairwise(own), calls[1:], strict=True):
        needed, way = set(_given(flow, call)), list[int]()
        for i in reversed(range(one[-1] + 1, other[0])):
            if not needed.isdisjoint(flow.writes[i]):
                way.insert(0, i)
                needed.update(flow.reads[i])
        ways.append(way)
    return ways


def fed_by(flow: Flow, ways: Sequence[Sequence[int]], calls: Sequence[Event]) -> list[Hashable]:
    """Return how calls are fed: which functions lead to each, and what they and the call are given.

    A value that only one of the calls is given is like any other such value.
    """
    used = [_outer_values(flow, way, call) for way, call in zip(ways, calls, strict=True)]
    often = Counter(key for keys in used for key in set(keys))
    given = [tuple(key if often[key] > 1 else None for key in keys) for keys in used]
    return [(tuple(flow.events[i].name for i in way), one) for way, one in zip(ways, given, strict=True)]


def _outer_values(flow: Flow, way: Sequence[int], call: Event) -> tuple[int, ...]:
    """Return the values from elsewhere that are used on the way to a call, or by the call."""
    made = {key for i in way for key in flow.writes[i]}
    reads = [key for i in way for key in flow.reads[i]]
    return tuple(key for key in (*reads, *_given(flow, call)) if key not in made)


def _reaches(flow: Flow, value: int, way: Sequence[int], call: Event) -> bool:
    """Return whether a call depends on a value by the functions that lead to it; one that begins anew does not."""
    behind = {value}
    for i in way:
        if not behind.isdisjoint(flow.reads[i]):
            behind.update(flow.writes[i])
    return not behind.isdisjoint(_given(flow, call))


def _given(flow: Flow, call: Event) -> list[int]:
    return [flow.key(value) for value in call.reads if value.weights is None]


def period_of(fed: Sequence[Hashable]) -> int:
    """Return after how many calls it begins again how they are fed; 1 where all are fed alike, or by no rule.

    Args:
        fed: How each call is fed but the first.

    >>> period_of(["+e", "", "+e"]), period_of(["+e", "+e", "+e"]), period_of(["+e", "+e", ""])
    (2, 1, 1)
    """
    count = len(fed) + 1
    for period in range(1, count // 2 + 1):
        if count % period == 0 and all(fed[i] == fed[i - period] for i in range(period, len(fed))):
            return period
    return 1
