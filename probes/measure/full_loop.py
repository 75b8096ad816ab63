"""The full loop as a dynamical system, measured now and then on the fixed probe batch while a model trains.

A̅ says what the linear part does; these numbers say what the loop does with the blocks in it: spectral radius and norm
of its Jacobian, the growth rate of small perturbations, and the gain of the read-out, all of them along the loops of a
small part of the probe batch. Where tokens depend on earlier tokens only, the spectrum and the exponent are taken
token by token, which is exact; elsewhere they are those of the whole operator.

Not covered: the tokens of the batch that are left out, so that the cost stays bounded; compiled code (the loop is run
eagerly here); models in half precision, sharded parameters, and loops that cannot be run from a given state. Those are
refused with a sentence, once.
"""

# Shapes: B sequences, S positions, D width, T loops.

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...dynamics.estimate import Estimate
from ...dynamics.loop.jacobian import LoopJacobian
from ...dynamics.loop.per_token import CausalityError, TokenJacobian, token_spectra
from ...dynamics.trajectory.lyapunov import LyapunovSpectrum, lyapunov_exponents, token_exponents
from ...loops.bound import BoundLoop, bound_loop
from ...loops.call import Call
from ...loops.neutral import eagerly
from ...loops.site import LoopSite, LoopSiteError
from ...runfile.layout import LYAPUNOV_EXPONENTS, TOKEN_RADIUS, Event
from .sharded import is_sharded

log = logging.getLogger("loopscope")

SEQUENCES = 2
POSITIONS = 32
LOOPS = 16  # run when the site does not say how many are usual
ALIGNING = 8  # loops behind the averaged ones, on which the direction of the exponent aligns
FEWEST_RATES = 9  # loops averaged over, at least: from fewer there is no standard error
SPECTRUM_TOLERANCE = 1e-3  # relative residual of an eigenvalue; regimes are told apart at 1e-2
NORM_TOLERANCE = 0.03  # relative residual of a singular value, whose own error is of second order in it
EXPONENTS = 4  # growth rates kept, largest first: of every token where those are its own, else of the whole loop
EVENT = "full_loop"  # kind of the event that says how the loop was measured
EXPECTED = (FloatingPointError, NotImplementedError, np.linalg.LinAlgError)
"""What one number may fail with without the others being in doubt."""

Structure = Literal["per token", "whole"]
Floats = NDArray[np.floating[Any]]
UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan, "not measured", False)


@dataclass(frozen=True, slots=True)
class FullLoop:
    """What the loop does at the states it visits.

    Args:
        radius: Spectral radius of its Jacobian at ``h_T``: the largest over tokens, or that of the whole operator.
        norm: σ_max of the whole Jacobian at ``h_T``; a lower bound.
        lyapunov_max: Largest mean growth rate of a perturbation over the loops from T/2 on, nats per loop. NaN where
            the states stop being finite.
        lyapunov_error: Its standard error.
        c_out_gain: Mean over tokens of ‖C_out h_T‖ / ‖h_T‖; NaN without a C_out.
        structure: What spectrum and exponents are of.
        exponents: The largest of them, `EXPONENTS` at most, nats per loop: ``(B, S, k)`` per token, ``(k,)`` of the
            whole loop; None where there are none.
        radii: Spectral radius of every token's own Jacobian ``(B, S)``; None where not per token or not converged.
    """

    radius: Estimate
    norm: Estimate
    lyapunov_max: float
    lyapunov_error: float
    c_out_gain: float
    structure: Structure
    exponents: Floats | None = None
    radii: Floats | None = None

    def values(self) -> dict[str, float]:
        """The numbers under their names in the run file; what did not converge or is not finite is left out."""
        found = {
            "jacobian_radius": self.radius.value if self.radius.converged else math.nan,
            "jacobian_norm": self.norm.value if self.norm.converged else math.nan,
            "lyapunov_max": self.lyapunov_max,
            "lyapunov_error": self.lyapunov_error,
            "c_out_gain": self.c_out_gain,
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def arrays(self) -> dict[str, Floats]:
        """What has one number per token or direction, under its names in the run file."""
        found = {LYAPUNOV_EXPONENTS: self.exponents, TOKEN_RADIUS: self.radii}
        return {name: values.astype(np.float32) for name, values in found.items() if values is not None}


def measure_full_loop(loop: BoundLoop, *, loops: int, structure: Structure | None = None) -> FullLoop:
    r"""What does this loop do to small perturbations at the states it visits?

    Runs ``loops`` loops from ``loop.state`` and linearises at the last one. Costs, in backward passes of one loop: the
    spectrum 40 to 160 (D of them up to width 128, where it is exact), the exponents `EXPONENTS` per loop, the norm 40,
    and 26 once to find the structure.

    Args:
        loop: One loop with everything but the state fixed.
        loops: T, at least 1.
        structure: As an earlier measurement of the same loop found it; found out when None.

    Returns:
        The numbers, each with its status; NaN throughout when a state is not finite.

    Raises:
        ValueError: The states are in less than float32, or ``loops`` is below 1.

    Source: `loopscope.dynamics.loop.per_token`, `jacobian` and `lyapunov` name theirs.

    >>> from loopscope.models import build
    >>> _ = torch.manual_seed(0)
    >>> with bound_loop(build("demo", injection="addition"), torch.zeros(1, 4, dtype=torch.int64)) as loop:
    ...     found = measure_full_loop(loop, loops=8)
    >>> found.structure, found.radius.method, found.radius.converged
    ('per token', 'per token, exact', True)
    """
    if loops < 1:
        raise ValueError(f"loops: expected at least 1, found {loops}")
    middle, last = _visited(loop, loops)
    if not bool(torch.isfinite(last).all()):
        return FullLoop(UNKNOWN, UNKNOWN, math.nan, math.nan, math.nan, structure or "whole")
    if structure is None:
        structure = _structure(loop, last)
    jacobian = LoopJacobian(loop.step, last)
    spectrum = _exponents(loop, middle, loops - loops // 2, structure)
    largest, error = (math.nan, math.nan) if spectrum is None else spectrum.largest()
    radius, radii = _radius(loop, jacobian, structure)
    return FullLoop(
        radius=radius,
        norm=_norm(jacobian),
        lyapunov_max=largest,
        lyapunov_error=error,
        c_out_gain=_read_out_gain(loop, last),
        structure=structure,
        exponents=None if spectrum is None else spectrum.exponents,
        radii=radii,
    )


@torch.no_grad()
def _visited(loop: BoundLoop, loops: int) -> tuple[Tensor, Tensor]:
    """The states half way and at the end."""
    state = middle = loop.state
    for t in range(loops):
        middle = state if t == loops // 2 else middle
        state = loop.step(state)
    return middle, state


def _structure(loop: BoundLoop, state: Tensor) -> Structure:
    """Per token where that is exact and one backward pass serves all tokens, else whole."""
    if state.dim() != 3:
        return "whole"
    try:
        return "whole" if TokenJacobian(loop.step, state).coupled else "per token"
    except CausalityError:
        return "whole"


def _radius(loop: BoundLoop, jacobian: LoopJacobian, structure: Structure) -> tuple[Estimate, Floats | None]:
    """Spectral radius, converged when that of every token is, and then that of each."""
    try:
        if structure == "whole":
            found = jacobian.eigenvalues(1, tol=SPECTRUM_TOLERANCE)
            residual, converged = float(found.residual[0, 0]), bool(found.converged[0])
            return Estimate(float(found.radius[0]), 0.0, math.inf, residual, "whole, Arnoldi", converged), None
        own = TokenJacobian(loop.step, jacobian.state, check=False)
        tokens = token_spectra(own, count=1, tol=SPECTRUM_TOLERANCE)
    except EXPECTED:
        return UNKNOWN, None
    at = np.unravel_index(int(np.argmax(tokens.radius)), tokens.radius.shape)
    value, residual = float(tokens.radius[at]), float(tokens.residual[at])
    lower, upper = (value, value) if tokens.method == "exact" else (0.0, math.inf)
    converged = bool(tokens.converged.all())
    estimate = Estimate(value, lower, upper, residual, f"per token, {tokens.method}", converged)
    return estimate, tokens.radius if converged else None


def _norm(jacobian: LoopJacobian) -> Estimate:
    """σ_max, by products that need a second derivative of the step."""
    try:
        return jacobian.norm(steps=20, tol=NORM_TOLERANCE)
    except EXPECTED:
        return UNKNOWN


def _exponents(loop: BoundLoop, middle: Tensor, late: int, structure: Structure) -> LyapunovSpectrum | None:
    """Largest exponents over the late loops, aligned beyond them where these stay finite; None without any."""
    width = middle.numel() if structure == "whole" else middle.shape[-1]

    def measure(iterations: int, warmup: int) -> LyapunovSpectrum:
        count = min(EXPONENTS, width)
        if structure == "whole":
            return lyapunov_exponents(loop.step, middle, count=count, iterations=iterations, warmup=warmup)
        return token_exponents(loop.step, middle, count=count, iterations=iterations, warmup=warmup)

    try:
        return measure(max(late, FEWEST_RATES), ALIGNING)
    except FloatingPointError:
        pass
    try:
        return measure(late, 0)
    except EXPECTED:
        return None


def _read_out_gain(loop: BoundLoop, state: Tensor) -> float:
    """Mean over tokens of ‖C_out h‖ / ‖h‖."""
    if loop.site.c_out is None:
        return math.nan
    c_out = loop.site.c_out().detach().to(state.device, state.dtype)
    seen = state @ c_out.mT if c_out.ndim == 2 else c_out * state
    return float((seen.norm(dim=-1) / state.norm(dim=-1)).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one measurement has for the run file.

    Args:
        values: Numbers of the step, with ``full_loop_seconds``.
        arrays: Arrays of the step.
        event: What a reader of the run should know: how the loop was measured, the first time, or why it is not.
    """

    values: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Floats] = field(default_factory=dict)
    event: Event | None = None


class FullLoopProbe:
    """Measures the loop of a model in training again and again; a failure is said once and ends it, not the training.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
    """

    def __init__(self, model: nn.Module, site: LoopSite) -> None:
        self._model, self._site = model, site
        self._structure: Structure | None = None
        self._failed = False

    def measure(self, batch: Call | None, step: int) -> Measured:
        """The numbers of now; nothing after a failure.

        Training notices nothing: modes, gradients and random states are as before.

        Args:
            batch: The model's call on the fixed batch; `SEQUENCES` sequences and `POSITIONS` positions of it are used.
            step: Training step, for the event.
        """
        if self._failed:
            return Measured()
        began = time.perf_counter()
        try:
            found, where = self._measured(batch)
        except Exception as error:
            self._failed = True
            message = f"the full loop is not measured in this run: {error}"
            log.warning("loopscope: %s", message)
            return Measured(event=Event(step, time.time(), EVENT, "warning", message=message))
        values = found.values() | {"full_loop_seconds": time.perf_counter() - began}
        event = None
        if self._structure is None and found.radius is not UNKNOWN:
            self._structure = found.structure
            message = f"full loop measured {where}: {found.radius.method}"
            event = Event(step, time.time(), EVENT, message=message)
        return Measured(values, found.arrays(), event)

    def _measured(self, batch: Call | None) -> tuple[FullLoop, str]:
        """One measurement, in eager mode and without autocast, and where it was taken."""
        if batch is None:
            raise LoopSiteError("training called the model without a tensor; give attach() a probe_batch")
        if is_sharded(self._model):
            raise LoopSiteError("its parameters are sharded; linearise a checkpoint instead")
        loops = LOOPS if self._site.mean_depth is None else 2 * self._site.mean_depth
        part = batch.cut(SEQUENCES, POSITIONS)
        tokens = part.tokens
        where = f"at loop {loops} of {' x '.join(str(n) for n in tokens.shape[:2])} tokens"
        wide = torch.autocast(tokens.device.type, enabled=False)
        with wide, eagerly(), bound_loop(self._model, part, site=self._site) as loop:
            return measure_full_loop(loop, loops=loops, structure=self._structure), where
