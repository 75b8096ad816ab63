"""Where the loop of a model is: which modules to watch and where its linear part can be read.

A `LoopSite` is the whole interface between a looped model and everything that measures it. A model of any origin may
state its own with a method ``loop_site()`` that returns the keyword arguments of `LoopSite`, so that the model imports
nothing of ours; the loops of some known models are described by ``adapters``; others are found by ``discovery``; and
whatever cannot be found is given by hand.

A loop carries one or several tensors, its *variables*. A pass of the loop is one step of all of them together; one that
is updated several times within a pass runs an inner loop of that pass.

Not covered: models with several loops that share no variable. They have one `LoopSite` each, and the user says which
one is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from .nested import replaced, tensors_in

if TYPE_CHECKING:
    from torch import Tensor, nn


class LoopSiteError(ValueError):
    """The loop of a model could not be located; the message says what was seen and how to name it by hand."""


class Part(NamedTuple):
    """Some channels of an argument, for a module that receives state and input side by side in one tensor.

    >>> Part(0, 0, 64)
    Part(argument=0, start=0, stop=64)
    """

    argument: int | str
    start: int
    stop: int


class Item(NamedTuple):
    """A tensor inside of an argument, for a module that receives its state in a tuple, a dictionary or a dataclass.

    Args:
        argument: Position or keyword.
        number: Of the tensor, in the order of `nested.tensors_in`.

    >>> Item("carry", 1)
    Item(argument='carry', number=1)
    """

    argument: int | str
    number: int


Place = int | str | Part | Item
"""Where a module receives a tensor: position, keyword, channels of either, or a tensor inside of either."""


BY_HAND, BY_MODEL, BY_MARKS = "given by hand", "stated by the model", "marked in its forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One of the tensors that a loop carries, and where its values are seen.

    Args:
        name: What it is called, in the run file too.
        output: Dotted name of the module that returns its next value. None: the forward marks it (`mark`).
        item: Which of the tensors that the module returns it is, where those are several, in a tuple or by name.
        argument: Where that module receives the value before. It gives the first value, and tells two variables apart
            that one module updates in turn. None where the module does not receive the value itself.
        turns: Which calls of the module update this variable, of every ``of`` calls; for a module with several roles
            where ``argument`` cannot tell them apart, as in a compiled graph. Empty: all of them.
        of: Calls of the module after which its turns begin again; without turns, how many of them a pass has at least.
        first: 0 where the first value seen in a forward is the one that goes into the loop, 1 where a pass made it.

    >>> Variable(name="z_L", output="L_level", argument=0).first
    0
    """

    name: str
    output: str | None = None
    item: int = 0
    argument: Place | None = None
    turns: tuple[int, ...] = ()
    of: int = 1
    first: int = 0

    @property
    def per_pass(self) -> int:
        """How often a pass updates it, at least.

        >>> Variable(name="z", output="level", of=7).per_pass
        7
        """
        return 1 if self.turns else self.of

    @property
    def source(self) -> str:
        """Where its values are seen, in words; for two variables the same only if one module makes them in turn.

        >>> Variable(name="h", output="cell").source, Variable(name="c", output="cell", item=1).source
        ('returned by cell', 'returned by cell as tensor 2')
        """
        if self.output is None:
            return "marked"
        return f"returned by {self.output}" + (f" as tensor {self.item + 1}" if self.item else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSite:
    """The places of one loop ``h[t+1] = step(h[t], e)`` in a model.

    Args:
        variables: The tensors that the loop carries, where they are several, or marked, or read where a module returns
            them. Then ``body``, ``after`` and ``output`` are not needed, and not looked at.
        body: Dotted name of the first module of the loop body. It is called once per loop and receives ``h_t``.
        after: Dotted name of the first module after the loop. Its first call receives ``h_T``.
        state_argument: Where ``body`` receives the state: position, keyword, or a `Part` of either. ``None`` when the
            state passes through operations first, so that no module receives it; then ``output`` is needed.
        input_argument: Where ``body`` receives the injected input ``e``; ``None`` when it does not receive it.
        output: Dotted name of the module that returns ``h_{t+1}``, once per loop. When given, the states are read there
            and ``body`` gives ``h_0`` only (nothing does when ``state_argument`` is ``None``: ``h_0`` is then missing
            from the record); for loops whose final state reaches no module, or not on its first call.
        shared: Whether the state reaches the loop by another way than ``body`` too. Such a loop can be watched, but not
            run from another state, which linearising it needs.
        a_bar: Returns A̅ as it is now: 0-d for a scaled identity, 1-D for a diagonal, 2-D for a dense matrix that acts
            on column vectors. ``None`` when the loop has no linear part that can be read.
        b_bar: The same for B̅.
        c_out: The same for the read-out matrix.
        depth_argument: Keyword of the model's ``forward`` that sets the number of loops; ``None`` when there is none.
        depth_attribute: Dotted name, from the model, of the attribute that holds the number of loops instead:
            ``n_loops``, ``config.n_loops``. It is changed for a pass of the fixed batch and put back.
        mean_depth: Mean number of loops in training (μ_rec of the Parcae paper).
        sublayers: Dotted names of the modules of the body whose output is the whole state, in running order.
        prelude: Dotted names of the modules before the loop whose output is the residual stream, in running order.
        found: How the site was found.
        notes: What is not as usual about this loop, in sentences for the user.

    >>> LoopSite(body="injection", after="head", mean_depth=8).state_argument
    0
    """

    variables: tuple[Variable, ...] = ()
    body: str = ""
    after: str = ""
    state_argument: Place | None = 0
    input_argument: Place | None = None
    output: str | None = None
    shared: bool = False
    a_bar: Callable[[], Tensor] | None = None
    b_bar: Callable[[], Tensor] | None = None
    c_out: Callable[[], Tensor] | None = None
    depth_argument: str | None = None
    depth_attribute: str | None = None
    mean_depth: int | None = None
    sublayers: tuple[str, ...] = ()
    prelude: tuple[str, ...] = ()
    found: str = BY_HAND
    notes: tuple[str, ...] = ()

    @property
    def modules(self) -> dict[str, str]:
        """The modules that are watched, by the part they play."""
        named: dict[str, str | None] = {"body": self.body, "after": self.after, "output": self.output}
        if self.variables:
            named = {variable.name: variable.output for variable in self.variables}
        return {role: name for role, name in named.items() if name is not None}

    @property
    def was_found(self) -> bool:
        """Whether the loop had to be found, by an adapter or by discovery."""
        return self.found not in (BY_HAND, BY_MODEL)

    @property
    def sets_depth(self) -> bool:
        """Whether it is known how to run the model at another depth."""
        return self.depth_argument is not None or self.depth_attribute is not None

    def describe(self) -> dict[str, Any]:
        """Return the site as plain values, for the run file; of a callable only whether it is there."""
        plain = {f.name: v if not callable(v := getattr(self, f.name)) else True for f in fields(self)}
        return plain | {"variables": [asdict(variable) for variable in self.variables]}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module inside DistributedDataParallel and ``torch.compile`` wrappers."""
    for _ in range(4):  # compile(DDP(compile(m))) is the deepest nesting anybody writes
        inner = getattr(model, "_orig_mod", None)
        if inner is None and _is_parallel(model):
            inner = getattr(model, "module", None)
        if inner is None:
            return model
        model = inner
    return model


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` wrappers: what it is, where the wrapper is what is called.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> uncompiled(torch.compile(layer)) is layer, uncompiled(layer) is layer
    (True, True)
    """
    while (inner := module._modules.get("_orig_mod")) is not None:
        module = inner
    return module


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by name; in a wrapper of ``torch.compile`` under the names of what it wraps too.

    >>> import torch
    >>> block = torch.nn.Sequential(torch.nn.Identity())
    >>> model = torch.nn.ModuleDict({"block": torch.compile(block)})
    >>> list(modules_of(model))
    ['', 'block', 'block.0', 'block._orig_mod', 'block._orig_mod.0']
    """
    named = dict(model.named_modules())
    plain: dict[str, nn.Module] = {}
    for name, module in named.items():
        plain.setdefault(plain_name(name), module)  # the wrapper comes before what it wraps: it is what is called
    return plain | named


def plain_name(name: str) -> str:
    """Return the name that a module has where nothing is wrapped by ``torch.compile``.

    >>> plain_name("block._orig_mod.norm")
    'block.norm'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> Tensor:
    """Return the tensor a module received at a position or under a keyword, or the channels of it that are meant."""
    if isinstance(place, int):  # the common ones first: this is asked of every state
        tensor: Tensor = args[place]
        return tensor
    if isinstance(place, str):
        named: Tensor = kwargs[place]
        return named
    whole = argument(args, kwargs, place.argument)
    return whole[..., place.start : place.stop] if isinstance(place, Part) else tensors_in(whole)[place.number]


def with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: Place, value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module with one of them exchanged, or some channels of it.

    >>> with_argument((1, 2), {"h": 3}, "h", 4), with_argument((1, 2), {}, 1, 5)
    (((1, 2), {'h': 4}), ((1, 5), {}))
    >>> import torch
    >>> with_argument(({"h": torch.tensor(1), "t": 7},), {}, Item(0, 0), torch.tensor(2))
    (({'h': tensor(2), 't': 7},), {})
    """
    if isinstance(place, Part):
        import torch

        whole = argument(args, kwargs, place.argument)
        value = torch.cat([whole[..., : place.start], value, whole[..., place.stop :]], dim=-1)
        place = place.argument
    given: Any = value
    if isinstance(place, Item):
        given = replaced(argument(args, kwargs, place.argument), place.number, value)
        place = place.argument
    if isinstance(place, str):
        return args, kwargs | {place: given}
    return (*args[:place], given, *args[place + 1 :]), kwargs


def _is_parallel(model: nn.Module) -> bool:
    """Return whether the model is a data-parallel wrapper; by class, for a user's model may have a ``module`` too."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    return isinstance(model, DataParallel | DistributedDataParallel)
