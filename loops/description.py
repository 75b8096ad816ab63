"""Saying where a model's loop is, what of it can be read, and what could not be found.

Not covered: how the loop behaves; that is ``linearize`` for a live model and ``diagnose`` for a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..dynamics.estimate import Estimate
from ..dynamics.linear.lti import LTISystem
from .call import Call, Input
from .discovery import Level, find_levels, site_call
from .find import find_site
from .least_squares import LinearEstimate, estimate_linear_part, visit
from .site import Item, LoopSite, LoopSiteError, Part, Place, Variable, unwrap
from .trace import example_tokens


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of the linear part.

    Args:
        name: ``"A"``, ``"B"`` or ``"C_out"``.
        structure: ``"scaled identity"``, ``"diagonal"`` or ``"dense"``.
        shape: As it is read.
        learned: Whether it depends on parameters that are trained.
        norm: σ_max.
        radius: ρ; None for all but A̅.
    """

    name: str
    structure: str
    shape: tuple[int, ...]
    learned: bool
    norm: Estimate
    radius: Estimate | None = None

    def __str__(self) -> str:
        learned = "learned" if self.learned else "fixed by design"
        radius = f", radius {self.radius.value:.4g}" if self.radius is not None else ""
        size = f" {'x'.join(map(str, self.shape))}" if self.shape else ""
        return f"{self.name}: {self.structure}{size}, {learned}{radius}, norm {self.norm.value:.4g}"


@dataclass(frozen=True, slots=True, repr=False)
class LoopDescription:
    """Where the loop of a model is and what is known about it; print it.

    Args:
        model: Class of the model.
        site: Where the loop is; None when that is not certain.
        problem: Why there is no site, and what settles it; empty otherwise.
        loops: T in the forward that was run (evaluation mode); 0 without a site.
        state_shape: ``(B, S, D)`` in that forward.
        matrices: What can be read of A̅, B̅ and C_out.
        estimate: The fit that takes A̅'s place where that cannot be read.
        missing: What could not be found, in sentences.
        levels: All loops that were seen, outer ones first, where discovery was needed and did not end at one.
    """

    model: str
    site: LoopSite | None
    problem: str = ""
    loops: int = 0
    state_shape: tuple[int, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    estimate: LinearEstimate | None = None
    missing: tuple[str, ...] = ()
    levels: tuple[Level, ...] = ()

    def __repr__(self) -> str:
        """Show where the loop is and what is known of it, or why it was not found."""
        if self.site is None:
            return self.problem
        site = self.site
        lines = [f"{self.model}: a loop, {site.found}"]
        if site.variables:
            lines += [f"  variable {variable.name} ({_seen_at(variable)})" for variable in site.variables]
        else:
            lines += [f"  body     {site.body} ({_reading(site)})", f"  after    {site.after}"]
        joint = "joint " if len(site.variables) > 1 else ""
        lines.append(f"  state    {joint}{' x '.join(map(str, self.state_shape))}, {self.loops} loops in this forward")
        lines += [f"  linear   {matrix}" for matrix in self.matrices]
        if self.estimate is not None:
            lines.append(f"  linear   {_estimated(self.estimate)}")
        lines += [f"  note     {note}" for note in site.notes]
        lines += [f"  missing  {what}" for what in self.missing]
        lines.append(f"  by hand  site={site_call(site)}")
        return "\n".join(lines)


def describe(model: nn.Module, /, *args: Any, site: LoopSite | None = None, **kwargs: Any) -> LoopDescription:
    """Where is the loop of this model, how was it found, and what of its linear part can be read?

    Costs up to four forwards on the side (`visit`, and what finding the loop takes); the model stays as it was.

    Args:
        model: Any model, bare or inside DDP or ``torch.compile`` wrappers.
        args: The model's arguments as a call of it has them: ``describe(model, carry, batch)``; default: ``(2, 16)``
            random tokens. A tuple or a mapping alone may hold all arguments instead.
        kwargs: Those by name: ``describe(model, carry=carry, batch=batch)``.
        site: Where the loop is, to have a site of your own checked.

    Returns:
        The description. Where the loop is not certain it has no ``site`` but a ``problem`` and the ``levels`` seen.

    Raises:
        LoopSiteError: A site was given, by hand or by the model, that does not fit; or the model could not be run.

    >>> from loopscope.models import build
    >>> print(describe(build("demo", injection="addition")))
    LoopedTransformer: a loop, stated by the model
      body     injection (receives the state at 0, the input at 1)
      after    read_out
      state    2 x 16 x 32, 8 loops in this forward
      linear   A: scaled identity, fixed by design, radius 1, norm 1
      linear   B: scaled identity, fixed by design, norm 1
      linear   C_out: dense 32x32, learned, norm ...
      by hand  site=LoopSite(body='injection', after='read_out', input_argument=1, depth_argument='num_loops', ...)
    """
    inner = unwrap(model)
    name = type(inner).__name__
    tokens: Input | None = None
    if args or kwargs:
        tokens = Call.of(inner, args[0]) if len(args) == 1 and not kwargs else Call(args, kwargs)
    example = example_tokens(inner) if tokens is None else tokens
    try:
        located = find_site(inner, site, example)
    except LoopSiteError as error:
        if site is not None or callable(getattr(inner, "loop_site", None)):
            raise
        return LoopDescription(name, None, problem=str(error), levels=tuple(find_levels(inner, example)))
    visited = visit(inner, located, example)
    last = visited.states[-1]
    assert last is not None  # only h_0 can be missing
    estimate, missing = None, [*_missing(located)]
    if located.a_bar is None:
        try:
            estimate = estimate_linear_part(inner, located, tokens)
        except LoopSiteError as error:  # the loop was found; that nothing could be estimated is one more thing missing
            missing.append(f"estimate: {error}")
    return LoopDescription(
        name,
        located,
        loops=visited.loops,
        state_shape=tuple(last.shape),
        matrices=tuple(_matrices(located, last.shape[-1])),
        estimate=estimate,
        missing=tuple(missing),
    )


def _matrices(site: LoopSite, width: int) -> list[Matrix]:
    """Return what of the linear part can be read."""
    matrices = []
    for name, read in (("A", site.a_bar), ("B", site.b_bar), ("C_out", site.c_out)):
        if read is None:
            continue
        tensor = read()
        system = LTISystem(tensor.detach(), width=width) if name == "A" else None
        norm = (system or LTISystem(_square(tensor.detach()))).spectral_norm()
        structure = ("scaled identity", "diagonal", "dense")[tensor.ndim]
        radius = system.spectral_radius() if system is not None else None
        matrices.append(Matrix(name, structure, tuple(tensor.shape), tensor.requires_grad, norm, radius))
    return matrices


def _square(matrix: Tensor) -> Tensor:
    """Return a matrix with rows or columns of zeros added, which leaves its norm as it is."""
    if matrix.ndim < 2 or matrix.shape[0] == matrix.shape[1]:
        return matrix
    size = max(matrix.shape)
    return nn.functional.pad(matrix, (0, size - matrix.shape[1], 0, size - matrix.shape[0]))


def _missing(site: LoopSite) -> list[str]:
    """Return what the site does not know, in sentences."""
    missing = []
    if site.variables:
        late = [variable for variable in site.variables if variable.first]
        if late:
            why = "no module receives it" if late[0].output is not None else "it is not marked before the loop"
            missing.append(f"h_0: {why}, so the record starts at h_1")
        return missing
    if site.state_argument is None:
        missing.append("h_0: no module receives it, so the record starts at h_1")
    if site.input_argument is None:
        missing.append("e: the body receives no input that is the same in every loop; its norms are not recorded")
    if site.a_bar is None:
        missing.append(
            "A, B: no linear injection can be read from parameters; LoopSite(a_bar=..., b_bar=...) gives them"
        )
    if site.c_out is None:
        missing.append("C_out: what follows the loop is no linear read-out")
    if not site.sets_depth:
        missing.append(
            "depth: no argument of forward and no attribute raises it, so the fixed batch runs as deep as training does"
        )
    return missing


def _seen_at(variable: Variable) -> str:
    """Return where the values of a variable are read."""
    if variable.output is None:
        return "marked in the forward"
    turns = f", calls {', '.join(map(str, variable.turns))} of every {variable.of}" if variable.turns else ""
    inner = f", {variable.per_pass} times a pass" if variable.per_pass > 1 else ""
    return f"{variable.source}{turns}{inner}"


def _reading(site: LoopSite) -> str:
    """Return where the state and the input are read."""
    state = "does not receive the state itself" if site.state_argument is None else "receives the state at "
    parts = [state + ("" if site.state_argument is None else _place(site.state_argument))]
    if site.input_argument is not None:
        parts.append(f"the input at {_place(site.input_argument)}")
    if site.output is not None:
        parts.append(f"the next state is returned by {site.output}")
    return ", ".join(parts)


def _place(place: Place) -> str:
    """Return a place in words."""
    if isinstance(place, Part):
        return f"{place.argument}[..., {place.start}:{place.stop}]"
    if isinstance(place, Item):
        return f"tensor {place.number + 1} of {place.argument}"
    return str(place)


def _estimated(estimate: LinearEstimate) -> str:
    """Return an estimate in one line."""
    radius = estimate.radius
    if estimate.a is None:
        return f"no estimate: {estimate.samples} samples for {estimate.unknowns} unknowns per channel; give more tokens"
    span = " and ".join(f"{half:.4g}" for half in estimate.halves)
    return (
        f"estimate of the whole loop's linear part, not A: radius {radius.value:.4g} ({span} from either half of the "
        f"tokens), {100 * radius.residual:.2g} % of the states unexplained, {radius.method}, {estimate.samples} samples"
        + ("" if radius.converged else f", rank {estimate.rank} of {estimate.unknowns}")
    )


__all__ = ["LoopDescription", "Matrix", "describe"]
