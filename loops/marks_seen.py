"""What the marks of a forward tell: which variables there are, where each begins, how many passes run.

Not covered: seeing marks while a model runs (`marked`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from .flow import MARK, ancestry, flow_of
from .site import Variable
from .states import Passes
from .trace import Event


def marked_variables(root: Event) -> tuple[tuple[Variable, ...], int]:
    """Return the variables that a forward marks, in the order of their first marks, and how many passes it runs.

    A first mark is on the value before the loop, unless parameters that make the next value have made it too.
    """
    flow = flow_of(root)
    behind, labels = ancestry(flow)
    marks: dict[str, list[int]] = {}
    order: list[str] = []
    for event in root.walk():
        if event.module is None and event.name.startswith(MARK):
            order.append(event.name.removeprefix(MARK))
            marks.setdefault(order[-1], []).append(flow.key(event.reads[0]))
    variables = []
    for name, keys in marks.items():
        made = [behind.get(key, 0) for key in keys[:3]]
        anew = [{labels[bit] for bit in _bits(other & ~one)} for one, other in pairwise(made)]
        again = {labels[bit] for bit in _bits(made[0])}.intersection(*anew) if anew else set()
        variables.append(Variable(name=name, first=1 if again else 0))
    return tuple(variables), _passes_of_marks(order, variables)


def marked_anew(root: Event) -> list[str]:
    """Return the names of marks whose values begin anew within the forward: they are not made of the last ones."""
    flow = flow_of(root)
    behind, _ = ancestry(flow)
    last: dict[str, int] = {}
    anew: dict[str, None] = {}
    for event in root.walk():
        if event.module is None and event.name.startswith(MARK):
            name, made = event.name.removeprefix(MARK), behind.get(flow.key(event.reads[0]), 0)
            if made and last.get(name, 0) & ~made:  # behind a transform nothing is known
                anew[name] = None
            last[name] = made
    return list(anew)


def marked_apart(root: Event, variables: Sequence[Variable]) -> list[list[str]]:
    """Return the names of marks by loop, where some run whole passes before others begin; in running order.

    Args:
        root: The model's own call.
        variables: As `marked_variables` gives them.
    """
    updates: dict[str, list[int]] = {v.name: [] for v in variables}
    before = {v.name for v in variables if v.first == 0}
    marks = [e.name.removeprefix(MARK) for e in root.walk() if e.module is None and e.name.startswith(MARK)]
    for at, name in enumerate(marks):
        if name in before:
            before.remove(name)
        else:
            updates[name].append(at)
    loops: list[list[str]] = []
    ends = -1
    for name, own in sorted(updates.items(), key=lambda item: item[1][:1]):
        if len(own) < 2:
            return []  # a mark that is made once tells of no loop of its own
        if own[0] > ends:
            loops.append([])
        loops[-1].append(name)
        ends = max(ends, own[-1])
    return loops


def _passes_of_marks(order: Sequence[str], variables: Sequence[Variable]) -> int:
    """Return how many passes run, given the names of all marks in their order."""
    numbers = {variable.name: number for number, variable in enumerate(variables)}
    passes, before = Passes.of(variables), {v.name for v in variables if v.first == 0}
    for name in order:
        if name in before:
            before.remove(name)  # the value before the loop
        else:
            passes.update(numbers[name])
    return passes.number + passes.whole


def _bits(number: int) -> Iterator[int]:
    """Yield which bits of a number are set."""
    while number:
        yield (low := number & -number).bit_length() - 1
        number ^= low
