"""Periods in a forward's calls, and the tensor that links one period to the next.

The calls of a forward at the level of its loops are a sequence of *units*: modules, and functions between them. A loop
is a stretch of that sequence in which the modules with parameters repeat. The state is a *bottleneck*: the one tensor
without which nothing computed in a period reaches the modules of the next. Tensors made before the loop (the injected
input, masks, positions) are not carried: they are the loop's constants.

Not covered: states of several tensors; `Periods.links` is then empty and `Periods.carried` names their makers.
"""

# Indices: i, j units; k periods, 0 .. count - 1. "Gap k" is what lies between the modules of period k - 1 and period k.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .site import Item, Part, Place
from .trace import Event, Value

# Functions that hand on the same numbers in another wrapping: where they keep the shape, or for the second set, where
# they keep the channels and only fold the tokens differently.
SAME = frozenset(
    {"to", "type", "type_as", "float", "half", "bfloat16", "double", "clone", "contiguous", "detach", "alias"}
    | {"expand_as", "__getitem__"}
)
FOLDED = frozenset({"view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"})
_JOIN = frozenset({"cat", "concat", "concatenate"})


@dataclass(frozen=True, slots=True)
class Loop:
    """A stretch of repeating module calls: unit indices of the first and last module call of every period."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of periods."""
        return len(self.first)


@dataclass(frozen=True, slots=True)
class Link:
    """Where a period leaves the state: which output of which unit, counted from the period's last module call."""

    offset: int
    slot: int


class Periods:
    """A traced forward seen as units and loops.

    Args:
        root: The model's own call, from `trace`.
        bare: Whether modules without parameters make a loop too, for one that computes with operations alone.
    """

    def __init__(self, root: Event, *, bare: bool = False) -> None:
        self.root = root
        self._bare = bare
        self._calls = Counter(event.module for event in root.walk() if event.module is not None)
        self.units = list(self._units(root))
        self._marked = [i for i, unit in enumerate(self.units) if self._marks(unit)]
        self._same: dict[int, int] = {}
        self.inner: dict[int, Event] = {}  # the function that made a tensor, wherever it ran
        for event in root.walk():
            if event.module is None and event.reads and event.writes:
                self._note_function(event)
        self._maker: dict[int, int] = {}
        for index, unit in enumerate(self.units):
            for tensor in unit.writes:
                self._maker.setdefault(self.key(tensor), index)
        self._wide = {  # what can be a state
            self.key(t) for unit in self.units for t in unit.writes if t.is_floating_point() and t.ndim >= 2
        }

    # Loops

    def loops(self) -> list[Loop]:
        """Return all loops, outer ones before the ones inside them; repeats that nothing links are left out."""
        marks = self._marked
        names = [self.units[i].name for i in marks]
        runs: list[tuple[int, int, int]] = []
        for start, period, count in _repeats(names):
            loop = _loop(marks, start, period, count)
            covered = any(p == period and s <= start and start + period * count <= s + p * c for s, p, c in runs)
            if not covered and self.carried(loop):
                runs.append((start, period, count))
        runs.sort(key=lambda run: (run[0], -run[1] * run[2]))
        kept: list[tuple[int, int, int]] = []
        for run in runs:
            if not any(_inside_earlier_period(run, other) for other in kept):
                kept.append(run)
        return [_loop(marks, *run) for run in kept]

    def turned(self, loop: Loop) -> list[Loop]:
        """Return the other ways to read the same calls: as many periods, begun at a later module of the first."""
        start, period = self._marked.index(loop.first[0]), self._marked.index(loop.last[0])
        period += 1 - start
        names = [self.units[i].name for i in self._marked[start:]]
        further = 0
        while further < period and names[period * loop.count + further :][:1] == names[further : further + 1]:
            further += 1
        return [_loop(self._marked, start + turn, period, loop.count) for turn in range(further + 1)]

    def calls(self, loop: Loop, k: int) -> list[Event]:
        """Return the module calls of period ``k``, those without parameters in the gap before it too."""
        start = loop.last[k - 1] + 1 if k else loop.first[0]
        return [unit for unit in self.units[start : loop.last[k] + 1] if unit.module is not None]

    # The state

    def carried(self, loop: Loop) -> list[str]:
        """Return names of the units whose outputs one period leaves to the next, in running order."""
        # Period 1 may go on from h_0 through functions alone, which was made before the loop.
        made = {self._maker[key] for key in self._reached(loop, min(2, loop.count - 1))[0]}
        return [self.units[i].name for i in sorted(made)]

    def mixes(self, loop: Loop) -> bool:
        """Return whether one module makes several variables in turn, so that its outputs are no one trajectory."""
        for k in range(1, loop.count):
            made = {self._maker[key] for key in self._reached(loop, k)[0]}
            if len({self.units[i].name for i in made}) < len(made) or any(i < loop.first[k - 1] for i in made):
                return True
        return False

    def mixing(self, loop: Loop) -> list[str]:
        """Return the modules that make several of the tensors which one period leaves to the next."""
        names: list[str] = []
        for k in range(1, loop.count):
            made = {self._maker[key] for key in self._reached(loop, k)[0]}
            times = Counter(self.units[i].name for i in made)
            several = [i for i in made if times[self.units[i].name] > 1 or i < loop.first[k - 1]]
            names += [self.units[i].name for i in sorted(several) if self.units[i].module is not None]
        return list(dict.fromkeys(names))

    def reader(self, loop: Loop, link: Link) -> Event | None:
        """Return the last call of a module inside the loop that receives the state which the last period leaves."""
        key = self.key(self.state(loop, link, loop.count))
        behind = self.units[loop.last[-1] + link.offset + 1 :]
        return next(
            (u for u in behind if u.module is not None and 0 in u.places and self.key(u.places[0]) == key), None
        )

    def received(self, loop: Loop) -> tuple[Place, str, str, str] | None:
        """Return the widest of several carried tensors that the same module of every period receives.

        Returns:
            Where it is received, by which module, which module receives it behind the loop, and what makes it.
        """
        shared: set[tuple[Place, str, str]] | None = None
        width: dict[tuple[Place, str, str], int] = {}
        for k in range(1, loop.count):
            here = set()
            for call in self._span(loop, k):
                for place, tensor in self._given(call) if call.module is not None else []:
                    i = self._maker.get(self.key(tensor), -1)
                    if loop.first[k - 1] <= i < loop.first[k]:
                        here.add(key := (place, call.name, self.units[i].name))
                        width[key] = tensor.shape[-1] if _tokens(tensor) else 0
            shared = here if shared is None else shared & here
        inside = {unit.name for unit in self.units[loop.first[0] : loop.last[-1] + 1]}
        for key in sorted(shared or (), key=lambda key: (-width[key], str(key))):
            place, body, maker = key
            for unit in self.units[loop.last[-1] + 1 :]:
                if unit.module is None or unit.name in inside or 0 not in unit.places:
                    continue
                i = self._maker.get(self.key(unit.places[0]), -1)
                if i >= loop.first[-1] and self.units[i].name == maker and self.calls_of(body) == loop.count:
                    return place, body, unit.name, maker
        return None

    def links(self, loop: Loop) -> list[Link]:
        """Return the places at which a period leaves one tensor from which alone the next one goes on."""
        chain = []
        for i in range(loop.first[0], loop.first[1]):
            for slot, tensor in enumerate(self.units[i].writes):
                link = Link(i - loop.last[0], slot)
                if self._maker.get(self.key(tensor)) == i and self._is_state(loop, link):
                    chain.append(link)
        return chain

    def state(self, loop: Loop, link: Link, k: int) -> Value:
        """Return the state that period ``k - 1`` leaves, ``k = 1 .. count``."""
        return self.units[loop.last[k - 1] + link.offset].writes[link.slot]

    def receiver(self, loop: Loop, link: Link) -> tuple[Place, Event] | None:
        """Return the first module of every period that receives the state, where, and its call in period 1."""
        for j, call in enumerate(self._calls_behind(loop, link, 1)):
            place = self._place(call, self.state(loop, link, 1))
            if not self._opens_period(loop, call):
                continue
            if place is not None and all(
                len(calls := self._calls_behind(loop, link, k)) > j
                and calls[j].name == call.name
                and self._place(calls[j], self.state(loop, link, k)) == place
                for k in range(2, loop.count)
            ):
                return place, call
        return None

    def returner(self, loop: Loop, link: Link) -> str | None:
        """Return the last module in a period that returns the state itself."""
        key = self.key(self.state(loop, link, 1))
        names = [
            unit.name
            for unit in self.units[loop.first[0] : loop.first[1]]
            if unit.module is not None and unit.writes and self.key(unit.writes[0]) == key
        ]
        return names[-1] if names else None

    def after(self, loop: Loop, link: Link) -> Event | None:
        """Return the first module behind the loop whose first argument is the final state."""
        final = self.key(self.state(loop, link, loop.count))
        inside = {unit.name for unit in self.units[loop.first[0] : loop.last[-1] + 1]}
        return next(
            (
                unit
                for unit in self.units[loop.last[-1] + 1 :]
                if unit.module is not None and unit.name not in inside
                if 0 in unit.places and self.key(unit.places[0]) == final
            ),
            None,
        )

    def next_call(self, loop: Loop) -> Event | None:
        """Return the first module with parameters behind the loop."""
        return next((unit for unit in self.units[loop.last[-1] + 1 :] if self._marks(unit)), None)

    def calls_of(self, name: str) -> int:
        """Return how often the module of this name was called in the whole forward."""
        return sum(event.name == name for event in self.root.walk() if event.module is not None)

    def calls_until(self, name: str, loop: Loop, after: Event) -> int:
        """Return how often a module was called before the first call behind the loop."""
        return sum(unit.name == name for unit in self.units[: self.units.index(after)] if unit.module is not None)

    def reached_otherwise(self, loop: Loop, link: Link, body: Event, beside: Event | None = None) -> bool:
        """Return whether anything in period 1 but the call of ``body`` reads the state.

        ``beside`` is a module that reads the state in every period for an output of the model. It does not count: what
        it returns is not carried on, or the period would carry two tensors.
        """
        key = self.key(self.state(loop, link, 1))
        begin, end = (loop.last[k] + max(link.offset, 0) + 1 for k in (0, 1))
        if body.writes and self.key(body.writes[0]) == key:  # what reads the state later reads what `body` returned
            end = self.units.index(body)
        readers = [
            unit
            for unit in self.units[begin:end]
            if unit is not body and (beside is None or unit.name != beside.name)
            if any(self.key(tensor) == key for tensor in unit.reads)
        ]
        given = {self.key(tensor) for tensor in body.reads}
        return any(not (unit.name in _JOIN and self.key(unit.writes[0]) in given) and not _is_same(unit)
                   for unit in readers)  # fmt: skip

    def chain(self, loop: Loop, link: Link, body: Event) -> tuple[str, ...]:
        """Return the modules that hand the whole state on from ``body`` to the period's end; empty if others do too."""
        names, key = [body.name], self.key(body.writes[0]) if body.writes else 0
        calls = self.calls(loop, 1)
        for call in calls[calls.index(body) + 1 :]:
            if 0 in call.places and self.key(call.places[0]) == key and call.writes:
                names.append(call.name)
                key = self.key(call.writes[0])
        return tuple(names) if key == self.key(self.state(loop, link, 2)) else ()

    def prelude(self, loop: Loop) -> tuple[str, ...]:
        """Return the modules with parameters in front of the loop that give back a tensor of the shape they got."""
        return tuple(
            unit.name
            for unit in self.units[: loop.first[0]]
            if unit.learns and 0 in unit.places and unit.writes and self.key(unit.writes[0]) in self._wide
            if unit.places[0].shape == unit.writes[0].shape
        )

    def input_place(self, loop: Loop, link: Link, body: Event) -> Place | None:
        """Where ``body`` receives, in every period, the same tensor of the state's shape made before the loop."""
        tokens = self.state(loop, link, 1).shape[:-1].numel()
        calls = [unit for unit in self.units[: loop.last[-1] + 1] if unit.name == body.name and unit.module is not None]
        for place, tensor in self._given(body):
            if isinstance(place, Item):  # rotary tables and the like come in tuples
                continue
            same = all(any(p == place and t == self.key(tensor) for p, t in self._keys(call)) for call in calls)
            if same and self._is_constant(loop, tensor) and tensor.is_floating_point() and _tokens(tensor) == tokens:
                return place
        return None

    def key(self, tensor: Value) -> int:
        """Return the identity of a tensor's numbers: the same for copies, casts and views of the same shape."""
        key = id(tensor)
        while key in self._same:
            key = self._same[key]
        return key

    # Inside

    def _marks(self, unit: Event) -> bool:
        """Return whether a unit is one of the calls whose repetition makes a loop."""
        return unit.module is not None if self._bare else unit.learns

    def _span(self, loop: Loop, k: int) -> list[Event]:
        """Return the units from the first to the last module call of a period."""
        return self.units[loop.first[k] : loop.last[k] + 1]

    def _units(self, event: Event) -> Iterator[Event]:
        """Return calls at the level of the loops: inside modules called once that hold one called more often."""
        for child in event.children:
            once = child.module is not None and self._calls[child.module] == 1
            if once and any(
                e.module is not None and self._calls[e.module] > 1 and self._marks(e) for e in child.walk()
            ):
                yield from self._units(child)
            else:
                yield child

    def _is_again(self, event: Event) -> bool:
        """Return whether an event is a call of a module that is called more often."""
        return event.module is not None and self._calls[event.module] > 1

    def _note_function(self, event: Event) -> None:
        source, made = event.reads[0], event.writes[0]
        if _is_same(event) and made is not source:
            self._same[id(made)] = id(source)
        elif all(id(made) != id(tensor) for tensor in event.reads):
            self.inner.setdefault(id(made), event)

    def _reached(self, loop: Loop, k: int, stop: int | None = None, goal: int | None = None) -> tuple[set[int], bool]:
        """Return the tensors from earlier periods that period ``k``'s modules go on from, and whether ``stop`` is one.

        So do functions that lead to ``goal``, the state that the period leaves. What lies behind ``stop`` is not looked
        at; masks, counters and scalars are no states.
        """
        todo = [] if goal is None else [goal]
        todo += [self.key(t) for unit in self._span(loop, k) for t in unit.reads if self._marks(unit)]
        seen, carried = set[int](), set[int]()
        while todo:
            key = todo.pop()
            if key in seen:
                continue
            seen.add(key)
            i = self._maker.get(key, -1)
            if key == stop or i < loop.first[0]:
                continue
            if i <= loop.last[k - 1]:
                carried |= {key} & self._wide
            elif not self._marks(self.units[i]):
                todo += [self.key(tensor) for tensor in self.units[i].reads]
        return carried, stop in seen

    def _is_state(self, loop: Loop, link: Link) -> bool:
        """Return whether each period goes on from this one tensor alone, and the last period leaves one too."""
        before = 0
        for k in range(1, loop.count + 1):
            i = loop.last[k - 1] + link.offset
            if i >= len(self.units) or not self._same_gap(loop, link, k):
                return False
            if link.slot >= len(self.units[i].writes):
                return False
            key = self.key(self.units[i].writes[link.slot])
            if key not in self._wide:
                return False
            if k > 1 and self._reached(loop, k - 1, before, key) != (set(), True):
                return False
            before = key
        return True

    def _same_gap(self, loop: Loop, link: Link, k: int) -> bool:
        """Whether the units up to the link run behind period ``k - 1`` as behind period 0, on no new constants."""
        for step in range(min(link.offset, 1), link.offset + 1):
            one, other = self.units[loop.last[0] + step], self.units[loop.last[k - 1] + step]
            if one.name != other.name:
                return False
            if step > 0 and not self._constants(loop, other) <= self._constants(loop, one):
                return False
        return True

    def _constants(self, loop: Loop, unit: Event) -> set[int]:
        """Return the tensors from before the loop that a unit reads."""
        return {self.key(tensor) for tensor in unit.reads if self._is_constant(loop, tensor)}

    def _is_constant(self, loop: Loop, tensor: Value) -> bool:
        return self._maker.get(self.key(tensor), -1) < loop.first[0]

    def _calls_behind(self, loop: Loop, link: Link, k: int) -> list[Event]:
        """Return the module calls that can receive the state which period ``k - 1`` leaves."""
        begin = loop.last[k - 1] + max(link.offset, 0) + 1
        return [unit for unit in self.units[begin : loop.last[k] + 1] if unit.module is not None]

    def _opens_period(self, loop: Loop, call: Event) -> bool:
        """Return whether a call of period 1 has its like in period 0, rather than closing the period before."""
        like = loop.first[0] + self.units.index(call) - loop.first[1]
        return like >= 0 and self.units[like].name == call.name

    def _place(self, call: Event, tensor: Value) -> Place | None:
        """Return where a call receives a tensor."""
        return next((place for place, key in self._keys(call) if key == self.key(tensor)), None)

    def _keys(self, call: Event) -> list[tuple[Place, int]]:
        return [(place, self.key(tensor)) for place, tensor in self._given(call)]

    def _given(self, call: Event) -> list[tuple[Place, Value]]:
        """Return the tensors a call receives, those that were joined into one argument too."""
        given: list[tuple[Place, Value]] = []
        for place, tensor in call.places.items():
            given.append((place, tensor))
            if isinstance(place, int | str):
                given += [(Part(place, start, stop), part) for part, start, stop in self.joined(tensor)]
        return given

    def joined(self, tensor: Value) -> list[tuple[Value, int, int]]:
        """Return the tensors that were joined along the channels to make this one, with the channels they became."""
        maker = self.inner.get(self.key(tensor))
        if maker is None or maker.name not in _JOIN or any(t.ndim != tensor.ndim for t in maker.reads):
            return []
        if sum(t.shape[-1] for t in maker.reads) != tensor.shape[-1]:
            return []
        parts, start = [], 0
        for part in maker.reads:
            parts.append((part, start, start + part.shape[-1]))
            start += part.shape[-1]
        return parts


def _is_same(unit: Event) -> bool:
    """Return whether a function hands on its input's numbers, one token's channels together."""
    if unit.module is not None or not unit.reads:
        return False
    given, made = unit.reads[0], unit.writes[0]
    folded = unit.name in FOLDED and given.shape[-1:] == made.shape[-1:] and given.numel() == made.numel()
    return folded or (unit.name in SAME and given.shape == made.shape)


def _tokens(tensor: Value) -> int:
    """Return the number of channel vectors in a tensor."""
    return tensor.shape[:-1].numel() if tensor.ndim > 1 else 0


def _loop(marks: list[int], start: int, period: int, count: int) -> Loop:
    """Return a run of module calls as unit indices."""
    first = tuple(marks[start + k * period] for k in range(count))
    last = tuple(marks[start + (k + 1) * period - 1] for k in range(count))
    return Loop(first, last)


def _repeats(names: list[str]) -> list[tuple[int, int, int]]:
    """Stretches ``(start, period, count)`` in which a sequence repeats, shortest period first, count at least 2.

    >>> _repeats(list("xababy"))
    [(1, 2, 2)]
    """
    repeats = []
    for period in range(1, len(names) // 2 + 1):
        start = 0
        while start + 2 * period <= len(names):
            count = 1
            while names[start + count * period : start + (count + 1) * period] == names[start : start + period]:
                count += 1
            block = names[start : start + period]
            if count >= 2 and not any(period % p == 0 and block == block[:p] * (period // p) for p in range(1, period)):
                repeats.append((start, period, count))
                start += period * (count - 1)
            start += 1
    return repeats


def _inside_earlier_period(run: tuple[int, int, int], outer: tuple[int, int, int]) -> bool:
    """Return whether a run is the same as one in the outer loop's first period, in a later one."""
    start, period, count = run
    begin, length, times = outer
    return length > period * count and begin + length <= start < begin + length * times


__all__ = ["Link", "Loop", "Periods"]
