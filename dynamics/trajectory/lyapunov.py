"""Growth rates of small perturbations carried along a loop.

A perturbation of the state grows or shrinks by the Jacobians met on the way. The exponents are the mean logarithmic
rates, in nats per loop. They are computed on the *transposed* product, backwards in time: the singular values are the
same, and each step is a plain backward pass with fused attention (the usual forward form needs second derivatives,
which fused attention does not have).

Legend: B batch, S positions, D width, T loops averaged over, k exponents.

Not covered: exponents of noise or of training; covariant vectors. Exponents of a loop that has not reached its
attractor describe the transient, and are still its finite-time growth. The exponents of the whole state of a causal
model are the union of those of its tokens, but are not aligned in time there: take them per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..loop.jacobian import LoopJacobian, Step
from ..loop.krylov import random_start
from ..loop.per_token import TokenJacobian, TokenStructure
from ..shown import Shown

__all__ = ["LyapunovSpectrum", "lyapunov_exponents", "smooth_mean", "token_exponents"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, repr=False)
class LyapunovSpectrum(Shown):
    """Exponents with the rates they are means of.

    Attributes:
        rates: ``(T, ..., k)``, ``log |R_ii|`` of each loop in the order of the loops, nats. Their sum over all D
            directions is ``log |det J|`` of that loop.
        warmup: Further loops that only aligned the directions.
    """

    rates: Floats
    warmup: int

    @property
    def exponents(self) -> Floats:
        """Mean rates over the loops, ``(..., k)``, nats per loop, largest first up to their uncertainty; ``-inf`` for a
        direction sent to 0.
        """
        return np.asarray(self.rates.mean(axis=0), np.float64)

    @property
    def asymptotic(self) -> Floats:
        """Rates averaged with a smooth window, ``(..., k)``: where the motion is regular they converge far faster with
        T than means do.
        """
        return smooth_mean(self.rates)

    @property
    def standard_error(self) -> Floats:
        """Standard error of `exponents`, ``(..., k)``, from the scatter of about √T batch means; NaN for fewer than 9
        loops.
        """
        loops = len(self.rates)
        batches = int(np.sqrt(loops))
        if batches < 3:
            return np.full(self.rates.shape[1:], np.nan)
        used = self.rates[loops % batches :].reshape(batches, -1, *self.rates.shape[1:])
        return np.asarray(used.mean(axis=1).std(axis=0, ddof=1) / np.sqrt(batches), np.float64)

    def largest(self) -> tuple[float, float]:
        """Return the largest exponent over everything and its standard error.

        >>> LyapunovSpectrum(np.array([[[-1.0], [0.5]]] * 9), 0).largest()
        (0.5, 0.0)
        """
        first = self.exponents[..., 0]
        at = np.unravel_index(int(np.argmax(first)), first.shape)
        return float(first[at]), float(self.standard_error[..., 0][at])


def smooth_mean(rates: Floats) -> Floats:
    """Return the mean over the first axis with the weights ``exp(-1 / (x (1 - x)))``, x in (0, 1) along the axis.

    For quasi-periodic series the error falls faster than any power of the length; a plain mean's falls like its
    inverse.

    Args:
        rates: ``(T, ...)``, finite or ``-inf``.

    Returns:
        ``(...)`` in the unit of the input.

    Source: Das, Saiki, Sander & Yorke, Nonlinearity 30 (2017) 4111-4140.

    >>> t = np.arange(1000)
    >>> bool(abs(smooth_mean(np.cos(t))) < 1e-12 < abs(np.mean(np.cos(t))))
    True
    """
    x = (np.arange(len(rates)) + 1.0) / (len(rates) + 1.0)
    weights = np.exp(-1 / (x * (1 - x)))
    return np.asarray(np.tensordot(weights / weights.sum(), rates, axes=1), np.float64)


def lyapunov_exponents(
    step: Step, state: Tensor, *, count: int = 1, iterations: int, warmup: int = 0, frozen: bool = False
) -> LyapunovSpectrum:
    r"""Return the average growth rates of small perturbations of the whole state.

    Runs ``h[t+1] = step(h[t])`` for ``iterations + warmup`` loops, then pushes ``count`` orthonormal directions back
    through the transposed Jacobians, from the last loop to the first, re-orthonormalising with QR. Exponent i is the
    mean of ``log |R[i, i]|``: negative when the loop forgets a perturbation, zero when it keeps it, positive when it
    amplifies it. Costs ``iterations + warmup`` forwards twice and ``count`` backward passes each; memory of all states.

    Args:
        step: One loop with the embedding bound, deterministic, differentiable, ``(...) -> (...)``.
        state: Start, float32 or float64; sets dtype and device of the computation.
        count: Number of leading exponents, from 1 to the size of the state.
        iterations: Loops averaged over.
        warmup: Loops run *after* those and passed first on the way back, so that the directions can align.
        frozen: Take the Jacobian of ``state`` at every loop, as if the state stayed there: what a transient of that one
            matrix alone does over so many loops.

    Returns:
        Rates ``(iterations, count)`` with their means.

    Raises:
        ValueError: ``count`` or ``iterations`` is out of range.
        FloatingPointError: The trajectory stopped being finite (the message gives the loop).

    Source: Benettin et al., Meccanica 15 (1980) 9-30; QR form of Geist et al., PTP 83 (1990) 875.

    >>> decay = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    >>> spectrum = lyapunov_exponents(lambda h: decay * h, torch.ones_like(decay), count=2, iterations=50, warmup=50)
    >>> np.allclose(spectrum.exponents, np.log([0.9, 0.5]), rtol=1e-12)
    True
    """
    if not 1 <= count <= state.numel():
        raise ValueError(f"count: expected 1 to {state.numel()}, found {count}")
    states = _states(step, state, iterations, warmup, frozen)
    q = torch.linalg.qr(random_start(count, state.numel(), state).T)[0]
    rates = []
    for t in reversed(range(iterations + warmup)):
        jacobian = LoopJacobian(step, states[t])
        pulled = torch.stack([jacobian.transpose(column).reshape(-1) for column in q.T], dim=1)
        q, r = torch.linalg.qr(pulled)
        rates.append(_log_diagonal(r))
    return LyapunovSpectrum(np.stack(rates[warmup:][::-1]), warmup)


def token_exponents(
    step: Step,
    state: Tensor,
    *,
    count: int = 1,
    iterations: int,
    warmup: int = 0,
    structure: TokenStructure | None = None,
    frozen: bool = False,
) -> LyapunovSpectrum:
    """Return the average growth rates of small perturbations of each token's own state, for causal loops.

    As `lyapunov_exponents`, on each token's own block of the Jacobians; all tokens share the backward passes.

    Args:
        step: One causal loop, ``(B, S, D) -> (B, S, D)``.
        state: Start ``(B, S, D)``.
        count: Exponents per token, from 1 to D.
        iterations: Loops averaged over.
        warmup: Loops run after those, to align the directions.
        structure: `TokenJacobian.structure` of an earlier visit to the same loop; causality is then not checked again.
        frozen: As in `lyapunov_exponents`.

    Returns:
        Rates ``(iterations, B, S, count)``; exponents and errors ``(B, S, count)``.

    Raises:
        CausalityError: The loop is not causal (checked at the start, unless ``structure`` is given).
        ValueError: ``count`` or ``iterations`` is out of range.
        FloatingPointError: The trajectory stopped being finite (the message gives the loop).

    Source: as `lyapunov_exponents`; diagonal blocks of a product of block-triangular matrices are the products of their
    blocks.

    >>> spectrum = token_exponents(lambda h: 0.5 * h.cumsum(1), torch.ones(1, 3, 2), iterations=10)
    >>> np.allclose(spectrum.exponents, np.log(0.5))
    True
    """
    batch, positions, width = state.shape
    if not 1 <= count <= width:
        raise ValueError(f"count: expected 1 to {width}, found {count}")
    states = _states(step, state, iterations, warmup, frozen)
    first = TokenJacobian(step, states[0], check=structure is None, structure=structure)
    q = torch.linalg.qr(random_start(batch * positions * count, width, state).reshape(-1, count, width).mT)[0]
    rates = []
    for t in reversed(range(iterations + warmup)):
        jacobian = first if t == 0 else TokenJacobian(step, states[t], check=False, structure=first.structure)
        columns = [jacobian.transpose(q[..., i].reshape(state.shape)).reshape(-1, width) for i in range(count)]
        q, r = torch.linalg.qr(torch.stack(columns, dim=-1))
        rates.append(_log_diagonal(r).reshape(batch, positions, count))
    return LyapunovSpectrum(np.stack(rates[warmup:][::-1]), warmup)


@torch.no_grad()
def _states(step: Step, state: Tensor, iterations: int, warmup: int, frozen: bool) -> list[Tensor]:
    """Return the states at which the Jacobians are taken."""
    if iterations < 1 or warmup < 0:
        raise ValueError(f"iterations, warmup: expected at least 1 and 0, found {iterations} and {warmup}")
    states = [state.detach()]
    if frozen:
        return states * (iterations + warmup + 1)
    for t in range(iterations + warmup):
        states.append(step(states[-1]))
        if not torch.isfinite(states[-1]).all():
            raise FloatingPointError(f"the state stopped being finite at loop {t + 1} of {iterations + warmup}")
    return states


def _log_diagonal(r: Tensor) -> Floats:
    """Return ``log |R_ii|`` in float64; minus infinity where it is zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(r.diagonal(dim1=-2, dim2=-1).abs().double().cpu().numpy()), np.float64)
