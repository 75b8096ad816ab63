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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...dynamics.loop.full_loop import UNKNOWN, measure_loop, read_out_gain
from ...dynamics.loop.jacobian import LoopJacobian
from ...dynamics.loop.krylov import random_start
from ...dynamics.loop.parts import FullLoop, Structure
from ...dynamics.loop.per_token import CausalityError, TokenJacobian
from ...loops.bound import bound_loop
from ...loops.call import Call
from ...loops.neutral import eagerly
from ...loops.rerun import CUTS, BoundLoop
from ...loops.site import LoopSite, LoopSiteError
from ...runfile.layout import (
    JACOBIAN_EIGENVALUES,
    LYAPUNOV_EXPONENTS,
    PASS_ROUNDING,
    TOKEN_RADIUS,
    VARIABLE_PASSES,
    Event,
)
from .sharded import is_sharded

log = logging.getLogger("loopscope")

SEQUENCES = 2
POSITIONS = 32
LOOPS = 16  # run at least: after 6 of a loop of three a rest that was coming looked like growth
PASSES = 64  # with an inner loop, at least: after 16 a long transient of TRM and an orbit look the same
MOST_GROWN = 1e6
SMALL = 1e-4
EXPONENTS = 4  # growth rates kept, largest first: of every token where those are its own, else of the whole loop
EIGENVALUES_KEPT = 64
EVENT = "full_loop"  # kind of the event that says how the loop was measured
EXPECTED = (FloatingPointError, NotImplementedError, np.linalg.LinAlgError)
"""What one number may fail with without the others being in doubt."""

T = TypeVar("T")
Array = NDArray[np.inexact[Any]]


def values_of(loop: FullLoop) -> dict[str, float]:
    """Return the numbers under their names in the run file; what did not converge or is not finite is left out."""
    measured = {
        "jacobian_radius": loop.radius.value if loop.radius.converged else math.nan,
        "jacobian_norm": loop.norm.value if loop.norm is not None and loop.norm.converged else math.nan,
        "lyapunov_max": loop.lyapunov_max,
        "lyapunov_error": loop.lyapunov_error,
        "c_out_gain": loop.c_out_gain,
    }
    return {name: value for name, value in measured.items() if math.isfinite(value)}


def arrays_of(loop: FullLoop) -> dict[str, Array]:
    """Return what has one number per token or direction, under its names in the run file."""
    measured = {LYAPUNOV_EXPONENTS: loop.exponents, TOKEN_RADIUS: loop.radii}
    arrays: dict[str, Array] = {n: values.astype(np.float32) for n, values in measured.items() if values is not None}
    if loop.radius.converged and loop.eigenvalues.size:
        leading = loop.eigenvalues.ravel()
        leading = leading[np.argsort(-np.abs(leading), kind="stable")][:EIGENVALUES_KEPT]
        arrays[JACOBIAN_EIGENVALUES] = leading.astype(np.complex64)
    return arrays


def measure_full_loop(loop: BoundLoop, *, loops: int, structure: Structure | None = None) -> FullLoop:
    r"""Measure what this loop does to small perturbations at the states it visits.

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
    ...     numbers = measure_full_loop(loop, loops=8)
    >>> numbers.spectrum, numbers.radius.method, numbers.radius.converged
    ('per token', 'per token, exact', True)
    """
    if loops < 1:
        raise ValueError(f"loops: expected at least 1, found {loops}")
    return _measured_at(loop, _visited(loop, loops), loops - loops // 2, structure)


def _measured_at(loop: BoundLoop, states: list[Tensor], late: int, structure: Structure | None) -> FullLoop:
    """Measure at the last of these states, and along so many late loops on the way there."""
    last = states[-1]
    if not bool(torch.isfinite(last).all()):
        return FullLoop(np.zeros(0, np.complex128), structure or "whole", UNKNOWN, math.nan, math.nan, None, None)
    measured = measure_loop(
        LoopJacobian(loop.step, last),
        states[-1 - late],
        late,
        attempt=_attempt,
        structure=structure or _structure(loop, last),
        directions=EXPONENTS,
    )
    c_out = None if loop.site.c_out is None else loop.site.c_out()
    return replace(measured, c_out_gain=read_out_gain(c_out, last))


def _attempt(name: str, part: Callable[[], T], /) -> T | None:
    """Return one number, None where it could not be computed."""
    try:
        return part()
    except EXPECTED:
        return None


@torch.no_grad()
def _visited(loop: BoundLoop, loops: int) -> list[Tensor]:
    """Return the states from the first to the last."""
    states = [loop.state]
    for _ in range(loops):
        states.append(loop.step(states[-1]))
    return states


def _bounded(states: list[Tensor]) -> int:
    """Return the last loop before the state has grown by `MOST_GROWN`: far out derivatives overflow."""
    size = [float(state.abs().max()) for state in states]
    return next((t - 1 for t, one in enumerate(size) if not one <= MOST_GROWN * max(size[0], 1.0)), len(states) - 1)


def _channels(loop: BoundLoop) -> dict[str, slice]:
    """Return of each variable its channels of the joint state; nothing where one tensor is updated once in a pass."""
    alone = loop.site.variables[0] if len(loop.site.variables) == 1 else None
    return {alone.name: slice(None)} if alone is not None and alone.per_pass > 1 else loop.variables


@torch.no_grad()
def passes_of(states: list[Tensor], channels: Mapping[str, slice]) -> NDArray[np.float32]:
    """Return the norms and steps of every variable along these states, ``(V, T + 1, 3)`` as `VARIABLE_PASSES` is.

    Args:
        states: The joint states, ``(B, S, D)`` each.
        channels: Those of each variable.
    """
    rows = np.full((len(channels), len(states), 3), np.nan, np.float32)
    for number, own in enumerate(channels.values()):
        h = torch.stack([state[..., own] for state in states])
        steps = h.diff(dim=0)
        rows[number, :, 0] = _mean_over_tokens(h.norm(dim=-1))
        rows[number, :-1, 1] = _mean_over_tokens(steps.norm(dim=-1))
        rows[number, 1:-1, 2] = _mean_over_tokens(torch.cosine_similarity(steps[1:], steps[:-1], dim=-1))
    return rows


@torch.no_grad()
def rounding_of(loop: BoundLoop, states: list[Tensor], channels: Mapping[str, slice]) -> NDArray[np.float32]:
    """Return how far from straight the last pass is over a small change of the state, ``(V,)`` as `PASS_ROUNDING` is.

    Smooth functions are straight there but for 1e-8 of their curvature; one that rounds to a short type goes in stairs.
    Random numbers of its own decide the direction of the change.
    """
    before, after = states[-2:]
    change = random_start(1, before.numel(), before)[0].reshape(before.shape)
    for own in channels.values():
        change[..., own] *= SMALL * before[..., own].norm() / change[..., own].norm()
    bend = loop.step(before + change) + loop.step(before - change) - 2 * after
    apart = [bend[..., own].norm() / after[..., own].norm() for own in channels.values()]
    return torch.stack(apart).float().cpu().numpy()


def _mean_over_tokens(values: Tensor) -> NDArray[np.float32]:
    """Return one number per state of ``(T, B, S)``."""
    return values.double().mean((1, 2)).float().cpu().numpy()


def _structure(loop: BoundLoop, state: Tensor) -> Structure:
    """Choose per token where that is exact and one backward pass serves all tokens, else whole."""
    if state.dim() != 3:
        return "whole"
    try:
        return "whole" if TokenJacobian(loop.step, state).coupled else "per token"
    except CausalityError:
        return "whole"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one measurement has for the run file.

    Args:
        values: Numbers of the step, with ``full_loop_seconds``.
        arrays: Arrays of the step.
        event: What a reader of the run should know: how the loop was measured, the first time, or why it is not.
    """

    values: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    event: Event | None = None


class FullLoopProbe:
    """Measure the loop of a model in training again and again; a failure is logged and ends this, not the training.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
    """

    def __init__(self, model: nn.Module, site: LoopSite) -> None:
        self._model, self._site = model, site
        self._structure: Structure | None = None
        self._failed = False

    def measure(self, batch: Call | None, step: int) -> Measured:
        """Return the numbers as they are now; nothing after a failure.

        Training notices nothing: modes, gradients and random states are as before.

        Args:
            batch: The model's call on the fixed batch; `SEQUENCES` sequences and `POSITIONS` positions of it are used.
            step: Training step, for the event.
        """
        if self._failed:
            return Measured()
        began = time.perf_counter()
        try:
            loop, passes, where = self._measured(batch)
        except Exception as error:
            self._failed = True
            message = f"the full loop is not measured in this run: {error}"
            log.warning("loopscope: %s", message)
            return Measured(event=Event(step, time.time(), EVENT, "warning", message=message))
        values = values_of(loop) | {"full_loop_seconds": time.perf_counter() - began}
        event = None
        if self._structure is None and loop.radius is not UNKNOWN:
            self._structure = loop.spectrum
            message = f"full loop measured {where}: {loop.radius.method}"
            event = Event(step, time.time(), EVENT, message=message)
        return Measured(values, arrays_of(loop) | passes, event)

    def _measured(self, batch: Call | None) -> tuple[FullLoop, dict[str, Array], str]:
        """Measure once, in eager mode and without autocast; return the numbers and where they were taken."""
        if batch is None:
            raise LoopSiteError(
                "no forward was seen whose input can be kept (none inside of torch.compile or torch.func can); give "
                "attach() a probe_batch"
            )
        if is_sharded(self._model):
            raise LoopSiteError("its parameters are sharded; linearise a checkpoint instead")
        loops = max(LOOPS, 2 * (self._site.mean_depth or 0))
        late = loops - loops // 2
        part = batch.cut(SEQUENCES, POSITIONS)
        tokens = part.tokens
        wide = torch.autocast(tokens.device.type, enabled=False)
        with wide, eagerly(), bound_loop(self._model, part, site=self._site) as loop:
            # Several variables are judged by where their passes lead: so is the loop, there and not on the way.
            channels = _channels(loop)
            states = _visited(loop, max(loops, PASSES) if channels else loops)
            passes: dict[str, Array] = {}
            if channels:
                passes = {
                    VARIABLE_PASSES: passes_of(states, channels),
                    PASS_ROUNDING: rounding_of(loop, states, channels),
                }
            states = states[: max(loops, _bounded(states)) + 1]
            where = f"at loop {len(states) - 1} of {' x '.join(str(n) for n in tokens.shape[:2])} tokens"
            where += f" ({loop.remark})" if loop.remark else ""
            measured = _measured_at(loop, states, late, self._structure)
            return measured, passes, f"{where} ({CUTS})" if loop.cuts() else where
