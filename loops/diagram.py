"""The calls of a forward in one line: what repeats stands once, with how often.

Not covered: what is passed between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from .trace import Event


def diagram(root: Event) -> str:
    """Return the calls of a forward in short: what repeats stands once, with how often.

    >>> calls = [Event(name, None, {}, []) for name in "ababc"]
    >>> diagram(Event("", None, {}, [], children=calls))
    ''
    """
    counts = Counter(event.module for event in root.walk() if event.module is not None)
    names = [event.name for event in _outermost(root, counts)]
    return " → ".join(_folded(names))


def _outermost(root: Event, counts: Counter[nn.Module]) -> Iterator[Event]:
    """Yield calls of modules that learn, going into those that hold one called more often than they are."""
    for child in root.children:
        if child.module is None or not child.learns:
            continue
        inner = [e for e in child.walk() if e is not child and e.module is not None and e.learns]
        if any(e.module is not None and counts[e.module] > counts[child.module] for e in inner):
            yield from _outermost(child, counts)
        else:
            yield child


def _folded(names: list[str]) -> list[str]:
    """Return a sequence with its repeats written once.

    >>> _folded(list("xababaccy"))
    ['x', '(a → b) ×2', 'a', 'c ×2', 'y']
    """
    size = 1
    while size <= len(names) // 2:
        out: list[str] = []
        i, changed = 0, False
        while i < len(names):
            block, times = names[i : i + size], 1
            while names[i + times * size : i + (times + 1) * size] == block:
                times += 1
            if times > 1 and len(block) == size:
                text = " → ".join(block)
                out.append(f"{text} ×{times}" if size == 1 else f"({text}) ×{times}")
                i, changed = i + times * size, True
            else:
                out.append(names[i])
                i += 1
        names, size = out, 1 if changed else size + 1
    return names
