"""One forward of a model written down: which modules and functions ran, in order, on which tensors.

Modules are seen through hooks, functions through torch's own function overrides; the model is not changed and computes
what it always does. The result is a tree of `Event`, the model's own call at its root.

Not covered: compiled modules (their functions run unseen), and operations outside torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .call import Call, Input, tensors_in
from .neutral import LookError, on_the_side
from .site import LoopSiteError

EXAMPLE_SHAPE = (2, 16)  # sequences and positions of the default input: small, yet more positions than sequences


@dataclass(eq=False, slots=True)
class Event:
    """A call of a module, or of a function (then ``module`` is None).

    Args:
        name: Dotted name of the module, or the function's own name.
        module: The module.
        places: The tensors among its own arguments, by position or keyword.
        reads: All tensors it was given, nested ones too.
        writes: The tensors it returned.
        children: The calls made inside a module's call.
    """

    name: str
    module: nn.Module | None
    places: dict[int | str, Tensor]
    reads: list[Tensor]
    writes: list[Tensor] = field(default_factory=list)
    children: list[Event] = field(default_factory=list)

    @property
    def learns(self) -> bool:
        """Whether it is a call of a module with parameters."""
        return self.module is not None and any(True for _ in self.module.parameters())

    def walk(self) -> Iterator[Event]:
        """Return the event and everything inside it."""
        yield self
        for child in self.children:
            yield from child.walk()


def example_tokens(model: nn.Module) -> Tensor:
    """Return random tokens for a model's first embedding.

    Raises:
        LoopSiteError: The model has no embedding.

    >>> example_tokens(nn.Embedding(10, 4)).shape
    torch.Size([2, 16])
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            own = torch.Generator().manual_seed(0)
            tokens = torch.randint(0, module.num_embeddings, EXAMPLE_SHAPE, generator=own)
            return tokens.to(module.weight.device)
    raise LoopSiteError(
        f"{type(model).__name__} does not state where its loop is, and has no nn.Embedding to make tokens for "
        "a forward that would show it: give an input it accepts "
        "(attach(..., probe_batch=input), describe(model, input)), or site=LoopSite(...)"
    )


def trace(model: nn.Module, example: Input) -> Event:
    """Run a model once on the side and write down what happens.

    Args:
        model: The user's module, unwrapped and not compiled.
        example: Its input: a tensor, a tuple of all arguments, or a mapping of them by name.

    Raises:
        LoopSiteError: The model does not accept this input (its own error is quoted).
        LookError: It could not be left as it was.

    >>> root = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))
    >>> [child.name for child in root.children]
    ['0', '1']
    """
    call, recorder = Call.of(model, example), _Recorder()
    names = {module: name for name, module in model.named_modules()}
    handles = []
    for module, name in names.items():
        handles.append(module.register_forward_pre_hook(recorder.entering(name), with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.leaving))
    try:
        with on_the_side(model), recorder:
            call.run(model)
    except LookError:
        raise
    except Exception as error:
        raise LoopSiteError(
            f"{type(model).__name__} failed on an example input of shape {tuple(call.tokens.shape)} ({error!r}): give "
            "an input it accepts, as a tensor, a tuple of arguments or a mapping of them by name "
            "(attach(..., probe_batch=input), describe(model, input)), or site=LoopSite(...)"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return recorder.root.children[0]


class _Recorder(TorchFunctionMode):
    """Builds the tree while a model runs; every tensor stays alive in it, so identities are never reused."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Event("", None, {}, [])
        self.stack = [self.root]

    def entering(self, name: str) -> Callable[..., None]:
        """Return a pre-hook for the module of this name."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            own: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            places = {place: value for place, value in own if isinstance(value, Tensor)}
            self._add(Event(name, module, places, tensors_in([args, kwargs])), open_=True)

        return enter

    def leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        """Return the hook that closes a module's call."""
        self.stack.pop().writes = tensors_in(output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        written = tensors_in(output)
        if written:
            name = getattr(func, "__name__", str(func))
            self._add(Event(name, None, {}, tensors_in([args, kwargs or {}]), written), open_=False)
        return output

    def _add(self, event: Event, *, open_: bool) -> None:
        self.stack[-1].children.append(event)
        if open_:
            self.stack.append(event)
