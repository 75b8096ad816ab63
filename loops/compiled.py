"""Hooks around a compiled module: they are called outside of its graph, which stays as it is without them.

``module.compile()`` compiles the hooks of a module into its graph. There a hook has to be an operator, for which the
state has to lie in memory: Inductor then fuses other operations, and the last bits of the training may change. Around
the compiled call nothing changes, and a graph that was made before the hook came is no less watched.

Not covered: a module that is compiled after it was hooked. ``torch.compile(module)`` needs none of this: what it
returns is a module of its own, which calls its hooks outside of the graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn

Call = Callable[..., Any]
_MAY_WRITE = ("tag_activation_checkpoint", "autograd.Function")
"""Operators whose functions may write to what they are given."""


def in_operator() -> bool:
    """Return whether Dynamo is at a function that an operator takes, as those of ``torch.while_loop`` or ``scan``.

    Such a function must write to nothing, so that no hook can be a part of it. Checkpointing is no such operator.
    Without the private names the answer is no, and such a model fails with a hook in its loop.

    >>> in_operator()
    False
    """
    try:
        dynamo: Any = sys.modules["torch._dynamo.symbolic_convert"]
        tracer = dynamo.InstructionTranslator.current_tx().output.current_tracer
        while tracer.parent is not None:
            if getattr(tracer.source_target, "__name__", tracer.source_target) not in _MAY_WRITE:
                return True
            tracer = tracer.parent
    except (KeyError, AttributeError):
        pass
    return False


in_operator._dynamo_marked_constant = True  # type: ignore[attr-defined]  # answered as a graph is made, for good


def leave_alone(module: nn.Module) -> None:
    """Let Dynamo leave the forward of one of torch's own modules alone, as it does where that has no hooks.

    Where a graph breaks, the calls behind it run as they are, and Dynamo makes a graph of the forward of each of
    torch's modules that holds a hook: its last bits change, and a second derivative fails. In a larger graph such a
    forward is a part as before. Without the private names it is as torch has it.

    Not covered: where a user's own hooks are on another module of the same kind, that is left alone then, too.

    Args:
        module: What is about to get a hook.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if not type(module).__module__.startswith("torch.") or any(
        type(hook).__module__.split(".")[0] != __name__.split(".", maxsplit=1)[0]
        for one in hooks
        for hook in one.values()
    ):
        return  # hooks of the user's own: then torch does so anyway
    with suppress(AttributeError):
        dynamo: Any = torch._C._dynamo.eval_frame
        strategy = dynamo._FrameExecStrategy(dynamo._FrameAction.SKIP, dynamo._FrameAction.DEFAULT)
        dynamo.set_code_exec_strategy(type(module).forward.__code__, strategy)


class CompiledCall:
    """The compiled call of a module, with hooks around it; it takes that call's place in the module.

    A module that is copied, pickled or saved leaves it out, as torch leaves out every compiled call.

    Args:
        module: The module.
        call: Its compiled call.

    Attributes:
        running: Whether the call is under way, so that hooks that torch calls inside of it are called here instead.

    >>> module = nn.Linear(2, 2)
    >>> module.compile(backend="eager")
    >>> seen = []
    >>> off = CompiledCall.of(module).behind(lambda module, args, kwargs, output: seen.append(output.shape))
    >>> _ = module(torch.ones(3, 2)), off(), module(torch.ones(3, 2))
    >>> seen, isinstance(module._compiled_call_impl, CompiledCall)
    ([torch.Size([3, 2])], False)
    """

    def __init__(self, module: nn.Module, call: Call) -> None:
        self._module, self._call = module, call
        self._before: list[Call] = []
        self._behind: list[Call] = []
        self._always: list[Call] = []
        self.running = False

    @staticmethod
    def of(module: nn.Module) -> CompiledCall | None:
        """Return the compiled call of a module, which is replaced by this one; None where it has none."""
        call = module._compiled_call_impl
        if isinstance(call, CompiledCall):
            return call
        if call is None or isinstance(module, torch.jit.ScriptModule):
            return None
        around = CompiledCall(module, call)
        module._compiled_call_impl = around
        return around

    def before(self, hook: Call, *, first: bool = False) -> Callable[[], None]:
        """Call ``hook(module, args, kwargs)`` before the module; ``(args, kwargs)`` that it returns take their place.

        Args:
            hook: What is called.
            first: Whether it is called before the hooks that are here already.

        Returns:
            What takes the hook off.
        """
        self._before.insert(0 if first else len(self._before), hook)
        return partial(self._take_off, hook)

    def behind(self, hook: Call, *, always: bool = False) -> Callable[[], None]:
        """Call ``hook(module, args, kwargs, output)`` behind the module; what it returns takes the output's place.

        Args:
            hook: What is called.
            always: Whether it is called after an exception too, with None for the output.

        Returns:
            What takes the hook off.
        """
        for hooks in (self._behind, self._always)[: 1 + always]:
            hooks.append(hook)
        return partial(self._take_off, hook)

    def _take_off(self, hook: Call) -> None:
        """Call a hook no more; without hooks the module has its own call back, unless it was compiled anew since."""
        for hooks in (self._before, self._behind, self._always):
            if hook in hooks:
                hooks.remove(hook)
        if not self._before and not self._behind and self._module._compiled_call_impl is self:
            self._module._compiled_call_impl = self._call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, and the hooks around it."""
        if torch.compiler.is_dynamo_compiling():  # a part of another graph, into which torch's hooks are compiled
            return self._call(*args, **kwargs)
        for hook in [*self._before]:
            other = hook(self._module, args, kwargs)
            args, kwargs = (args, kwargs) if other is None else other
        within, self.running = self.running, True
        try:
            output = self._call(*args, **kwargs)
        except Exception:
            for hook in [*self._always]:
                hook(self._module, args, kwargs, None)
            raise
        finally:
            self.running = within
        for hook in [*self._behind]:
            other = hook(self._module, args, kwargs, output)
            output = output if other is None else other
        return output
