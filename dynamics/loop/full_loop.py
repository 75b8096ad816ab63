"""The full loop as a dynamical system: one measurement, of a checkpoint and during training alike.

`linearize_loop` and the probe both call `measure_loop`, so that a number has one meaning and one tolerance wherever it
is read. They differ in what they pay for: how many eigenvalues and directions, and what they do with a part that fails.

Legend: T loops, B batch, S positions, D width.

Not covered: what only a checkpoint is worth (transient, gap, shares of sublayers: `linearize`), and which states are
visited: the caller runs the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

import numpy as np
from torch import Tensor

from ..estimate import Estimate
from ..trajectory.lyapunov import LyapunovSpectrum, lyapunov_exponents, token_exponents
from .jacobian import LoopJacobian, Step
from .krylov import LeadingEigenvalues, random_start
from .parts import FullLoop, Structure
from .per_token import TokenJacobian, TokenSpectra, token_spectra

__all__ = ["Attempt", "measure_loop", "read_out_gain"]

T = TypeVar("T")
ALIGNING: Final = 8
"""Loops run past the averaged ones so that the directions of the exponents align."""
FEWEST_RATES: Final = 9
"""Loops averaged over, at least: from fewer there is no standard error."""
SPECTRUM_TOLERANCE: Final = 1e-4
"""Relative residual of an eigenvalue; regimes are told apart at 1e-2, and a condition number of 100 is common."""
NORM_TOLERANCE: Final = 0.03
"""Relative residual of a singular value, whose own error is of second order in it."""
STEADY_JACOBIAN: Final = 1e-3
"""J is the same at two states when its products differ by no more than this part of them: a tenth of the marginal band
of a matrix."""
UNKNOWN: Final = Estimate(math.nan, math.nan, math.nan, math.nan, "not measured", False)


class Attempt(Protocol):
    """Runs one part of a measurement; None where it failed in a way that leaves the other parts as good as before."""

    def __call__(self, name: str, part: Callable[[], T], /) -> T | None:
        """Return what the part gives, or None."""


def measure_loop(
    jacobian: LoopJacobian,
    middle: Tensor,
    late: int,
    *,
    attempt: Attempt,
    structure: Structure | None = None,
    count: int = 1,
    directions: int = 1,
) -> FullLoop:
    """Measure what one loop does to small perturbations: spectrum and norm at the last state, growth on the way there.

    Costs, in backward passes of one loop: the spectrum 40 to 160 (D of them up to width 128 and per token, where it is
    exact), the exponents ``directions`` for each of ``late + ALIGNING`` loops, as many again where the two rates
    disagree, the norm 40, 4 to see whether J changes, and up to 26 to find the structure.

    Args:
        jacobian: At the last state visited, ``h_T``.
        middle: The state from which growth is averaged, ``(B, S, D)``, usually ``h_{T/2}``.
        late: Loops from there to ``h_T``, at least 1; `FEWEST_RATES` are averaged over at least.
        attempt: Runs the parts ``spectrum``, ``whole spectrum``, ``exponents``, ``norm``, ``steady Jacobian`` and
            ``frozen exponents``.
        structure: What spectrum and exponents are of, where it is known; else per token if the loop is causal.
        count: Eigenvalues kept, per token or of the whole.
        directions: Exponents kept, likewise.

    Returns:
        A part that failed is missing: `UNKNOWN`, NaN or None.

    Source: `per_token`, `jacobian` and `lyapunov` name theirs.

    >>> import torch
    >>> decay = LoopJacobian(lambda h: 0.5 * h, torch.ones(1, 2, 3))
    >>> loop = measure_loop(decay, torch.ones(1, 2, 3), 4, attempt=lambda name, part: part())
    >>> loop.spectrum, loop.radius.value, round(loop.lyapunov_max, 4), round(loop.norm.value, 4)
    ('per token', 0.5, -0.6931, 0.5)
    """
    step, state = jacobian.step, jacobian.state
    tokens, whole = None, None
    if structure != "whole":
        tokens = attempt("spectrum", lambda: _per_token(step, state, count, check=structure is None))
    if tokens is None and structure != "per token":
        whole = attempt("whole spectrum", lambda: jacobian.eigenvalues(count, tol=SPECTRUM_TOLERANCE))
    kind: Structure = structure or ("whole" if tokens is None else "per token")
    rates = attempt("exponents", lambda: _exponents(step, middle, late, kind, directions))
    largest, error = (math.nan, math.nan) if rates is None else rates.largest()
    nothing = np.zeros(0, np.complex128)
    loop = FullLoop(
        eigenvalues=tokens.eigenvalues if tokens is not None else whole.values[0] if whole is not None else nothing,
        left=None if tokens is None else tokens.left,
        spectrum=kind,
        radius=_token_radius(tokens) if tokens is not None else _whole_radius(whole),
        lyapunov_max=largest,
        lyapunov_error=error,
        exponents=None if rates is None else rates.exponents,
        norm=attempt("norm", lambda: jacobian.norm(steps=20, tol=NORM_TOLERANCE)),
    )
    loop = replace(loop, steady=attempt("steady Jacobian", lambda: _is_steady(jacobian, middle)) or False)
    if not (loop.log_radius < loop.lyapunov_max and loop.rates_disagree):
        return loop
    held = attempt("frozen exponents", lambda: _exponents(step, state, late, kind, 1, frozen=True))
    return loop if held is None else replace(loop, frozen_max=held.largest()[0])


def read_out_gain(c_out: Tensor | None, state: Tensor) -> float:
    """Return the mean over tokens of ‖C_out h‖ / ‖h‖, dimensionless; NaN without a C_out.

    >>> import torch
    >>> read_out_gain(torch.tensor([[0.0, 2.0]]), torch.tensor([[[0.0, 5.0]]]))
    2.0
    """
    if c_out is None:
        return math.nan
    matrix = c_out.detach().to(state.device, state.dtype)
    seen = state @ matrix.mT if matrix.ndim == 2 else matrix * state
    return float((seen.norm(dim=-1) / state.norm(dim=-1)).mean())


def _is_steady(jacobian: LoopJacobian, middle: Tensor) -> bool:
    """Return whether J is the same at the first of the late states as at the last one.

    Its products with two random vectors show what changes; one alone may lie where nothing does.
    """
    first = LoopJacobian(jacobian.step, middle)
    for u in random_start(2, jacobian.size, jacobian.state):
        last = jacobian.transpose(u)
        if not float((last - first.transpose(u)).norm()) <= STEADY_JACOBIAN * float(last.norm()):
            return False
    return True


def _per_token(step: Step, state: Tensor, count: int, *, check: bool) -> TokenSpectra:
    """Return the leading eigenvalues of every token's own Jacobian."""
    # One batch of basis vectors is kept per product: a gigabyte of float32 at most, 40 products at least.
    limit = max(40, min(160, 2**28 // state.numel()))
    return token_spectra(TokenJacobian(step, state, check=check), count=count, limit=limit, tol=SPECTRUM_TOLERANCE)


def _token_radius(tokens: TokenSpectra) -> Estimate:
    """Return the largest radius of any token; converged when all tokens are."""
    at = np.unravel_index(int(np.argmax(tokens.radius)), tokens.radius.shape)
    value = float(tokens.radius[at])
    lower, upper = (value, value) if tokens.method == "exact" else (0.0, math.inf)
    converged = bool(tokens.converged.all())
    return Estimate(value, lower, upper, float(tokens.residual[at]), f"per token, {tokens.method}", converged)


def _whole_radius(whole: LeadingEigenvalues | None) -> Estimate:
    """Return the radius of the whole operator: of a non-normal J it has no bounds."""
    if whole is None:
        return UNKNOWN
    residual, converged = float(whole.residual[0, 0]), bool(whole.converged[0])
    return Estimate(float(whole.radius[0]), 0.0, math.inf, residual, "whole, Arnoldi", converged)


def _exponents(
    step: Step, start: Tensor, late: int, kind: Structure, directions: int, *, frozen: bool = False
) -> LyapunovSpectrum:
    """Return the growth rates over the late loops, aligned on loops after them where the loop stays finite there."""
    count = min(directions, start.numel() if kind == "whole" else start.shape[-1])
    measure = token_exponents if kind == "per token" else lyapunov_exponents
    loops = max(late, FEWEST_RATES)
    try:
        return measure(step, start, count=count, iterations=loops, warmup=ALIGNING, frozen=frozen)
    except FloatingPointError:
        return measure(step, start, count=count, iterations=max(late, 1))
