"""The exact spectrum of a causal loop, token by token.

With causal attention token i depends on tokens j <= i only, so the Jacobian of a loop is block lower triangular over
positions and its eigenvalues are those of the D x D diagonal blocks ``J_ii = ∂F_i/∂h_i``, one per token, through any
number of layers. Cutting the gradient that flows through *other* tokens' keys and values decouples the tokens, so that
one backward pass gives one row of every block at once.

What tokens see of each other elsewhere (attention written out by hand, token shifts, sinks, summaries) is looked for
over all positions; where there is any, every token gets backward passes of its own, which is exact and S times dearer.

Legend: B batch, S positions, D width, k eigenvalues.

Not covered: loops that are not causal (bidirectional attention, prefix masks, sequence-wide norms, batch-coupled
routing): refused. The coupling *between* tokens, which no eigenvalue sees: look at σ_max of the full operator
(`dynamics.jacobian`) beside these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shown import Shown
from .jacobian import Step, require_deterministic
from .krylov import leading_eigenvalues, random_start
from .own_token import TokenStructure, find_structure, own_token_step

__all__ = [
    "CausalityError",
    "TokenJacobian",
    "TokenSpectra",
    "TokenStructure",
    "check_causality",
    "own_token_step",
    "token_jacobians",
    "token_spectra",
]

DENSE_WIDTH = 128
"""Up to this width the blocks are formed; beyond it batched Arnoldi is cheaper and no less exact for leading
eigenvalues."""


class CausalityError(ValueError):
    """The loop is not block triangular over tokens, so it has no per-token spectrum."""


@dataclass(frozen=True, slots=True, repr=False)
class TokenSpectra(Shown):
    """Leading eigenvalues of every token's own block of the Jacobian.

    Attributes:
        eigenvalues: ``(B, S, k)`` complex128, largest modulus first.
        residual: ``(B, S)``, relative backward error of the leading eigenvalue.
        converged: ``(B, S)``.
        method: ``exact`` (blocks formed) or ``Arnoldi``.
        products: Backward passes used.
        left: ``(B, S, D)`` complex128, left eigenvector of the leading eigenvalue of each token.
    """

    eigenvalues: NDArray[np.complex128]
    residual: NDArray[np.float64]
    converged: NDArray[np.bool_]
    method: str
    products: int
    left: NDArray[np.complex128]

    @property
    def radius(self) -> NDArray[np.float64]:
        """Spectral radius of each token's block, ``(B, S)``."""
        return np.asarray(np.abs(self.eigenvalues[..., 0]), np.float64)


class TokenJacobian:
    """Products ``u_i -> J_iiᵀ u_i`` for all tokens at once.

    Where tokens mix in `scaled_dot_product_attention` over tokens only, one backward pass serves all tokens. Otherwise
    (attention written out by hand, token shifts, sinks, keys of ``[e; h]``) it takes one backward pass per position,
    which is exact for any causal step and S times dearer; ``structure.coupled`` says which.

    Args:
        step: One loop, ``(B, S, D) -> (B, S, D)``.
        state: Where to linearise.
        check: Check first that the step is deterministic and causal (one forward, 20 backward passes at most).
        structure: Known from an earlier state of the same step; found out (see `find_structure`) when None.

    Raises:
        CausalityError: A token depends on later tokens or on other sequences.
        ValueError: The state is not ``(B, S, D)``, the step is not a differentiable map of it, or it is random.

    Source: block-triangular structure: Horn & Johnson, Matrix Analysis (2013), 0.9.4; the cut derivatives are worked
    out in the module text.

    >>> step = lambda h: 0.5 * h + torch.cumsum(h, dim=1)          # causal; each token sees itself with weight 1.5
    >>> jacobian = TokenJacobian(step, torch.zeros(1, 4, 2))
    >>> jacobian.transpose(torch.ones(1, 4, 2))[0, :, 0].tolist()
    [1.5, 1.5, 1.5, 1.5]
    """

    def __init__(
        self, step: Step, state: Tensor, *, check: bool = True, structure: TokenStructure | None = None
    ) -> None:
        if state.dim() != 3:
            raise ValueError(f"state: expected (B, S, D), found shape {tuple(state.shape)}")
        if check:
            require_deterministic(step, state)
            check_causality(step, state)
        self.state = state.detach()
        self.structure = find_structure(step, state) if structure is None else structure
        with torch.enable_grad():
            self._input = self.state.clone().requires_grad_()
            self._output = (step if self.coupled else own_token_step(step, self.structure))(self._input)
        if self._output.shape != state.shape or not self._output.requires_grad:
            raise ValueError(f"step: expected a differentiable map of shape {tuple(state.shape)} to itself")
        self.next_state = self._output.detach()

    @property
    def coupled(self) -> bool:
        """Whether every token needs backward passes of its own."""
        return self.structure.coupled

    def transpose(self, cotangent: Tensor) -> Tensor:
        """``J_iiᵀ u_i`` for every token, ``(B, S, D) -> (B, S, D)``. One backward pass, or S of them when
        ``coupled``.
        """
        if not self.coupled:
            return self._backward(cotangent)
        rows = torch.empty_like(cotangent)
        for i in range(cotangent.shape[1]):
            one = torch.zeros_like(cotangent)
            one[:, i] = cotangent[:, i]
            rows[:, i] = self._backward(one)[:, i]
        return rows

    def _backward(self, cotangent: Tensor) -> Tensor:
        """Return one vector-Jacobian product on the graph that was built."""
        return torch.autograd.grad(self._output, self._input, cotangent, retain_graph=True)[0]


def check_causality(step: Step, state: Tensor, *, cuts: int = 16) -> None:
    """Raise unless token i of the next state depends on tokens j <= i of its own sequence only.

    Cuts the sequence at up to ``cuts`` positions (all of them when S is smaller) and asks for the gradient of
    everything before the cut with respect to everything after it: it must be exactly zero. One backward pass per cut
    and one per sequence of the batch (at most 4). A leak that no tested cut separates, in a sequence longer than
    ``cuts``, is not seen.

    Args:
        step: One loop, ``(B, S, D) -> (B, S, D)``.
        state: Where to test; attention that is routed by the state may leak elsewhere only.
        cuts: Positions tested.

    Raises:
        CausalityError: It does; the message names positions and the size of the leak.

    Source: causality as zero partial derivatives; automatic differentiation keeps structural zeros exact.

    >>> check_causality(lambda h: torch.cumsum(h, dim=1), torch.zeros(1, 3, 2))
    >>> check_causality(lambda h: h + h.mean(dim=1, keepdim=True), torch.zeros(1, 3, 2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    loopscope.dynamics.loop.per_token.CausalityError: token 0 or an earlier one depends on token 1 (gradient ...
    """
    with torch.enable_grad():
        source = state.detach().clone().requires_grad_()
        output = step(source)
    # Weights bounded away from zero, so that no dependence is missed by a small draw.
    weight = 1.0 + 0.5 * torch.rand(state.shape, generator=torch.Generator().manual_seed(0)).to(state)
    batch, positions = state.shape[:2]
    for cut in _spread(positions - 1, cuts):
        early = weight.clone()
        early[:, cut + 1 :] = 0
        gradient = torch.autograd.grad(output, source, early, retain_graph=True)[0]
        leak = gradient[:, cut + 1 :]
        if bool((leak != 0).any()):
            later = cut + 1 + int(torch.nonzero(leak)[:, 1].min())
            raise _refusal(f"token {cut} or an earlier one depends on token {later}", leak, gradient)
    for row in range(min(batch, 4) if batch > 1 else 0):
        one = torch.zeros_like(weight)
        one[row] = weight[row]
        gradient = torch.autograd.grad(output, source, one, retain_graph=True)[0]
        others = gradient.clone()
        others[row] = 0
        if bool((others != 0).any()):
            other = int(torch.nonzero(others)[0, 0])
            raise _refusal(f"sequence {row} depends on sequence {other}", others, gradient)


def _refusal(what: str, leak: Tensor, gradient: Tensor) -> CausalityError:
    """Return the error for a gradient that must vanish and does not."""
    return CausalityError(
        f"{what} (gradient {float(leak.abs().max()):.3g} of {float(gradient.abs().max()):.3g}): "
        "the loop is not causal, so its Jacobian is not block triangular and has no per-token spectrum; "
        "use LoopJacobian.eigenvalues for the whole operator"
    )


def _spread(positions: int, count: int) -> list[int]:
    """Return up to ``count`` different positions from 0 to ``positions - 1``, evenly spread, the first included."""
    return sorted({round(x) for x in np.linspace(0, positions - 1, min(count, positions))}) if positions > 0 else []


def token_jacobians(step: Step, state: Tensor) -> Tensor:
    """Return every token's own block of the Jacobian, ``J_ii[a, b] = ∂F_i[a] / ∂h_i[b]``.

    Costs D backward passes for all tokens together (a dense Jacobian costs B S D) and B S D² memory.

    Args:
        step: One causal loop, ``(B, S, D) -> (B, S, D)``.
        state: Where to linearise.

    Returns:
        ``(B, S, D, D)`` in the dtype of the state.

    Raises:
        CausalityError: See `check_causality`.

    Source: see `TokenJacobian`.

    >>> token_jacobians(lambda h: h**2, torch.ones(1, 2, 2))[0, 1]
    tensor([[2., 0.],
            [0., 2.]])
    """
    return _blocks(TokenJacobian(step, state))


def _blocks(jacobian: TokenJacobian) -> Tensor:
    """Return all blocks, one row of each per backward pass."""
    batch, positions, width = jacobian.state.shape
    blocks = jacobian.state.new_empty(batch, positions, width, width)
    for row in range(width):
        unit = torch.zeros_like(jacobian.state)
        unit[..., row] = 1
        blocks[..., row, :] = jacobian.transpose(unit)
    return blocks


def token_spectra(
    step: Step | TokenJacobian, state: Tensor | None = None, *, count: int = 6, limit: int = 160, tol: float = 1e-4
) -> TokenSpectra:
    """Return the exact eigenvalues of a causal loop, as the leading ones of every token.

    Their union over tokens is the spectrum of the full Jacobian. Up to width 128 the blocks are formed (D backward
    passes and dense eigenvalues); beyond, a batched Arnoldi in which each backward pass serves all tokens (40
    to ``limit`` of them).

    Args:
        step: One causal loop ``(B, S, D) -> (B, S, D)``, or a ready `TokenJacobian`.
        state: Where to linearise (with a step).
        count: Eigenvalues per token.
        limit: Backward passes allowed.
        tol: Relative residual wanted of each leading eigenvalue.

    Returns:
        Eigenvalues, dimensionless, with their residuals and left eigenvectors.

    Raises:
        CausalityError: See `check_causality`.
        ValueError: A step was given without a state.

    Source: see `TokenJacobian`; Arnoldi as in `dynamics.krylov`.

    >>> rotate = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
    >>> token_spectra(lambda h: h @ rotate.T, torch.zeros(1, 3, 2), count=1).radius.round(4).tolist()
    [[0.9, 0.9, 0.9]]
    """
    if not isinstance(step, TokenJacobian):
        if state is None:
            raise ValueError("state: expected a tensor beside a step, found None")
        step = TokenJacobian(step, state)
    batch, positions, width = step.state.shape
    if width <= DENSE_WIDTH:
        return _dense_spectra(_blocks(step).double().cpu().numpy(), min(count, width))
    leading = leading_eigenvalues(
        lambda v: step.transpose(v.reshape(batch, positions, width)).reshape(-1, width),
        random_start(batch * positions, width, step.state),
        count=count,
        limit=limit,
        tol=tol,
    )
    return TokenSpectra(
        eigenvalues=leading.values.reshape(batch, positions, -1),
        residual=leading.residual[:, 0].reshape(batch, positions),
        converged=leading.converged.reshape(batch, positions),
        method="Arnoldi",
        products=leading.products,
        left=leading.vectors[:, 0].reshape(batch, positions, width),
    )


def _dense_spectra(blocks: NDArray[np.float64], count: int) -> TokenSpectra:
    """Return the eigenvalues of formed blocks; the left eigenvectors are the eigenvectors of their transposes."""
    values, vectors = np.linalg.eig(np.swapaxes(blocks, -1, -2))
    order = np.argsort(-np.abs(values), axis=-1)[..., :count]
    lead = np.take_along_axis(vectors, order[..., None, :1], -1)[..., 0]
    shape = blocks.shape[:2]
    return TokenSpectra(
        eigenvalues=np.take_along_axis(values, order, -1).astype(np.complex128),
        residual=np.zeros(shape),
        converged=np.ones(shape, np.bool_),
        method="exact",
        products=blocks.shape[-1],
        left=lead.astype(np.complex128),
    )
