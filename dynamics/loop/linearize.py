"""Everything about one loop in one call: linear part, full loop, trajectory, rest states, safe depth, verdict.

`linearize_loop` takes a *bound* step, ``h -> h'``, and whatever else is known of the loop. Each part runs on its own:
one that cannot be computed (no second derivatives, not causal, out of time) is left out and named with its reason. A
guess never replaces it.

Legend: T loops, B batch, S positions, D width, V vocabulary.

Not covered: finding the loop in a model (`loopscope.linearize` does); training dynamics; models whose step is random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..estimate import Estimate
from ..linear.certificate import certify_radius
from ..linear.certificate import verdict as certificate_words
from ..linear.lti import LTISystem
from ..linear.spectrum import spectral_norm
from ..linear.transient import peak_growth
from ..trajectory.dependence import InputDependence, input_dependence, start_dependence
from ..trajectory.dmd import ModeDecomposition, decompose
from ..trajectory.fixed_point import fixed_points
from ..trajectory.orbits import TokenMap, token_map
from ..trajectory.safe_depth import SafeDepth, judged_from, predicted_depth
from .attribution import SublayerError, SublayerGain, sublayer_gains
from .blocks import JacobianBlock, jacobian_blocks
from .following import follow
from .full_loop import measure_loop, read_out_gain
from .jacobian import LoopJacobian, Step, jacobian_gap
from .linearization import Linearization
from .own_token import find_structure, own_token_step
from .parts import FullLoop, LinearPart
from .per_token import CausalityError

__all__ = ["linearize_loop"]

T = TypeVar("T")
Progress = Callable[[str, float], None]
SNAPSHOTS = 4096
"""At most this many pairs of steps enter the mode decomposition."""
EXPECTED = (
    FloatingPointError,
    NotImplementedError,
    CausalityError,
    SublayerError,
    np.linalg.LinAlgError,
    torch.OutOfMemoryError,
)
"""What a part may fail with without the rest being in doubt."""


def linearize_loop(
    step: Step,
    state: Tensor,
    *,
    loops: int = 16,
    a_bar: Tensor | None = None,
    b_bar: Tensor | None = None,
    c_out: Tensor | None = None,
    read_out: Callable[[Tensor], Tensor] | None = None,
    starts: Sequence[Tensor] = (),
    step_of: Callable[[Tensor], Step] | None = None,
    e: Tensor | None = None,
    sublayers: Mapping[str, nn.Module] | None = None,
    variables: Mapping[str, slice] | None = None,
    count: int = 8,
    horizon: int = 64,
    training_depth: int | None = None,
    budget: float = 150.0,
    progress: Progress | None = None,
) -> Linearization:
    r"""How does this loop behave near the states it visits?

    Runs the loop, linearises it at the last state, follows perturbations, looks for rest states, and predicts how deep
    the model can be run. Costs, in backward passes of one loop: per-token spectra about 40 to 160, norm and transient
    about 600 products, exponents ``4 * loops``, rest states up to 500 loops per start; 25 to 45 s in all for 140M
    parameters and 32 tokens on one busy core. A part that would begin after the budget is left out.

    Args:
        step: One loop with everything but the state bound, ``(B, S, D) -> (B, S, D)``; deterministic
            (``model.eval()``), not compiled.
        state: First state ``h_0``, float32 or float64.
        loops: Depth T to run to and to linearise at, at least 1; 4 for a trajectory verdict, better 16.
        a_bar: A̅ as 0-d, ``(D,)`` or ``(D, D)``; without it there is no linear part.
        b_bar: B̅ likewise.
        c_out: C_out, ``(D', D)``.
        read_out: ``h_T -> logits (B, S, V)``; makes the safe depth one of answers instead of states.
        starts: Further first states, for rest states and dependence on the start.
        step_of: e -> step with that e bound; with ``e`` it gives the dependence on the input.
        e: The input of the loop, ``(B, S, D)``.
        sublayers: Name -> module, in running order, each output carrying the whole state (see `sublayer_gains`).
        variables: Which channels of the state each variable has, where the loop carries several.
        count: Eigenvalues per token.
        horizon: Deepest depth for the safe-depth prediction; at least twice ``loops`` is taken.
        training_depth: Loops of training: the depth whose answers have to stand. None: those of ``loops``.
        budget: Seconds after which no further part is begun.
        progress: Called as ``progress(part, fraction)`` when a part begins, and with ``("done", 1.0)``.

    Returns:
        All numbers with their status, ``.regimes``, ``.verdict`` in words and ``.to_json()``.

    Raises:
        ValueError: The state is not ``(B, S, D)`` in float32 or float64 and finite, or ``loops`` is below 1.

    Source: the system of arXiv 2604.12946; each part names its own source.

    >>> decay = torch.tensor([0.5, 0.2])
    >>> result = linearize_loop(lambda h: decay * h + 1, torch.zeros(1, 3, 2), a_bar=decay)
    >>> print(result.verdict.replace(" | ", "\n"))
    LTI stable (ρ 0.500, certified)
    full loop stable (ρ_J 0.5, λ₁ −0.69)
    transient ×1
    settles geometrically
    safe depth ≥ 64
    """
    if state.dim() != 3 or state.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"state: expected (B, S, D) in float32 or float64, found {tuple(state.shape)} {state.dtype}")
    if not bool(torch.isfinite(state).all()):
        raise ValueError("state: expected finite numbers")
    if loops < 1:
        raise ValueError(f"loops: expected at least 1, found {loops}")
    parts = _Parts(budget, progress)
    states = parts.must("trajectory", lambda: _run(step, state.detach(), loops))
    tokens = token_map(states)
    law, laws, followed = follow(step, states, variables or {}, go_on=lambda: parts.spent < budget / 4)
    finite = states[torch.isfinite(states).flatten(1).all(1)]
    linear = parts.run("linear part", lambda: _linear_part(a_bar, b_bar, c_out), needs=a_bar is not None, what="A̅")
    loop = _full_loop(parts, step, finite, a_bar, c_out, sublayers, count)
    several = [state, *starts]
    return Linearization(
        loops=len(finite) - 1,
        linear=linear,
        loop=loop,
        trajectory=law,
        tokens=tokens,
        depth=parts.run("safe depth", lambda: _depth(tokens, finite, states, read_out, horizon, training_depth)),
        modes=parts.run("modes", lambda: _modes(finite)),
        start=parts.run(
            "start dependence",
            lambda: start_dependence(step, several, loops=horizon),
            needs=len(several) > 1,
            what="a second start",
        ),
        input=parts.run(
            "input dependence",
            lambda: _input(step_of, e, state, horizon),
            needs=step_of is not None and e is not None,
            what="step_of and e",
        ),
        fixed_points=parts.run("fixed points", lambda: fixed_points(step, several, count=count, max_calls=250)) or [],
        variables=laws,
        blocks=_blocks(parts, step, finite[-1], variables or {}),
        skipped=parts.skipped,
        seconds=parts.finish(),
        followed=followed,
    )


class _Parts:
    """Runs the parts one by one: tells the progress, keeps the time, and notes what was left out and why."""

    names = (
        "trajectory",
        "linear part",
        "jacobian",
        "spectrum",
        "whole spectrum",
        "exponents",
        "norm",
        "steady Jacobian",
        "frozen exponents",
        "sublayers",
        "transient",
        "peak growth",
        "gap",
        "abscissa",
        "safe depth",
        "modes",
        "start dependence",
        "input dependence",
        "fixed points",
        "blocks",
    )

    def __init__(self, budget: float, progress: Progress | None) -> None:
        self.budget, self.progress = budget, progress or (lambda part, fraction: None)
        self.skipped: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the first part began."""
        return time.monotonic() - self.began

    def must(self, name: str, part: Callable[[], T]) -> T:
        """Run a part without which there is no result."""
        self.progress(name, self.names.index(name) / len(self.names))
        start = time.monotonic()
        try:
            return part()
        finally:
            self.seconds[name] = time.monotonic() - start

    def run(self, name: str, part: Callable[[], T], *, needs: bool = True, what: str = "") -> T | None:
        """Run a part that may be missing."""
        if not needs:
            self.skipped[name] = f"{what} was not given"
        elif self.spent > self.budget:
            self.skipped[name] = f"the budget of {self.budget:g} s was used up"
        else:
            try:
                return self.must(name, part)
            except EXPECTED as error:
                self.skipped[name] = str(error)
        return None

    def finish(self) -> dict[str, float]:
        """Report that it is done, and return the seconds of every part."""
        self.progress("done", 1.0)
        return self.seconds


@torch.no_grad()
def _run(step: Step, state: Tensor, loops: int) -> Tensor:
    """All states, ``(T + 1, B, S, D)``; a run that stops being finite is kept up to and with its first bad state."""
    states = [state]
    for _ in range(loops):
        states.append(step(states[-1]))
        if not bool(torch.isfinite(states[-1]).all()):
            break
    return torch.stack(states)


def _linear_part(a_bar: Tensor | None, b_bar: Tensor | None, c_out: Tensor | None) -> LinearPart:
    """Return radius with its certificate, norms, and peak growth of the linear part."""
    system = LTISystem(a_bar)
    proven = certify_radius(system.a_bar)
    exact = system.spectral_radius()
    method = f"exact, {proven.method.removeprefix('exact, ')}"
    radius = Estimate(exact.value, proven.lower, proven.upper, exact.residual, method, True)
    return LinearPart(
        radius=radius,
        certificate=certificate_words(proven),
        norm=system.spectral_norm(),
        peak_growth=peak_growth(system).growth,
        input_norm=None if b_bar is None else spectral_norm(b_bar),
        read_out_norm=None if c_out is None else spectral_norm(c_out),
    )


def _full_loop(
    parts: _Parts,
    step: Step,
    states: Tensor,
    a_bar: Tensor | None,
    c_out: Tensor | None,
    sublayers: Mapping[str, nn.Module] | None,
    count: int,
) -> FullLoop | None:
    """Return the Jacobian of the loop at the last finite state, and exponents over the late loops."""
    state, half = states[-1], (len(states) - 1) // 2
    jacobian = parts.run("jacobian", lambda: LoopJacobian(step, state))
    if jacobian is None:
        parts.skipped["spectrum"] = parts.skipped["jacobian"]
        return None
    loop = measure_loop(jacobian, states[half], len(states) - 1 - half, attempt=parts.run, count=count)
    if not loop.eigenvalues.size:
        return None
    gains = parts.run(
        "sublayers",
        lambda: _gains(step, state, sublayers or {}, loop),
        needs=bool(sublayers) and loop.left is not None,
        what="sublayers of a causal loop",
    )
    transient = parts.run("transient", jacobian.transient) or {}
    return replace(
        loop,
        c_out_gain=read_out_gain(c_out, state),
        transient=transient,
        peak=parts.run("peak growth", lambda: jacobian.peak_growth(transient), needs=bool(transient), what="‖J^t‖"),
        gap=parts.run("gap", lambda: _gap(jacobian, a_bar), needs=a_bar is not None, what="A̅"),
        abscissa=parts.run("abscissa", lambda: jacobian.numerical_abscissa(steps=20, tol=1e-2)),
        sublayers=gains or [],
    )


def _blocks(parts: _Parts, step: Step, state: Tensor, variables: Mapping[str, slice]) -> list[JacobianBlock]:
    """Return the blocks of the joint Jacobian of several variables."""
    if len(variables) < 2:
        return []
    return parts.run("blocks", lambda: jacobian_blocks(LoopJacobian(step, state), variables)) or []


def _gains(step: Step, state: Tensor, sublayers: Mapping[str, nn.Module], loop: FullLoop) -> list[SublayerGain]:
    """Return the shares of ``log ρ_J`` of the token with the largest radius, with the coupling between tokens cut."""
    assert loop.left is not None
    radii = np.abs(loop.eigenvalues[..., 0])
    at = np.unravel_index(int(np.argmax(radii)), radii.shape)
    direction = torch.zeros(state.shape, dtype=torch.complex128, device=state.device)
    direction[at[0], at[1]] = torch.from_numpy(loop.left[at]).to(state.device)
    return sublayer_gains(own_token_step(step, find_structure(step, state)), state, sublayers, direction)


def _gap(jacobian: LoopJacobian, a_bar: Tensor | None) -> Estimate:
    """Return the distance of the full loop from A̅."""
    assert a_bar is not None
    return jacobian_gap(jacobian, a_bar, steps=15)


def _input(step_of: Callable[[Tensor], Step] | None, e: Tensor | None, state: Tensor, loops: int) -> InputDependence:
    """Return the dependence of the end state on e."""
    assert step_of is not None and e is not None
    return input_dependence(step_of, e, state, loops=loops)


def _depth(
    tokens: TokenMap,
    finite: Tensor,
    states: Tensor,
    read_out: Callable[[Tensor], Tensor] | None,
    horizon: int,
    training_depth: int | None,
) -> SafeDepth:
    """Return the safe depth of every token, from answers where the read-out is known: those of the training depth."""
    if len(finite) < len(states):
        raise FloatingPointError("the states stopped being finite")
    norm = torch.linalg.vector_norm(states, dim=-1)
    residual = torch.linalg.vector_norm(states[1:] - states[:-1], dim=-1)
    logits = None
    if read_out is not None:
        with torch.no_grad():
            logits = tuple(read_out(h).double().cpu().numpy() for h in (states[-2], states[-1]))
    loops = len(states) - 1
    prediction = predicted_depth(
        residual.permute(1, 2, 0).double().cpu().numpy(),
        state_norm=norm.permute(1, 2, 0).double().cpu().numpy(),
        logits=None if logits is None else (logits[0], logits[1]),
        horizon=max(horizon, 2 * loops),
    )
    if read_out is None or training_depth is None or training_depth >= loops:
        return prediction
    with torch.no_grad():
        later = [read_out(h).argmax(-1).cpu().numpy() for h in states[training_depth:]]
    return judged_from(prediction, np.stack([later[0]] * training_depth + later), training_depth)


def _modes(states: Tensor) -> ModeDecomposition:
    """Modes of the map from one step to the next over the late loops, each pair scaled to the size of its first
    step.
    """
    steps = (states[1:] - states[:-1])[(len(states) - 1) // 2 :]
    if len(steps) < 2:
        raise FloatingPointError("fewer than two late steps")
    before, after = (x.flatten(0, 2).double().cpu().numpy() for x in (steps[:-1], steps[1:]))
    size = np.linalg.norm(before, axis=1)
    # A step is the difference of two states: below some roundings of the state it is noise, whose modes mean nothing.
    rounding = torch.finfo(states.dtype).eps * float(torch.linalg.vector_norm(states, dim=-1).max())
    moving = np.flatnonzero(size > max(1e-6 * size.max(), 1e3 * rounding))
    moving = moving[:: max(1, len(moving) // SNAPSHOTS)]
    if len(moving) < 4:
        raise FloatingPointError("the steps have vanished")
    size = size[moving, None]
    # Few snapshots fit any number of modes; four per mode leave something for the residual to judge.
    rank = max(1, min(len(moving) // 4, before.shape[1]))
    noise = rounding * float(np.linalg.norm(1 / size))
    return decompose(before[moving] / size, after[moving] / size, rank=rank, noise=noise)
