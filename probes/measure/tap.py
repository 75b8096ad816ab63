"""The tap: hooks that hand every state of the loop to `LoopSums`, with nothing the host would have to wait for.

A hook on the first module of the loop body sees ``h_t``; a hook on the first module after the loop sees ``h_T``. There
is no ``.item()``: what is summed stays on the device until the step is over.

Inside a compiled graph the hooks become one operator that Dynamo does not look into (`_tap`). The graph is then the
same in every loop, step and recomputation: a graph that knew whether recording is on would differ when a checkpoint
recomputes it, which torch refuses, and noting the last state would be a side effect, which breaks the graph.

Not covered: CUDA graphs (Inductor leaves the operator out of them), and loops whose state is not one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ...loops.hooks import Hook, LoopHooks, state_in
from ...loops.neutral import looking
from ...loops.site import LoopSite, argument
from .internals import in_backward
from .sums import LoopSums

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


_TAPS: WeakValueDictionary[int, LoopTap] = WeakValueDictionary()
_KEYS = count()


@torch.library.custom_op(
    "loopscope::tap",
    mutates_args=("order",),
    schema="(Tensor(a!) order, Tensor[] seen, int key, str place, int number) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _tap(order: Tensor, seen: list[Tensor], key: int, place: str, number: int) -> None:
    """What a compiled graph calls where a hook is; ``order`` keeps the calls in order and is not changed."""
    tap = _TAPS.get(key)
    if tap is not None:
        tap.see(place, seen, number)


class LoopTap:
    """Hooks on a loop's two places that fill `LoopSums` while a training forward runs.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        sums: Where the rows of training forwards go.
        on_error: Called once with the exception should a hook ever fail; the tap is silent from then on.

    Attributes:
        enabled: Whether recording is due in this step.
        forwards: Forwards of the model that have begun, recorded or not.
        injects: Whether ‖B̅e‖ is due, which costs a product with B̅.
        on_state: Called with ``t`` and ``h_t`` as part of the autograd graph, where training forwards are recorded and
            the model runs eagerly.
        on_inner: Called with a place's number and what its module returned, where a first loop is recorded.
    """

    def __init__(self, model: nn.Module, site: LoopSite, sums: LoopSums, on_error: Callable[[Exception], None]) -> None:
        self.sums = sums
        self.enabled = self.injects = True
        self.forwards = 0
        self.on_state: Callable[[int, Tensor], None] | None = None
        self.on_inner: Callable[[int, Tensor], None] | None = None
        self._target: LoopSums | None = None  # the sums of the forward under way; None outside of one
        self._redirected: LoopSums | None = None
        self._site = site
        self._on_error = on_error
        self._key = next(_KEYS)
        _TAPS[self._key] = self
        self._order = torch.zeros(1, dtype=torch.int64, device=sums.device)
        self._device = sums.device.type
        self._autocasts = torch.amp.is_autocast_available(self._device)
        self._places = [place for place in (site.state_argument, site.input_argument) if place is not None]
        self._model = model
        self._hooks = LoopHooks(
            model,
            site,
            begin=self._begin,
            enter=self._loop,
            returned=self._leave,
            after=self._finish,
            end=self._end,
        )
        self._handles: list[RemovableHandle] = []  # those of `watch_inside`

    @property
    def recorded(self) -> LoopSums | None:
        """The sums that the forward under way is recorded into, if it is."""
        return self._target

    def watch_inside(self, names: tuple[str, ...]) -> None:
        """Lets `on_inner` see what modules return; number ``i`` is ``names[i]``."""
        modules = dict(self._model.named_modules())
        for number, name in enumerate(names):

            def leave(module: nn.Module, args: Any, output: Any, number: int = number) -> None:
                self._pass_on("inner", _returned, output, None, number)

            self._handles.append(modules[name].register_forward_hook(Hook(leave)))

    def remove(self) -> None:
        """Takes the hooks off the model; harmless when they are off already."""
        self._hooks.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _TAPS.pop(self._key, None)  # graphs that were compiled with the hooks live on
        self._target = None

    @contextmanager
    def into(self, sums: LoopSums) -> Iterator[None]:
        """Records the forwards of this block into other sums, whatever the model's training mode."""
        self._redirected = sums
        try:
            yield
        finally:
            self._redirected = None

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pass_on("begin", _first_tensor, args, kwargs, int(module.training))

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._pass_on("end", _no_tensor, args, None)

    def _loop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pass_on("loop", self._received, args, kwargs)

    def _finish(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._pass_on("finish", _returned, args, None)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._pass_on("leave", _returned, output, None)

    def _received(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """What the body was called with."""
        return [argument(args, kwargs, place) for place in self._places]

    def _pass_on(self, place: str, find: Callable[[Any, Any], list[Tensor]], a: Any, b: Any, number: int = 0) -> None:
        """Lets the tap see what ``find(a, b)`` finds, through the operator when a graph is being traced.

        Flat and without closures: behind a layer of the model every call of a Python function costs microseconds.
        """
        try:
            if torch.compiler.is_dynamo_compiling():
                _tap(self._order, [tensor.detach() for tensor in find(a, b)], self._key, place, number)
            elif self._target is not None or place == "begin":
                self._take(place, find(a, b), number)
        except Exception as error:
            self.fail(error)

    def see(self, place: str, seen: list[Tensor], number: int) -> None:
        """Takes note of one place of the model that its forward has come to.

        Args:
            place: ``"begin"`` and ``"end"`` of the model's forward, ``"loop"`` for the first module of the body,
                ``"finish"`` for the one after the loop, ``"leave"`` for the one that returns the state, ``"inner"``
                for a module that `watch_inside` named.
            seen: The model's input, the state (in ``"loop"`` with the loop's input), or what a module returned.
            number: Whether the model is in training mode in ``"begin"``, which module it is in ``"inner"``.
        """
        try:
            self._take(place, seen, number)
        except Exception as error:
            self.fail(error)

    def _take(self, place: str, seen: list[Tensor], number: int) -> None:
        """As `see`, and raises."""
        sums = self._target
        if place == "begin":
            self._begin_forward(seen, training=bool(number))
        elif place == "end":
            self._target = None
        elif sums is None:
            return
        elif self._autocasts and torch.is_autocast_enabled(self._device):
            # It would turn products with B̅ into bf16, in which 0.999 is 1.
            with torch.autocast(self._device, enabled=False):
                self._see(sums, place, seen, number)
        else:
            self._see(sums, place, seen, number)

    def _begin_forward(self, seen: list[Tensor], *, training: bool) -> None:
        """Decides where the rows of a forward go. What a checkpoint runs again during backward goes nowhere."""
        self.forwards += 1
        own = self.sums if training and self.enabled and not in_backward() and not looking() else None
        self._target = self._redirected or own
        if self._target is not None:
            self._target.begin(seen[0] if seen and self._target is own else None)

    def _see(self, sums: LoopSums, place: str, seen: list[Tensor], number: int) -> None:
        """Records a state where it is one that is still missing."""
        loop = sums.loop
        if place == "inner":
            if self.on_inner is not None and sums is self.sums and loop <= 1:
                self.on_inner(number, seen[0])
            return
        given = None
        if place == "loop":
            if self._site.state_argument is None or (loop and self._site.output is not None):
                return
            if not loop and len(seen) > 1:
                given = seen[1]
        elif place == "leave":
            if not loop:  # nothing received h_0
                sums.add_missing(seen[0])
        elif not loop:
            return
        else:
            self._target = None  # what a second call of this module receives is not h_T
        if self.on_state is not None and sums is self.sums:
            self.on_state(sums.loop, seen[0])
        sums.add(seen[0], given, None if given is None else self._due_b_bar())

    @torch.no_grad()
    def _due_b_bar(self) -> Tensor | None:
        """B̅, where the norm of B̅e is due."""
        return self._site.b_bar().detach().float() if self.injects and self._site.b_bar is not None else None

    def fail(self, error: Exception) -> None:
        """Ends recording after an error, which is reported; training goes on."""
        self._target = None
        self.enabled = False
        self._on_error(error)


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The input of a forward, if it is a tensor."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:1]


def _no_tensor(a: Any, b: Any) -> list[Tensor]:
    """Nothing to see."""
    return []


def _returned(output: Any, _: Any) -> list[Tensor]:
    """The state in what a module received or returned."""
    return [state_in(output)]
