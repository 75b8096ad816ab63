"""Where the loop of a model is: which modules to watch and where its linear part can be read.

A `LoopSite` is the whole interface between a looped model and everything that measures it. A model of any origin may
state its own with a method ``loop_site()`` that returns the keyword arguments of `LoopSite`, so that the model imports
nothing of ours; anybody else writes one by hand.

Not covered: finding the loop of a model that does not state it. `find_site` says so and shows the call that settles it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class LoopSiteError(ValueError):
    """The loop of a model could not be located; the message says what was seen and how to name it by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSite:
    """The places of one loop ``h[t+1] = step(h[t], e)`` in a model.

    Args:
        body: Dotted name of the first module of the loop body. It is called once per loop and receives ``h_t``.
        after: Dotted name of the first module after the loop. It is called once per forward and receives ``h_T``.
        state_argument: Where ``body`` receives the state: position or keyword.
        input_argument: Where ``body`` receives the injected input ``e``; ``None`` when it does not receive it.
        a_bar: Returns A̅ as it is now: 0-d for a scaled identity, 1-D for a diagonal, 2-D for a dense matrix that acts
            on column vectors. ``None`` when the loop has no linear part that can be read.
        b_bar: The same for B̅.
        c_out: The same for the read-out matrix.
        depth_argument: Keyword of the model's ``forward`` that sets the number of loops; ``None`` when there is none.
        mean_depth: Mean number of loops in training (μ_rec of the Parcae paper).
        sublayers: Dotted names of the modules of the body whose output is the whole state, in running order.

    >>> LoopSite(body="injection", after="head", mean_depth=8).state_argument
    0
    """

    body: str
    after: str
    state_argument: int | str = 0
    input_argument: int | str | None = None
    a_bar: Callable[[], Tensor] | None = None
    b_bar: Callable[[], Tensor] | None = None
    c_out: Callable[[], Tensor] | None = None
    depth_argument: str | None = None
    mean_depth: int | None = None
    sublayers: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The site as plain values, for the run file: callables become whether they are there."""
        return {f.name: v if not callable(v := getattr(self, f.name)) else True for f in fields(self)}


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel and ``torch.compile`` wrappers."""
    for _ in range(4):  # compile(DDP(compile(m))) is the deepest nesting anybody writes
        inner = getattr(model, "_orig_mod", None) or (getattr(model, "module", None) if _is_parallel(model) else None)
        if inner is None:
            return model
        model = inner
    return model


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str) -> Tensor:
    """The tensor a module received at a position or under a keyword."""
    found: Tensor = kwargs[place] if isinstance(place, str) else args[place]
    return found


def _is_parallel(model: nn.Module) -> bool:
    """Whether the model is a data-parallel wrapper; by class, for a user's model may have a ``module`` too."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    return isinstance(model, DataParallel | DistributedDataParallel)


def find_site(model: nn.Module, site: LoopSite | None = None) -> LoopSite:
    """Locates the loop of a model: the site given by hand, else the one the model states.

    Args:
        model: The user's module, unwrapped.
        site: A site given by hand; it wins.

    Returns:
        A site whose modules exist in ``model``.

    Raises:
        LoopSiteError: The model states no site, states one that does not fit, or names a module it does not have.

    >>> from torch import nn
    >>> model = nn.ModuleDict({"inject": nn.Identity(), "head": nn.Identity()})
    >>> find_site(model, LoopSite(body="inject", after="head")).body
    'inject'
    """
    if site is None:
        site = _stated_site(model)
    modules = dict(model.named_modules())
    for role in ("body", "after"):
        name = getattr(site, role)
        if name not in modules:
            known = ", ".join(n for n in modules if n and "." not in n) or "none"
            raise LoopSiteError(
                f"LoopSite({role}={name!r}): {type(model).__name__} has no module of that name; it has {known}"
            )
    return site


def _stated_site(model: nn.Module) -> LoopSite:
    """The site a model states about itself."""
    state = getattr(model, "loop_site", None)
    name = type(model).__name__
    if not callable(state):
        raise LoopSiteError(
            f"{name} does not state where its loop is: give it a method loop_site(), or pass "
            "site=LoopSite(body='<first module of the loop>', after='<first module after the loop>', ...)"
        )
    stated = state()
    try:
        return LoopSite(**stated)
    except TypeError as error:
        known = ", ".join(f.name for f in fields(LoopSite))
        raise LoopSiteError(
            f"{name}.loop_site() must return keyword arguments of LoopSite ({known}): {error}"
        ) from None
