"""A forward as functions in order, with the values that they read and write, and which parameters made each value.

A function that hands on the numbers of its input (a view, a cast, a mark) is none here: its output is the same value.

Not covered: what the functions compute; which of them repeat (``lineage``).
"""

# Indices: i functions (`Flow.events`).

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from .periods import FOLDED, SAME
from .trace import Event, Value

MARK: Final = "mark "  # how the name of a function begins that is a mark


@dataclass(slots=True)
class Flow:
    """A forward as functions in order, with the value numbers that they read and write."""

    events: list[Event] = field(default_factory=list)
    owners: list[tuple[Event, ...]] = field(default_factory=list)  # the module calls that a function is in
    reads: list[list[int]] = field(default_factory=list)
    writes: list[list[int]] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    read_at: dict[int, list[int]] = field(default_factory=dict)
    values: dict[int, Value] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)
    behind: dict[int, int] = field(default_factory=dict)  # of a value the uses of parameters that made it, as bits
    bit: dict[int, int] = field(default_factory=dict)  # of a use, by its function

    def key(self, value: Value) -> int:
        """Return the identity of a value's numbers: the same for copies, casts and views of the same shape."""
        key = id(value)
        while key in self.same:
            key = self.same[key]
        return key


def flow_of(root: Event) -> Flow:
    """Write a forward down as functions."""
    flow = Flow()

    def visit(event: Event, owners: tuple[Event, ...]) -> None:
        for child in event.children:
            if child.module is not None and any(e.module is None for e in child.walk()):
                visit(child, (*owners, child))
            else:
                add(child, (*owners, child) if child.module is not None else owners)

    def add(event: Event, owners: tuple[Event, ...]) -> None:
        if _hands_on(event):
            if event.writes[0] is not event.reads[0]:
                flow.same[id(event.writes[0])] = id(event.reads[0])
                one = flow.values.setdefault(flow.key(event.reads[0]), event.reads[0])
                for code, name in event.writes[0].names.items():  # as a norm casts back what it returns
                    one.names.setdefault(code, name)
            return
        i = len(flow.events)
        flow.events.append(event)
        flow.owners.append(owners)
        flow.reads.append([flow.key(value) for value in event.reads if value.weights is None])
        flow.writes.append([flow.key(value) for value in event.writes])
        for key, value in zip(flow.writes[-1], event.writes, strict=True):
            flow.made.setdefault(key, i)
            flow.values.setdefault(key, value)
        for key in flow.reads[-1]:
            flow.read_at.setdefault(key, []).append(i)

    visit(Event("", None, {}, [], children=[root]), ())
    return flow


def _hands_on(event: Event) -> bool:
    """Return whether a function hands on its input's numbers, one token's channels together."""
    if event.module is not None or not event.reads or not event.writes:
        return False
    if event.name.startswith(MARK):
        return True
    given, made = event.reads[0], event.writes[0]
    folded = event.name in FOLDED and given.shape[-1:] == made.shape[-1:] and given.numel() == made.numel()
    return folded or (event.name in SAME and given.shape == made.shape)


def uses_of(flow: Flow) -> list[int]:
    """Return the functions that use parameters on data."""
    return [i for i in range(len(flow.events)) if flow.reads[i] and _weights_of(flow.events[i])]


def _weights_of(event: Event) -> frozenset[Hashable]:
    """Return the parameters that a function uses."""
    if event.module is not None and event.learns:
        return frozenset({event.name})
    return frozenset(value.weights for value in event.reads if value.weights is not None)


def ancestry(flow: Flow) -> tuple[dict[int, int], list[Hashable]]:
    """Return of every value the uses of parameters that it depends on, as bits, and the label of every use."""
    behind: dict[int, int] = {}
    labels: list[Hashable] = []
    for i, event in enumerate(flow.events):
        bits = 0
        for key in flow.reads[i]:
            bits |= behind.get(key, 0)
        if (weights := _weights_of(event)) and flow.reads[i]:
            bits |= 1 << len(labels)
            labels.append((event.name, weights))
        for key in flow.writes[i]:
            behind[key] = behind.get(key, 0) | bits
    return behind, labels
