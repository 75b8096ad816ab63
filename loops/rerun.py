"""Running a forward again from another state: what it takes beside the hooks that exchange and catch the state.

Not covered: which state is exchanged where (`bound`, `joint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .neutral import Look
from .periods import FOLDED, SAME
from .python_state import PythonState
from .site import LoopSite, LoopSiteError
from .writes import memory_of

Step = Callable[[Tensor], Tensor]


SAME_NOISE = "the same random numbers are drawn in every pass"
UNCHECKED = "the forward runs too few passes to check that all of them are one map"
CUTS = "a pass detaches tensors that depend on its state: derivatives leave out what goes through them"


NO_GRADIENT = "detaches all that its state goes through, or has a step without a derivative, such as argmax"


class ReachedError(Exception):
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
        variables: Which channels of the state each variable has, where the loop carries several.
        remark: What a reader of its numbers should know; often nothing.
        cuts: Says whether derivatives of its steps leave out what a pass detaches.
    """

    step: Step
    step_of: Callable[[Tensor], Step] | None
    read_out: Step | None
    state: Tensor
    e: Tensor | None
    sublayers: dict[str, nn.Module]
    site: LoopSite
    variables: dict[str, slice] = field(default_factory=dict)
    remark: str = ""
    cuts: Callable[[], bool] = bool


class KeepsGradients(TorchFunctionMode):
    """Lets a model's own ``torch.no_grad()`` do nothing between the state's entry and its exit, nor a detached state.

    Models that truncate backpropagation run most of their loops without gradients, or detach the state in every pass;
    their loop is the same function. What else a pass detaches stays so, for a model may round by it.

    Attributes:
        active: Whether the state is on its way.
        cuts: Whether a pass has detached anything else that depends on the state.
    """

    active = cuts = False

    def begin(self, *states: Tensor) -> None:
        """Enter the state; gradients are on if the caller of the step wants them.

        Args:
            states: What is put in the state's place.
        """
        if self._wanted:  # else a model that derives by its state within a pass goes on doing so
            torch.set_grad_enabled(True)
        self.active = self._wanted
        self._whole = [*states] if self.active else []

    def __enter__(self) -> Self:
        self._wanted = torch.is_grad_enabled()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.active:
            return func(*args, **(kwargs or {}))
        if func is torch._C._set_grad_enabled:
            return None
        name, of = getattr(func, "__name__", ""), args[0] if args else None
        whole = any(of is state for state in self._whole)
        if name in ("detach", "detach_") or func == _DATA:
            if whole:
                return of
            self.cuts |= isinstance(of, Tensor) and of.requires_grad
        output = func(*args, **(kwargs or {}))
        if whole and name in _HANDS_ON and isinstance(output, Tensor):
            self._whole.append(output)
        return output


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_HANDS_ON = SAME - {"__getitem__"} | FOLDED


class Repeats:
    """Makes every forward begin as the first one did, for models whose forwards leave something behind.

    What the first forward wrote to is exchanged for a copy in each later one: a graph may have saved it, and numbers in
    a graph must not change. Everything else that differs afterwards is put back.
    """

    def __init__(self, model: nn.Module, look: Look) -> None:
        self._model, self._writes = model, look.writes
        self._state = PythonState([model])  # as it is in the look: flags of evaluation, no gradients of parameters
        self._acting: list[tuple[dict[str, Any], str, Tensor]] = []

    def needed(self) -> bool:
        """Return whether the forward since the start left anything behind; it is put back."""
        written = self._writes.memory
        for module in self._model.modules():
            for held in (module._parameters, module._buffers):
                named = {name: t for name, t in held.items() if t is not None and memory_of([t]) & written}
                self._acting += [(held, name, tensor) for name, tensor in named.items()]
        self._writes.undo()
        return self._state.rewind() or bool(written)

    def __enter__(self) -> None:
        copies = {id(tensor): tensor.detach().clone() for _, _, tensor in self._acting}
        for held, name, tensor in self._acting:
            copy = copies[id(tensor)]
            held[name] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy

    def __exit__(self, *_: object) -> None:
        self._writes.undo()
        self._state.rewind()


def check_numbers(model: nn.Module, state: Tensor) -> None:
    """Check that a state is of numbers in which derivatives mean something.

    Raises:
        LoopSiteError: They have half the digits.
    """
    if state.dtype in (torch.float16, torch.bfloat16):
        raise LoopSiteError(
            f"the loop of {type(model).__name__} computes in {str(state.dtype).removeprefix('torch.')}, whose digits "
            "are too few for derivatives, so it can be watched but not linearised: linearise a copy of the model in "
            "float32, copy.deepcopy(model).float()"
        )


def check_shapes(model: nn.Module, states: Sequence[Tensor]) -> None:
    """Check that all states of a forward have one shape.

    Raises:
        LoopSiteError: They have several, so that a pass is no map of a space into itself.
    """
    shapes = list(dict.fromkeys("x".join(map(str, state.shape)) for state in states))
    if len(shapes) > 1:
        raise LoopSiteError(
            f"the state of {type(model).__name__} changes its shape from pass to pass ({', then '.join(shapes[:3])}), "
            "so it can be watched but not linearised"
        )


def real(state: Tensor) -> Tensor:
    """Return a state of real numbers in float32 at least: of complex ones the real and the imaginary parts in turn.

    >>> real(torch.tensor([[1 + 2j, 3 + 4j]])).tolist()
    [[1.0, 2.0, 3.0, 4.0]]
    """
    state = torch.view_as_real(state.resolve_conj()).flatten(-2) if state.is_complex() else state
    return state if state.dtype == torch.float64 else state.float()


def unreal(state: Tensor, like: Tensor) -> Tensor:
    """Return what `real` was given, in the numbers of another tensor.

    >>> unreal(torch.tensor([[1.0, 2.0]]), torch.zeros(1, dtype=torch.complex64)).tolist()
    [[(1+2j)]]
    """
    if like.is_complex():
        state = torch.view_as_complex(state.unflatten(-1, (-1, 2)).contiguous())
    return state.to(like.dtype)


@contextmanager
def no_recomputation() -> Iterator[None]:
    """Let activation checkpointing keep what it would compute again: derivatives of derivatives need it whole.

    >>> from torch.utils.checkpoint import checkpoint
    >>> h = torch.ones(2, requires_grad=True)
    >>> with no_recomputation():
    ...     y = checkpoint(torch.square, h, use_reentrant=True)
    >>> torch.autograd.grad(y.sum(), h)[0].tolist()
    [2.0, 2.0]
    """
    used = torch.utils.checkpoint
    usual = used.CheckpointFunction, used._checkpoint_without_reentrant_generator

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args)

    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield

    names: Any = used  # two names that torch's own `checkpoint` looks up when it is called
    names.CheckpointFunction, names._checkpoint_without_reentrant_generator = Plain, nothing
    try:
        yield
    finally:
        names.CheckpointFunction, names._checkpoint_without_reentrant_generator = usual
