"""Where a loop comes to rest, and what kind of rest it is.

A fixed point ``h* = F(h*)`` is found by running the loop (plain), by Anderson acceleration, or by Newton-Krylov. The
solvers find unstable fixed points too: their convergence says nothing about stability, so every point found is
classified by the eigenvalues of its Jacobian, its *multipliers*.

Legend: B batch, S positions, D width, n = B S D. Sequences do not see each other, so each converges by itself.

Not covered: proof that all fixed points were found; telling fold, transcritical and pitchfork apart (all have a
multiplier near +1, and no linear analysis separates them); cycles (`dynamics.orbits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from ..loop.jacobian import LoopJacobian, Step
from ..loop.per_token import CausalityError, token_spectra
from ..shown import Shown

__all__ = ["FixedPoint", "Search", "classify_multipliers", "find_fixed_point", "fixed_points"]

Method = Literal["plain", "anderson", "newton"]
ANDERSON_DEPTH = 5
PLAIN_FIRST = 40
"""Plain loops before Anderson acceleration starts: it extrapolates, and far from the fixed point that leads astray."""
RUNAWAY = 1e4
"""A search ends when the state exceeds the first ones by this factor: far out, a drift's step drowns in round-off and
looks like rest."""
FELL = 0.1
"""A search may end at a step this much shorter than the longest so far, or at one that is round-off: a step is small
relative to a large state from the start, and means nothing by that."""
ROUNDINGS = 10
"""Units of rounding of the state that a step at rest may still have, since a loop rounds at every operation."""
ELSEWHERE = 0.1
"""Farther than this part of the state from its rest, a point is not that rest."""
NEAR = 0.05
"""A multiplier this close to the unit circle announces a bifurcation (as wide as the marginal band of the
exponents)."""


@dataclass(frozen=True, slots=True, repr=False)
class Search(Shown):
    """The end of one search for a fixed point.

    Attributes:
        state: Last state, of the shape of the start.
        residual: ``‖F(h) - h‖ / ‖h‖``, the largest over sequences.
        calls: Evaluations of the loop (products with the Jacobian count as one each).
        converged: Whether the residual met the tolerance in every sequence, and the step has become shorter since the
            start or is round-off: a drift from a large state meets any relative tolerance.
        method: How it was searched.
    """

    state: Tensor
    residual: float
    calls: int
    converged: bool
    method: Method


@dataclass(frozen=True, slots=True, repr=False)
class FixedPoint(Shown):
    """A fixed point with its classification.

    Attributes:
        state: ``h*``.
        residual: ``‖F(h*) - h*‖ / ‖h*‖``.
        multipliers: Leading eigenvalues of the Jacobian there, complex128, largest modulus first.
        spectrum: ``per token`` (exact, causal loops) or ``whole``.
        converged: Whether all leading eigenvalues are to be trusted.
        kind: See `classify_multipliers`.
        near: Bifurcations that are close, see there.
        method: The solver that found it.
        starts: How many of the starts led here.
    """

    state: Tensor
    residual: float
    multipliers: NDArray[np.complex128]
    spectrum: str
    converged: bool
    kind: str
    near: tuple[str, ...]
    method: Method
    starts: int

    @property
    def radius(self) -> float:
        """Largest modulus of a multiplier, ρ(J) at the fixed point: below one it attracts."""
        return float(np.abs(self.multipliers[0]))


def find_fixed_point(
    step: Step, start: Tensor, *, method: Method = "anderson", tol: float | None = None, max_calls: int = 500
) -> Search:
    """Search a fixed point of a loop from one start.

    Args:
        step: One loop, ``(B, ...) -> (B, ...)``.
        start: First state; sets dtype and device.
        method: ``plain`` runs the loop: finds attracting points only, at their own rate. ``anderson`` mixes the last 5
            steps after 40 plain
            ones: the robust default. ``newton`` solves ``(I - J) δ = F(h) - h`` by GMRES with a line search: fastest
                once near, and the one
            that reaches strongly unstable points.
        tol: Relative residual wanted. Default: ``eps ** 0.7`` of the dtype (1e-5 in float32, 1e-11 in float64).
        max_calls: Evaluations allowed.

    Returns:
        The end of the search; `converged` is False when it ran out of calls, or the state ran away (beyond 10⁴ times
        the first states, where round-off hides a drift).

    Source: Anderson, J. ACM 12 (1965) 547; Walker & Ni, SIAM J. Numer. Anal. 49 (2011) 1715; Knoll & Keyes, J. Comput.
    Phys. 193 (2004) 357.

    >>> search = find_fixed_point(lambda h: torch.cos(h), torch.zeros(1, 1, dtype=torch.float64))
    >>> round(float(search.state), 9), search.converged
    (0.739085133, True)
    """
    wanted = float(torch.finfo(start.dtype).eps ** 0.7) if tol is None else tol
    start = start.detach()
    if method == "newton":
        return _newton(step, start, wanted, max_calls)
    with torch.no_grad():
        return _mixed(step, start, wanted, max_calls, method)


def _mixed(step: Step, h: Tensor, tol: float, max_calls: int, method: Method) -> Search:
    """Iterate plainly, then by Anderson mixing where asked for."""
    first = torch.maximum(_sizes(h), _sizes(step(h)))
    points: list[Tensor] = []
    steps: list[Tensor] = []
    residual, best, best_residual, longest = float("inf"), h, float("inf"), torch.zeros_like(first)
    for call in range(1, max_calls + 1):
        f = step(h) - h
        residual = _relative(f, h, first)
        if not np.isfinite(residual) or bool((_sizes(h) > RUNAWAY * first).any()):
            return Search(best, best_residual, call, False, method)
        if residual < best_residual:
            best, best_residual = h, residual
        longest = torch.maximum(longest, _sizes(f))
        if residual <= tol and _has_fallen(f, h, longest):
            return Search(h, residual, call, True, method)
        points, steps = [*points, h][-ANDERSON_DEPTH - 1 :], [*steps, f][-ANDERSON_DEPTH - 1 :]
        h = _anderson(points, steps) if method == "anderson" and call > PLAIN_FIRST else h + f
    return Search(best, best_residual, max_calls, False, method)


def _anderson(points: list[Tensor], steps: list[Tensor]) -> Tensor:
    """Return the next point: the combination of past points whose steps cancel best, sequence by sequence, moved by its
    step.
    """
    shape = points[-1].shape
    f = torch.stack(steps).flatten(2).double()
    x = torch.stack(points).flatten(2).double()
    df, dx = (f[1:] - f[:-1]).transpose(0, 1), (x[1:] - x[:-1]).transpose(0, 1)
    gram = df @ df.mT
    # Tiny relative to the differences themselves, so that collinear histories do not blow up the weights.
    ridge = 1e-12 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + torch.finfo(torch.float64).tiny
    right = torch.einsum("bmn,bn->bm", df, f[-1])
    weights = torch.linalg.solve(gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), right)
    moved = x[-1] + f[-1] - torch.einsum("bm,bmn->bn", weights, dx + df)
    return moved.reshape(shape).to(points[-1].dtype)


def _newton(step: Step, h: Tensor, tol: float, max_calls: int) -> Search:
    """Search by Newton's method with GMRES for the linear systems and a backtracking line search."""
    calls, residual = 0, float("inf")
    first: Tensor | None = None
    longest = torch.zeros_like(_sizes(h))
    while calls < max_calls:
        try:
            jacobian = LoopJacobian(step, h)
        except FloatingPointError:
            return Search(h, residual, calls + 1, False, "newton")
        f = jacobian.next_state - h
        first = torch.maximum(_sizes(h), _sizes(jacobian.next_state)) if first is None else first
        residual, calls = _relative(f, h, first), calls + 1
        if bool((_sizes(h) > RUNAWAY * first).any()):
            return Search(h, residual, calls, False, "newton")
        longest = torch.maximum(longest, _sizes(f))
        if residual <= tol and _has_fallen(f, h, longest):
            return Search(h, residual, calls, True, "newton")
        delta, products = _solve(jacobian, f)
        calls += products
        if delta is None:
            return Search(h, residual, calls, False, "newton")
        size = 1.0
        while size > 1e-4:
            trial = h + size * delta
            with torch.no_grad():
                calls += 1
                if _relative(step(trial) - trial, trial, first) < (1 - 0.1 * size) * residual:
                    break
            size /= 2
        else:
            return Search(h, residual, calls, False, "newton")
        h = trial
    return Search(h, residual, calls, False, "newton")


def _solve(jacobian: LoopJacobian, f: Tensor) -> tuple[Tensor | None, int]:
    """Solve ``(I - J) δ = f`` by GMRES; return δ and the products used.

    None where δ is so long that (I - J) δ is no more than the rounding of J δ, as at a drift, whose I - J is zero.
    """
    used = 0

    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal used
        used += 1
        tangent = torch.as_tensor(v.reshape(f.shape), dtype=f.dtype, device=f.device)
        moved = jacobian.apply(tangent).double().cpu().numpy()
        return np.asarray(v.reshape(-1) - moved.reshape(-1), np.float64)

    size = jacobian.size
    right = f.double().cpu().numpy().reshape(-1)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    solution, _ = gmres(operator, right, rtol=1e-4, restart=min(60, size), maxiter=2)
    if np.linalg.norm(right) < ROUNDINGS * torch.finfo(f.dtype).eps * np.linalg.norm(solution):
        return None, used
    return torch.as_tensor(solution.reshape(f.shape), dtype=f.dtype, device=f.device), used


def _sizes(h: Tensor) -> Tensor:
    """Return the norm of each sequence's state, ``(B,)``."""
    norms: Tensor = torch.linalg.vector_norm(h.flatten(1), dim=1)
    return norms


def _has_fallen(f: Tensor, h: Tensor, longest: Tensor) -> bool:
    """Return whether the step of every sequence is short beside its longest so far, or round-off of its state."""
    rounding = ROUNDINGS * torch.finfo(h.dtype).eps * _sizes(h)
    return bool((_sizes(f) <= torch.maximum(FELL * longest, rounding)).all())


def _relative(f: Tensor, h: Tensor, first: Tensor) -> float:
    """Largest ``‖f‖ / ‖h‖`` over sequences; a state that goes to zero is measured by a thousandth of the first ones."""
    scale = torch.maximum(_sizes(h), 1e-3 * first)
    return float((_sizes(f) / torch.where(scale > 0, scale, 1.0)).max())


def fixed_points(
    step: Step,
    starts: Sequence[Tensor],
    *,
    methods: Sequence[Method] = ("anderson", "newton"),
    count: int = 8,
    tol: float | None = None,
    max_calls: int = 500,
) -> list[FixedPoint]:
    """Return the fixed points reached from several starts, without repeats, each with its multipliers and its kind.

    From every start the methods are tried in order until one converges. An end whose step may lead on for ever is none:
    with a multiplier near one, a small step says little of how far rest is, and where neither that distance nor the
    loop itself shows rest within a tenth of the state, the point is left out. Two ends are one point when they are no
    farther apart than their residuals leave open: the residual divided by the distance of the nearest multiplier from
    one, or the square root of the tolerance where that is more, relative to their norm.

    Args:
        step: One loop, ``(B, S, D) -> (B, S, D)``.
        starts: Several first states.
        methods: See `find_fixed_point`.
        count: Multipliers wanted of each point.
        tol: Relative residual wanted.
        max_calls: Evaluations allowed per start and method.

    Returns:
        Distinct points, the one reached from most starts first; an empty list when nothing converged.

    Source: as `find_fixed_point`; classification of hyperbolic fixed points of maps: Kuznetsov, Elements of Applied
    Bifurcation Theory (2004), ch. 2-4.

    >>> starts = [torch.full((1, 1, 1), x, dtype=torch.float64) for x in (-1.2, -0.1, 1.2, 0.0)]
    >>> points = fixed_points(lambda h: h + 0.5 * (h - h**3), starts)
    >>> [(round(float(p.state), 6), p.kind, p.starts) for p in points]
    [(-1.0, 'stable node', 2), (1.0, 'stable node', 1), (0.0, 'unstable node', 1)]
    """
    wanted = float(torch.finfo(starts[0].dtype).eps ** 0.7) if starts and tol is None else tol
    points: list[tuple[FixedPoint, Tensor]] = []
    for start in starts:
        search = _first_converged(step, start, methods, tol, max_calls)
        if search is None:
            continue
        first = torch.maximum(_sizes(start), _sizes(step(start).detach()))
        for i, (point, scale) in enumerate(points):
            if _is_same(point, search, torch.maximum(scale, first), wanted or 0.0):
                points[i] = (replace(point, starts=point.starts + 1), torch.maximum(scale, first))
                break
        else:
            point = _classified(step, search, 1, count)
            if _is_rest(step, point, first):
                points.append((point, first))
    return sorted((point for point, _ in points), key=lambda point: -point.starts)


@torch.no_grad()
def _is_rest(step: Step, point: FixedPoint, first: Tensor) -> bool:
    """Return whether rest is near: by the multipliers, or because the steps go on shrinking, or are round-off.

    A step of size r leads about r / |1 - λ| far. With a multiplier of 1 it may lead anywhere, as that of a drift does,
    or belong to the other directions, as beside a line of fixed points: then it shrinks.
    """
    gap = float(np.abs(1 - point.multipliers).min())
    if point.residual <= ELSEWHERE * gap:
        return True
    h, steps, half = point.state, [], PLAIN_FIRST // 2
    for _ in range(PLAIN_FIRST):
        steps.append(step(h) - h)
        h = h + steps[-1]
    sizes = torch.stack([_sizes(f) for f in steps[half:]])
    scale = torch.maximum(_sizes(h), 1e-3 * first)
    rate = (sizes[-1] / sizes[0]) ** (1 / (half - 1))
    settles = (sizes[-1] == 0) | ((rate < 1) & (sizes[-1] <= ELSEWHERE * (1 - rate) * scale))
    # Round-off goes nowhere; steps of that size in one direction are a drift.
    there = _sizes(torch.stack(steps[half:]).sum(0)) < 0.5 * sizes.sum(0)
    noise = (sizes[-1] <= ROUNDINGS * torch.finfo(h.dtype).eps * scale) & there
    return bool((settles | noise).all())


def _is_same(point: FixedPoint, search: Search, first: Tensor, tol: float) -> bool:
    """Return whether a search ended at a known point, up to what its residual leaves open.

    A step of size r at a point whose multipliers come within g of one leaves the state about r / g from rest. What
    rests at zero has no size of its own: it is measured by a thousandth of the first states, as residuals are.
    """
    gap = float(np.abs(1 - point.multipliers).min())
    residual = max(point.residual, search.residual, tol)
    # Four: both ends are off, each by up to twice the bound of a normal Jacobian.
    margin = max(min(4 * residual / max(gap, 1e-300), ELSEWHERE), tol**0.5)
    scale = torch.maximum(torch.maximum(_sizes(point.state), _sizes(search.state)), 1e-3 * first)
    distance = _sizes(point.state - search.state)
    return bool((distance <= margin * torch.where(scale > 0, scale, 1.0)).all())


def _first_converged(
    step: Step, start: Tensor, methods: Sequence[Method], tol: float | None, max_calls: int
) -> Search | None:
    """Return the first search that converges, in the order of the methods."""
    for method in methods:
        search = find_fixed_point(step, start, method=method, tol=tol, max_calls=max_calls)
        if search.converged:
            return search
    return None


def _classified(step: Step, search: Search, starts: int, count: int) -> FixedPoint:
    """Return a point found, with the eigenvalues of its Jacobian."""
    try:
        tokens = token_spectra(step, search.state, count=count)
        values = tokens.eigenvalues.reshape(-1)
        converged, spectrum = bool(tokens.converged.all()), "per token"
        complete = tokens.eigenvalues.shape[-1] == search.state.shape[-1]
    except CausalityError:
        whole = LoopJacobian(step, search.state).eigenvalues(count)
        values, converged, spectrum = whole.values[0], bool(whole.converged[0]), "whole"
        complete = len(values) == search.state.numel()
    values = values[np.argsort(-np.abs(values), kind="stable")]
    kind, near = classify_multipliers(values, complete=complete)
    return FixedPoint(
        search.state, search.residual, values[:count], spectrum, converged, kind, near, search.method, starts
    )


def classify_multipliers(multipliers: NDArray[np.complex128], *, complete: bool = True) -> tuple[str, tuple[str, ...]]:
    """Return what kind of fixed point these eigenvalues of its Jacobian make.

    Args:
        multipliers: Eigenvalues, largest modulus first, complex.
        complete: Whether these are all of them; otherwise a point whose listed multipliers are all outside the unit
            circle is only ``unstable``, because some of the others may be inside.

    Returns:
        The kind: ``stable node`` or ``stable focus`` (attracting, leading multiplier real or complex), ``saddle`` or
        ``saddle focus`` (some multipliers outside the unit circle), ``unstable node`` or ``unstable focus`` (all
        outside), ``unstable``, or ``non-hyperbolic`` (one on the circle to 1e-6). And the bifurcations a multiplier is
        within 0.05 of: ``fold`` (+1; also transcritical or pitchfork), ``flip`` (-1, period doubling),
        ``Neimark-Sacker`` (complex pair).

    Source: Kuznetsov, Elements of Applied Bifurcation Theory (2004), ch. 2-4.

    >>> classify_multipliers(np.array([0.97 + 0j, 0.2]))
    ('stable node', ('fold',))
    >>> classify_multipliers(np.array([1.5 + 0j, -0.98]))
    ('saddle', ('flip',))
    """
    sizes = np.abs(multipliers)
    is_real = np.abs(multipliers.imag) <= 1e-6 * np.maximum(sizes, 1e-300)
    near = []
    close = np.abs(sizes - 1) <= NEAR
    if bool((close & is_real & (multipliers.real > 0)).any()):
        near.append("fold")
    if bool((close & is_real & (multipliers.real < 0)).any()):
        near.append("flip")
    if bool((close & ~is_real).any()):
        near.append("Neimark-Sacker")
    shape = "node" if bool(is_real[0]) else "focus"
    if bool((np.abs(sizes - 1) <= 1e-6).any()):
        kind = "non-hyperbolic"
    elif sizes[0] < 1:
        kind = f"stable {shape}"
    elif sizes[-1] < 1:
        kind = "saddle" if shape == "node" else "saddle focus"
    else:
        kind = f"unstable {shape}" if complete else "unstable"
    return kind, tuple(near)
