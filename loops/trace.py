"""One forward of a model written down: which modules and functions ran, in order, on which tensors.

Modules are seen through hooks, functions through torch's own function overrides; the model is not changed and computes
what it always does. The result is a tree of `Event`, the model's own call at its root. No tensor is kept alive by it: a
`Value` stands for what a tensor held at one time, and one that is written in place becomes another value.

Not covered: compiled modules (their functions run unseen), and operations outside torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .call import Call, Input
from .hooks import Hook
from .marked import MarkWatcher
from .nested import entries, is_record, tensors_in
from .neutral import LookError, on_the_side
from .site import Item, LoopSiteError, Place, plain_name, uncompiled

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

EXAMPLE_SHAPE = (2, 16)  # sequences and positions of the default input: small, yet more positions than sequences


class Line(NamedTuple):
    """A line of the user's code.

    Args:
        file: The file.
        number: The line, from 1.
        code: The function that it is in.
        outer: The line that called this function, where that is the user's, too.
        start: Where it is the end of several lines, the first of them; else 0.
    """

    file: str
    number: int
    code: CodeType
    outer: Line | None = None
    start: int = 0


@dataclass(eq=False, slots=True)
class Value:
    """What a tensor held at one time of a forward; two values are the same only if they are one object.

    Args:
        shape: Its shape.
        dtype: Its type.
        device: Where it was.
        weights: What tells it apart where it is made of parameters alone; None where it depends on anything else.
        names: What the user's code calls it, by the code that does.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    weights: Hashable = None
    names: dict[CodeType, str] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def is_floating_point(self) -> bool:
        """Return whether it holds real or complex numbers."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    def numel(self) -> int:
        """Return how many numbers it holds."""
        return self.shape.numel()


@dataclass(eq=False, slots=True)
class Event:
    """A call of a module, or of a function (then ``module`` is None).

    Args:
        name: Dotted name of the module, or the function's own name.
        module: The module.
        places: The values among its own arguments, by position or keyword, and those inside of them.
        reads: All values it was given, nested ones too.
        writes: The values it returned.
        children: The calls made inside a module's call.
        line: Where in the user's code it was called: file, line and the code itself.
        index: Of a function that picks a part of a tensor, which part; None where that is not told by constants.
    """

    name: str
    module: nn.Module | None
    places: dict[Place, Value]
    reads: list[Value]
    writes: list[Value] = field(default_factory=list)
    children: list[Event] = field(default_factory=list)
    line: Line | None = None
    index: str | None = None

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
    call = Call.of(model, example)
    try:
        with on_the_side(model), Recorder(model) as recorder:  # a model that cannot be put back is refused first
            call.run(model)
    except LookError:
        raise
    except Exception as error:
        raise LoopSiteError(
            f"{type(model).__name__} failed on an example input of shape {tuple(call.tokens.shape)} ({error!r}): give "
            "an input it accepts, as a tensor, a tuple of arguments or a mapping of them by name "
            "(attach(..., probe_batch=input), describe(model, input)), or site=LoopSite(...)"
        ) from error
    return recorder.root.children[0]


# By folder: in a checkout, tests and examples lie beside them, and they are a user's code.
_OURS = tuple(str(Path(__file__).parent.parent / folder) for folder in ("loops", "probes", "models", "dynamics"))
_TORCH = str(Path(torch.__file__).parent)
_CONSTANTS = (int, float, str, bool, slice, type(None), tuple)


class Moment(NamedTuple):
    """A module that is entered or left, or a mark, with its tensors.

    Args:
        kind: ``"enter"``, ``"leave"`` or ``"mark"``.
        name: Dotted name of the module, or what the mark says.
        module: The module; None for a mark.
        args: What the module was given, or the marked state.
        kwargs: What it was given by name, or ``{"input": e}`` of a mark.
        output: What it returned.
    """

    kind: str
    name: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


class Recorder(TorchFunctionMode):
    """Builds the tree while a model runs; a context manager that takes its hooks off.

    Args:
        model: The user's module, unwrapped.
        see: Called with every `Moment`; without it no tensor is kept.
    """

    def __init__(self, model: nn.Module, see: Callable[[Moment], None] | None = None) -> None:
        super().__init__()
        self.root = Event("", None, {}, [])
        self.stack = [self.root]
        self._called: list[nn.Module] = []  # of every event of the stack but the root: wrappers of torch.compile too
        self._see, self._is_shown = see, False
        self._values: dict[int, tuple[ref[Tensor], Value]] = {}
        self._aliases: dict[int, list[ref[Tensor]]] = {}  # the tensors of one memory
        self._handles: list[RemovableHandle] = []
        self._watcher: MarkWatcher | None = None
        self._model = model
        for name, parameter in model.named_parameters():
            self.value(parameter).weights = name

    def __enter__(self) -> Self:
        for full, module in self._model.named_modules():
            name = plain_name(full)
            self._handles.append(module.register_forward_pre_hook(Hook(self.entering(name)), with_kwargs=True))
            self._handles.append(module.register_forward_hook(Hook(self.leaving), with_kwargs=True, always_call=True))
        self._watcher = MarkWatcher(self._mark)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._watcher is not None:
            self._watcher.close()

    def value(self, tensor: Tensor) -> Value:
        """Return what a tensor holds now."""
        known = self._values.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return self._new(tensor)

    def _new(self, tensor: Tensor, weights: Hashable = None) -> Value:
        """Note that a tensor holds something new."""
        value = Value(tensor.shape, tensor.dtype, tensor.device, weights)
        self._values[id(tensor)] = ref(tensor), value
        with suppress(Exception):  # not every kind of tensor has a memory
            self._aliases.setdefault(tensor.untyped_storage().data_ptr(), []).append(ref(tensor))
        return value

    def entering(self, name: str) -> Callable[..., None]:
        """Return a pre-hook for the module of this name."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            itself = uncompiled(module)
            if self.stack[-1].module is itself and self._called[-1] is not module:
                return  # the module inside of the wrapper of torch.compile that is being called: both are one call
            own: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            places: dict[Place, Value] = {}
            for place, value in own:
                if isinstance(value, Tensor):
                    places[place] = self.value(value)
                    continue
                inside = tensors_in(value)[:_SHORT]
                places |= {Item(place, number): self.value(tensor) for number, tensor in enumerate(inside)}
            event = Event(name, itself, places, self._all([args, kwargs]), line=self._line())
            self.stack[-1].children.append(event)
            self.stack.append(event)
            self._called.append(module)
            self._show(Moment("enter", name, module, args, kwargs))

        return enter

    def leaving(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Close a module's call."""
        if not self._called or self._called[-1] is not module:
            return
        event, _ = self.stack.pop(), self._called.pop()
        event.writes = self._all(output)
        self._show(Moment("leave", event.name, module, args, kwargs, output))

    def _mark(self, name: str, state: Tensor, given: Tensor | None) -> None:
        """Note a state that the forward marks."""
        value = self.value(state)
        event = Event(f"mark {name}", None, {}, [value], [value], line=self._line())
        self.stack[-1].children.append(event)
        self._show(Moment("mark", name, None, (state,), {"input": given}))

    def _show(self, moment: Moment) -> None:
        """Hand on a moment; what is done with its tensors then is not the model's."""
        if self._see is not None:
            self._is_shown = True
            try:
                self._see(moment)
            finally:
                self._is_shown = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            torch.compiler.is_dynamo_compiling()
        ):  # a part that a forward compiles by itself, as ``torch.while_loop`` does
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name in _NO_EVENTS or self._is_shown:
            return func(*args, **kwargs)
        reads = self._all([args, kwargs])
        output = func(*args, **kwargs)
        if _writes_in_place(name, kwargs):
            changed = kwargs.get("out", args[0] if args else None)
            event = Event(name, None, {}, reads, line=self._line())
            for tensor in tensors_in(changed):
                event.reads += [value for value in self._alias_values(tensor) if value not in event.reads]
                event.writes += [self._new(other) for other in self._living_aliases(tensor)]
        else:
            given = {id(value) for value in reads}
            fresh = tensors_in(output)
            if not fresh:
                return output
            weights = _weights(name, reads, args, kwargs)
            event = Event(name, None, {}, reads, line=self._line())
            if len(reads) == 1 and name in _PICKS:
                event.index = repr((*args[1:], *kwargs.values()))
            for tensor in fresh:
                known = self._values.get(id(tensor))
                same = known is not None and known[0]() is tensor and id(known[1]) in given
                event.writes.append(known[1] if same and known is not None else self._new(tensor, weights))
        self.stack[-1].children.append(event)
        return output

    def _living_aliases(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of the same memory as this one, itself first."""
        others: list[Tensor] = []
        with suppress(Exception):
            known = self._aliases.get(tensor.untyped_storage().data_ptr(), [])
            living = [held for held in (each() for each in known) if held is not None]
            others = list({id(held): held for held in living if held is not tensor}.values())
        return [tensor, *others]

    def _alias_values(self, tensor: Tensor) -> list[Value]:
        return [self.value(other) for other in self._living_aliases(tensor)[:1]]

    def _all(self, given: Any) -> list[Value]:
        return [self.value(tensor) for tensor in tensors_in(given)]

    def _name(self, tensor: Tensor, code: CodeType, name: str) -> None:
        """Note what the user's code calls a tensor."""
        known = self._values.get(id(tensor))
        if known is not None and known[0]() is tensor:
            known[1].names.setdefault(code, name)

    def _name_all(self, named: Mapping[Any, Any], code: CodeType) -> None:
        """Note what tensors are called that are held under a name each."""
        for name, item in named.items():
            if isinstance(item, Tensor) and isinstance(name, str):
                self._name(item, code, name)

    def _line(self) -> Line | None:
        """Return the line of the user's code that is running, and take note of what it calls its tensors."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename.startswith((*_OURS, _TORCH, "<")):
            frame = frame.f_back
        if frame is None:
            return None
        line = _lines_from(frame)
        at, of = line, frame
        self._names_in(of)
        while at.outer is not None and of.f_back is not None:  # a helper's caller knows its tensors by other names
            at, of = at.outer, of.f_back
            self._names_in(of)
        return line

    def _names_in(self, frame: FrameType) -> None:
        """Take note of what a function of the user's calls its tensors."""
        for name, held in frame.f_locals.items():
            if isinstance(held, Tensor):
                self._name(held, frame.f_code, name)
            elif isinstance(held, dict) and len(held) <= _SHORT:
                self._name_all(held, frame.f_code)
            elif is_record(held):
                self._name_all(entries(held), frame.f_code)
            elif type(held) in (list, tuple) and len(held) <= _SHORT:
                for number, item in enumerate(held):
                    if isinstance(item, Tensor):
                        self._name(item, frame.f_code, f"{name}_{number}")


def _lines_from(frame: FrameType, left: int = 4) -> Line:
    """Return the line that a frame is at, with those that called it up to another's code; at most so many more."""
    back = frame.f_back
    users = left > 0 and back is not None and not back.f_code.co_filename.startswith((*_OURS, _TORCH, "<"))
    outer = _lines_from(back, left - 1) if users and back is not None else None
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code, outer)


_PICKS = frozenset({"__getitem__", "select", "narrow"})
_NO_EVENTS = frozenset({"size", "dim", "numel", "is_floating_point", "stride", "__len__", "_set_grad_enabled"})


def _writes_in_place(name: str, kwargs: dict[str, Any]) -> bool:
    """Return whether a function of this name writes into its first argument."""
    in_place = name.endswith("_") and not name.endswith("__")
    augmented = name.startswith("__i") and name.endswith("__") and name not in _I_NAMES
    return in_place or augmented or name == "__setitem__" or kwargs.get("out") is not None


_SHORT = 16  # items of a list whose names are looked at
_I_NAMES = frozenset({"__invert__", "__index__", "__int__", "__iter__"})


def _weights(name: str, reads: list[Value], args: Any, kwargs: Any) -> Hashable:
    """Return what tells the result apart where it is made of parameters alone, else None."""
    if not reads or any(value.weights is None for value in reads):
        return None
    constants = tuple(repr(c) for c in (*args, *kwargs.values()) if isinstance(c, _CONSTANTS))
    return name, tuple(value.weights for value in reads), constants
