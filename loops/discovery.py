"""Finding the loop of an unknown model from one small forward.

A loop is a run of module calls that repeats: the same modules in the same order, at least twice, with one tensor that
links each period to the next. The forward is written down by `trace`; nothing is guessed. Whatever is not certain is an
error that says what was seen, what is missing, and which `LoopSite` settles it.

Not covered: loops inside compiled modules or in one module's own operations, and states that are several tensors.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .call import Call, Input
from .explanation import ELSEWHERE, OF_ITS_OWN, Level, advice, explanation, in_words, site_call
from .hooks import LoopHooks
from .inner import with_inner_calls
from .lineage import LineageLoop, lineage_loops
from .linear_part import known_linear_part, traced_linear_part
from .marks_seen import marked_anew, marked_apart, marked_variables
from .neutral import on_the_side
from .parts import OVER_PARTS, goes_over_parts
from .periods import Link, Loop, Periods
from .site import BY_MARKS, Item, LoopSite, LoopSiteError, Place, Variable, modules_of, plain_name, uncompiled
from .states import Passes, Roles, StateHooks
from .trace import Event, example_tokens, trace

DEPTH_ARGUMENTS = ("num_loops", "n_loops", "num_steps", "n_steps", "loops", "depth", "num_recurrences", "recurrences")
AGAIN = "it runs again later in the forward: each run %scounts as a forward of its own"
_SPEAKS_OF_LOOPS = re.compile("loop|depth|cycle|recu|iter|step|pass|repeat|ponder|think|round|hop|unroll|times")
MOST_TRIED = 8  # arguments, and attributes, at a small forward each


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


def site_of_trace(model: nn.Module, root: Event, forward: str = "one forward in evaluation mode") -> LoopSite:
    """Return the site that a forward shows, the number of loops in it as its ``mean_depth``.

    Marks count first; then a loop whose modules receive and return its one state; then what parameters and data flow
    show.

    Args:
        model: The user's module, unwrapped.
        root: Its own call, as `trace` or a `Recorder` wrote it down.
        forward: What kind of forward that was, for whoever reads that it shows none.

    Raises:
        LoopSiteError: As `discover`.
    """
    site = _site_seen(model, root, forward)
    if site.found != BY_MARKS:
        site = with_inner_calls(site, root)
    over = {v.output or f"mark {v.name}" for v in site.variables} or {site.output or site.body}
    return replace(site, notes=(*site.notes, OVER_PARTS)) if any(goes_over_parts(root, name) for name in over) else site


def _site_seen(model: nn.Module, root: Event, forward: str) -> LoopSite:
    """As `site_of_trace`, without a look at what the loop goes over."""
    marked, passes = marked_variables(root)
    if marked:
        _check_one_loop(root, marked)
        anew = [f"{name!r} begins anew within the forward: its runs are recorded as one" for name in marked_anew(root)]
        return LoopSite(variables=marked, found=BY_MARKS, mean_depth=passes or None, notes=tuple(anew))
    levels = _without_repeats(levels_of_trace(model, root))
    if len(levels) == 1 and levels[0].site is not None and not levels[0].problem:
        return replace(levels[0].site, mean_depth=levels[0].loops)
    loops = lineage_loops(root)
    certain = not any(level.problem == ELSEWHERE for level in levels)
    if certain and len(loops) == 1 and (site := _site_of_lineage(loops[0])) is not None:
        return site
    raise LoopSiteError(explanation(model, levels, loops, root, forward))


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
    notes = [f"it also carries {in_words(carried)}, not recorded{advice(carried)}" for carried in unseen]
    if any(carried.line is not None for carried in unseen):
        others = "".join(advice(carried) for carried in loop.carried if carried.variable is not None)
        notes.append(f"a probe that sees marks reads nothing else, so mark the others besides{others}")
    if loop.runs > 1:
        notes.append(
            f"it runs {loop.runs} times in the forward, from beginnings of their own: its runs are recorded as one"
        )
    if loop.skips:
        notes.append("passes also hand on values to later passes (skips): it can be watched, not linearised")
    return LoopSite(
        variables=variables,
        mean_depth=loop.passes,
        found="discovered from parameters and data flow",
        notes=tuple(notes),
    )


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


def _without_repeats(levels: Sequence[Level]) -> list[Level]:
    """Return the loops that were seen without those that are another one again: a tap tells them apart."""
    kept: list[Level] = []
    for level in levels:
        same = [n for n, one in enumerate(kept) if one.modules == level.modules and (one.site or not level.site)]
        if same and (not kept[same[0]].problem or kept[same[0]].problem == level.problem != ELSEWHERE):
            kept[same[0]] = replace(kept[same[0]], loops=max(kept[same[0]].loops, level.loops))
        else:
            kept.append(level)
    return kept


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
            what = " and ".join(repr(name) for name in periods.mixing(loop))
            problem = f"{what} makes several variables in turn, and what it returns is no one trajectory; {OF_ITS_OWN}"
            if not what:
                problem = f"no module returns all that the loop carries; {OF_ITS_OWN}"
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
        notes=(AGAIN % f"that comes to {after.name!r} ",) if again else (),
    )


def _returned_site(
    periods: Periods, loop: Loop, link: Link, received: tuple[Place, Event] | None, after: Event | None
) -> LoopSite | None:
    """Return the site of a state that is read from the module that returns it."""
    returns = periods.returner(loop, link)
    following = after or periods.next_call(loop)
    if returns is None or following is None:
        return None
    again = periods.calls_of(returns) > loop.count
    if again and (received is None or periods.calls_until(returns, loop, following) != loop.count):
        return None
    notes = ["the state is read where it is returned, because no module after the loop receives it"]
    if received is None:
        notes = [
            "no module receives the state itself (it is combined with other tensors first): "
            "it is read where it is returned, and h_0 is not recorded"
        ]
    notes += [AGAIN % ""] if again else []
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


def with_own_depth(model: nn.Module, site: LoopSite, call: Input) -> LoopSite:
    """Return a site with what sets the depth, and how deep the loop runs in evaluation, where this call shows that.

    Runs the model on the side: once as it is, and once for each argument and attribute that may be the depth.
    """
    loops = _calls(model, site, call, 0)
    deeper = _with_depth(model, site, loops, call) if loops else site
    return deeper if deeper.sets_depth else site


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
    """Return the dotted names of integers of this value in modules and in their configurations.

    Those whose name speaks of a number of loops come first; then outermost first.

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
    return sorted(attributes, key=lambda path: not _SPEAKS_OF_LOOPS.search(path.rpartition(".")[2].lower()))[
        :MOST_TRIED
    ]


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
    passes, roles, first = Passes.of(site.variables), Roles(site.variables), {
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


__all__ = ["Level", "discover", "find_levels", "site_call", "with_own_depth"]
