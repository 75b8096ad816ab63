"""What the linear part does over the loops: its modes, its resting point, its answers to a kick and to a constant
input.

Shapes: T loops, d state width, m input width, p output width. Fully diagonal systems give diagonals ``(…, d)``
instead of matrices.

Not covered: the blocks of the loop. These are answers of h[t+1] = A̅ h[t] + B̅ e alone.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_float64
from .lti import LTISystem, Matrix, require_stable


class Modes(NamedTuple):
    """Modes of A̅, slowest to decay first.

    Attributes:
        eigenvalues: Multipliers per loop ``(d,)``, complex128, largest modulus first.
        time_constants: Loops until a mode has shrunk to 1/e, ``(d,)``: infinite at modulus 1, negative (loops to grow
            by e) above it, 0 for a multiplier of 0.
        frequencies: Turns per loop ``(d,)`` in (-1/2, 1/2]: 0 for a positive multiplier, 1/2 for one that flips sign.
    """

    eigenvalues: NDArray[np.complex128]
    time_constants: Matrix
    frequencies: Matrix


def modes(system: LTISystem) -> Modes:
    """How long does each mode of the linear part last, and how fast does it turn?

    Cost: the eigenvalues, O(d³) for dense A̅.

    Args:
        system: The linear part.

    Returns:
        Modes; time constants in loops, frequencies in turns per loop.

    Source: λ^t = exp(−t/τ) exp(2πi f t).

    >>> turns = modes(LTISystem([math.exp(-0.5), -math.exp(-1.0)]))
    >>> turns.time_constants.round(12).tolist(), turns.frequencies.tolist()
    ([2.0, 1.0], [0.0, 0.5])
    """
    values = system.eigenvalues()
    with np.errstate(divide="ignore"):
        decay = -np.log(np.abs(values))
        constants = np.where(decay == 0, math.inf, 1 / np.where(decay == 0, 1.0, decay))
    return Modes(values, constants, np.angle(values) / (2 * math.pi))


def steady_state_gain(system: LTISystem) -> Matrix:
    """Where does a constant input take the read-out? The map e → y at rest, C_out (I − A̅)⁻¹ B̅.

    Cost: O(d) for a diagonal system, O(p d m) for diagonal A̅, one solve O(d³) for a dense one.

    Args:
        system: The linear part, stable.

    Returns:
        ``(d,)`` for a fully diagonal system, else ``(p, m)``, in output per input.

    Raises:
        ValueError: ρ(A̅) >= 1: there is no resting point that the loop goes to.

    Source: fixed point of h = A̅ h + B̅ e.

    >>> steady_state_gain(LTISystem([0.5, 0.75])).tolist()
    [2.0, 4.0]
    """
    require_stable(system, "the steady-state gain")
    if system.is_diagonal:
        a, b, c = system.diagonals()
        return c * b / (1 - a)
    a, b, c = system.dense()
    if system.a_bar.ndim < 2:
        resting: Matrix = b / (1 - np.diag(a))[:, None]
    else:
        resting = np.linalg.solve(np.eye(system.width) - a, b).astype(np.float64)
    gain: Matrix = c @ resting
    return gain


def simulate(system: LTISystem, inputs: object, loops: int, initial_state: object = 0.0) -> Matrix:
    """Which states does the linear part visit?

    Cost: O(T d) for diagonal A̅ and B̅, else O(T d²).

    Args:
        system: The linear part.
        inputs: Constant input e: a number or ``(m,)``; or one input per loop ``(loops, m)``.
        loops: Number of loops T >= 0.
        initial_state: h at loop 0: a number or ``(d,)``.

    Returns:
        States ``(T + 1, d)``; row t is h after t loops. Read out with ``states @ C_out.T``.

    Raises:
        ValueError: Negative ``loops``, non-finite entries or shapes that do not fit.

    Source: definition.

    >>> simulate(LTISystem([0.5]), inputs=1.0, loops=3)[:, 0].tolist()
    [0.0, 1.0, 1.5, 1.75]
    """
    if loops < 0:
        raise ValueError(f"loops must not be negative; found {loops}")
    given, start = as_float64(inputs, "inputs"), as_float64(initial_state, "initial_state")
    try:
        driven = np.broadcast_to(given, (loops, system.inputs))
        first = np.broadcast_to(start, (system.width,))
    except ValueError:
        raise ValueError(
            f"inputs must fit ({loops}, {system.inputs}) and initial_state ({system.width},); "
            f"found {given.shape} and {start.shape}"
        ) from None
    added = driven @ system.b_bar.T if system.b_bar.ndim == 2 else driven * system.b_bar
    states = np.empty((loops + 1, system.width))
    states[0] = first
    for t in range(loops):
        carried = system.a_bar @ states[t] if system.a_bar.ndim == 2 else system.a_bar * states[t]
        states[t + 1] = carried + added[t]
    return states


def impulse_response(system: LTISystem, loops: int) -> Matrix:
    """Return what an input given at loop 0 alone leaves in the read-out, loop after loop.

    Cost: O(T d) for a diagonal system, O(T d² m) for a dense one.

    Args:
        system: The linear part.
        loops: Number of loops T >= 0.

    Returns:
        ``(T + 1, d)`` for a fully diagonal system, else ``(T + 1, p, m)``: 0 at loop 0, C_out A̅^(t−1) B̅ at loop t.

    Raises:
        ValueError: Negative ``loops``.

    Source: Markov parameters; Kailath, Linear Systems (1980), chapter 2.

    >>> impulse_response(LTISystem([0.5]), 3)[:, 0].tolist()
    [0.0, 1.0, 0.5, 0.25]
    """
    if loops < 0:
        raise ValueError(f"loops must not be negative; found {loops}")
    if system.is_diagonal:
        a, b, c = system.diagonals()
        powers = a ** np.arange(loops)[:, None]
        return np.vstack([np.zeros(system.width), c * powers * b])
    a, carried, c = system.dense()
    response = np.zeros((loops + 1, system.outputs, system.inputs))
    for t in range(1, loops + 1):
        response[t] = c @ carried
        carried = system.a_bar @ carried if system.a_bar.ndim == 2 else np.diag(a)[:, None] * carried
    return response


def step_response(system: LTISystem, loops: int) -> Matrix:
    """How does the read-out approach its resting point under a constant input switched on at loop 0?

    Cost: as for :func:`impulse_response`.

    Args:
        system: The linear part.
        loops: Number of loops T >= 0.

    Returns:
        ``(T + 1, d)`` for a fully diagonal system, else ``(T + 1, p, m)``; tends to the steady-state gain of a stable
        system.

    Raises:
        ValueError: Negative ``loops``.

    Source: running sum of the impulse response.

    >>> step_response(LTISystem([0.5]), 3)[:, 0].tolist()
    [0.0, 1.0, 1.5, 1.75]
    """
    return np.cumsum(impulse_response(system, loops), axis=0)
