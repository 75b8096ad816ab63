"""The Jacobian of one loop, as an operator: products with J and Jᵀ, eigenvalues, norm, numerical abscissa.

The state of a loop is large (batch x positions x width numbers), so ``J = ∂h[t+1]/∂h[t]`` is never formed. Products
with Jᵀ are plain backward passes through a graph that is built once, with fused attention. Products with J need a
second derivative, which fused attention kernels do not have; they run on the plain (math) attention kernel and cost
more memory.

Legend: B batch, S positions, D width, n = B S D.

Not covered: the spectrum of each token (`dynamics.per_token`, exact and better conditioned: the full J of a causal
model is block triangular and strongly non-normal, so that its inner eigenvalues are meaningless in floating point);
which sublayer causes growth (`dynamics.attribution`); steps that are random (dropout) or not differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..estimate import Estimate
from ..linear.golub_kahan import RitzSingular, golub_kahan
from ..linear.lti import LTISystem
from ..linear.spectrum import sigma_max
from ..linear.transient import PeakGrowth
from ..linear.transient import peak_growth as dense_peak_growth
from .krylov import LeadingEigenvalues, leading_eigenvalues, random_start

__all__ = ["LoopJacobian", "Step", "jacobian_gap", "require_deterministic"]

Step = Callable[[Tensor], Tensor]
"""One loop with everything but the state bound: state to next state, same shape, deterministic and differentiable."""


DENSE_SIZE = 128
"""Numbers in a state up to which the whole Jacobian is formed where all its powers are asked for."""
FEW_STEPS = 3
"""Golub-Kahan steps for a power whose leading direction is nearly that of the power before it."""


class _FusedLayout(TorchFunctionMode):
    """Gives attention's output the layout in memory of the fused kernels, heads beside channels.

    A model may rely on it: ``attend(...).transpose(1, 2).view(batch, positions, -1)`` needs no copy then, and fails on
    the output of the math kernel.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Lay the output of attention out anew; everything else passes."""
        output = func(*args, **(kwargs or {}))
        return in_fused_layout(output) if func is functional.scaled_dot_product_attention else output


def in_fused_layout(attended: Tensor) -> Tensor:
    """Return ``(B, heads, S, D)`` laid out as ``(B, S, heads, D)`` in memory; others as they are.

    >>> in_fused_layout(torch.zeros(2, 3, 4, 5)).transpose(1, 2).is_contiguous()
    True
    """
    return attended.transpose(1, 2).contiguous().transpose(1, 2) if attended.ndim == 4 else attended


class LoopJacobian:
    """The Jacobian of a loop at one state, available as products.

    The forward graph of one step is kept until the object is dropped. Every product costs about one backward pass of
    one step.

    Args:
        step: One loop, ``(...) -> (...)`` of equal shape.
        state: Where to linearise; float32 or float64 (bfloat16 products are wrong by 1e-2).

    Raises:
        ValueError: The step changes the shape, does not depend on the state, or the dtype is below float32.
        FloatingPointError: The next state is not finite.

    Source: eig(Jᵀ) = eig(J); reverse-mode products, Griewank & Walther, Evaluating Derivatives (2008), ch. 3.

    >>> a = torch.tensor([[0.5, 0.3], [0.0, 0.2]], dtype=torch.float64)
    >>> jacobian = LoopJacobian(lambda h: h @ a.T, torch.ones(1, 1, 2, dtype=torch.float64))
    >>> jacobian.transpose(torch.tensor([[[1.0, 0.0]]], dtype=torch.float64))
    tensor([[[0.5000, 0.3000]]], dtype=torch.float64)
    >>> round(float(jacobian.radius()), 6)
    0.5
    """

    def __init__(self, step: Step, state: Tensor) -> None:
        if state.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"state: expected float32 or float64, found {state.dtype}, which rounds too much for derivatives; "
                "train in float32 for a few steps, or linearise a checkpoint in float32"
            )
        self.step = step
        self.state = state.detach()
        with torch.enable_grad():
            self._input = self.state.clone().requires_grad_()
            self._output = step(self._input)
        self.next_state = _checked(self._output, self.state)
        self._double: tuple[Tensor, Tensor] | None = None

    @property
    def size(self) -> int:
        """Dimension n of the state."""
        return self.state.numel()

    def transpose(self, cotangent: Tensor) -> Tensor:
        """Return ``Jᵀ u``: how the component u of the next state depends on the state. One backward pass.

        >>> jacobian = LoopJacobian(lambda h: 3 * h, torch.ones(2))
        >>> jacobian.transpose(torch.tensor([1.0, 2.0]))
        tensor([3., 6.])
        """
        cotangent = cotangent.reshape(self.state.shape)
        return torch.autograd.grad(self._output, self._input, cotangent, retain_graph=True)[0]

    def apply(self, tangent: Tensor) -> Tensor:
        """``J v``: where the perturbation v goes in one loop. One backward pass through the graph of a backward pass.

        Raises:
            NotImplementedError: An operation of the step has no second derivative (the message names it). It is a
                RuntimeError, which is what torch raises for a derivative that it does not have.

        >>> LoopJacobian(lambda h: h.flip(0), torch.ones(2)).apply(torch.tensor([1.0, 2.0]))
        tensor([2., 1.])
        """
        if self._double is None:
            self._double = self._second_graph()
            self._require_adjoint()
        weight, gradient = self._double
        tangent = tangent.reshape(self.state.shape)
        product = torch.autograd.grad(gradient, weight, tangent, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(tangent) if product is None else product

    def _require_adjoint(self) -> None:
        """Check ``⟨Jv, Jv⟩ = ⟨JᵀJv, v⟩``: an operation without a second derivative may just vanish from the graph."""
        v = random_start(1, self.size, self.state)[0]
        backward = self._transpose_flat(v)
        forward = self._apply_flat(self._transpose_flat(v))
        expected, actual = float(backward @ backward), float(forward @ v)
        # Two attention kernels in float32 agree to 1e-5; what is lost with an operation is a sizeable share.
        if abs(expected - actual) > 1e-2 * expected:
            self._double = None
            raise NotImplementedError(
                "J v needs second derivatives of the step, and an operation in it does not have them "
                f"(the products with J and its transpose disagree: {actual:.4g} and {expected:.4g})"
            )

    def _second_graph(self) -> tuple[Tensor, Tensor]:
        """Return ``u`` and ``Jᵀu`` as a function of u, on attention kernels that can be differentiated twice."""
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _FusedLayout():
            state = self.state.clone().requires_grad_()
            output = self.step(state)
            weight = torch.zeros_like(output).requires_grad_()
            try:
                gradient = torch.autograd.grad(output, state, weight, create_graph=True)[0]
            except RuntimeError as error:
                raise NotImplementedError(
                    f"J v needs second derivatives that the step does not have: {error}"
                ) from error
        return weight, gradient

    def eigenvalues(self, count: int = 6, *, limit: int = 160, tol: float = 1e-6) -> LeadingEigenvalues:
        """Return the leading eigenvalues of the whole J, by Arnoldi on Jᵀ; its eigenvectors are left ones of J.

        Args:
            count: How many.
            limit: Products allowed.
            tol: Relative residual wanted of the leading one.

        Returns:
            A batch of one. Costs at most ``limit`` backward passes of one step.

        >>> jacobian = LoopJacobian(lambda h: torch.stack([-h[1], h[0]]) * 0.9, torch.ones(2))
        >>> jacobian.eigenvalues(2).values[0].imag.round(4).tolist()
        [0.9, -0.9]
        """
        return leading_eigenvalues(
            lambda v: self._transpose_flat(v[0])[None],
            random_start(1, self.size, self.state),
            count=count,
            limit=limit,
            tol=tol,
        )

    def radius(self) -> Estimate:
        """Return the spectral radius ρ(J) of the whole loop, dimensionless; cost as `eigenvalues`.

        Bounds: the Arnoldi value proves no enclosure of ρ of a non-normal J, so they are 0 and infinity.

        >>> str(LoopJacobian(lambda h: 0.5 * h, torch.ones(3)).radius())
        '0.5 [0, inf] (Arnoldi on the transpose)'
        """
        leading = self.eigenvalues(1)
        return Estimate(
            float(leading.radius[0]),
            0.0,
            math.inf,
            float(leading.residual[0, 0]),
            "Arnoldi on the transpose",
            bool(leading.converged[0]),
        )

    def norm(self, *, steps: int = 30, tol: float = 1e-3) -> Estimate:
        """Return the largest singular value σ_max(J): the worst one-loop growth over all perturbations of all tokens.

        Cost: ``steps`` products with J and Jᵀ each. A lower bound always; converged when the residual meets ``tol``.

        >>> round(float(LoopJacobian(lambda h: h * torch.tensor([2.0, 1.0]), torch.ones(2)).norm()), 4)
        2.0
        """
        return _lower_bound(golub_kahan(self._apply_flat, self._transpose_flat, self._start(), steps=steps), tol)

    def transient(self, *, powers: tuple[int, ...] = (1, 2, 4, 8), steps: int = 8) -> dict[int, Estimate]:
        """Return ``‖J^t‖₂`` for several t: how far a perturbation can be thrown before the eigenvalues have their say.

        The Jacobian is frozen at this state. Cost: ``2 * steps * sum(powers)`` products. Lower bounds always.

        >>> shear = torch.tensor([[0.5, 4.0], [0.0, 0.5]])
        >>> growth = LoopJacobian(lambda h: shear @ h, torch.ones(2)).transient()
        >>> [round(float(e), 3) for e in growth.values()]
        [4.062, 4.016, 2.002, 0.25]
        """
        growth: dict[int, Estimate] = {}
        start = self._start()
        for power in powers:
            ritz = golub_kahan(
                _repeated(self._apply_flat, power), _repeated(self._transpose_flat, power), start, steps=steps
            )
            growth[power], start = _lower_bound(ritz, 1e-2), ritz.right
        return growth

    def peak_growth(self, norms: dict[int, Estimate] | None = None, *, products: int = 300) -> PeakGrowth:
        """How far can a small perturbation be thrown before it dies out? max over t of ``‖J^t‖₂``, J frozen here.

        Up to `DENSE_SIZE` numbers in the state, J is formed (n backward passes) and its powers are looked at one by
        one. Beyond that, the norms of further powers of two are estimated, and the perturbation that grows most is
        carried on loop by loop until it shrinks or the products are spent.

        Args:
            norms: What `transient` gave, to go on from; measured when None.
            products: Products with J and Jᵀ allowed beyond those of `transient`.

        Returns:
            Dimensionless. Converged where no power can be larger; otherwise ``growth.lower`` was attained by a
            perturbation, its upper bound is infinite, and ``rising`` tells that the last loop tried was the largest.

        Source: submultiplicativity of the norm, as in `loopscope.dynamics.peak_growth`.

        >>> shear = torch.tensor([[0.5, 10.0], [0.0, 0.5]])
        >>> peak = LoopJacobian(lambda h: shear @ h, torch.ones(2)).peak_growth()
        >>> round(peak.growth.value, 2), peak.loop, peak.growth.converged
        (10.02, 1, True)
        """
        if self.size <= DENSE_SIZE:
            return dense_peak_growth(LTISystem(self.dense()))
        known = self.transient() if norms is None else norms
        best = max((estimate.value, t) for t, estimate in known.items())
        power, tried, start, left = best[1], max(known), self._start(), products
        # Half of what is left stays for carrying a perturbation on.
        while (cost := 2 * power * FEW_STEPS) <= left // 2:
            ritz = golub_kahan(
                _repeated(self._apply_flat, power), _repeated(self._transpose_flat, power), start, steps=FEW_STEPS
            )
            left, tried = left - cost, max(tried, power)
            if power > best[1] and ritz.value < best[0]:
                break
            best, start, power = max(best, (ritz.value, power)), ritz.right, 2 * power
        carried, last = self._carried(start, left)
        best = max(best, carried)
        value, loop = best if best[0] > 1 else (1.0, 0)
        method = f"powers up to t = {tried}, one perturbation up to t = {last}"
        return PeakGrowth(Estimate(value, value, math.inf, math.nan, method, False), loop, loop >= max(tried, last))

    def _carried(self, start: Tensor, loops: int) -> tuple[tuple[float, int], int]:
        """Return the largest growth of one perturbation and its loop, and the last loop tried."""
        best, size, t = (1.0, 0), 1.0, 0
        vector = start / torch.linalg.vector_norm(start)
        # Below a tenth of the most it has reached, it is on its way out.
        while t < loops and size > 0.1 * best[0] and math.isfinite(size):
            vector, t = self._apply_flat(vector), t + 1
            length = float(torch.linalg.vector_norm(vector))
            size = size * length
            # Kept at unit length: 10^8 loops on, float32 would overflow.
            vector = vector / length if length > 0 else vector
            best = max(best, (size, t)) if math.isfinite(size) else best
        return best, t

    def dense(self) -> NDArray[np.float64]:
        """Return the whole J as a matrix ``(n, n)`` acting on flattened states; n backward passes.

        >>> LoopJacobian(lambda h: h.flip(0) * 2, torch.ones(2)).dense().tolist()
        [[0.0, 2.0], [2.0, 0.0]]
        """
        rows = torch.eye(self.size, dtype=self.state.dtype, device=self.state.device)
        return torch.stack([self._transpose_flat(row) for row in rows]).double().cpu().numpy()

    def numerical_abscissa(self, *, steps: int = 30, tol: float = 1e-3) -> Estimate:
        """Return the largest eigenvalue of ``(J + Jᵀ)/2``: above ρ(J) where the loop amplifies before it contracts.

        Cost: at most ``2 * steps`` products with J and Jᵀ each, and ten for a shift (Lanczos on the symmetric part). A
            lower bound always.

        >>> shear = torch.tensor([[0.5, 4.0], [0.0, 0.5]])
        >>> round(float(LoopJacobian(lambda h: shear @ h, torch.ones(2)).numerical_abscissa()), 4)
        2.5
        """
        # The shift makes the wanted end of the symmetric spectrum the one of largest modulus.
        shift = float(self.norm(steps=10).value)
        leading = leading_eigenvalues(
            lambda v: (0.5 * (self._apply_flat(v[0]) + self._transpose_flat(v[0])) + shift * v[0])[None],
            random_start(1, self.size, self.state),
            count=1,
            steps=steps,
            limit=2 * steps,
            tol=tol,
        )
        value = float(leading.values[0, 0].real) - shift
        return Estimate(value, value, math.inf, float(leading.residual[0, 0]), "Lanczos", bool(leading.converged[0]))

    def _apply_flat(self, v: Tensor) -> Tensor:
        """Return ``J v`` on vectors ``(n,)``, as the Krylov methods want it."""
        return self.apply(v).reshape(-1)

    def _transpose_flat(self, u: Tensor) -> Tensor:
        """Return ``Jᵀ u`` on vectors ``(n,)``."""
        return self.transpose(u).reshape(-1)

    def _start(self) -> Tensor:
        """Return a random unit vector ``(n,)``, the same every time."""
        return random_start(1, self.size, self.state)[0]


def require_deterministic(step: Step, state: Tensor) -> None:
    """Raise unless the step gives the same result twice. Costs two forwards.

    Args:
        step: One loop.
        state: Where to run it.

    Raises:
        ValueError: Two runs differ by more than rounding in another order would.

    >>> require_deterministic(lambda h: 2 * h, torch.ones(2))
    >>> require_deterministic(lambda h: h + torch.randn(2), torch.ones(2))
    Traceback (most recent call last):
    ValueError: step: two runs from one state differ, so it is random (dropout, sampling) and has no Jacobian
    """
    with torch.no_grad():
        first, second = step(state.detach()), step(state.detach())
    # Sums in another order (atomics on a GPU) differ by a few roundings of the largest entry; NaN is refused elsewhere.
    slack = 1e3 * torch.finfo(first.dtype).eps * first.abs().max()
    if bool(((first - second).abs() > slack).any()):
        raise ValueError(
            "step: two runs from one state differ, so it is random (dropout, sampling) and has no Jacobian"
        )


def jacobian_gap(jacobian: LoopJacobian, a_bar: Tensor, *, steps: int = 20) -> Estimate:
    """How far the full loop is from its linear part: ``σ_max(J - A̅) / σ_max(A̅)``, with A̅ acting on each token.

    0 means that the transformer blocks do nothing to small perturbations; above 1 the blocks outweigh A̅ and ρ(A̅) says
    little about the loop.

    Args:
        jacobian: Of the full loop, at a state of shape ``(..., D)``.
        a_bar: 0-d (scaled identity), ``(D,)`` (diagonal) or ``(D, D)`` (dense, acting as ``A̅ h``).
        steps: Golub-Kahan steps, each one product with J and one with Jᵀ.

    Returns:
        Dimensionless ratio; a lower bound; infinite when A̅ is zero.

    Raises:
        ValueError: A̅ has another shape.

    Source: the decomposition ``h[t+1] = A̅ h[t] + B̅ e + R̅(h[t], e)`` of arXiv 2604.12946: J - A̅ is the Jacobian of
    R̅.

    >>> half = LoopJacobian(lambda h: 0.75 * h, torch.ones(1, 2, 3))
    >>> round(float(jacobian_gap(half, torch.tensor(0.5))), 4)
    0.5
    """
    shape = jacobian.state.shape
    width = shape[-1]
    if a_bar.shape not in (torch.Size([]), (width,), (width, width)):
        raise ValueError(f"a_bar: expected (), ({width},) or ({width}, {width}), found {tuple(a_bar.shape)}")
    a = a_bar.detach().to(jacobian.state.device, jacobian.state.dtype)
    dense = a.dim() == 2

    def difference(v: Tensor) -> Tensor:
        v = v.reshape(shape)
        return (jacobian.apply(v) - (v @ a.T if dense else v * a)).reshape(-1)

    def transposed(u: Tensor) -> Tensor:
        u = u.reshape(shape)
        return (jacobian.transpose(u) - (u @ a if dense else u * a)).reshape(-1)

    ritz = golub_kahan(difference, transposed, random_start(1, jacobian.size, jacobian.state)[0], steps=steps)
    size = sigma_max(a.double().cpu().numpy())
    value = ritz.value / size if size > 0 else math.inf
    residual = ritz.residual / ritz.value if ritz.value > 0 else 0.0
    return Estimate(value, value, math.inf, residual, "Golub-Kahan", residual <= 1e-2)


def _lower_bound(ritz: RitzSingular, tol: float) -> Estimate:
    """Return a Ritz value as an estimate of the largest singular value: a lower bound with its relative residual."""
    residual = ritz.residual / ritz.value if ritz.value > 0 else 0.0
    return Estimate(ritz.value, ritz.value, math.inf, residual, "Golub-Kahan", residual <= tol)


def _repeated(product: Callable[[Tensor], Tensor], times: int) -> Callable[[Tensor], Tensor]:
    """Return the product applied several times."""

    def power(v: Tensor) -> Tensor:
        for _ in range(times):
            v = product(v)
        return v

    return power


def _checked(output: Tensor, state: Tensor) -> Tensor:
    """Return the next state, after checking that it can be one."""
    if output.shape != state.shape:
        raise ValueError(f"step: expected to return shape {tuple(state.shape)}, found {tuple(output.shape)}")
    if not output.requires_grad:
        raise ValueError("step: the result does not depend on the state (a detach or no_grad inside?)")
    if not torch.isfinite(output).all():
        raise FloatingPointError("step: the next state is not finite")
    return output.detach()
