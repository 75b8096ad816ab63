"""One loop of a live model as a function of its state: what the full-loop analysis needs and no model offers.

The model is run as it is. A hook hands the first module of the loop body another state than the one it was given, and
another one catches the state where it leaves the loop and stops the forward there. Nothing about the model has to be
known beyond its `LoopSite`; the price is that each call runs what comes before the loop as well.

Not covered: compiled models (use the module before ``torch.compile``) and loops whose state is not one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .call import Call, Input
from .find import find_site
from .neutral import undisturbed
from .site import LoopSite, LoopSiteError, Part, Place, argument, unwrap

Step = Callable[[Tensor], Tensor]


class _ReachedError(Exception):
    """Stops a forward where the loop has been left; carries the state."""

    def __init__(self, state: Tensor) -> None:
        self.state = state


@dataclass(frozen=True, slots=True)
class BoundLoop:
    """A loop with everything but its state fixed.

    Args:
        step: ``h_t -> h_{t+1}``, ``(B, S, D) -> (B, S, D)``; differentiable in the state.
        step_of: Input ``e`` -> the step with that input; ``None`` when the site does not say where ``e`` arrives.
        read_out: ``h_T`` -> the model's output; ``None`` when that holds no logits.
        state: ``h_0``.
        e: The input of the loop; ``None`` as above.
        sublayers: The modules of the body that carry the whole state, in running order.
        site: Where the loop is.
    """

    step: Step
    step_of: Callable[[Tensor], Step] | None
    read_out: Step | None
    state: Tensor
    e: Tensor | None
    sublayers: dict[str, nn.Module]
    site: LoopSite


@contextmanager
def bound_loop(model: nn.Module, tokens: Input, *, site: LoopSite | None = None, seed: int = 0) -> Iterator[BoundLoop]:
    """Gives one loop of a model as a function, for as long as the block lasts.

    Inside, the model is in evaluation mode and its parameters take no gradients; afterwards everything is as before.

    Args:
        model: Any looped model; wrappers are taken off.
        tokens: ``(B, S)`` input that fixes the prelude's output, or all arguments as a tuple or mapping.
        site: Where the loop is, for a model that does not state it.
        seed: Of the initial state.

    Raises:
        LoopSiteError: The loop cannot be located, or is never run by this input.

    >>> from loopscope.models import build
    >>> model = build("demo", injection="addition")
    >>> with bound_loop(model, torch.zeros(1, 4, dtype=torch.int64)) as loop:
    ...     h = loop.step(loop.state)
    ...     h.shape, torch.equal(loop.read_out(h), model(torch.zeros(1, 4, dtype=torch.int64), num_loops=1,
    ...                                                  initial_state=loop.state))
    (torch.Size([1, 4, 32]), True)
    """
    inner = unwrap(model)
    found = find_site(inner, site, tokens)
    if found.state_argument is None or found.shared:
        raise LoopSiteError(
            f"the state of this loop does not enter it at one module ({found.body!r} is the first), so it can be "
            "watched but not linearised. Call an nn.Identity on the state at the top of the loop and name it as body"
            + "".join(f"; or: {note}" for note in found.notes)
        )
    device = next((p.device for p in inner.parameters()), torch.device("cpu"))
    trained = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    with undisturbed(inner, device, seed), torch.enable_grad():
        for parameter in trained:
            parameter.requires_grad_(False)
        interception = _Interception(inner, found, Call.of(inner, tokens).to(device), seed)
        try:
            yield interception.bind()
        finally:
            interception.remove()
            for parameter in trained:
                parameter.requires_grad_(True)


class _Interception:
    """The hooks that swap the state on its way in and catch it on its way out."""

    def __init__(self, model: nn.Module, site: LoopSite, call: Call, seed: int) -> None:
        self.model, self.site, self.call, self.seed = model, site, call, seed
        self.calls = 0  # of the body, in the forward under way
        self.loops = 0  # the last call of the body: the one whose input is swapped
        self.state: Tensor | None = None
        self.e: Tensor | None = None
        self.final: Tensor | None = None
        self.catch = False
        self.seen: list[tuple[Tensor, Tensor | None]] = []
        modules = dict(model.named_modules())
        self.handles = [
            modules[site.body].register_forward_pre_hook(self._enter, with_kwargs=True),
            modules[site.after].register_forward_pre_hook(self._leave),
        ]

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()

    def bind(self) -> BoundLoop:
        """Runs the model once to see h_0 and e, and makes the functions."""
        with torch.no_grad():
            output = self._forward()
        if not self.seen:
            raise LoopSiteError(f"module {self.site.body!r} was not called by this input: is it the loop's?")
        (state, e), self.loops = self.seen[0], len(self.seen)
        modules = dict(self.model.named_modules())
        return BoundLoop(
            step=self._step(None),
            step_of=self._step if e is not None else None,
            read_out=self._read_out if _logits(output) is not None else None,
            state=state,
            e=e,
            sublayers={name: modules[name] for name in self.site.sublayers},
            site=self.site,
        )

    def _step(self, e: Tensor | None) -> Step:
        """One loop with the given input bound; the model's own when None."""

        def step(h: Tensor) -> Tensor:
            self.state, self.e, self.catch = h, e, True
            try:
                self._forward()
            except _ReachedError as reached:
                return reached.state
            finally:
                self.state, self.e, self.catch = None, None, False
            raise LoopSiteError(f"module {self.site.after!r} was not called after the loop")

        return step

    def _read_out(self, h: Tensor) -> Tensor:
        """The model's output for a final state."""
        self.final = h
        try:
            logits = _logits(self._forward())
            assert logits is not None  # `bind` has seen them
            return logits
        finally:
            self.final = None

    def _forward(self) -> Any:
        """One run of the model, at depth 1 where its depth can be set."""
        self.calls = 0
        torch.default_generator.manual_seed(self.seed)  # h_0 is the same in every run
        return self.call.run_at(self.model, self.site, 1)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        if self.loops == 0:
            place = self.site.input_argument
            e = None if place is None else argument(args, kwargs, place)
            assert self.site.state_argument is not None  # else `bound_loop` refuses the site
            self.seen.append((argument(args, kwargs, self.site.state_argument), e))
            return None
        if self.calls != self.loops or self.state is None or self.site.state_argument is None:
            return None
        args, kwargs = _replaced(args, kwargs, self.site.state_argument, self.state)
        if self.e is not None and self.site.input_argument is not None:
            args, kwargs = _replaced(args, kwargs, self.site.input_argument, self.e)
        return args, kwargs

    def _leave(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.catch:
            raise _ReachedError(args[0])
        return None if self.final is None else (self.final, *args[1:])


def _logits(output: Any) -> Tensor | None:
    """The logits in what a model returns: a tensor (alone or first of a tuple), or held under that name; not a loss."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.ndim > 1 else None


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: Place, value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a module with one of them exchanged."""
    if isinstance(place, Part):
        whole = argument(args, kwargs, place.argument)
        value = torch.cat([whole[..., : place.start], value, whole[..., place.stop :]], dim=-1)
        place = place.argument
    if isinstance(place, str):
        return args, kwargs | {place: value}
    return (*args[:place], value, *args[place + 1 :]), kwargs
