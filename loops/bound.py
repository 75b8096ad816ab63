"""One loop of a live model as a function of its state: what the full-loop analysis needs and no model offers.

The model is run as it is. A hook hands the first module of the loop body another state than the one it was given, and
another one catches the state where it leaves the loop and stops the forward there. Nothing about the model has to be
known beyond its `LoopSite`; the price is that each call runs what comes before the loop as well.

Not covered: compiled models (use the module before ``torch.compile``) and loops whose state is not one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from .call import Call, Input
from .find import find_site
from .hooks import LoopHooks, state_in
from .neutral import Look, on_the_side, start_streams
from .rerun import (
    NO_GRADIENT,
    SAME_NOISE,
    UNCHECKED,
    BoundLoop,
    KeepsGradients,
    ReachedError,
    Repeats,
    Step,
    check_numbers,
    check_shapes,
    no_recomputation,
    real,
    unreal,
)
from .site import BY_HAND, LoopSite, LoopSiteError, Place, Variable, argument, modules_of, unwrap, with_argument

COMPARED = 3  # loops of the forward with which one loop is compared, where something sets as many
MOST_APART = 1e-3  # relative difference from which on a loop is not the one that was run


@contextmanager
def bound_loop(model: nn.Module, tokens: Input, *, site: LoopSite | None = None, seed: int = 0) -> Iterator[BoundLoop]:
    """Give one loop of a model as a function, for as long as the block lasts.

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
    place = find_site(inner, site, tokens)
    whole = place.state_argument is not None and not place.shared
    if place.variables or (place.output is not None and not whole):
        from .joint import joint_loop

        returned = (Variable(name="h", output=place.output, first=1),)
        several = place if place.variables else LoopSite(variables=returned, mean_depth=place.mean_depth)
        with joint_loop(inner, tokens, several, seed=seed) as joint:
            yield joint
        return
    if not whole:
        raise LoopSiteError(_not_one_entry(place))
    device = next((p.device for p in inner.parameters()), torch.device("cpu"))
    trained = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), on_the_side(inner, seed=seed) as look, torch.enable_grad():
        for parameter in trained:
            parameter.requires_grad_(False)
        interception = _Interception(inner, place, Call.of(inner, tokens).to(device), seed)
        with interception.hooks, no_recomputation():
            yield interception.bind(look)


def _not_one_entry(place: LoopSite) -> str:
    """Return why a loop is no function of one state, and what makes it one."""
    said = (
        f"the state of this loop does not enter it at one module ({place.body!r} is the first), so it can be watched "
        "but not linearised"
    )
    advice = "Name the state before the loop, and in it where it gets its new value: h = loopscope.mark(h, 'h')"
    known = f"Known about this loop: {'; '.join(place.notes)}" if place.notes else ""
    # Of a published model the notes tell what helps: no advice to change it, or to make one state out of several.
    helps = not place.variables and not place.found.startswith("adapter")
    return ". ".join(part for part in (said, advice if helps else "", known) if part)


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
        self.keeps_gradients = KeepsGradients()
        self.hooks = LoopHooks(model, site, enter=self._enter, after=self._leave)
        self.repeats: Repeats | None = None  # how forwards that leave something behind are made the same
        self.restarts = False  # whether the random streams start again in every loop
        self.remark = ""

    def bind(self, look: Look) -> BoundLoop:
        """Run the model once to see h_0 and e, and make the functions."""
        repeats = Repeats(self.model, look)
        try:
            with torch.no_grad():
                output = self._forward()
        except (LoopSiteError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            name = type(self.model).__name__
            raise LoopSiteError(f"{name} failed on this input ({error!r}): give one that the model accepts") from error
        self.repeats = repeats if repeats.needed() else None
        if not self.seen:
            raise LoopSiteError(f"module {self.site.body!r} was not called by this input: is it the loop's?")
        (state, e), self.loops = self.seen[0], len(self.seen)
        check_numbers(self.model, state)
        check_shapes(self.model, [seen for seen, _ in self.seen])
        self._check()
        if state.ndim != 3 or state.is_complex():
            return self._as_tokens(state)
        modules = modules_of(self.model)
        return BoundLoop(
            step=self._step(None),
            step_of=self._step if e is not None else None,
            read_out=self._read_out if _logits(output) is not None else None,
            state=state,
            e=e,
            sublayers={name: modules[name] for name in self.site.sublayers},
            site=self.site,
            remark=self.remark,
            cuts=lambda: self.keeps_gradients.cuts,
        )

    def _as_tokens(self, state: Tensor) -> BoundLoop:
        """Return the loop of a state that is not ``(B, S, D)`` as one of a state that is."""
        model_step = self._step(None)
        shape = real(state).shape

        def tokens(of: Tensor) -> Tensor:
            of = real(of)
            return of.flatten(1, -2) if of.ndim > 3 else of[:, None] if of.ndim == 2 else of

        def step(h: Tensor) -> Tensor:
            return tokens(model_step(unreal(h.reshape(shape), state)))

        cuts = lambda: self.keeps_gradients.cuts  # noqa: E731
        return BoundLoop(step, None, None, tokens(state), None, {}, self.site, remark=self.remark, cuts=cuts)

    @torch.no_grad()
    def _check(self) -> None:
        """Raise unless one loop gives the state that followed, and a site given by hand names what it says it names.

        Where the depth can be set, the second of three loops is compared: with a cache, the first one is the same map.
        Nothing can be compared where the forward runs one loop and nothing sets more.
        """
        passed = self._to_compare()
        if len(passed) < 2:
            self.remark = UNCHECKED
            return
        (_, e), (_, other) = passed[-2:]
        by_hand = self.site.found == BY_HAND
        if by_hand and e is not None and other is not None and not _is_close(e, other):
            raise LoopSiteError(
                f"{self.site.body!r} receives another tensor at {self.site.input_argument!r} in every loop, so that is "
                "not the input of the loop: leave input_argument out of the site, or name the one that stays"
            )
        self.remark = UNCHECKED if self.site.sets_depth and len(passed) < COMPARED else ""
        if not (wrong := self._how_far(passed)):
            return
        self.restarts, self.remark = True, SAME_NOISE
        if self._how_far(self._to_compare()):
            raise LoopSiteError(
                f"what {self.site.after!r} receives is not the state that {self.site.body!r} receives in the next loop "
                f"({wrong}): something lies between the loop and {self.site.after!r}, or before "
                f"{self.site.body!r}, or the loop differs from pass to pass; it can be watched but not linearised. "
                "Name the module that receives the state itself as after, or every tensor that the loop carries where "
                "it gets its new value: h = loopscope.mark(h, 'h')"
            )

    def _to_compare(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return state and input of the loops of a forward, one of three loops where its depth can be set.

        Raises:
            LoopSiteError: A site given by hand names something that does not set the depth.
        """
        if not self.site.sets_depth:
            return self._passed(1) if self.restarts else self.seen
        try:
            depth, passed = COMPARED, self._passed(COMPARED)
        except Exception:  # a table of as many entries as loops, say
            depth, passed = 2, self._passed(2)
        if self.site.found == BY_HAND and len(passed) != depth:
            setting = self.site.depth_argument or self.site.depth_attribute
            raise LoopSiteError(
                f"{setting!r} does not set the depth: at {depth} the loop runs {len(passed)} times; leave it out of "
                "the site, or name what does"
            )
        return passed

    def _how_far(self, passed: list[tuple[Tensor, Tensor | None]]) -> str:
        """Return how far one loop from the last state but one is from the last one; empty where it is the same."""
        (before, _), (after, _) = passed[-2:]
        given = self._step(None)(before)
        if given.shape != after.shape:
            return f"shapes {_shape(given)} and {_shape(after)}"
        if _is_close(given, after):
            return ""
        return f"{100 * float((given - after).norm() / after.norm().clamp(min=1e-12)):.2g} % apart"

    def _passed(self, depth: int) -> list[tuple[Tensor, Tensor | None]]:
        """Return state and input of every loop of a forward at this depth."""
        kept, self.seen, self.loops = (self.seen, self.loops), [], 0
        try:
            self._forward(depth)
            return self.seen
        finally:
            self.seen, self.loops = kept

    def _step(self, e: Tensor | None) -> Step:
        """Return one loop with the given input bound; the model's own when None."""

        def step(h: Tensor) -> Tensor:
            """Run the model with its state replaced by ``h``; return the state one loop later."""
            self.state, self.e, self.catch = h, e, True
            try:
                with torch.set_grad_enabled(torch.is_grad_enabled()), self.keeps_gradients:
                    self._forward()
            except ReachedError as reached:
                return self._with_gradient(reached.state, h)
            except (LoopSiteError, NotImplementedError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                said = " ".join(str(error).split()) or type(error).__name__
                raise LoopSiteError(
                    f"{type(self.model).__name__} failed when its loop was run from another state ({said}), so it can "
                    "be watched but not linearised"
                ) from error
            finally:
                self.state, self.e, self.catch = None, None, False
                self.keeps_gradients.active = False
            raise LoopSiteError(f"module {self.site.after!r} was not called after the loop")

        return step

    def _with_gradient(self, state: Tensor, h: Tensor) -> Tensor:
        """Return the next state, which has to depend on the one before it in autograd's eyes too."""
        if torch.is_grad_enabled() and h.requires_grad and (state.is_inference() or not state.requires_grad):
            raise LoopSiteError(
                f"the state reaches {self.site.after!r} without its gradient: the loop of {type(self.model).__name__} "
                f"{NO_GRADIENT}, or runs under torch.inference_mode(), so it can be watched but not linearised. "
                "torch.no_grad() around loops is no hindrance"
            )
        return state

    def _read_out(self, h: Tensor) -> Tensor:
        """Return the model's output for a final state."""
        self.final = h
        try:
            logits = _logits(self._forward())
            assert logits is not None  # `bind` has seen them
            return logits
        finally:
            self.final = None

    def _forward(self, depth: int = 1) -> Any:
        """Run the model once, at this depth where its depth can be set; each run begins as the first one did."""
        self.calls = 0
        start_streams(self.model, self.seed)  # h_0 is the same in every run
        with nullcontext() if self.repeats is None else self.repeats:
            return self.call.run_at(self.model, self.site, depth)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the state and the input that the body receives, or put others in their place."""
        self.calls += 1
        if self.restarts:
            start_streams(self.model, self.seed)
        if self.loops == 0:
            place = self.site.input_argument
            e = None if place is None else argument(args, kwargs, place)
            assert self.site.state_argument is not None  # else `bound_loop` refuses the site
            self.seen.append((self._tensor_at(args, kwargs, self.site.state_argument), e))
            return None
        if self.calls != self.loops or self.state is None or self.site.state_argument is None:
            return None
        self.keeps_gradients.begin(self.state)
        args, kwargs = with_argument(args, kwargs, self.site.state_argument, self.state)
        if self.e is not None and self.site.input_argument is not None:
            args, kwargs = with_argument(args, kwargs, self.site.input_argument, self.e)
        return args, kwargs

    def _tensor_at(self, args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> Tensor:
        """Return the state that the body receives.

        Raises:
            LoopSiteError: It receives something else there.
        """
        try:
            state: Any = argument(args, kwargs, place)
        except (IndexError, KeyError, TypeError):
            state = None
        if not isinstance(state, Tensor):
            what = "nothing" if state is None else f"a {type(state).__name__}"
            raise LoopSiteError(
                f"{self.site.body!r} receives {what} at {place!r}, where the site puts the state: name the place of "
                "one tensor as state_argument"
            )
        return state

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the state where the loop is left, or put another one in its place."""
        if self.loops and self.calls < self.loops:  # this module runs before the loop's end too
            return None
        if self.catch:
            state = state_in(args[0]) if args else None
            if not isinstance(state, Tensor):
                raise LoopSiteError(f"{self.site.after!r} receives no state at its first position: name another module")
            raise ReachedError(state)
        if self.final is None:
            return None
        whole = args[0]
        first = type(whole)((self.final, *whole[1:])) if type(whole) in (tuple, list) else self.final
        return (first, *args[1:]), kwargs


def _is_close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same but for rounding; what is not finite is not compared."""
    apart = float((one.double() - other.double()).norm())
    return not apart > MOST_APART * float(other.double().norm().clamp(min=1e-12))


def _shape(tensor: Tensor) -> str:
    """Return a shape as it is written in messages."""
    return "x".join(map(str, tensor.shape))


def _logits(output: Any) -> Tensor | None:
    """Return the logits in a model's output: a tensor (alone or first of a tuple) or one of that name; not a loss."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple) and output:
        output = getattr(output, "logits", output[0])  # a named tuple may hold them anywhere
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    return output if isinstance(output, Tensor) and output.ndim > 1 else None
