"""Stable, marginal or unstable: said separately of the linear part, of the full loop and of the observed trajectory.

The three views answer different questions and may disagree; :func:`disagreement` says in one sentence what that means.
:func:`overall` makes one verdict of them, and :func:`views` puts all of it together. It is the only rule of its kind:
`diagnose`, `linearize`, `check` and the dashboard use it.

Not covered: how the numbers behind a regime are computed (``lti``, ``lyapunov``, ``trajectory``), and alarm rules.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

Regime = Literal["stable", "marginal", "unstable", "unknown"]

LTI_TOLERANCE: Final = 0.01
LYAPUNOV_TOLERANCE: Final = 0.05


def lti_regime(radius: float, tol: float = LTI_TOLERANCE) -> Regime:
    """Return the regime of the linear part of the loop, from the spectral radius of A̅.

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
    """Return the regime of the full loop, from its largest Lyapunov exponent (or the logarithm of its Jacobian radius).

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


def full_loop_regime(
    log_radius: float,
    lyapunov_max: float,
    tol: float = LYAPUNOV_TOLERANCE,
    *,
    transient: bool = False,
    at_rest: bool = False,
    drift: float = 0.0,
) -> Regime:
    """Regime of the full loop from both of its rates: that of either where only one is known, ``marginal`` where the
    two disagree.

    Neither is the rate for ever: over a few loops a transient passes for an exponent, and the state may move on from
    where the radius was taken. So neither outvotes the other. There are two exceptions. Where a transient was seen to
    be all that the exponent shows, the radius decides. And at rest, J is the same in all loops to come: then ρ(J) is
    the rate for ever, is known as well as ρ of any matrix, and has the band of one, `LTI_TOLERANCE`.

    While states drift away, a perturbation that grows no faster than the state is no instability either: beside the
    state it keeps its size, and like the state it grows like a power of t, whose rate falls with depth.

    Args:
        log_radius: ``log ρ(J)`` at the last state, nats per loop; NaN when it was not measured or did not converge.
        lyapunov_max: λ₁ over the late loops, nats per loop; NaN likewise.
        tol: Half width of the marginal band of rates that hold for some loops only.
        transient: The Jacobian of the last state alone gives such an exponent over as many loops.
        at_rest: J does not change any more from loop to loop.
        drift: Rate at which the norm of a drifting state grows, nats per loop; 0 where the state does not drift.

    Returns:
        The regime; see `rates_disagree`.

    Source: a Jordan block of 0.9 is stable, and grows for its first loops.

    >>> from loopscope.dynamics import full_loop_regime
    >>> full_loop_regime(-0.1, 0.18), full_loop_regime(-0.1, float("nan")), full_loop_regime(0.2, 0.3)
    ('marginal', 'stable', 'unstable')
    >>> full_loop_regime(-0.1, 0.18, transient=True)
    'stable'
    >>> full_loop_regime(-0.02, -0.02), full_loop_regime(-0.02, -0.02, at_rest=True)
    ('marginal', 'stable')
    >>> full_loop_regime(0.06, 0.07), full_loop_regime(0.06, 0.07, drift=0.08)
    ('unstable', 'marginal')
    """
    by_radius, by_exponent = _regimes(log_radius, lyapunov_max, tol, at_rest, drift)
    agree = at_rest and not rates_disagree(log_radius, lyapunov_max, tol, at_rest=True, drift=drift)
    if by_radius != "unknown" and (transient or agree):
        return by_radius
    known = {regime for regime in (by_radius, by_exponent) if regime != "unknown"}
    return "unknown" if not known else known.pop() if len(known) == 1 else "marginal"


def rates_disagree(
    log_radius: float,
    lyapunov_max: float,
    tol: float = LYAPUNOV_TOLERANCE,
    *,
    at_rest: bool = False,
    drift: float = 0.0,
) -> bool:
    """Return whether the two rates of the full loop are known, in different regimes, and farther apart than ``tol``.

    Args:
        log_radius: ``log ρ(J)``, nats per loop; NaN when it is not known.
        lyapunov_max: λ₁, nats per loop; NaN likewise.
        tol: Half width of the marginal band, and the difference that counts.
        at_rest: As in `full_loop_regime`, and so is ``drift``.
        drift: See there.

    Source: both are rates of the same loop in the long run, where it is at rest: Eckmann and Ruelle, Rev. Mod. Phys. 57
    (1985) 617.

    >>> from loopscope.dynamics import rates_disagree
    >>> rates_disagree(-0.3, 0.3), rates_disagree(-0.3, -0.4), rates_disagree(float("nan"), 0.3)
    (True, False, False)
    >>> rates_disagree(-0.04, -0.06)
    False
    """
    regimes = {*_regimes(log_radius, lyapunov_max, tol, at_rest, drift)} - {"unknown"}
    return len(regimes) > 1 and abs(log_radius - lyapunov_max) > tol


def _regimes(log_radius: float, lyapunov_max: float, tol: float, at_rest: bool, drift: float) -> tuple[Regime, Regime]:
    """Return the regimes of ρ(J) alone, which at rest has the band of a matrix, and of λ₁ alone."""
    band = -tol, max(tol, drift)
    of_matrix = math.log(1.0 - LTI_TOLERANCE), math.log(1.0 + LTI_TOLERANCE)
    return _banded(log_radius, *(of_matrix if at_rest else band)), _banded(lyapunov_max, *band)


def worst(*regimes: Regime) -> Regime:
    """Return the most dangerous of several regimes; unknown ones count only when nothing else is known.

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


def overall(lti: Regime, loop: Regime, trajectory: Regime, *, bounded: bool = False) -> Regime:
    """Return the verdict on a loop: the worse of its full loop's and its trajectory's; A̅ alone only without both.

    What was measured on the loop outranks its linear part: blocks can hold a loop whose A̅ alone would amplify
    (sandwich norm does), and drive one whose A̅ contracts. :func:`disagreement` says how the views differ. A trajectory
    that is undecided between laws of which none explodes is measured as well: A̅ alone does not make it unstable.

    Args:
        lti: Regime of the linear part.
        loop: Regime of the full loop.
        trajectory: Regime of the observed trajectory.
        bounded: The trajectory is undecided, but does not explode by either of its two laws.

    Returns:
        The overall regime.

    Source: the decomposition h[t+1] = A̅ h[t] + B̅ e + R̅(h[t], e) of arXiv 2604.12946: A̅ is one term of three.

    >>> from loopscope.dynamics import overall
    >>> overall("unstable", "unknown", "stable"), overall("stable", "stable", "unstable")
    ('stable', 'unstable')
    >>> overall("unstable", "unknown", "unknown"), overall("unstable", "unknown", "unknown", bounded=True)
    ('unstable', 'marginal')
    """
    measured = worst(loop, trajectory)
    if measured != "unknown":
        return measured
    return "marginal" if bounded and lti == "unstable" else lti


@dataclass(frozen=True, slots=True)
class Views:
    """The three regimes of one loop, and what follows from them.

    Attributes:
        regimes: ``lti``, ``loop`` and ``trajectory``.
        verdict: The overall regime.
        cycle: The states orbit and λ₁ < 0: an attracting cycle. λ₁ alone then speaks for the full loop, for ρ(J)
            belongs to one state of the cycle.
        rates_disagree: The two rates of the full loop disagree, and neither a cycle nor a transient explains it.
        sentence: What it means that the views differ; empty when they agree.
    """

    regimes: dict[str, Regime]
    verdict: Regime
    cycle: bool
    rates_disagree: bool
    sentence: str


def views(
    radius: float,
    log_radius: float,
    lyapunov_max: float,
    trajectory: Regime,
    *,
    orbits: bool = False,
    settled: bool = False,
    bounded: bool = False,
    steady: bool = False,
    transient: bool = False,
    drift: float = 0.0,
) -> Views:
    """Return what the measurements of one loop say together.

    This is how `diagnose` (and with it `check`), `linearize` and the dashboard come to their verdicts.

    Args:
        radius: ρ(A̅); NaN when it is not known, as the two rates.
        log_radius: ``log ρ(J)`` at the last state, nats per loop.
        lyapunov_max: λ₁ over the late loops, nats per loop.
        trajectory: Regime of the observed trajectory.
        orbits: Whether the states orbit.
        settled: Whether the steps shrink geometrically or are down to round-off. That vouches for ρ(J) < 1 at the rest
            that the states come to, never for growth there: states that settle near a ρ(J) above 1 contradict it.
        bounded: As in `overall`.
        steady: Whether J was seen to be the same over the late loops.
        transient: As in `full_loop_regime`.
        drift: Likewise.

    Returns:
        The regimes, the verdict and the disagreement.

    Source: `overall`, `full_loop_regime` and `disagreement`, which it puts together.

    >>> seen = views(1.3, -0.4, -0.5, "stable")
    >>> seen.regimes["lti"], seen.verdict, seen.sentence.split(",")[0]
    ('unstable', 'stable', 'A̅ alone would amplify the state')
    >>> near = float("nan"), math.log(0.98), math.log(0.98), "stable"      # 34 loops halve a perturbation
    >>> views(*near).verdict, views(*near, settled=True).verdict
    ('marginal', 'stable')
    """
    cycle = orbits and loop_regime(lyapunov_max) == "stable"
    at_rest = steady or (settled and log_radius < 0)
    explained = cycle or transient
    differ = rates_disagree(log_radius, lyapunov_max, at_rest=at_rest, drift=drift) and not explained
    lti = lti_regime(radius)
    loop = full_loop_regime(log_radius, lyapunov_max, transient=transient, at_rest=at_rest, drift=drift)
    loop = "stable" if cycle else loop
    return Views(
        regimes={"lti": lti, "loop": loop, "trajectory": trajectory},
        verdict=overall(lti, loop, trajectory, bounded=bounded),
        cycle=cycle,
        rates_disagree=differ,
        sentence=disagreement(lti, loop, trajectory, rates_differ=differ, cycle=cycle, bounded=bounded),
    )


def disagreement(
    lti: Regime,
    loop: Regime,
    trajectory: Regime,
    *,
    rates_differ: bool = False,
    cycle: bool = False,
    bounded: bool = False,
) -> str:
    """Say what it means that the three views of one loop do not agree, in one sentence for a person.

    The linear part is A̅ alone, the full loop is its Jacobian at the visited state, the trajectory is what the states
    did. A view that is unknown says nothing. Where the full loop and the trajectory differ, the sentence begins with
    that, because both are measured.

    Args:
        lti: Regime of the linear part.
        loop: Regime of the full loop.
        trajectory: Regime of the observed trajectory: settling is stable, drifting or orbiting marginal, exploding
            unstable.
        rates_differ: The two rates of the full loop disagree, see `rates_disagree`; the sentence is then about that.
        cycle: The states orbit and λ₁ < 0: an attracting cycle, in which the full loop and the trajectory agree.
        bounded: As in `overall`.

    Returns:
        One sentence, or ``""`` when all known views agree.

    Source: the decomposition h[t+1] = A̅ h[t] + B̅ e + R̅(h[t], e) of arXiv 2604.12946.

    >>> disagreement("stable", "stable", "unknown")
    ''
    >>> disagreement("unstable", "stable", "stable")
    'A̅ alone would amplify the state, but the blocks contain it: stability rests on them and not on the injection.'
    """
    sentence = ""
    if cycle:
        loop = "unknown"  # the trajectory speaks for both
    if rates_differ and not cycle:
        sentence = _RATES_DIFFER + _ALONE.get((lti, trajectory), "")
    elif "unknown" not in (loop, trajectory) and loop != trajectory:
        sentence = _LOOP_AGAINST_TRAJECTORY[loop, trajectory]
        if lti not in ("unknown", loop):
            sentence += f" (A̅ alone is {lti})"
    elif bounded and (lti, loop, trajectory) == ("unstable", "unknown", "unknown"):
        sentence = _LTI_AGAINST_BOUNDED
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


_RATES_DIFFER: Final = (
    "The two rates of the full loop disagree, the one over the late loops and the one at the last state: a transient "
    "of a non-normal loop, or a state that moves on, so measure along more loops"
)
_ALONE: Final[dict[tuple[Regime, Regime], str]] = {
    ("unstable", "stable"): " (A̅ alone would amplify, yet the states settle)",
    ("unstable", "marginal"): " (A̅ alone would amplify, yet the states only drift or orbit)",
    ("stable", "unstable"): " (A̅ alone contracts, yet the states run away)",
}

_LTI_AGAINST_BOUNDED: Final = (
    "A̅ alone would amplify the state, yet the observed states do not run away by either of their two laws: the blocks "
    "contain the growth, or too few loops ran for it to show, so test at more loops"
)

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
