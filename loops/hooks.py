"""Hooks on the places of a loop: where the model is called, where a state enters, and where the last one leaves.

Whoever watches or steers a loop from outside registers here, so that it is written once which module is watched for
what. The functions have the signatures of torch's hooks with keywords. A compiled module calls them outside of its
graph (`compiled`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from .compiled import CompiledCall, leave_alone
from .nested import tensors_in
from .site import LoopSite, modules_of

if TYPE_CHECKING:
    from types import TracebackType

Watcher = Callable[..., Any]
Off = Callable[[], None]
"""What takes a hook off; it does nothing the second time."""


class Hook:
    """A hook that a copied, pickled or saved model does not take along, and that ``torch.jit.trace`` does not see.

    A copy holds a function of Python's own instead, which does nothing: the file loads where loopscope is missing.

    A hook that is taken off while torch goes through the hooks of a call is called all the same, and without the
    keywords that it asked for. It does nothing then.

    Args:
        call: What is called.
        around: The compiled call of its module: while that runs, it calls the hook, and torch does not.
        in_graphs: Whether it becomes a part of a graph that Dynamo makes, and not nothing.

    >>> import copy
    >>> copy.deepcopy(Hook(lambda x: 2 * x))(3) is None, Hook(lambda x: 2 * x)(3)
    (True, 6)
    """

    def __init__(self, call: Watcher, around: CompiledCall | None = None, *, in_graphs: bool = False) -> None:
        self._call, self._around, self._in_graphs = call, around, in_graphs
        self._takes = sum(
            one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
            for one in inspect.signature(call).parameters.values()
        )

    def __call__(self, *args: Any) -> Any:
        """Return what torch calls."""
        if self._around is not None and self._around.running:
            return None
        if not self._in_graphs and torch.compiler.is_dynamo_compiling():
            return None
        if len(args) < self._takes:  # taken off a moment ago
            return None
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return None  # else what the hook computes would become a part of the traced model
        return self._call(*args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (nullcontext(), "__exit__")  # takes any arguments and returns None


def hook_before(module: nn.Module, call: Watcher, *, prepend: bool = False) -> Off:
    """Call ``call(module, args, kwargs)`` before a module, outside of its graph where it is compiled.

    Args:
        module: The module.
        call: What is called. What it returns replaces ``(args, kwargs)``, if it is not None.
        prepend: Whether it is called before the hooks that are there already.
    """
    around = CompiledCall.of(module)
    offs = [] if around is None else [around.before(call, first=prepend)]
    if not _is_left_as_it_is(module):
        leave_alone(module)
        hook = Hook(call, around, in_graphs=True)
        offs.append(module.register_forward_pre_hook(hook, prepend=prepend, with_kwargs=True).remove)
    return partial(_all, offs)


def hook_behind(module: nn.Module, call: Watcher, *, always: bool = False) -> Off:
    """Call ``call(module, args, kwargs, output)`` behind a module, outside of its graph where it is compiled.

    Args:
        module: The module.
        call: What is called. What it returns replaces the output, if it is not None.
        always: Whether it is called after an exception too, with None for the output.
    """
    around = CompiledCall.of(module)
    offs = [] if around is None else [around.behind(call, always=always)]
    if not _is_left_as_it_is(module):
        leave_alone(module)
        hook = Hook(call, around, in_graphs=True)
        offs.append(module.register_forward_hook(hook, with_kwargs=True, always_call=always).remove)
    return partial(_all, offs)


def _all(offs: list[Off]) -> None:
    """Take several hooks off."""
    for off in offs:
        off()


def _is_left_as_it_is(module: nn.Module) -> bool:
    """Return whether a module is one of torch's own that was compiled by itself.

    Dynamo does not compile it unless torch holds a hook of it: then it does, and its last bits change.
    """
    return module._compiled_call_impl is not None and type(module).__module__.split(".")[0] == "torch"


class LoopHooks:
    """Hooks on the places of one loop; a context manager that takes them off.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        begin: Called as the model is called: ``(module, args, kwargs)``.
        enter: Called as the first module of the body is called: ``(module, args, kwargs)``. What it returns replaces
            the arguments, if it is not None.
        returned: Called as the module that returns the state has run: ``(module, args, kwargs, output)``; only where
            the site says that states are read there.
        after: Called as the first module after the loop is called: ``(module, args, kwargs)``; not where ``returned``
            is.
        end: Called when the model has returned, or raised: ``(module, args, kwargs, output)``.

    >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> seen = []
    >>> with LoopHooks(model, LoopSite(body="0", after="1"), enter=lambda module, args, kwargs: seen.append(args[0])):
    ...     _ = model(torch.ones(2))
    >>> _ = model(torch.ones(2))
    >>> len(seen)
    1
    """

    def __init__(
        self,
        model: nn.Module,
        site: LoopSite,
        *,
        begin: Watcher | None = None,
        enter: Watcher | None = None,
        returned: Watcher | None = None,
        after: Watcher | None = None,
        end: Watcher | None = None,
    ) -> None:
        modules = modules_of(model)
        self._offs: list[Off] = []
        if site.variables:  # they are seen by `states.StateHooks`
            enter = returned = after = None
        if begin is not None:
            self._offs.append(hook_before(model, begin))
        if enter is not None:
            self._offs.append(hook_before(modules[site.body], enter))
        if returned is not None and site.output is not None:
            self._offs.append(hook_behind(modules[site.output], returned))
        elif after is not None:
            self._offs.append(hook_before(modules[site.after], after))
        if end is not None:
            self._offs.append(hook_behind(model, end, always=True))

    def remove(self) -> None:
        """Take the hooks off; do nothing when they are off already."""
        for off in self._offs:
            off()
        self._offs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def state_in(output: Any, number: int = 0) -> Tensor:
    """Return the state in what a module returned: the tensor itself, or one of those inside, the first by default.

    >>> state_in((torch.ones(2), None)).tolist(), state_in({"h": torch.ones(2), "c": torch.zeros(1)}, 1).tolist()
    ([1.0, 1.0], [0.0])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and number == 0 and output and isinstance(output[0], Tensor):
        state: Tensor = output[0]  # what follows may be a long cache
        return state
    inside = tensors_in(output)
    if len(inside) <= number:
        raise TypeError(f"a {type(output).__name__} with {len(inside)} tensors")
    return inside[number]
