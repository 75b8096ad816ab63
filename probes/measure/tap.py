"""The tap: hooks that hand every state of the loop to `LoopSums`, with nothing the host would have to wait for.

A hook on the first module of the loop body sees ``h_t``; a hook on the first module after the loop sees ``h_T``. There
is no ``.item()``: what is summed stays on the device until the step is over.

Hooks of a module that is compiled by itself are called outside of its graph (`loops.compiled`). Inside of a larger
graph they become one operator that Dynamo does not look into (`_tap`). The graph is then the same in every loop, step
and recomputation: a graph that knew whether recording is on would differ when a checkpoint recomputes it, which torch
refuses, and noting the last state would be a side effect, which breaks the graph.

What is not part of a step is not recorded: what a checkpoint runs again, forwards without gradients beside others with
them (a validation, a reference model), forwards that raised. Of forwards in evaluation mode the loops are counted
(`Evaluations`), and nothing else. A state that cannot be read costs that state: its row says that it is missing.

Where the module behind the loop runs in every loop (deep supervision), or the loop runs a second time in one forward
(self-distillation), the state that the body receives next tells which it was: the same one, and the loop goes on, or
another one, and a new run of the loop begins, which counts as a forward of its own.

Not covered: CUDA graphs (Inductor leaves the operator out of them). A state of several tensors is `variable_tap`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Literal, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ...loops.compiled import in_operator
from ...loops.hooks import LoopHooks, Off, hook_before, hook_behind, state_in
from ...loops.neutral import looking
from ...loops.site import LoopSite, argument, modules_of, uncompiled
from ...loops.states import is_same
from ...loops.trace import Moment
from .backward import BackwardSolves
from .evaluations import Evaluations
from .internals import in_backward
from .sums import LoopSums

_TAPS: WeakValueDictionary[int, LoopTap] = WeakValueDictionary()
_KEYS = count()
TRAINS, HAS_GRADIENTS = 1, 2  # what the beginning of a forward says of it
Spot = Literal["begin", "loop", "inner", "leave", "passed", "finish", "end", "state", "copied", "mark"]
"""Where in a forward a hook is, in the words that a compiled graph passes on; `LoopTap.see` says which is which."""

AROUND: tuple[Spot, ...] = ("begin", "end", "inner", "passed")  # those that show no state

Report = Callable[[str, str, Exception | None], None]
"""What takes an event: its kind, one sentence for a person, and the exception behind it."""


@torch.library.custom_op(
    "loopscope::tap",
    mutates_args=("order",),
    schema="(Tensor(a!) order, Tensor[] seen, int key, str place, int number) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _tap(order: Tensor, seen: list[Tensor], key: int, place: str, number: int) -> None:
    """Stand in a compiled graph where a hook is; ``order`` keeps the calls in order and is not changed."""
    tap = _TAPS.get(key)
    if tap is not None:
        tap.see(cast(Spot, place), seen, number)


class LoopTap:
    """Hooks on a loop's two places that fill `LoopSums` while a training forward runs.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        sums: Where the rows of training forwards go.
        report: Called with what a reader of the run should know, again and again where it happens again.

    Attributes:
        enabled: Whether recording is due in this step.
        forwards: Forwards of the model that have begun, recorded or not.
        missed: Whether a state could not be read in the step under way.
        compiled: Whether hooks of the loop were called by a compiled graph.
        injects: Whether ‖B̅e‖ is due, which costs a product with B̅.
        evaluations: The forwards in evaluation mode since the last row.
        backward: The backward solves since then.
        on_state: Called with ``t`` and ``h_t`` as part of the autograd graph, where training forwards are recorded and
            the model runs eagerly.
        on_inner: Called with a place's number and what its module returned, where a first loop is recorded.
    """

    def __init__(self, model: nn.Module, site: LoopSite, sums: LoopSums, report: Report) -> None:
        self.sums = sums
        self.enabled = self.injects = True
        self.forwards, self.missed = 0, False
        self.compiled = False
        self.evaluations, self.backward = Evaluations(), BackwardSolves()
        self.on_state: Callable[[int, Tensor], None] | None = None
        self.on_inner: Callable[[int, Tensor], None] | None = None
        self._target: LoopSums | None = None  # the sums of the forward under way; None outside of one
        self._redirected: LoopSums | None = None
        self._runs: list[int] | None = None  # loops of an evaluation's forward under way, for each run of the loop
        self._site = site
        self.report = report
        self._ended = False  # whether the module behind the loop has run since the body last did
        self._held: Tensor | None = None  # the last state where the loop was left
        self._again = -1  # the row where the loop was last seen to begin again in the forward under way; none yet
        self._key = next(_KEYS)
        _TAPS[self._key] = self
        self._order = torch.zeros(1, dtype=torch.int64, device=sums.device)
        self._device = sums.device.type
        self._autocasts = torch.amp.is_autocast_available(self._device)
        self._places = [place for place in (site.state_argument, site.input_argument) if place is not None]
        self._model = model
        self._offs: list[Off] = []  # those of `watch_inside`
        self._hook()

    def _hook(self) -> None:
        """Put the hooks on the modules that the site names now."""
        model, site = self._model, self._site
        self._hooks = LoopHooks(
            model,
            site,
            begin=self._begin,
            enter=self._loop,
            returned=self._leave,
            after=self._finish,
            end=self._end,
        )
        self._note_modules()
        self._passing: Off | None = None
        if site.output is not None and site.after not in (site.output, site.body):
            self._passing = hook_before(self._hooked["after"], self._pass)

    def _note_modules(self) -> None:
        """Note which modules are at the places that the site names."""
        names = self._site.modules
        self._hooked = {role: self._model.get_submodule(name) for role, name in names.items()}
        self._paths = {role: tuple(name.split(".")) if name else () for role, name in names.items()}

    def follow(self) -> tuple[str, ...]:
        """Go to the modules that have taken the place of those that were watched.

        Wrapping a layer (LoRA does) or exchanging it puts another module under its name.

        Returns:
            The names of the places whose module is another one now; empty where nothing changed.
        """
        changed = tuple(role for role, path in self._paths.items() if _at(self._model, path) is not self._hooked[role])
        if changed:
            self._unhook()
            self._hook()
        return changed

    def use(self, site: LoopSite) -> None:
        """Go on with other matrices of the same loop."""
        self._site = site

    def _unhook(self) -> None:
        """Take the hooks of the loop off."""
        self._hooks.remove()
        if self._passing is not None:
            self._passing()

    @property
    def recorded(self) -> LoopSums | None:
        """The sums that the forward under way is recorded into, if it is."""
        return self._target

    def watch_inside(self, names: tuple[str, ...]) -> None:
        """Let `on_inner` see what modules return; number ``i`` is ``names[i]``."""
        modules = modules_of(self._model)
        for number, name in enumerate(names):

            def leave(module: nn.Module, args: Any, kwargs: Any, output: Any, number: int = number) -> None:
                self._pass_on("inner", _returned, output, None, number)

            self._offs.append(hook_behind(modules[name], leave))

    def replay(self, moments: Sequence[Moment]) -> None:
        """Take in a forward that is over, from what its modules were given and returned."""
        for kind, name, module, args, kwargs, output in moments:
            if module is self._model:
                if kind == "enter":
                    self._begin(self._model, args, kwargs)
                else:
                    self._end(self._model, args, kwargs, output)
            elif kind == "mark":
                self._replay_mark(name, args[0], kwargs["input"])
            elif module is not None:
                self._replay(kind, name, module, args, kwargs, output)

    def _replay(
        self, kind: str, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Take in that a module was entered or left."""
        site = self._site
        if kind == "enter" and name == site.body:
            self._loop(module, args, kwargs)
        if kind == "leave" and name == site.output:
            self._leave(module, args, kwargs, output)
        if kind == "enter" and name == site.after:
            if site.output is None:
                self._finish(module, args, kwargs)
            elif site.after not in (site.output, site.body):
                self._pass(module, args, kwargs)

    def _replay_mark(self, name: str, state: Tensor, given: Tensor | None) -> None:
        """Take in a mark; here nobody watches marks."""

    def remove(self) -> None:
        """Take the hooks off the model; does nothing when they are off already."""
        self._unhook()
        for off in self._offs:
            off()
        self._offs.clear()
        _TAPS.pop(self._key, None)  # graphs that were compiled with the hooks live on
        self._target = self._held = self._runs = None
        self.backward.take()

    @contextmanager
    def into(self, sums: LoopSums) -> Iterator[None]:
        """Record the forwards of this block into other sums, whatever the model's training mode."""
        self._redirected = sums
        try:
            yield
        finally:
            self._redirected = None

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        number = TRAINS * module.training + HAS_GRADIENTS * torch.is_grad_enabled()
        self._pass_on("begin", _first_tensor, args, kwargs, number)

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # Torch calls this hook after an exception too, with no output and while the exception is being handled.
        raised = output is None and not torch.compiler.is_dynamo_compiling() and sys.exc_info()[1] is not None
        self._pass_on("end", _no_tensor, args, None, int(raised))

    def _pass(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._pass_on("passed", _no_tensor, args, None)

    def _loop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pass_on("loop", self._received, args, kwargs)

    def _finish(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        self._pass_on("finish", _returned, args, None)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._pass_on("leave", _returned, output, None)

    def _received(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return what the body was called with."""
        return [argument(args, kwargs, place) for place in self._places]

    def _pass_on(self, place: Spot, find: Callable[[Any, Any], list[Tensor]], a: Any, b: Any, number: int = 0) -> None:
        """Let the tap see what ``find(a, b)`` finds, through the operator when a graph is being traced.

        Flat and without closures: behind a layer of the model every call of a Python function costs microseconds.
        """
        try:
            if torch.compiler.is_dynamo_compiling():
                if in_operator():  # a loop that is one operator is not seen
                    return
                _tap(self._order, [tensor.detach() for tensor in find(a, b)], self._key, place, number)
            elif self._target is not None or self._runs is not None or place == "begin":
                self._take(place, find(a, b), number)
            elif place in ("loop", "leave", "state") and self.enabled and in_backward() and not looking():
                self.backward.watch(find(a, b)[0])
        except Exception as error:
            self._miss(place, error)

    def see(self, place: Spot, seen: list[Tensor], number: int) -> None:
        """Take note of one place of the model that its forward has come to.

        Args:
            place: ``"begin"`` and ``"end"`` of the model's forward, ``"loop"`` for the first module of the body,
                ``"finish"`` for the one after the loop, ``"leave"`` for the one that returns the state (then
                ``"passed"`` is the one after the loop), ``"inner"`` for a module that `watch_inside` named.
            seen: The model's input, the state (in ``"loop"`` with the loop's input), or what a module returned.
            number: Of ``"begin"``, whether the model trains and has gradients; of ``"end"``, whether it raised; of
                ``"inner"``, which module it is.
        """
        self.compiled = True
        try:
            self._take(place, seen, number)
        except Exception as error:
            self._miss(place, error)

    def _miss(self, place: Spot, error: Exception) -> None:
        """Record a state that could not be read as missing, and say so."""
        self.missed = True
        if self._runs is not None:
            self._runs = None
            what = f"the loops of a forward in evaluation mode could not be counted ({_short(error)})"
            self.report("state_missing", what, error)
            return
        if place not in AROUND and self._target is not None:
            with suppress(Exception):
                self._target.add_missing()
        what = f"a state of the loop could not be read ({_short(error)}); it is recorded as missing, the rest goes on"
        self.report("state_missing", what, error)

    def _take(self, place: Spot, seen: list[Tensor], number: int) -> None:
        """Do what `see` does, and raise its errors."""
        sums = self._target
        if self._runs is not None and place != "begin":
            self._count(self._runs, place, seen, number)
        elif torch.is_inference_mode_enabled():  # what is made here is written to later, outside of it
            with torch.inference_mode(False), torch.no_grad():
                self._take(place, seen, number)
        elif place == "begin":
            self._begin_forward(seen, number)
        elif sums is None:
            return
        elif place == "end":
            self._end_forward(sums, raised=bool(number))
        elif self._autocasts and torch.is_autocast_enabled(self._device):
            # It would turn products with B̅ into bf16, in which 0.999 is 1.
            with torch.autocast(self._device, enabled=False):
                self._see(sums, place, seen, number)
        else:
            self._see(sums, place, seen, number)

    def _begin_forward(self, seen: list[Tensor], number: int) -> None:
        """Decide where the rows of a forward go. What a checkpoint runs again during backward goes nowhere."""
        self.forwards += 1
        if self._target is not None:  # one that was broken off
            self._end_forward(self._target, raised=True)
        own = in_backward() or looking()  # no forward of the user's
        trains = bool(number & TRAINS) and self.enabled and not own
        target = self._redirected or (self.sums if trains else None)
        self._ended, self._again = False, -1
        self._runs = None if own or target is not None or number & TRAINS else [0]
        if target is None:
            return
        batch = seen[0] if seen and target is self.sums else None
        has_gradients = bool(number & HAS_GRADIENTS) or target is not self.sums
        self._target = target if target.begin(batch, has_gradients=has_gradients) else None

    def _end_forward(self, sums: LoopSums, *, raised: bool) -> None:
        """End the forward under way."""
        self._target = self._held = None
        if raised:
            sums.drop_from(sums.first)
        elif self._again >= 0 and not self._ended:  # the body's module ran again
            is_loop = self._site.output is not None and sums.cursor > self._again + 2
            if not is_loop:
                sums.drop_from(self._again)

    def _count(self, runs: list[int], place: Spot, seen: list[Tensor], number: int) -> None:
        """Count the loops of a forward in evaluation mode, as `_see` would have recorded them.

        Args:
            runs: Loops of each run of the loop so far; the last one is under way.
            place: As that of `see`.
            seen: As that of `see`.
            number: As that of `see`.
        """
        if place == "end":
            self._end_evaluation(runs, raised=bool(number))
        elif looking():
            return
        elif place == "loop":
            if self._ended:
                self._ended = False
                if not is_same(seen[0], self._held):
                    runs.append(0)
            runs[-1] += self._site.output is None
        elif place == "leave":
            runs[-1] += 1
            self._held = seen[0]
        elif place == "passed":
            self._ended = runs[-1] > 0
        elif place == "finish" and runs[-1] and not self._ended:
            self._ended, self._held = True, seen[0]

    def _end_evaluation(self, runs: list[int], *, raised: bool) -> None:
        """End a forward in evaluation mode."""
        self._runs = self._held = None
        if not raised:
            alone = len(runs) > 1 and not self._ended  # the body's module ran again, and not as a loop
            alone = alone and (self._site.output is None or runs[-1] < 2)
            self.evaluations.add(runs[:-1] if alone else runs)

    def _see(self, sums: LoopSums, place: Spot, seen: list[Tensor], number: int) -> None:
        """Record a state where it is one that is still missing."""
        if sums is self.sums and looking():  # a module of ours is called on the side, in the middle of a forward
            return
        if place == "loop":
            if self._site.state_argument is not None:
                self._enter(sums, seen)
        elif place == "inner":
            if self.on_inner is not None and sums is self.sums and sums.loop <= 1:
                self.on_inner(number, seen[0])
        elif place == "passed":
            self._ended = sums.loop > 0
        elif place == "leave":
            if not sums.loop:  # nothing received h_0
                sums.add_missing(seen[0])
            elif self._ended and self._site.state_argument is None:
                self._ended = False
                self._say_again("its runs are recorded as one")
            self._held = seen[0]
            self._add(sums, seen[0])
        elif sums.loop and not self._ended:  # what a second call of the module behind the loop receives is not h_T
            self._ended, self._held = True, seen[0]
            self._add(sums, seen[0])

    def _enter(self, sums: LoopSums, seen: list[Tensor]) -> None:
        """Record a state that enters the loop, unless it was recorded where it was returned."""
        again = False
        given: Tensor | None = None
        if sums.cursor == sums.first:
            given = seen[1] if len(seen) > 1 else None
        elif self._ended:
            self._ended = False
            if is_same(seen[0], self._held):
                return
            again, self._again = True, sums.cursor
            until = "" if self._site.output is not None else f" and came to {self._site.after!r} once more"
            self._say_again(f"where it began with another state{until}, that is recorded as a run of its own")
            given = seen[1] if len(seen) > 1 else None
        elif self._site.output is not None:
            return
        self._add(sums, seen[0], given, again)

    def _add(self, sums: LoopSums, state: Tensor, given: Tensor | None = None, again: bool = False) -> None:
        """Add the next state to the sums."""
        if self.on_state is not None and self._again < 0 and sums is self.sums:
            self.on_state(sums.loop, state)
        sums.add(state, given, None if given is None else self._due_b_bar(), again=again)

    def _say_again(self, what: str) -> None:
        """Say that the loop went on, or began again, behind its end."""
        message = f"{self._site.body!r} ran again after {self._site.after!r} in the same forward: {what}"
        self.report("loop_again", message, None)

    @torch.no_grad()
    def _due_b_bar(self) -> Tensor | None:
        """Return B̅, where the norm of B̅e is due."""
        if not self.injects or self._site.b_bar is None:
            return None
        target, self._target = self._target, None  # measuring B̅ calls the body, which is no loop of the forward then
        try:
            return self._site.b_bar().detach().float()
        finally:
            self._target = target


def _at(module: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """Return what a model has at a place now. ``get_submodule`` takes longer, and this is asked each step."""
    here: nn.Module | None = module
    for name in path:
        here = None if here is None else uncompiled(here)._modules.get(name)
    return here


def _short(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the input of a forward, if it is a tensor."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:1]


def _no_tensor(a: Any, b: Any) -> list[Tensor]:
    """Return nothing to see."""
    return []


def _returned(output: Any, _: Any) -> list[Tensor]:
    """Return the state in what a module received or returned."""
    return [state_in(output)]
