"""One pass of a loop with named variables, as a function of their joint state.

The model is run as it is. Where each variable is seen for the last time in one pass, another value is put in its place,
and where it is seen for the last time in the next pass, the value is caught. So a loop can be linearised whose state
enters it at no module of its own. The first two passes of a forward are taken, and those behind them are not run.

Whether the variables are all that the loop carries is tried out: from the state after one pass the function has to give
the state after the next, wherever in the forward that is. A loop that draws random numbers in its passes is a map for
given ones: then every pass is run with the same.

Not covered: compiled models (use the module before ``torch.compile``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .call import Call, Input
from .hooks import LoopHooks
from .neutral import on_the_side, start_streams
from .rerun import (
    NO_GRADIENT,
    SAME_NOISE,
    UNCHECKED,
    BoundLoop,
    KeepsGradients,
    ReachedError,
    Repeats,
    check_numbers,
    check_shapes,
    no_recomputation,
    real,
    unreal,
)
from .site import LoopSite, LoopSiteError
from .states import Passes, Roles, StateHooks

MOST_APART = 1e-3  # relative difference at which the variables are not all that the loop carries


@contextmanager
def joint_loop(model: nn.Module, tokens: Input, site: LoopSite, *, seed: int = 0) -> Iterator[BoundLoop]:
    """Give one pass of a loop as a function of the joint state, for as long as the block lasts.

    Args:
        model: The user's module, unwrapped.
        tokens: Input of the forward.
        site: A site with variables.
        seed: Of the random streams of every run.

    Raises:
        LoopSiteError: The forward runs fewer than two passes, or the variables are not all that the loop carries.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), on_the_side(model, seed=seed) as look, torch.enable_grad():
        for parameter in trained:
            parameter.requires_grad_(False)
        joint = _Joint(model, site, Call.of(model, tokens).to(device), seed)
        try:
            with no_recomputation():
                yield joint.bind(Repeats(model, look))
        finally:
            joint.remove()


def joint_states(model: nn.Module, site: LoopSite, example: Input) -> list[Tensor]:
    """Return the joint state after each pass of the loop in one forward on the side.

    Args:
        model: The user's module, unwrapped.
        site: A site with variables.
        example: Input of the forward.
    """
    with on_the_side(model), torch.no_grad():
        joint = _Joint(model, site, Call.of(model, example), 0)
        try:
            joint.run()
            return joint.states()
        finally:
            joint.remove()


class _Joint:
    """The hooks that swap the variables after one pass and catch them after the next."""

    def __init__(self, model: nn.Module, site: LoopSite, call: Call, seed: int) -> None:
        self.model, self.site, self.call, self.seed = model, site, call, seed
        self.keeps_gradients = KeepsGradients()
        self.repeats: Repeats | None = None
        self._roles, self._passes = Roles(site.variables), Passes.of(site.variables)
        self._seen: list[tuple[int, Tensor, bool]] = []  # variable, value, whether it is the one before the loop
        self._at = 0
        self._swap: dict[int, Tensor] = {}  # by the number of a sight
        self._catch: dict[int, int] = {}  # which variable is caught at which sight
        self._caught: dict[int, Tensor] = {}
        self._given: list[Tensor] = []  # what was put in place of states in the pass under way
        self._ends_at: set[int] = set()  # sights behind which the random streams start again
        self._hooks = LoopHooks(model, site, begin=self._begin)
        self._states = StateHooks(model, site, returned=self._returned, marked=self._marked)

    def remove(self) -> None:
        """Take the hooks off."""
        self._hooks.remove()
        self._states.remove()

    def bind(self, repeats: Repeats) -> BoundLoop:
        """Run the model once to see where its passes end, and make the functions."""
        try:
            with torch.no_grad():
                self.run()
        except (LoopSiteError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            name = type(self.model).__name__
            raise LoopSiteError(f"{name} failed on this input ({error!r}): give one that the model accepts") from error
        self.repeats = repeats if repeats.needed() else None
        ends = self._ends()
        if len(ends) < 2:
            raise LoopSiteError(
                f"the forward of {type(self.model).__name__} runs {len(ends)} passes of its loop; linearising it takes "
                "two: give an input, or set a depth, with which it runs at least two"
            )
        for number in range(len(self.site.variables)):
            seen = [self._seen[end[number]][1] for end in ends]
            check_numbers(self.model, seen[0])
            check_shapes(self.model, seen)
        states = self.states()
        self._from, self._to = ends[:2]  # the forward is left where the state is caught: what comes later costs nothing
        wrong, remark = self._why_no_map(states), "" if len(states) > 2 else UNCHECKED
        if wrong:
            self._ends_at, remark = {max(end) for end in ends}, SAME_NOISE
            with torch.no_grad():
                self.run()
            states = self.states()
            if self._why_no_map(states):
                raise LoopSiteError(wrong)
        return BoundLoop(self.step, None, None, states[0], None, {}, self.site, self._channels(), remark, self._cuts)

    def _cuts(self) -> bool:
        return self.keeps_gradients.cuts

    def step(self, h: Tensor) -> Tensor:
        """Run one pass from a joint state."""
        self._swap = dict(zip(self._from, self._parts(h), strict=True))
        self._catch = {at: number for number, at in enumerate(self._to)}
        self._caught, self._given = {}, []
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()), self.keeps_gradients:
                self.run()
        except ReachedError as reached:
            state = reached.state
            if torch.is_grad_enabled() and h.requires_grad and not state.requires_grad:
                raise LoopSiteError(
                    f"the loop of {type(self.model).__name__} {NO_GRADIENT}, so it can be watched but not linearised"
                ) from None
            return state
        finally:
            self._swap, self._catch = {}, {}
            self.keeps_gradients.active = False
        raise LoopSiteError(
            "the forward did not come to the end of the pass again, for its depth changes by itself: it can be watched "
            "but not linearised"
        )

    def states(self) -> list[Tensor]:
        """Return the joint state after each whole pass of the forward that was run."""
        values = [[real(self._seen[at][1].detach()) for at in end] for end in self._ends()]
        self._shapes = [value.shape for value in values[0]] if values else []
        return [self._joined(value) for value in values]

    def _ends(self) -> list[list[int]]:
        """Return of every pass that is whole the last sight of each variable."""
        passes, ends, last = Passes.of(self.site.variables), list[list[int]](), dict[int, int]()
        for at, (variable, _, first) in enumerate(self._seen):
            if first:
                continue
            if passes.ends_before(variable):
                ends.append([last[number] for number in range(len(self.site.variables))])
            passes.update(variable)
            last[variable] = at
        return [*ends, [last[number] for number in range(len(self.site.variables))]] if passes.whole else ends

    @torch.no_grad()
    def _why_no_map(self, states: list[Tensor]) -> str:
        """Return why the function does not give the state that followed, after any pass behind the first two."""
        for one, other in pairwise(states[1:]):
            apart = float((self.step(one) - other).norm() / other.norm().clamp(min=1e-12))
            if not apart <= MOST_APART:
                if unused := self._unused(one):
                    return (
                        f"another value of {unused!r} changes nothing in the pass that follows: use what "
                        f"loopscope.mark returns, as in {unused} = loopscope.mark({unused}, {unused!r}); without that "
                        f"the loop of {type(self.model).__name__} can be watched but not linearised. Where {unused} is "
                        f"a reading that the loop does not carry, as a residual is, the others do not give the states "
                        f"that followed ({100 * apart:.2g} % apart): a solver's next point comes of more than the last"
                    )
                return (
                    f"from the states after one pass the next pass of {type(self.model).__name__} does not give "
                    f"those that followed ({100 * apart:.2g} % apart): the loop carries more than "
                    f"{', '.join(v.name for v in self.site.variables)}, or differs from pass to pass, or begins "
                    "anew within the forward; it can be watched but not linearised. If it carries more, name every "
                    "tensor that it carries where that gets its new value: h = loopscope.mark(h, 'h')"
                )
        return ""

    def _unused(self, state: Tensor) -> str:
        """Return a variable whose mark in the loop is made for nothing: what it returns does not go on."""
        kept, (self._from, self._to) = (self._from, self._to), self._ends()[-2:]
        try:
            return self._without_effect(state)
        finally:
            self._from, self._to = kept

    def _without_effect(self, state: Tensor) -> str:
        """Return the first marked variable whose value does not matter to the next state; empty where all do."""
        after, channels = self.step(state), self._channels() or {self.site.variables[0].name: slice(None)}
        for variable in self.site.variables:
            if variable.output is None:
                own, other = channels[variable.name], state.clone()
                change = torch.linspace(-1, 1, other[..., own].numel(), dtype=state.dtype, device=state.device)
                other[..., own] += 0.01 * (1 + state.abs().mean()) * change.view(other[..., own].shape)
                if torch.equal(self.step(other), after):
                    return variable.name
        return ""

    def _joined(self, values: list[Tensor]) -> Tensor:
        """Return variables as one state ``(B, S, D)``: side by side along their channels, or a row per sequence."""
        if self.tokenwise:
            state = torch.cat(values, dim=-1)
            return state.flatten(1, -2) if state.ndim > 3 else state[:, None] if state.ndim == 2 else state
        rows = [value.flatten(1) if self.rowwise else value.reshape(1, -1) for value in values]
        return torch.cat(rows, dim=-1)[:, None]

    def _channels(self) -> dict[str, slice]:
        """Return which channels of a joint state each variable has; nothing where there is one variable."""
        ends = [*accumulate(self._widths(), initial=0)]
        own = {v.name: slice(*span) for v, span in zip(self.site.variables, pairwise(ends), strict=True)}
        return own if len(own) > 1 else {}

    def _widths(self) -> list[int]:
        """Return how many channels of a joint state each variable has."""
        if self.tokenwise:
            return [shape[-1] for shape in self._shapes]
        return [shape[1:].numel() if self.rowwise else shape.numel() for shape in self._shapes]

    def _parts(self, h: Tensor) -> list[Tensor]:
        """Return the variables of a joint state."""
        parts = zip(h.split(self._widths(), dim=-1), self._shapes, strict=True)
        return [part.reshape(shape).contiguous() for part, shape in parts]  # models may call `view` on them

    @property
    def tokenwise(self) -> bool:
        """Whether all variables have the same tokens."""
        return len({shape[:-1] for shape in self._shapes}) == 1

    @property
    def rowwise(self) -> bool:
        """Whether all variables have the same sequences."""
        return len({shape[0] for shape in self._shapes}) == 1

    def run(self) -> None:
        """Run the model; each run begins as the first one did."""
        start_streams(self.model, self.seed)
        with nullcontext() if self.repeats is None else self.repeats:
            self.call.run(self.model)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._at = 0
        self._roles.begin()
        if not self._catch:
            self._seen.clear()

    def _returned(self, source: str, before: Tensor | None, state: Tensor) -> Tensor | None:
        variable = self._roles.of(source, before)
        if variable is None:
            return None
        other = self._sight(variable, state, first=False)
        self._roles.hold(variable, state if other is None else other)
        return other

    def _marked(self, number: int, state: Tensor, given: Tensor | None) -> Tensor | None:
        seen = any(variable == number for variable, _, _ in self._seen[: self._at])
        return self._sight(number, state, first=not seen and self.site.variables[number].first == 0)

    def _sight(self, variable: int, state: Tensor, *, first: bool) -> Tensor | None:
        """Take note of a value, or put another one in its place; stop the forward where the last one is caught."""
        at, self._at = self._at, self._at + 1
        if at in self._ends_at:
            start_streams(self.model, self.seed)
        if not self._catch:
            self._seen.append((variable, state.detach().clone(), first))
            return None
        if at in self._catch:
            self._caught[self._catch[at]] = state
            if len(self._caught) == len(self._catch):
                raise ReachedError(self._joined([real(self._caught[number]) for number in range(len(self._caught))]))
        if at in self._swap:
            other = unreal(self._swap[at], state)
            if state.requires_grad and not other.requires_grad:  # a pass may derive by its state
                other = other.detach().requires_grad_()
            self._given.append(other)
            self.keeps_gradients.begin(*self._given)
            return other
        return None
