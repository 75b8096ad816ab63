"""Stable, marginal or unstable: said separately of the linear part, of the full loop and of the observed trajectory.

The three views answer different questions and may disagree; :func:`disagreement` says in one sentence what that means.

Not covered: how the numbers behind a regime are computed (``lti``, ``lyapunov``, ``trajectory``), and alarm rules.
"""

import math
from typing import Final, Literal

Regime = Literal["stable", "marginal", "unstable", "unknown"]

LTI_TOLERANCE: Final = 0.01
LYAPUNOV_TOLERANCE: Final = 0.05


def lti_regime(radius: float, tol: float = LTI_TOLERANCE) -> Regime:
    """Regime of the linear part of the loop, from the spectral radius of A̅.

    Below one the linear part forgets, at one it keeps, above one it amplifies what the state carried. Both ends of
    the marginal band belong to it.

    Args:
        radius: Spectral radius ρ(A̅) >= 0, dimensionless; NaN when it is not known.
        tol: Half width of the marginal band around 1.

    Returns:
        ``"stable"``, ``"marginal"``, ``"unstable"``, or ``"unknown"`` for NaN.

    Source: stability of discrete linear time-invariant systems, e.g. Kailath, Linear Systems (1980), section 2.6.

    >>> lti_regime(0.447), lti_regime(1.0), lti_regime(1.02), lti_regime(float("nan"))
    ('stable', 'marginal', 'unstable', 'unknown')
    """
    return _banded(radius, 1.0 - tol, 1.0 + tol)


def loop_regime(lyapunov_max: float, tol: float = LYAPUNOV_TOLERANCE) -> Regime:
    """Regime of the full loop, from its largest Lyapunov exponent (or the logarithm of its Jacobian radius).

    Args:
        lyapunov_max: λ₁ in nats per loop: negative when the loop forgets a small perturbation; ``-inf`` is allowed,
            NaN is unknown.
        tol: Half width of the marginal band around 0, in nats per loop.

    Returns:
        ``"stable"``, ``"marginal"``, ``"unstable"``, or ``"unknown"`` for NaN.

    Source: Benettin et al., Meccanica 15 (1980) 9-30.

    >>> loop_regime(-0.6), loop_regime(0.02), loop_regime(0.3)
    ('stable', 'marginal', 'unstable')
    """
    return _banded(lyapunov_max, -tol, tol)


def worst(*regimes: Regime) -> Regime:
    """The most dangerous of several regimes; unknown ones count only when nothing else is known.

    Args:
        *regimes: Any number of regimes; none at all gives ``"unknown"``.

    Returns:
        The worst regime, in the order unstable, marginal, stable, unknown.

    Source: the order of the three regimes in :func:`lti_regime`; nothing is averaged.

    >>> worst("stable", "unknown", "marginal"), worst("unknown")
    ('marginal', 'unknown')
    """
    order: tuple[Regime, ...] = ("unknown", "stable", "marginal", "unstable")
    return max(regimes, key=order.index, default="unknown")


def disagreement(lti: Regime, loop: Regime, trajectory: Regime) -> str:
    """What it means when the three views of one loop do not agree, in one sentence for a person.

    The linear part is A̅ alone, the full loop is its Jacobian at the visited state, the trajectory is what the states
    did. A view that is unknown says nothing; where the full loop and the trajectory differ, that is told first,
    because it is measured.

    Args:
        lti: Regime of the linear part.
        loop: Regime of the full loop.
        trajectory: Regime of the observed trajectory: settling is stable, drifting or orbiting marginal, exploding
            unstable.

    Returns:
        One sentence, or ``""`` when all known views agree.

    Source: the decomposition h[t+1] = A̅ h[t] + B̅ e + R̅(h[t], e) of arXiv 2604.12946.

    >>> disagreement("stable", "stable", "unknown")
    ''
    >>> disagreement("unstable", "stable", "stable")
    'A̅ alone would amplify the state, but the blocks contain it: stability rests on them and not on the injection.'
    """
    sentence = ""
    if "unknown" not in (loop, trajectory) and loop != trajectory:
        sentence = _LOOP_AGAINST_TRAJECTORY[loop, trajectory]
        if lti not in ("unknown", loop):
            sentence += f" (A̅ alone is {lti})"
    elif lti != "unknown":
        observed, table = (loop, _LTI_AGAINST_LOOP) if loop != "unknown" else (trajectory, _LTI_AGAINST_TRAJECTORY)
        if observed not in ("unknown", lti):
            sentence = table[lti, observed]
    return sentence + "." if sentence else ""


def _banded(value: float, low: float, high: float) -> Regime:
    """Place a number below, inside or above a closed band."""
    if math.isnan(value):
        return "unknown"
    if value < low:
        return "stable"
    return "marginal" if value <= high else "unstable"


_LTI_AGAINST_LOOP: Final[dict[tuple[Regime, Regime], str]] = {
    ("stable", "marginal"): (
        "A̅ contracts, but the blocks use up its margin: the full loop barely forgets, so small changes of the blocks "
        "can make it unstable"
    ),
    ("stable", "unstable"): (
        "A̅ contracts, yet the full loop amplifies small differences: the blocks are the cause, and constraining A̅ "
        "further need not cure it"
    ),
    ("marginal", "stable"): (
        "A̅ alone neither forgets nor amplifies; the blocks make the full loop contract, so stability rests on them and "
        "not on the injection"
    ),
    ("marginal", "unstable"): (
        "A̅ alone neither forgets nor amplifies; the blocks add growth on top of it, and with no contraction in A̅ "
        "nothing linear holds them back"
    ),
    ("unstable", "stable"): (
        "A̅ alone would amplify the state, but the blocks contain it: stability rests on them and not on the injection"
    ),
    ("unstable", "marginal"): (
        "A̅ alone would amplify the state; the blocks hold it just at the edge, where a small change of either can let "
        "it run away"
    ),
}

_LTI_AGAINST_TRAJECTORY: Final[dict[tuple[Regime, Regime], str]] = {
    ("stable", "marginal"): (
        "A̅ contracts, but the states keep drifting or orbiting instead of settling: the blocks keep them moving"
    ),
    ("stable", "unstable"): (
        "A̅ contracts, yet the states run away: the blocks drive the growth, and ρ(A̅) below 1 does not show it"
    ),
    ("marginal", "stable"): (
        "A̅ alone neither forgets nor amplifies, but the states settle: the blocks bring them to rest"
    ),
    ("marginal", "unstable"): (
        "A̅ alone neither forgets nor amplifies, yet the states run away: the blocks add the growth"
    ),
    ("unstable", "stable"): (
        "A̅ alone would amplify the state, yet the observed states settle: the blocks contain the growth, "
        "or too few loops ran for it to show, so test at more loops"
    ),
    ("unstable", "marginal"): (
        "A̅ alone would amplify the state, yet the observed states only drift or orbit: the blocks contain the growth, "
        "or too few loops ran for it to show, so test at more loops"
    ),
}

_LOOP_AGAINST_TRAJECTORY: Final[dict[tuple[Regime, Regime], str]] = {
    ("stable", "marginal"): (
        "The full loop forgets small differences where it was measured, yet the states keep drifting or orbiting: "
        "the measured states do not stand for the whole trajectory, so measure along more loops and tokens"
    ),
    ("stable", "unstable"): (
        "The full loop forgets small differences where it was measured, yet the states run away: "
        "the growth happens at other states or loops, or is a transient of a non-normal loop, so measure along more "
        "loops and tokens"
    ),
    ("marginal", "stable"): (
        "The states settle although the full loop barely forgets small differences: "
        "some direction decays too slowly to matter at this depth, and the margin is thin"
    ),
    ("marginal", "unstable"): (
        "The states run away although small differences neither grow nor shrink: "
        "the growth is common to neighbouring states, as in a drift that accelerates, and a local measurement cannot "
        "see it"
    ),
    ("unstable", "stable"): (
        "The states settle although the full loop amplifies small differences there: "
        "they rest near an unstable fixed point or too few loops ran for the growth to show, so test at more loops"
    ),
    ("unstable", "marginal"): (
        "The states stay bounded or drift although the full loop amplifies small differences: "
        "nearby states part from each other, so the outcome at large depth is sensitive to the start"
    ),
}
