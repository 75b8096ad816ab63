"""Spectral radius or norm of a matrix that changes a little at every step: cheap now, exact in the background.

A tracker starts each estimate from the vectors of the last one, at about a hundredth of the cost of exact
eigenvalues, and has an exact computation run beside the training, from a copy, at an interval and whenever the radius
comes near one. What the exact value shows to have been missed is searched for at the next step.

Every step has an interval: the tracked value, its residual times its condition number, and what the last exact value
showed to have been missed. ``benchmarks/spectra.py`` counts how often it holds the exact value.

Not covered: proof. Between two exact refreshes an eigenvalue far from the tracked ones can take the lead unseen, with
a small residual all along; ``certificate`` proves, this module watches.
"""

import sys
import threading
import time
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..arrays import ROUNDING, as_float64, as_numpy, require_finite, require_square
from ..estimate import Estimate
from .arnoldi import Vector, arnoldi, precision
from .golub_kahan import golub_kahan
from .spectrum import spectral_norm, spectral_radius

Quantity = Literal["radius", "norm"]

# Up to this width exact eigenvalues cost no more than an estimate.
SMALL: Final = 64
# Below this value, and above its inverse, squared norms leave float32; LAPACK scales such matrices by itself.
SMALLEST: Final = 1e-15
# Relative residual at which an estimate counts as converged, and relative gap to an exact value that counts as a miss.
TOLERANCE: Final = 1e-3
# The exact computation may use this share of one core on average, however near to one the radius stays.
BACKGROUND_SHARE: Final = 0.1
# The error of a tracked radius was at most 0.3 of condition times residual in benchmarks/spectra.py; this leaves room.
SAFETY: Final = 2.0
# Relative half width of an interval above which its middle is no value: regimes are told apart at 0.01.
TRUSTED: Final = 0.01
# Subspaces built at the first step, where nothing is known of the matrix, and later.
COLD, WARM = 10, 4


class SpectralTracker:
    r"""Follows ρ(A) or σ_max(A) of a drifting matrix; call :meth:`update` once per step.

    ``"radius"``: warm-started Arnoldi, 64 products with A and 44 more for each of up to three thick restarts.
    ``"norm"``: warm-started Golub-Kahan-Lanczos, 40 products; always a lower bound. Numbers, diagonals and matrices
    up to 64 wide are exact at once. Cost at d = 1024 on one core: see ``docs/performance.md`` and
    ``benchmarks/spectra.py``; 1-2 % of exact eigenvalues.

    The radius is refreshed exactly when |1 − ρ| < 0.03 + 4·residual and every ``refresh_every`` updates, the norm
    only at the interval. In the background that runs in a daemon thread (numpy releases the interpreter lock) for a
    tenth of one core at most; otherwise it runs inside :meth:`update`, whose value then is exact.

    Args:
        quantity: ``"radius"`` or ``"norm"``.
        refresh_every: Updates between exact refreshes, at least 1.
        background: Whether refreshes run in a thread. False makes results reproducible.
        seed: Seed of the random part of the start vectors.

    Attributes:
        exact: Latest exact refresh as ``(update, Estimate)``, updates counted from 0; None before the first one.
        missed: Number of refreshes that showed the tracked value to have been off by more than 0.1 %.
        drift: How far, relative to it, the tracked radius is taken to be off because the last exact value was more
            than 0.1 % away: twice that distance; 0 where it was closer.
        error: Why the last background refresh failed, ``""`` when it did not.

    Raises:
        ValueError: Unknown quantity or ``refresh_every`` below 1.

    Source: Saad, Numerical Methods for Large Eigenvalue Problems (2011), chapters 6 and 7; Golub and Kahan (1965).

    >>> a = np.diag(np.linspace(0.1, 0.9, 100))
    >>> tracker = SpectralTracker("radius", background=False)
    >>> values = [tracker.update(a * (1 + 0.001 * step)).value for step in range(3)]
    >>> [round(value, 4) for value in values]
    [0.9, 0.9009, 0.9018]
    """

    def __init__(
        self, quantity: Quantity = "radius", *, refresh_every: int = 300, background: bool = True, seed: int = 0
    ) -> None:
        if quantity not in ("radius", "norm"):
            raise ValueError(f'quantity must be "radius" or "norm"; found {quantity!r}')
        if refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1; found {refresh_every}")
        self.exact: tuple[int, Estimate] | None = None
        self.missed = 0
        self.drift = 0.0
        self.error = ""
        self._quantity = quantity
        self._refresh_every = refresh_every
        self._background = background
        self._random = np.random.default_rng(seed)
        self._start: Vector | None = None
        self._updates = 0
        self._last_refresh = -refresh_every
        self._not_before = 0.0
        self._worker: _Refresh | None = None

    def update(self, a: object) -> Estimate:
        """Estimate the quantity of the matrix as it is now.

        Args:
            a: Number, diagonal ``(d,)`` or matrix ``(d, d)`` (``(m, n)`` for the norm); numpy or torch. CPU matrices
                are used in their own precision without a copy, other devices compute in place; half precisions are
                widened to float32.

        Returns:
            Estimate with ``residual`` relative to the value (a backward error of *an* eigenvalue). ``converged`` means
            residual <= 1e-3 and bounds within 1 % for the radius, and an error of 1e-3 for the norm. The bounds of a
            tracked radius are measured and not proven: twice its condition number times its residual to both sides,
            and ``drift``. A tracked norm is a lower bound and has no upper one.

        Raises:
            ValueError: NaN or infinity, or a shape that does not fit.
        """
        matrix = _on_its_device(a)
        index, self._updates = self._updates, self._updates + 1
        if matrix.ndim < 2 or max(matrix.shape) <= SMALL:
            estimate = _exactly(self._quantity, a)
            self.exact = (index, estimate)
            return estimate
        if self._quantity == "radius":
            require_square(matrix, "a")
        self._collect()
        if self._start is None or self._start.shape[0] != matrix.shape[1]:
            self._start = None
        try:
            estimate = self._track(matrix)
        except FloatingPointError:
            self._start = None
            require_finite(as_numpy(a), "a")
            return _exactly(self._quantity, a)
        if not SMALLEST < estimate.value < 1 / SMALLEST:
            self._start = None
            return Estimate.exact(0.0, "exact, zero") if not as_numpy(a).any() else _exactly(self._quantity, a)
        if self._is_due(index, estimate):
            return self._refresh(index, matrix, estimate)
        return estimate

    def wait(self) -> None:
        """Wait for the background refresh under way, if any, so that ``exact`` holds its result."""
        if self._worker is not None:
            self._worker.join()
            self._collect()

    def _track(self, matrix: Any) -> Estimate:
        """Take one warm (at first: cold) estimate and keep the vectors for the next."""
        cold = self._start is None
        if self._quantity == "radius":
            return self._track_radius(matrix, cold)
        pair = golub_kahan(
            lambda v: matrix @ v, lambda u: u @ matrix, self._mixed(matrix, 0.1), steps=60 if cold else 20
        )
        self._start = pair.right
        residual = pair.residual / pair.value if pair.value else 0.0
        unit = float(np.finfo(as_numpy(pair.right).dtype).eps)
        lower = pair.value * (1 - matrix.shape[1] * unit)
        method = f"Golub-Kahan-Lanczos, {pair.products} products"
        # The value is off by about residual² / gap: a residual of the root of the tolerance is small enough.
        return Estimate(pair.value, lower, np.inf, residual, method, residual <= TOLERANCE**0.5)

    def _track_radius(self, matrix: Any, cold: bool) -> Estimate:
        """Return the radius by Arnoldi from the last Ritz vectors; start elsewhere where those cannot see all."""
        ritz = arnoldi(
            lambda v: matrix @ v, self._mixed(matrix, 0.05), restarts=COLD if cold else WARM, tolerance=TOLERANCE
        )
        if ritz.complete and not cold:
            # Near a multiple of the identity the subspace of the last vector ends after a few steps. Another random
            # vector has a share of what that one lacks.
            self._start = None
            other = arnoldi(lambda v: matrix @ v, self._mixed(matrix, 1.0), restarts=WARM, tolerance=TOLERANCE)
            ritz = max(ritz, other, key=lambda one: abs(one.values[0]))
        self._start = ritz.restart
        value, width = float(abs(ritz.values[0])), matrix.shape[0]
        if value == 0.0:
            return Estimate(0.0, 0.0, 0.0, 0.0, "Arnoldi, zero", True)
        residual = float(ritz.residuals[0]) / value
        # Products with rounded entries are off by about the root of the width, however small the residual became.
        spread = SAFETY * ritz.condition * (residual + width**0.5 * precision(ritz.restart)) + self.drift
        method = f"Arnoldi, {ritz.products} products"
        converged = ritz.converged and spread <= TRUSTED
        return Estimate(value, max(value * (1 - spread), 0.0), value * (1 + spread), residual, method, converged)

    def _mixed(self, matrix: Any, share: float) -> Vector:
        """Return the last vector with a random part, so that directions it lacks can enter; all random at first."""
        noise = self._random.standard_normal(matrix.shape[1])
        noise /= np.linalg.norm(noise)
        random: Vector = noise.astype(matrix.dtype) if isinstance(matrix, np.ndarray) else matrix.new_tensor(noise)
        return random if self._start is None else self._start + share * random

    def _is_due(self, index: int, estimate: Estimate) -> bool:
        """Return whether an exact refresh should start now."""
        if self._worker is not None or (self._background and time.monotonic() < self._not_before):
            return False
        near_one = self._quantity == "radius" and abs(1 - estimate.value) < 0.03 + 4 * estimate.residual
        return near_one or index - self._last_refresh >= self._refresh_every

    def _refresh(self, index: int, matrix: Any, estimate: Estimate) -> Estimate:
        """Start the exact computation on a copy; without a background, finish it and return its value."""
        self._last_refresh = index
        self._worker = _Refresh(self._quantity, index, as_float64(matrix, "a"), estimate)
        if self._background:
            self._worker.start()
            return estimate
        self._worker.run()
        self._collect()
        return self.exact[1] if self.exact and self.exact[0] == index else estimate

    def _collect(self) -> None:
        """Take over a finished refresh, and search from its vector where the tracked value had missed it."""
        worker = self._worker
        if worker is None or worker.is_alive():
            return
        self._worker = None
        self._not_before = time.monotonic() + worker.seconds * (1 / BACKGROUND_SHARE - 1)
        self.error = worker.error
        if worker.result is None:
            return
        self.exact = (worker.index, worker.result)
        exact, tracked = worker.result.value, worker.tracked
        distance = abs(exact - tracked.value) / tracked.value if tracked.value > 0 else 0.0
        # Doubled, because the next steps are off by about as much and not by exactly as much.
        self.drift = 2 * distance if distance > TOLERANCE else 0.0
        if worker.direction is None:
            return
        self.missed += 1
        if self._start is not None and self._start.shape[0] == worker.direction.shape[0]:
            seed: Vector = worker.direction
            on_device = not isinstance(self._start, np.ndarray)
            seed = self._start.new_tensor(seed) if on_device else seed.astype(self._start.dtype)
            self._start = self._start + seed


class _Refresh(threading.Thread):
    """One exact computation, and the direction the tracker lacked if its value turns out to be off."""

    def __init__(self, quantity: Quantity, index: int, matrix: NDArray[np.float64], tracked: Estimate) -> None:
        super().__init__(name="loopscope-exact-spectrum", daemon=True)
        self.index = index
        self.tracked = tracked
        self.result: Estimate | None = None
        self.direction: NDArray[np.float64] | None = None
        self.error = ""
        self.seconds = 0.0
        self._job = (quantity, matrix)

    def run(self) -> None:
        """Compute; a failure is kept as a message, because nothing above a thread can catch it."""
        quantity, matrix = self._job
        began = time.monotonic()
        try:
            self.result = _exactly(quantity, matrix)
            if abs(self.result.value - self.tracked.value) > TOLERANCE * self.result.value:
                self.direction = _leading_direction(quantity, matrix)
        except (np.linalg.LinAlgError, ValueError, MemoryError) as error:
            self.error = f"exact refresh failed: {error}"
        self.seconds = time.monotonic() - began


def _exactly(quantity: Quantity, a: object) -> Estimate:
    """Return the quantity by LAPACK."""
    return spectral_radius(a) if quantity == "radius" else spectral_norm(a)


def _leading_direction(quantity: Quantity, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Real plus imaginary part of the leading eigenvector, or the leading right singular vector; of unit length."""
    if quantity == "norm":
        return np.asarray(np.linalg.svd(matrix)[2][0], dtype=np.float64)
    values = np.linalg.eigvals(matrix)
    leading = values[np.argmax(np.abs(values))]
    # One step of inverse iteration; the shift is moved by more than its rounding error so that the solve succeeds.
    shift = leading * (1 + 1e4 * ROUNDING)
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    vector = np.linalg.solve(matrix - shift * np.eye(matrix.shape[0]), start)
    vector /= np.abs(vector).max()
    both = vector.real + vector.imag
    return np.asarray(both / np.linalg.norm(both), dtype=np.float64)


def _on_its_device(a: object) -> Any:
    """Detach a tensor and leave it where it is; view CPU data as numpy; widen integers and half precisions."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(a, torch.Tensor) and a.device.type != "cpu":
        tensor = a.detach()
        return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    array = as_numpy(a)
    return array if array.dtype in (np.float32, np.float64) else as_float64(array, "a")
