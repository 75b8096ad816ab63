"""Finds the loop of a model: given by hand, stated by the model, known to an adapter, or discovered."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .injection import verified
from .neutral import all_quietly
from .site import BY_MODEL, LoopSite, LoopSiteError, modules_of

if TYPE_CHECKING:
    from torch import nn

    from .call import Input


def find_site(model: nn.Module, site: LoopSite | None = None, example: Input | None = None) -> LoopSite:
    """Locate the loop of a model: given by hand, else stated by the model, else known to an adapter, else discovered.

    Args:
        model: The user's module, unwrapped.
        site: A site given by hand; it wins.
        example: Input for the small forward of discovery; default: random tokens.

    Returns:
        A site whose modules exist in ``model``, and whose A̅ is what the injection was seen to do (`verified`).

    Raises:
        LoopSiteError: The loop cannot be found for certain, or a site names a module that the model does not have.

    >>> from torch import nn
    >>> model = nn.ModuleDict({"inject": nn.Identity(), "head": nn.Identity()})
    >>> find_site(model, LoopSite(body="inject", after="head")).body
    'inject'
    """
    if site is None:
        site = _stated_site(model)
    if site is None:
        from .adapters import adapted_site  # not needed where the model or the caller says where the loop is
        from .discovery import discover

        site = adapted_site(model) or discover(model, example)
    if site.variables:
        return _with_variables(model, site)
    modules = modules_of(model)
    for role in ("body", "after", "output"):
        name = getattr(site, role)
        if name is not None and name not in modules:
            known = ", ".join(n for n in modules if n and "." not in n) or "none"
            raise LoopSiteError(
                f"LoopSite({role}={name!r}): {type(model).__name__} has no module of that name; it has {known}"
            )
    for role in ("sublayers", "prelude"):
        if missing := [name for name in getattr(site, role) if name not in modules]:
            raise LoopSiteError(f"LoopSite({role}=...): {type(model).__name__} has no module {', '.join(missing)}")
    if site.state_argument is None and site.output is None:
        raise LoopSiteError("LoopSite(state_argument=None) also needs output='<the module that returns the state>'")
    given = {role: getattr(site, role) for role in ("a_bar", "b_bar", "c_out")}
    quiet: dict[str, Any] = all_quietly(model, {role: read for role, read in given.items() if read is not None})
    return verified(model, replace(site, **quiet) if any(read is not given[n] for n, read in quiet.items()) else site)


def _with_variables(model: nn.Module, site: LoopSite) -> LoopSite:
    """Check a site that names variables.

    Raises:
        LoopSiteError: Two have one name, or a module is not there.
    """
    modules, names = modules_of(model), [variable.name for variable in site.variables]
    if len(set(names)) < len(names):
        raise LoopSiteError(f"LoopSite(variables=...): two variables have one name, of {names}")
    for variable in site.variables:
        if variable.output is not None and variable.output not in modules:
            known = ", ".join(n for n in modules if n and "." not in n) or "none"
            raise LoopSiteError(
                f"Variable({variable.name!r}, output={variable.output!r}): {type(model).__name__} has no module of "
                f"that name; it has {known}"
            )
    return site


def _stated_site(model: nn.Module) -> LoopSite | None:
    """Return the site a model states about itself, if it does."""
    state = getattr(model, "loop_site", None)
    if not callable(state):
        return None
    stated = state()
    try:
        return LoopSite(**{"found": BY_MODEL, **stated})
    except TypeError as error:
        known = ", ".join(f.name for f in fields(LoopSite))
        raise LoopSiteError(
            f"{type(model).__name__}.loop_site() must return keyword arguments of LoopSite ({known}): {error}"
        ) from None
