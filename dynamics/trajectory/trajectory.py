"""What a loop does with its state, read from the sizes of its steps.

A loop that settles takes geometrically shrinking steps; one that drifts keeps taking steps of about the same size (or
shrinking too slowly to add up, like 1/t) in the same direction; one that orbits takes such steps while turning; one
that explodes takes growing ones. The decision uses absolute step sizes: a step that becomes small *relative to the
state* proves nothing, because an unbounded linear drift does that too.

Numpy only: it runs on recorded numbers, in the CI gate and in the dashboard.

Legend: T loops run, T residual norms ``‖h[t+1] - h[t]‖`` and T + 1 state norms ``‖h[t]‖`` per series; any leading axes
(runs, tokens).

Not covered: what happens beyond the last loop (a slow orbit whose period is many times T looks like a drift, a spiral
out to a limit cycle like an explosion); sums of several slow geometric modes imitate a power law within 16 loops and
cannot be told from one; periods (`dynamics.orbits`) and rates of perturbations (`dynamics.lyapunov`), which need the
states or the step itself.

Accuracy: on held-out synthetic loops with a first-loop jump, a decaying transient and up to 3 % noise, 99 % or more of
each kind are recognised from 12 loops on; with 8 loops 81 % of the drifts (the transient passes for settling), with 4
to 6 half or fewer. Of models trained in the demo setting at the hot learning rate, 15 of 15 on seeds not used for the
thresholds come out as they should at 16 loops, and the same at 64. Give it twice the mean training depth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..regime import Regime

__all__ = ["Kind", "TrajectoryLaw", "TrajectoryMap", "classify", "classify_map", "late_window"]

Kind = Literal["settling", "drifting", "orbiting", "exploding", "unknown"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REGIME_OF: dict[str, Regime] = {
    "settling": "stable",
    "drifting": "marginal",
    "orbiting": "marginal",
    "exploding": "unstable",
    "unknown": "unknown",
}
MIN_LOOPS = 4
ROUND_OFF = 1e-5
"""A step this small relative to the state is round-off of a float32 loop (24 bits, hundreds of operations)."""
SHRINK_TOLERANCE = 0.01
"""Steps shrink when they do so by more than this per loop: the marginal band of the spectral radius."""
CLEARLY_SHRINKING = 0.95
"""A fitted factor below this is believed from the late loops alone."""
GROW_TOLERANCE = 0.03
"""Steps grow when they do so by more than this per loop: late step ratios track the radius within 0.03."""
FIT_FLOOR = 0.005
"""Scatter of log step size below which two fits are equally good: no real loop follows a law more closely."""
POWER_EVIDENCE = 3.0
"""Log-likelihood by which a power law must beat a geometric one to be believed (less below 8 steps: they carry
less)."""
SUMMABLE_EXPONENT = 1.25
"""Steps ~ t^-p add up for p > 1. Slow approaches to a fixed point have p >= 1.5, so the border is set midway."""
CONFIDENCE = 1.64
"""One-sided 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class TrajectoryLaw:
    """The law that one series of steps follows, and the verdict it implies.

    Attributes:
        kind: ``settling``, ``drifting``, ``orbiting``, ``exploding`` or ``unknown``.
        regime: ``stable``, ``marginal``, ``marginal``, ``unstable`` or ``unknown``, in that order.
        residual_ratio: Geometric mean of ``‖Δ[t+1]‖ / ‖Δ[t]‖`` over the late loops; 0 when steps vanish at once; NaN
            when unknown.
        growth_ratio: The same for ``‖h‖``; NaN without state norms.
        rate: Factor per loop of the fitted geometric law (robuster than the ratio of the window's ends).
        exponent: ``p`` of the fitted power law, steps ~ t^p (negative when they shrink).
        last_step: ``‖h[T] - h[T-1]‖``.
        last_relative_step: The same divided by ``‖h[T]‖``; NaN without state norms.
        method: The law the verdict rests on: ``geometric``, ``power``, ``constant``, ``round-off``, ``non-finite`` or
            ``none``.
        sentence: The verdict for a person, with its numbers.
    """

    kind: Kind
    regime: Regime
    residual_ratio: float
    growth_ratio: float
    rate: float
    exponent: float
    last_step: float
    last_relative_step: float
    method: str
    sentence: str


@dataclass(frozen=True, slots=True)
class TrajectoryMap:
    """`TrajectoryLaw` of many series at once; every array has the leading shape of the input, fields as there.

    ``mean_cosine`` is the mean cosine of successive late steps (NaN where not given).
    """

    kind: NDArray[np.str_]
    method: NDArray[np.str_]
    residual_ratio: Floats
    growth_ratio: Floats
    rate: Floats
    exponent: Floats
    last_step: Floats
    last_relative_step: Floats
    mean_cosine: Floats
    loops: int

    def law(self, *index: int) -> TrajectoryLaw:
        """The verdict of one series, with its sentence.

        >>> print(classify_map(np.ones((2, 16))).law(1).sentence)
        The loop drifts: late steps keep their size (factor 1.000 per loop); the last of 16 is 1.
        """
        kind: Kind = str(self.kind[index])  # type: ignore[assignment]
        law = TrajectoryLaw(
            kind=kind,
            regime=REGIME_OF[kind],
            residual_ratio=float(self.residual_ratio[index]),
            growth_ratio=float(self.growth_ratio[index]),
            rate=float(self.rate[index]),
            exponent=float(self.exponent[index]),
            last_step=float(self.last_step[index]),
            last_relative_step=float(self.last_relative_step[index]),
            method=str(self.method[index]),
            sentence="",
        )
        return replace(law, sentence=_sentence(law, self.loops, float(self.mean_cosine[index])))

    def counts(self) -> dict[str, int]:
        """How many series are of each kind (kinds that do not occur are left out).

        >>> classify_map(np.ones((2, 16))).counts()
        {'drifting': 2}
        """
        names, numbers = np.unique(self.kind, return_counts=True)
        return {str(name): int(number) for name, number in zip(names, numbers, strict=True)}


def late_window(loops: int) -> int:
    """First loop that counts as late: half-way up to 24 loops, then the 12th, then a quarter of the way.

    Transients last a number of loops, not a share of them, and telling 1/t from a geometric law needs a wide span of t.

    >>> [late_window(loops) for loops in (4, 8, 16, 24, 48, 64)]
    [1, 4, 8, 12, 12, 16]
    """
    return max(min(loops // 2, max(loops - 3, 0), 12), loops // 4)


def classify(
    residual_norm: ArrayLike,
    step_cosine: ArrayLike | None = None,
    state_norm: ArrayLike | None = None,
    *,
    round_off: float = ROUND_OFF,
) -> TrajectoryLaw:
    """How does one loop end: does it settle, drift, orbit or explode?

    Compares the law ``log ‖Δ[t]‖ = a + b t`` (geometric) with ``a + p log t`` (power) by least squares over the late
    loops. Shrinking steps settle the loop unless a power law whose steps add up to infinity (``p > -1.25``, or ``p >
    -0.62`` for steps that turn) fits clearly better. Steps that keep their size drift when they keep their direction or
    carry the state away, and orbit when they turn. Growing steps explode unless their growth is dying out or only
    polynomial. Steps at round-off level have settled, non-finite ones exploded. Costs O(T).

    Args:
        residual_norm: ``(T,)``, ``‖h[t+1] - h[t]‖``, e.g. the mean over tokens.
        step_cosine: ``(T,)``, cosine of step t with step t - 1; NaN at t = 0. Tells orbits from drifts.
        state_norm: ``(T + 1,)``, ``‖h[t]‖``. Gives the round-off level, the growth ratio, and tells orbits from drifts.
            A NaN at t = 0 with finite norms behind it was not recorded; the loop is then judged from t = 1.
        round_off: Relative size under which a step is round-off. The default fits float32 states; use 2e-2 for bfloat16
            ones.

    Returns:
        The law with its verdict. Fewer than 4 loops give ``unknown``.

    Raises:
        ValueError: A series is not one-dimensional or the lengths do not fit together (the message gives the shapes).

    Source: fixed points, orbits and sliders as in Geiping et al., arXiv 2502.05171, decided here by the decay law of
    absolute steps.

    >>> import numpy as np
    >>> t = np.arange(16)
    >>> classify(0.9**t).kind, round(classify(0.9**t).rate, 3)
    ('settling', 0.9)
    >>> classify(1 / (t + 1.0)).kind, classify(2.0**t).kind
    ('drifting', 'exploding')
    >>> classify(np.ones(16), step_cosine=np.full(16, -1.0)).kind
    'orbiting'
    >>> unseen = np.array([np.nan])
    >>> classify(np.append(unseen, 0.9 ** t), state_norm=np.append(unseen, np.ones(17))).kind
    'settling'
    """
    residual = np.asarray(residual_norm, np.float64)
    if residual.ndim != 1:
        raise ValueError(
            f"residual_norm: expected one series (T,), found shape {residual.shape}; use classify_map for many"
        )
    return classify_map(residual, step_cosine, state_norm, round_off=round_off).law()


def classify_map(
    residual_norm: ArrayLike,
    step_cosine: ArrayLike | None = None,
    state_norm: ArrayLike | None = None,
    *,
    round_off: float = ROUND_OFF,
) -> TrajectoryMap:
    """`classify` for many series at once, e.g. every token of a batch.

    Args:
        residual_norm: ``(..., T)``.
        step_cosine: ``(..., T)`` or None.
        state_norm: ``(..., T + 1)`` or None.
        round_off: As in `classify`.

    Returns:
        Arrays of the leading shape; costs O(T) vectorised numpy per series.

    Raises:
        ValueError: The shapes do not fit together.

    Source: as `classify`.

    >>> import numpy as np
    >>> t = np.arange(16)
    >>> classify_map(np.stack([0.5**t, 3.0**t, np.ones(16)])).kind.tolist()
    ['settling', 'exploding', 'drifting']
    """
    residual = np.asarray(residual_norm, np.float64)
    if residual.ndim == 0:
        raise ValueError("residual_norm: expected (..., T), found a number")
    *lead, loops = residual.shape
    if loops == 0:
        raise ValueError("residual_norm: expected at least one loop, found none")
    rows = residual.reshape(int(np.prod(lead, dtype=np.int64)), loops)
    state = _rows(state_norm, "state_norm", (*lead, loops + 1))
    cosine = _rows(step_cosine, "step_cosine", (*lead, loops))
    if loops > 1 and _starts_unseen(rows, state):
        rows, cosine, state = rows[:, 1:], cosine[:, 1:], state[:, 1:]
    found = _classify_rows(rows, cosine, state, round_off)
    arrays = {f.name: getattr(found, f.name).reshape(lead) for f in fields(found) if f.name != "loops"}
    return replace(found, **arrays)


def _starts_unseen(residual: Floats, state: Floats) -> bool:
    """Whether the first state was not recorded: NaN everywhere, yet finite ones follow, which no NaN state has."""
    missing = np.isnan(state[:, 0]) & np.isnan(residual[:, 0])
    return bool(missing.all() and np.isfinite(state[:, 1]).any())


def _rows(values: ArrayLike | None, name: str, shape: tuple[int, ...]) -> Floats:
    """The series as float64 rows; NaN where not given."""
    if values is None:
        return np.full((int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]), np.nan)
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {array.shape}")
    return array.reshape(-1, shape[-1])


def _classify_rows(residual: Floats, cosine: Floats, state: Floats, round_off: float) -> TrajectoryMap:
    """The whole decision on rows ``(N, T)``."""
    count, loops = residual.shape
    with np.errstate(all="ignore"):
        known = ~_all(np.isnan(state))
        bad = ~_all(np.isfinite(residual)) | (known & ~_all(np.isfinite(state)))
        safe = np.where(bad[:, None], 1.0, residual)
        end = _end_above_round_off(safe, state, known & ~bad, round_off)
        mask, start = _late_mask(safe, end)
        fit = _fits(safe, mask, _wide_mask(safe, end))
        cosine_mean = _mean(cosine, np.arange(loops)[None] >= start[:, None])
        late = np.full(count, late_window(loops))
        ratio = np.where(bad, np.inf, np.where(end < 2, 0.0, _ratio(safe, start, end - 1)))
        growth = np.where(bad & known, np.inf, _ratio(state, late, np.full(count, loops)))
        if loops >= MIN_LOOPS:
            away = _moves_away(safe, state, cosine_mean, start)
            kind, method = _decide(bad, end < loops, _laws(safe, fit, away), away)
        else:
            kind, method = np.where(bad, "exploding", "unknown"), np.where(bad, "non-finite", "none")
            ratio, growth = np.where(bad, ratio, np.nan), np.where(bad, growth, np.nan)
        fitted = ~bad & (mask.sum(axis=1) >= 3)
        last = residual[:, -1]
        return TrajectoryMap(
            kind=kind,
            method=method,
            residual_ratio=ratio,
            growth_ratio=growth,
            rate=np.where(fitted, np.exp(fit.slope), np.where(bad, np.nan, ratio)),
            exponent=np.where(fitted, fit.exponent, np.nan),
            last_step=last,
            last_relative_step=np.where((last == 0) & known, 0.0, last / state[:, -1]),
            mean_cosine=cosine_mean,
            loops=loops,
        )


def _all(values: Bools) -> Bools:
    """Whether every entry of each row holds."""
    return np.asarray(values.all(axis=1), np.bool_)


def _end_above_round_off(residual: Floats, state: Floats, known: Bools, round_off: float) -> NDArray[np.int64]:
    """One past the last loop whose step is above round-off; T when the loop still moves at its end."""
    loops = residual.shape[1]
    # Without state norms the largest step so far stands in for the state: it never marks the start of an explosion as
    # round-off.
    scale = np.where(known[:, None], state[:, 1:], np.maximum.accumulate(residual, axis=1))
    moving = residual > round_off * scale
    return np.where(moving.any(axis=1), loops - np.argmax(moving[:, ::-1], axis=1), 0)


def _late_mask(residual: Floats, end: NDArray[np.int64]) -> tuple[Bools, NDArray[np.int64]]:
    """Which loops enter the fit (late, before round-off, non-zero) and where they start, per row."""
    starts = np.array([late_window(length) for length in range(residual.shape[1] + 1)], np.int64)
    start = starts[end]
    t = np.arange(residual.shape[1])[None]
    return (t >= start[:, None]) & (t < end[:, None]) & (residual > 0), start


def _wide_mask(residual: Floats, end: NDArray[np.int64]) -> Bools:
    """All loops from the first quarter on, before round-off."""
    t = np.arange(residual.shape[1])[None]
    return (t >= np.maximum(1, end // 4)[:, None]) & (t < end[:, None]) & (residual > 0)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Slope of the geometric law with its standard error, exponent of the power law, evidence for power over
    geometric.
    """

    slope: Floats
    error: Floats
    exponent: Floats
    evidence: Floats
    wide_slope: Floats
    points: NDArray[np.int64]


def _fits(residual: Floats, mask: Bools, wide: Bools) -> _Fit:
    """Both laws, fitted by least squares to each row."""
    t = np.arange(residual.shape[1], dtype=np.float64)[None]
    y = np.log(np.where(mask, residual, 1.0))
    n = mask.sum(axis=1)
    slope, geometric, spread = _line(t, y, mask)
    exponent, power, _ = _line(np.log(t + 1), y, mask)
    wide_slope = _line(t, np.log(np.where(wide, residual, 1.0)), wide)[0]
    noise = n * FIT_FLOOR**2
    evidence = 0.5 * n * np.log((geometric + noise) / (power + noise))
    # The scatter about the better law is the noise; the worse one's misfit is not.
    error = np.sqrt(np.minimum(geometric, power) / np.maximum(n - 2, 1) / np.maximum(spread, 1e-300))
    return _Fit(slope, error, exponent, np.where(n >= 3, evidence, 0.0), wide_slope, n)


def _line(x: Floats, y: Floats, mask: Bools) -> tuple[Floats, Floats, Floats]:
    """Least-squares slope, residual sum of squares and spread of x, per row over the masked points."""
    n = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    dx = np.where(mask, x - (np.where(mask, x, 0).sum(axis=1, keepdims=True) / n), 0)
    dy = np.where(mask, y - (np.where(mask, y, 0).sum(axis=1, keepdims=True) / n), 0)
    spread = (dx * dx).sum(axis=1)
    slope = (dx * dy).sum(axis=1) / np.where(spread > 0, spread, 1)
    return slope, ((dy - slope[:, None] * dx) ** 2).sum(axis=1), spread


def _laws(residual: Floats, fit: _Fit, away: Bools) -> dict[str, Bools]:
    """Which of the laws each row follows."""
    shrinking = fit.slope + CONFIDENCE * fit.error < np.log1p(-SHRINK_TOLERANCE)
    # Slow shrinking must show in the longer history too: a drift whose steps wobble shrinks for a few loops now and
    # then.
    shrinking &= (fit.slope < np.log(CLEARLY_SHRINKING)) | (fit.wide_slope < 0.7 * fit.slope)
    growing = fit.slope - CONFIDENCE * fit.error > np.log1p(GROW_TOLERANCE)
    # Growth that has fallen to a quarter of its mean over the window is saturating, not exploding.
    tail = max(1, residual.shape[1] // 5)
    recent = (np.log(residual[:, -1]) - np.log(residual[:, -1 - tail])) / tail
    growing &= recent > 0.25 * fit.slope
    power = (fit.evidence > np.minimum(POWER_EVIDENCE, POWER_EVIDENCE / 8 * fit.points)) & (shrinking | growing)
    # Steps in one direction add up when sum(t^-p) diverges; steps in ever new directions when sum(t^-2p) does.
    border = np.where(away, SUMMABLE_EXPONENT, SUMMABLE_EXPONENT / 2)
    slow = shrinking & power & (fit.exponent > -border)
    return {
        "power": power,
        "settling": shrinking & ~slow,
        "drifting": slow | (growing & power),
        "exploding": growing & ~power,
    }


def _moves_away(residual: Floats, state: Floats, mean_cosine: Floats, start: NDArray[np.int64]) -> Bools:
    """Do steps of constant size carry the state away (drift) rather than round and round (orbit)?"""
    count, loops = residual.shape
    t = np.arange(loops)[None]
    path = np.where(t >= start[:, None], residual, 0).sum(axis=1)
    gained = state[:, -1] - state[np.arange(count), np.minimum(start, loops)]
    efficiency = gained / np.where(path > 0, path, 1)
    turned = np.arccos(np.clip(mean_cosine, -1, 1)) * (loops - start)
    straight = turned < np.pi / 2
    knows_turn, knows_gain = ~np.isnan(mean_cosine), ~np.isnan(efficiency)
    # A random walk in many dimensions turns by 90 degrees at each step and still leaves: over loops 8 to 16 its norm
    # gains about 0.15 of its path.
    leaves = efficiency > np.where(mean_cosine < -0.5, 0.3, 0.1)
    with_both, with_turn = straight | leaves, mean_cosine > 0.5
    return np.where(knows_turn, np.where(knows_gain, with_both, with_turn), ~knows_gain | leaves)


def _decide(
    bad: Bools, settled: Bools, laws: dict[str, Bools], away: Bools
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Verdict and the law it rests on; the first condition that holds decides."""
    kind = np.select(
        [bad, settled, laws["settling"], laws["exploding"], laws["drifting"] | away],
        ["exploding", "settling", "settling", "exploding", "drifting"],
        "orbiting",
    )
    method = np.select(
        [bad, settled, laws["power"], laws["settling"] | laws["exploding"]],
        ["non-finite", "round-off", "power", "geometric"],
        "constant",
    )
    return kind, method


def _ratio(values: Floats, first: NDArray[np.int64], last: NDArray[np.int64]) -> Floats:
    """Geometric mean of successive ratios between two loops of each row."""
    rows = np.arange(len(values))
    first, last = np.clip(first, 0, values.shape[1] - 1), np.clip(last, 0, values.shape[1] - 1)
    first = np.minimum(first, np.maximum(last - 1, 0))
    span = np.maximum(last - first, 1)
    return np.where(last > first, (values[rows, last] / values[rows, first]) ** (1 / span), np.nan)


def _mean(values: Floats, mask: Bools) -> Floats:
    """Mean of the finite masked values of each row; NaN where there is none."""
    keep = mask & np.isfinite(values)
    n = keep.sum(axis=1)
    return np.where(n > 0, np.where(keep, values, 0).sum(axis=1) / np.maximum(n, 1), np.nan)


def _sentence(law: TrajectoryLaw, loops: int, cosine: float) -> str:
    """The verdict for a person."""
    share = f" ({100 * law.last_relative_step:.2g} % of the state)" if np.isfinite(law.last_relative_step) else ""
    end = f"; the last of {loops} is {law.last_step:.3g}{share}."
    if law.kind == "unknown":
        return f"{loops} loops are too few to tell how the steps change; at least {MIN_LOOPS} are needed."
    if law.method == "non-finite":
        return f"The loop explodes: the state stopped being finite within {loops} loops."
    if law.method == "round-off":
        shrank = f" after shrinking by a factor {law.rate:.3f} per loop" if law.rate > 0 else ""
        return f"The loop has settled: its steps are down to round-off{shrank}{end}"
    if law.kind == "settling" and law.method == "power":
        return f"The loop settles slowly: late steps shrink like t^{law.exponent:.2f}{end}"
    if law.kind == "settling":
        return f"The loop settles: late steps shrink by a factor {law.rate:.3f} per loop{end}"
    if law.kind == "exploding":
        state = f" and the state norm by {law.growth_ratio:.3f}" if np.isfinite(law.growth_ratio) else ""
        return f"The loop explodes: late steps grow by a factor {law.rate:.3f} per loop{state}{end}"
    if law.method == "power":
        how = "shrink too slowly to add up" if law.exponent < 0 else "grow, but only polynomially"
        return f"The loop drifts: late steps {how}, like t^{law.exponent:.2f}{end}"
    turn = f" with cosine {cosine:.2f} from one to the next" if np.isfinite(cosine) else ""
    verb = "drifts" if law.kind == "drifting" else "stays in bounds without settling (an orbit)"
    return f"The loop {verb}: late steps keep their size (factor {law.residual_ratio:.3f} per loop){turn}{end}"
