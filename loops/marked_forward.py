"""What a forward that was written down says with its marks: which variables its loop has, and how many passes it runs.

Not covered: forwards without marks (``discovery``), and hearing of marks as they come (``marked``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        one, two = (behind.get(key, 0) for key in (keys[0], keys[min(1, len(keys) - 1)]))
        again = {labels[bit] for bit in _bits(two & ~one)} & {labels[bit] for bit in _bits(one)}
        variables.append(Variable(name=name, first=1 if again else 0))
    return tuple(variables), _passes_of_marks(order, variables)


def _passes_of_marks(order: Sequence[str], variables: Sequence[Variable]) -> int:
    """Return how many passes run, given the names of all marks in their order."""
    numbers = {variable.name: number for number, variable in enumerate(variables)}
    passes, before = Passes(len(variables)), {v.name for v in variables if v.first == 0}
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
