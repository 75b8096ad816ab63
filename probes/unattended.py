"""Attaches to a training that says nothing of loopscope, records some of its steps, and ends it.

The first module that is called in training mode and in which a loop is found gets the probe, before that call. A step
ends where an optimizer of its parameters has stepped. The loss is what ``backward`` was called on, before a gradient
scaler enlarged it; the gradient norm is what torch's own clipping returned. After the given number of steps the
recording is closed and the process ends as by ``sys.exit(0)``.

Only public places of torch are used or wrapped: ``nn.Module.__call__`` until a loop was found, ``autograd.backward``,
``clip_grad_norm_``, ``GradScaler.scale``, ``Optimizer.zero_grad``, and the global hook after optimizer steps. Whatever
goes wrong here goes into the report, and costs the training nothing but the recording.

Not covered: optimizers that are none of torch's; a loss that is given to ``torch.autograd.grad``.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .probe import Probe, attach

MOST_TRIES: Final = 8  # modules in which a loop is looked for
PATIENCE: Final = 10  # optimizer steps after which a training without a loop is given up
LARGE_PART: Final = 0.5  # of the parameters of the outermost module: what a module inside it must have to be looked at


class Tell(Protocol):
    """Takes note of what happens, for the command that waits."""

    def __call__(self, what: str, **more: Any) -> None:
        """Take a word and what belongs to it."""


class Finished(SystemExit):
    """Ends a training that has been watched for long enough; with exit code 0, past ``except Exception``."""


class Unattended:
    """One training that is watched without its knowledge.

    Args:
        out: The run file.
        steps: Optimizer steps that are recorded.
        named: ``module:object`` of the model; empty: the first one in which a loop is found.
        tell: Told of what happens, by a word and further values.
    """

    def __init__(self, out: Path, steps: int, named: str, tell: Tell) -> None:
        self._out, self._steps, self._named, self._tell = out, steps, named, tell
        self._probe: Probe | None = None
        self._clock: weakref.ref[Optimizer] | None = None  # the optimizer that ends a step
        self._parameters: set[int] = set()
        self._done = 0
        self._ended = False
        self._losses: list[Tensor] = []
        self._norm: Tensor | float | None = None
        self._unscaled: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._depth = 0
        self._outermost = 0  # parameters of the module that was called from outside
        self._tried: set[int] = set()

    # -- what torch calls -----------------------------------------------------------------------------------------

    def before_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look for a loop in a module that is about to be called, where it trains."""
        if self._ended or not module.training or not torch.is_grad_enabled() or id(module) in self._tried:
            return
        if torch.compiler.is_compiling():
            return
        size = _trained(module)
        if self._depth == 1:
            self._outermost = size
        if not size or size < LARGE_PART * self._outermost or not self._is_meant(module):
            return
        self._tried.add(id(module))
        self._attach(module, args, kwargs)

    def backward(self, tensors: Tensor | Iterable[Tensor]) -> None:
        """Take note of what is differentiated."""
        if self._probe is None:
            return
        given = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        for each in given:
            if isinstance(each, Tensor) and each.numel() == 1:
                source = self._unscaled[1] if self._unscaled is not None and self._unscaled[0]() is each else each
                self._losses.append(source.detach().reshape(()))

    def scaled(self, given: Any, result: Any) -> None:
        """Take note of the loss that a gradient scaler enlarges."""
        if self._probe is not None and isinstance(given, Tensor) and isinstance(result, Tensor):
            self._unscaled = weakref.ref(result), given.detach()

    def clipped(self, norm: Any) -> None:
        """Take note of a gradient norm."""
        if self._probe is not None and isinstance(norm, Tensor | float | int):
            self._norm = norm

    def cleared(self, optimizer: Optimizer) -> None:
        """Forget the losses of a step that was skipped: its gradients are thrown away."""
        if self._clock is None or self._clock() is optimizer:
            self._losses.clear()

    def stepped(self, optimizer: Optimizer) -> None:
        """End a step where the optimizer is one of the model's, and the training after the last one.

        Raises:
            Finished: That was the last step.
        """
        if self._ended:
            _leave()  # something caught the end of the training
        if self._probe is None:
            self._give_up()
        if self._probe is None or not self._is_clock(optimizer):
            return
        loss = torch.stack(self._losses).sum() if self._losses else None
        rate = optimizer.param_groups[0].get("lr")
        norm, self._norm = self._norm, None
        self._losses.clear()
        self._probe.step(loss=loss, grad_norm=norm, lr=None if rate is None else float(rate))
        self._done += 1
        if self._done >= self._steps:
            self.close()
            self._tell("stopped", steps=self._done)
            raise Finished(0)

    def _give_up(self) -> None:
        """End a training in which no loop was found after some steps: nobody waits for its end.

        Raises:
            Finished: It was the last step.
        """
        self._done += 1
        if self._done >= min(PATIENCE, self._steps) and self._tried:
            self._ended = True
            self._tell("stopped", steps=0)
            raise Finished(0)

    def close(self) -> None:
        """Close the recording; as an interrupted one where an exception ends the process."""
        if self._probe is None or self._ended:
            return
        self._ended = True
        error = getattr(sys, "last_value", None)
        if error is None:
            self._probe.close()
        else:
            self._probe.close(finished=False, reason=f"the command failed: {type(error).__name__}: {error}")
        self._tell("closed", steps=self._done)

    # -- behind it ------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Take note that a module is being called."""
        self._depth += 1

    def leave(self) -> None:
        """Take note that the call of a module has ended."""
        self._depth -= 1

    @property
    def looking(self) -> bool:
        """Whether a loop is still looked for."""
        return self._probe is None and not self._ended and len(self._tried) < MOST_TRIES

    def _is_meant(self, module: nn.Module) -> bool:
        """Return whether a module is the one that was named, where one was."""
        if not self._named:
            return True
        home, _, path = self._named.partition(":")
        value: Any = sys.modules.get(home)
        for name in path.split("."):
            value = getattr(value, name, None)
        return value is module or (isinstance(value, type) and isinstance(module, value))

    def _attach(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Attach to a module where a loop is found in it; with its own input where it needs one.

        The full loop is measured too: a loop without a known A̅ could not be judged otherwise, and nobody times this.
        """
        from ..loops.call import Call
        from ..loops.find import find_site
        from ..loops.site import LoopSiteError, unwrap

        name = type(module).__name__
        try:
            try:
                find_site(unwrap(module), None)
                example = None
            except LoopSiteError:
                example = Call(args, kwargs)  # given one, attach() waits for no loop
            probe = attach(module, self._out, preset="inspect", probe_batch=example)
        except LoopSiteError as error:
            self._tell("no loop", model=name, error=str(error))
            return
        except Exception as error:
            self._tell("refused", model=name, error=f"{type(error).__name__}: {error}")
            return
        self._probe, self._done = probe, 0
        self._parameters = {id(parameter) for parameter in module.parameters()}
        atexit.register(self.close)
        self._tell("attached", model=name, out=str(probe.path))

    def _is_clock(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer ends a step: the first one that has parameters of the model does."""
        if self._clock is not None and (clock := self._clock()) is not None:
            return clock is optimizer
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if own.isdisjoint(self._parameters):
            return False
        self._clock = weakref.ref(optimizer)
        return True


def install(out: Path, steps: int, named: str, tell: Tell) -> None:
    """Watch this process; called once, after torch was imported. The arguments are those of `Unattended`."""
    watched = Unattended(out, steps, named, tell)
    _watch_calls(watched)
    _wrap(torch.autograd, "backward", watched, lambda seen, args, kwargs: seen.backward(
        args[0] if args else kwargs.get("tensors", ())))  # fmt: skip
    _wrap(Optimizer, "zero_grad", watched, lambda seen, args, kwargs: seen.cleared(args[0]))
    for home in (torch.nn.utils, torch.nn.utils.clip_grad):
        _wrap(home, "clip_grad_norm_", watched, after=lambda seen, args, result: seen.clipped(result))
    _wrap(torch.amp.GradScaler, "scale", watched, after=lambda seen, args, result: seen.scaled(args[-1], result))
    register_optimizer_step_post_hook(lambda optimizer, args, kwargs: watched.stepped(optimizer))
    tell("torch", version=torch.__version__)


def _watch_calls(watched: Unattended) -> None:
    """Show every call of a module to the watcher, as long as it looks for a loop."""
    own: Callable[..., Any] = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not watched.looking:
            nn.Module.__call__ = own  # type: ignore[method-assign]
            return own(module, *args, **kwargs)
        watched.enter()
        try:
            with suppress(Exception):
                watched.before_call(module, args, kwargs)
            return own(module, *args, **kwargs)
        finally:
            watched.leave()

    nn.Module.__call__ = call  # type: ignore[method-assign]


def _wrap(
    home: Any,
    name: str,
    watched: Unattended,
    before: Callable[[Unattended, tuple[Any, ...], dict[str, Any]], None] | None = None,
    after: Callable[[Unattended, tuple[Any, ...], Any], None] | None = None,
) -> None:
    """Have a function of torch show its arguments or its result to the watcher; it does what it did."""
    own = getattr(home, name)

    @functools.wraps(own)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            with suppress(Exception):
                before(watched, args, kwargs)
        result = own(*args, **kwargs)
        if after is not None:
            with suppress(Exception):
                after(watched, args, result)
        return result

    setattr(home, name, wrapped)


def _trained(module: nn.Module) -> int:
    """Return how many parameters of a module are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _leave() -> None:
    """End the process at once: the recording is closed, and what should have ended it was caught."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
