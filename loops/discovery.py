"""Finding the loop of an unknown model from one small forward.

A loop is a run of module calls that repeats: the same modules in the same order, at least twice, with one tensor that
links each period to the next. The forward is written down by `trace`; nothing is guessed. Whatever is not certain is an
error that says what was seen, what is missing, and which `LoopSite` settles it.

Not covered: loops inside compiled modules or in one module's own operations, and states that are several tensors.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .call import Call, Input
from .carried import Carried
from .diagram import diagram
from .hooks import LoopHooks
from .lineage import LineageLoop, lineage_loops, marked_apart, marked_variables
from .linear_part import known_linear_part, traced_linear_part
from .neutral import on_the_side
from .periods import Link, Loop, Periods
from .site import BY_MARKS, Item, LoopSite, LoopSiteError, Place, Variable, modules_of, plain_name, uncompiled
from .states import Passes, Roles, StateHooks
from .trace import Event, example_tokens, trace

DEPTH_ARGUMENTS = ("num_loops", "n_loops", "num_steps", "n_steps", "loops", "depth", "num_recurrences", "recurrences")
OF_ITS_OWN = (
    "name every tensor that the loop carries where it gets its new value, h = loopscope.mark(h, 'h'), which changes "
    "nothing; no site is needed then"
)
ELSEWHERE = "the same calls can be read as a loop that begins at another module"
MOST_TRIED = 8  # arguments, and attributes, at a small forward each


@dataclass(frozen=True, slots=True)
class Level:
    """One loop that was seen: its site where it can be recorded, else what stands in the way."""

    loops: int
    modules: tuple[str, ...]
    site: LoopSite | None
    problem: str = ""


def discover(model: nn.Module, example: Input | None = None) -> LoopSite:
    """Where is the loop of this model, as one small forward shows it?

    Runs the model once or twice on the side; random states, buffers and training flags are as before afterwards.

    Args:
        model: The user's module, unwrapped, not compiled.
        example: Input for the forward; default: ``(2, 16)`` random tokens of its first embedding.

    Returns:
        The site, with A̅, B̅ and C_out where they can be read, and with notes on what is not as usual.

    Raises:
        LoopSiteError: There is no loop, there are several, or its state is not certain; the message lists what was
            seen and the ``LoopSite(...)`` calls that settle it.

    >>> from torch import nn
    >>> class Looped(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embed, self.block, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
    ...     def forward(self, tokens, n_loops=3):
    ...         h = self.embed(tokens)
    ...         for _ in range(n_loops):
    ...             h = self.block(h)
    ...         return self.head(h)
    >>> site = discover(Looped())
    >>> site.body, site.after, site.depth_argument, site.mean_depth
    ('block', 'head', 'n_loops', 3)
    """
    example = example_tokens(model) if example is None else example
    site = site_of_trace(model, trace(model, example))
    return site if site.mean_depth is None else _with_depth(model, site, site.mean_depth, example)


def site_of_trace(model: nn.Module, root: Event) -> LoopSite:
    """Return the site that a forward shows, the number of loops in it as its ``mean_depth``.

    Marks count first; then a loop whose modules receive and return its one state; then what parameters and data flow
    show.

    Args:
        model: The user's module, unwrapped.
        root: Its own call, as `trace` or a `Recorder` wrote it down.

    Raises:
        LoopSiteError: As `discover`.
    """
    marked, passes = marked_variables(root)
    if marked:
        _check_one_loop(root, marked)
        return LoopSite(variables=marked, found=BY_MARKS, mean_depth=passes or None)
    levels = levels_of_trace(model, root)
    if len(levels) == 1 and levels[0].site is not None and not levels[0].problem:
        return replace(levels[0].site, mean_depth=levels[0].loops)
    loops = lineage_loops(root)
    certain = not any(level.problem == ELSEWHERE for level in levels)
    if certain and len(loops) == 1 and (site := _site_of_lineage(loops[0])) is not None:
        return site
    raise LoopSiteError(_explanation(model, levels, loops, root))


def _check_one_loop(root: Event, marked: Sequence[Variable]) -> None:
    """Check that the marks of a forward are in one loop.

    Raises:
        LoopSiteError: They are in loops that run one after the other, as in an encoder and a decoder.
    """
    loops = marked_apart(root, marked)
    if len(loops) < 2:
        return
    said = ", then ".join(" and ".join(names) for names in loops)
    own = ", ".join(f"Variable(name={name!r})" for name in loops[0])
    raise LoopSiteError(
        f"the marks are in {len(loops)} loops that run one after the other ({said}), and a probe records one: mark the "
        f"states of one loop only, or attach a probe for each, with a file each: site=LoopSite(variables=({own},))"
    )


def _site_of_lineage(loop: LineageLoop) -> LoopSite | None:
    """Return the site of a loop whose variables modules return; None where no variable is seen."""
    variables = tuple(carried.variable for carried in loop.carried if carried.variable is not None)
    if not variables:
        return None
    unseen = [carried for carried in loop.carried if carried.variable is None]
    shapes = {carried.shape for carried in loop.carried if carried.variable is not None}
    # A state that nobody sees, beside which what is seen may be a gate: not what a solver remembers.
    if any(one.shape[:-1] == seen[:-1] and one.shape[-1] >= seen[-1] for one in unseen for seen in shapes):
        return None
    notes = [f"it also carries {_what(carried)}, not recorded{_advice(carried)}" for carried in unseen]
    if any(carried.line is not None for carried in unseen):
        others = "".join(_advice(carried) for carried in loop.carried if carried.variable is not None)
        notes.append(f"a probe that sees marks reads nothing else, so mark the others besides{others}")
    if loop.skips:
        notes.append("passes also hand on values to later passes (skips): it can be watched, not linearised")
    return LoopSite(
        variables=variables,
        mean_depth=loop.passes,
        found="discovered from parameters and data flow",
        notes=tuple(notes),
    )


def _what(carried: Carried) -> str:
    """Return a carried tensor in words."""
    return f"{carried.name!r} of shape {'x'.join(map(str, carried.shape))}"


def _advice(carried: Carried, name: str = "") -> str:
    """Return how a tensor is marked that no module returns, under a name; default: its own."""
    if carried.line is None:
        return ""
    start, end = carried.line.start, carried.line.number
    place = f"{Path(carried.line.file).name}:{f'{start}-' if 0 < start < end else ''}{end}"
    call = f"loopscope.mark({carried.spelt}, {name or repr(carried.name)})"
    return f"; to record it: {carried.spelt} = {call} behind {place}"


def _carried_lines(carried: Sequence[Carried]) -> list[str]:
    """Return a line for each tensor that a loop carries, and how it is marked.

    A name that a pass assigns several times is one variable of the user's: its state is what the pass leaves in it.
    """
    last: dict[tuple[Any, ...], Carried] = {}
    for each in carried:
        key = (each.name,) if each.line is None else (each.spelt, each.shape, each.line.code)
        before = last.get(key)
        if before is None or before.line is None or each.line is None or each.line.number >= before.line.number:
            last[key] = each
    spelt = Counter(each.spelt for each in last.values())
    named = [(each, each.spelt if spelt[each.spelt] == 1 else each.name) for each in last.values()]
    return [f"It carries {_what(replace(each, name=name))}{_advice(each, repr(name))}" for each, name in named]


def find_levels(model: nn.Module, example: Input) -> list[Level]:
    """Return all loops that a forward shows, outer ones first."""
    return levels_of_trace(model, trace(model, example))


def levels_of_trace(model: nn.Module, root: Event) -> list[Level]:
    """Return all loops that modules show in a forward that was written down, outer ones first."""
    periods = Periods(root)
    if not periods.loops():
        periods = Periods(root, bare=True)
    first = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    levels = []
    for loop in periods.loops():
        readings = [_level(model, periods, turned, first) for turned in periods.turned(loop)]
        settled = [level for level in readings if not level.problem]
        if len(settled) > 1:
            readings = [replace(level, problem=ELSEWHERE) for level in settled]
        levels += (readings if len(settled) > 1 else settled) or readings[:1]
    return levels


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


def _level(model: nn.Module, periods: Periods, loop: Loop, embedding: nn.Embedding | None) -> Level:
    """Return the site of one loop, or why it has none."""
    calls = periods.calls(loop, 1)
    modules = tuple(event.name for event in calls if event.learns) or tuple(event.name for event in calls)
    links = periods.links(loop)
    if not links:
        carried = periods.carried(loop)
        offered = _received_site(periods, loop)
        mixed = offered is None and periods.mixes(loop)
        if offered is None and not mixed:
            offered = _output_site(periods, loop)
        made = ", ".join(repr(name) for name in carried)
        problem = f"{len(carried)} tensors are carried from one period to the next (made by {made})"
        if mixed:
            problem = f"{made} makes several variables in turn, and what it returns is no one trajectory; {OF_ITS_OWN}"
        elif len(carried) == 1:
            problem = "the next state depends on more than the tensor that a period passes to its modules"
        return Level(loop.count, modules, offered, problem)
    sites = [site for link in links if (site := _site(periods, loop, link)) is not None]
    if not sites:
        problem = (
            "no module receives the state itself in every period, or none receives the last one or returns one per "
            f"period; {OF_ITS_OWN}"
        )
        return Level(loop.count, modules, None, problem)
    best = min(sites, key=lambda site: (site.output is not None, site.state_argument is None))
    return Level(loop.count, modules, _with_linear_part(model, periods, loop, best, embedding))


def _site(periods: Periods, loop: Loop, link: Link) -> LoopSite | None:
    """Return the site for one way of reading the state: where it is received, or failing that, where it is returned."""
    received = periods.receiver(loop, link)
    after = periods.after(loop, link)
    every_loop = False
    if after is None and received is not None and periods.next_call(loop) is None:
        # Deep supervision: the module that reads the state runs in every loop, and none behind it.
        reader = periods.reader(loop, link)
        every_loop = reader is not None and reader.name != received[1].name
        after = reader if every_loop else None
    if received is None or after is None:
        return _returned_site(periods, loop, link, received, after)
    place, body = received
    calls_before = periods.calls_until(body.name, loop, after)
    if calls_before != loop.count:
        return None
    again = periods.calls_of(body.name) > loop.count
    return LoopSite(
        body=body.name,
        after=after.name,
        state_argument=place,
        input_argument=periods.input_place(loop, link, body),
        shared=periods.reached_otherwise(loop, link, body, beside=after if every_loop else None),
        sublayers=() if isinstance(place, Item) else periods.chain(loop, link, body),
        prelude=periods.prelude(loop),
        found="discovered from one forward",
        notes=("it runs again later in the forward: each run of the loop counts as a forward of its own",)
        if again
        else (),
    )


def _returned_site(
    periods: Periods, loop: Loop, link: Link, received: tuple[Place, Event] | None, after: Event | None
) -> LoopSite | None:
    """Return the site of a state that is read from the module that returns it."""
    returns = periods.returner(loop, link)
    following = after or periods.next_call(loop)
    if returns is None or following is None or periods.calls_of(returns) != loop.count:
        return None
    notes = ["the state is read where it is returned, because no module after the loop receives it"]
    if received is None:
        notes = [
            "no module receives the state itself (it is combined with other tensors first): "
            "it is read where it is returned, and h_0 is not recorded"
        ]
    body = received[1] if received is not None else periods.calls(loop, 1)[0]
    return LoopSite(
        body=body.name,
        after=following.name,
        state_argument=received[0] if received is not None else None,
        input_argument=periods.input_place(loop, link, body) if received is not None else None,
        output=returns,
        # Run from another state, the loop would be caught where `after` is called, which does not receive h_T here.
        shared=received is None or after is None or periods.reached_otherwise(loop, link, body),
        prelude=periods.prelude(loop),
        found="discovered from one forward",
        notes=tuple(notes),
    )


def _received_site(periods: Periods, loop: Loop) -> LoopSite | None:
    """Return a site for the widest of several carried states, where a module of every period receives it."""
    received = periods.received(loop)
    if received is None:
        return None
    place, body, after, maker = received
    return LoopSite(
        body=body,
        after=after,
        state_argument=place,
        shared=True,
        found="discovered from one forward",
        notes=(f"of these, the state that {maker!r} makes and {body!r} receives can be recorded",),
    )


def _output_site(periods: Periods, loop: Loop) -> LoopSite | None:
    """Return a site for the slowest of several carried states: the module that runs once per period, last."""
    once = [name for name in periods.carried(loop) if periods.calls_of(name) == loop.count]
    following = periods.next_call(loop)
    if not once or following is None:
        return None
    return LoopSite(
        body=once[-1],
        after=following.name,
        state_argument=None,
        output=once[-1],
        shared=True,
        found="discovered from one forward",
        notes=(f"of these, the state that {once[-1]!r} returns can be recorded, without its h_0",),
    )


def _with_linear_part(
    model: nn.Module, periods: Periods, loop: Loop, site: LoopSite, embedding: nn.Embedding | None
) -> LoopSite:
    """Add A̅, B̅ and C_out where they can be read."""
    modules = modules_of(model)
    body, after = uncompiled(modules[site.body]), uncompiled(modules[site.after])
    if site.state_argument is not None:
        linear = known_linear_part(body) or traced_linear_part(periods, loop, site)
        if linear is not None:
            site = replace(site, a_bar=linear.a_bar, b_bar=linear.b_bar)
    vocabulary = embedding.num_embeddings if embedding is not None else -1
    if site.output is None and isinstance(after, nn.Linear) and after.out_features != vocabulary:
        site = replace(site, c_out=lambda: after.weight)
    return site


def _with_depth(model: nn.Module, site: LoopSite, loops: int, example: Input) -> LoopSite:
    """Add what sets the depth, an argument or an attribute, once a forward has shown that it does."""
    site = replace(site, mean_depth=loops)
    ways = [replace(site, depth_argument=name) for name in _arguments(model)]
    ways += [replace(site, depth_attribute=path) for path in _attributes(model, loops)]
    return next((way for way in ways if _calls(model, way, example, loops + 1) == loops + 1), site)


def _arguments(model: nn.Module) -> list[str]:
    """Return the arguments that may be a number of loops: usual names first, then optional ones and integers.

    >>> class Model(nn.Module):
    ...     def forward(self, tokens, mask=None, scale=1.0, n_recur=4, num_steps=None): ...
    >>> _arguments(Model())
    ['num_steps', 'mask', 'n_recur']
    """
    accepted = inspect.signature(model.forward).parameters
    known = [name for name in DEPTH_ARGUMENTS if name in accepted]
    others = [name for name, given in accepted.items() if given.default is None or type(given.default) is int]
    return [*known, *(name for name in others if name not in known)][:MOST_TRIED]


def _attributes(model: nn.Module, value: int) -> list[str]:
    """Return the dotted names of integers of this value in modules and in their configurations, outermost first.

    >>> module = nn.Identity()
    >>> module.loops, module.config = 4, {"depth": 4, "width": 64}
    >>> _attributes(nn.Sequential(module), 4)
    ['0.loops', '0.config.depth']
    """
    attributes: list[str] = []
    seen = set[int]()  # one configuration is often held by many modules
    for full, module in model.named_modules():
        name = plain_name(full)
        holders = [(name, vars(module)), *((f"{name}.{key}", _plain(held)) for key, held in vars(module).items())]
        for path, holder in holders:
            if id(holder) in seen or "._" in f".{path}":
                continue
            seen.add(id(holder))
            names = [key for key, held in holder.items() if type(held) is int and held == value]
            attributes += [f"{path}.{key}".strip(".") for key in names if isinstance(key, str)]
    return attributes[:MOST_TRIED]


def _plain(held: object) -> dict[Any, Any]:
    """Return what a configuration holds by name: a dict, or an object's attributes; empty for anything else."""
    if isinstance(held, dict):
        return held
    is_data = not isinstance(held, nn.Module | Tensor | type) and not callable(held)
    return getattr(held, "__dict__", {}) if is_data else {}


def _calls(model: nn.Module, site: LoopSite, example: Input, depth: int) -> int:
    """Return how often the loop runs in a forward at this depth; 0 when the forward fails."""
    if site.variables:
        return _passes(model, site, example, depth)
    seen = 0

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1

    try:
        counted = replace(site, body=site.output or site.body)
        with LoopHooks(model, counted, enter=count), on_the_side(model):
            Call.of(model, example).run_at(model, site, depth)
    except Exception:  # whatever the model raises, this is not its number of loops
        return 0
    return seen


def _passes(model: nn.Module, site: LoopSite, example: Input, depth: int) -> int:
    """Return how many whole passes of a loop with variables run in a forward at this depth; 0 when it fails."""
    passes, roles, first = Passes(len(site.variables)), Roles(site.variables), {
        number for number, variable in enumerate(site.variables) if variable.output is None and variable.first == 0
    }  # fmt: skip

    def returned(source: str, before: Tensor | None, state: Tensor) -> None:
        if (number := roles.of(source, before)) is not None:
            roles.hold(number, state)
            passes.update(number)

    def marked(number: int, state: Tensor, given: Tensor | None) -> None:
        if number in first:
            first.remove(number)
        else:
            passes.update(number)

    states = StateHooks(model, site, returned=returned, marked=marked)
    try:
        with on_the_side(model):
            Call.of(model, example).run_at(model, site, depth)
    except Exception:  # whatever the model raises, this is not its number of passes
        return 0
    finally:
        states.remove()
    return passes.number + passes.whole


def _explanation(model: nn.Module, levels: Sequence[Level], loops: Sequence[LineageLoop], root: Event) -> str:
    """Return what was seen, what is missing, and what to write."""
    name = type(model).__name__
    by_hand = "site=LoopSite(body='<first module of the loop>', after='<first module after the loop>')"
    if not levels and loops:
        lines = [f"{name}: parameters are used on what they made, by no module that returns the state itself:"]
        for number, loop in enumerate(loops, 1):
            lines.append(f"  {number}. {loop.passes} passes")
            lines += [f"     {line}" for line in _carried_lines(loop.carried)]
        lines.append(f"Where it gets its new value in every pass, {OF_ITS_OWN}")
        return "\n".join(lines)
    if not levels:
        return (
            f"{name} does not state where its loop is, and one forward in evaluation mode shows none: no module runs "
            "twice on what it made itself. If the model loops only when asked to, say where: "
            f"{by_hand}. If it loops over operations alone, {OF_ITS_OWN}."
        )
    seen = "several loops, or readings of one, were seen" if len(levels) > 1 else "a loop was seen"
    lines = [f"{name}: {seen}, and a probe records one state of one loop:"]
    for number, level in enumerate(levels, 1):
        line = f"  {number}. {level.loops} times ({', '.join(level.modules)})"
        line += f"; {level.problem}" if level.problem else ""
        if level.site is not None:
            line += "".join(f"; {note}" for note in level.site.notes) + f"; to record it: site={site_call(level.site)}"
        lines.append(line)
    if len(levels) > 1:
        lines.append("Pass the site you mean; for all of them attach one probe each, with a file each.")
    elif levels[0].site is None and OF_ITS_OWN not in levels[0].problem:  # a site of one module would mix them again
        lines.append(f"Say where it is: {by_hand}")
    if calls := diagram(root):
        lines.append(f"The calls of this forward: {calls}")
    if len(loops) > 1:
        lines.append("Or mark the states of one of these loops, not of several:")
    lines += [line for loop in loops for line in _carried_lines(loop.carried)]
    return "\n".join(lines)


__all__ = ["Level", "discover", "find_levels", "site_call"]
