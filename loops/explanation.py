"""What a search says that found no loop for certain: what was seen, what is missing, and what to write.

Not covered: the search (`discovery`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .carried import Carried
from .diagram import diagram
from .lineage import LineageLoop
from .site import LoopSite
from .trace import Event

if TYPE_CHECKING:
    from torch import nn

OF_ITS_OWN = (
    "name every tensor that the loop carries where it gets its new value, h = loopscope.mark(h, 'h'), which changes "
    "nothing; no site is needed then"
)
ELSEWHERE = "the same calls can be read as a loop that begins at another module"


@dataclass(frozen=True, slots=True)
class Level:
    """One loop that was seen: its site where it can be recorded, else what stands in the way."""

    loops: int
    modules: tuple[str, ...]
    site: LoopSite | None
    problem: str = ""


def site_call(site: LoopSite) -> str:
    """Return the Python call that makes a site, without what cannot be written down.

    >>> site_call(LoopSite(body="block", after="head", found="discovered"))
    "LoopSite(body='block', after='head')"
    """
    shown = [
        f"{f.name}={value!r}"
        for f in fields(site)
        if f.name not in ("found", "notes", "sublayers", "prelude") and not callable(value := getattr(site, f.name))
        if value != f.default
    ]
    return f"LoopSite({', '.join(shown)})"


def in_words(carried: Carried) -> str:
    """Return a carried tensor in words."""
    return f"{carried.name!r} of shape {'x'.join(map(str, carried.shape))}"


def advice(carried: Carried, name: str = "") -> str:
    """Return how a tensor is marked that no module returns, under a name; default: its own."""
    if carried.line is None:
        return ""
    start, end = carried.line.start, carried.line.number
    place = f"{Path(carried.line.file).name}:{f'{start}-' if 0 < start < end else ''}{end}"
    call = f"loopscope.mark({carried.spelt}, {name or repr(carried.name)})"
    return f"; to record it: {carried.spelt} = {call} behind {place}"


def _carried_lines(loop: LineageLoop) -> list[str]:
    """Return a line for each tensor that a loop carries, and how it is marked.

    A name that a pass assigns several times is one variable of the user's: its state is what the pass leaves in it.
    What is alive only where more is than has to be is no variable.
    """
    names = {each.spelt for each in loop.least}
    last: dict[tuple[Any, ...], Carried] = {}
    for each in (*loop.carried, *loop.least):
        if each.spelt not in names:
            continue
        key = (each.name,) if each.line is None else (each.spelt, len(each.shape), each.shape[-1], each.line.code)
        before = last.get(key)
        if before is None or before.line is None or each.line is None or each.line.number >= before.line.number:
            last[key] = each
    spelt = Counter(each.spelt for each in last.values())
    named = [(each, each.spelt if spelt[each.spelt] == 1 else each.name) for each in last.values()]
    return [f"It carries {in_words(replace(each, name=name))}{advice(each, repr(name))}" for each, name in named]


def explanation(
    model: nn.Module, levels: Sequence[Level], loops: Sequence[LineageLoop], root: Event, forward: str
) -> str:
    """Return what was seen, what is missing, and what to write.

    Args:
        model: The user's module.
        levels: The loops that its modules show.
        loops: Those that parameters and data flow show.
        root: The model's own call.
        forward: What kind of forward that was.
    """
    name = type(model).__name__
    by_hand = "site=LoopSite(body='<first module of the loop>', after='<first module after the loop>')"
    if not levels and loops:
        lines = [f"{name}: parameters are used on what they made, by no module that returns the state itself:"]
        for number, loop in enumerate(loops, 1):
            lines.append(f"  {number}. {loop.passes} passes")
            lines += [f"     {line}" for line in _carried_lines(loop)]
        lines.append(f"In every pass {OF_ITS_OWN}")
        return "\n".join(lines)
    if not levels:
        return (
            f"{name} does not state where its loop is, and {forward} shows none: no module runs "
            "twice on what it made itself. If the model loops only when asked to, say where: "
            f"{by_hand}. If it loops over operations alone, {OF_ITS_OWN}."
        )
    seen = "several loops, or readings of one, were seen" if len(levels) > 1 else "a loop was seen"
    lines = [f"{name}: {seen}, and a probe records one state of one loop:"]
    for number, level in enumerate(levels, 1):
        line = f"  {number}. {level.loops} times ({', '.join(level.modules)})"
        own = tuple(f"{module}." for module in level.modules)
        steps = [loop.passes for loop in loops if all(f"{name}.".startswith(own) for name in loop.modules if name)]
        is_whole = len(levels) > 1 or len(steps) != 1 or steps[0] in (0, level.loops) or level.loops % steps[0] != 0
        line += "" if is_whole else f", {level.loops // steps[0]} in each of {steps[0]} passes"
        line += f"; {level.problem}" if level.problem else ""
        if level.site is not None and is_whole:
            line += "".join(f"; {note}" for note in level.site.notes) + f"; to record it: site={site_call(level.site)}"
        lines.append(line)
    if len(levels) > 1:
        lines.append("Pass the site you mean; for all of them attach one probe each, with a file each.")
    elif levels[0].site is None and OF_ITS_OWN not in levels[0].problem:  # a site of one module would mix them again
        lines.append(f"Say where it is: {by_hand}")
    if calls := diagram(root):
        lines.append(f"The calls of this forward: {calls}")
    marks = [_carried_lines(loop) for loop in loops]
    if len({line for own in marks for line in own}) < sum(map(len, marks)):
        return "\n".join([*lines, "The same lines of code run these loops: a mark there would be in all of them."])
    if len(loops) > 1:
        lines.append("Or mark the states of one of these loops, not of several:")
    if any(loop.runs > 1 for loop in loops):
        lines.append("It runs several times in this forward; marked, its runs are recorded as one:")
    lines += [line for own in marks for line in own]
    return "\n".join(lines)
