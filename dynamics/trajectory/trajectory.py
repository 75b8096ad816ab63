"""What a loop does with its state, read from the sizes of its steps.

A loop that settles takes shrinking steps that add up to something finite; one that drifts keeps taking steps of about
the same size (or shrinking too slowly to add up, like 1/t) and gets away; one that orbits takes such steps while
turning; one that explodes takes geometrically growing ones, or stops being finite. The decision uses absolute step
sizes: a step that becomes small *relative to the state* proves nothing, because an unbounded linear drift does that
too. Where the loops that were run fit two kinds, the answer is ``undecided``, with both kinds and the number of loops
that would tell.

Numpy only: it runs on recorded numbers, in the CI gate and in the dashboard.

Legend: T loops run, T residual norms ``‖h[t+1] - h[t]‖`` and T + 1 state norms ``‖h[t]‖`` per series; any leading axes
(runs, tokens).

Not covered: what happens beyond the last loop (growth that is still hidden under a larger decaying transient; an orbit
whose period is longer than the window looks like a drift); an orbit smaller than the round-off of the states; periods
(`dynamics.orbits`) and rates of perturbations (`dynamics.lyapunov`), which need the states or the step itself.

Accuracy: `benchmarks/trajectory.py`; its table is in docs/theory.md, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..regime import Regime
from ..shown import Shown
from .direction import STRAIGHT, direction, mean_where
from .humps import humps
from .round_off import FLOOR_GROWTH, ROUND_OFF, ROUND_OFF_OF, end_above, follows_a_law
from .step_laws import BAND, CLASSES, LawFits, fit_laws
from .trajectory_law import Kind, TrajectoryLaw, sentence_of

__all__ = [
    "ROUND_OFF",
    "ROUND_OFF_OF",
    "Kind",
    "TrajectoryLaw",
    "TrajectoryMap",
    "classify",
    "classify_map",
    "late_window",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

REGIME_OF: Final[dict[str, Regime]] = {
    "settling": "stable",
    "drifting": "marginal",
    "orbiting": "marginal",
    "exploding": "unstable",
    "undecided": "unknown",
    "unknown": "unknown",
}
MIN_LOOPS: Final = 4
EVIDENCE: Final = 6.0
"""A class of laws is ruled out when its best law misses by this much more than the best one (twice the log-likelihood;
a normal error of 2.4 standard deviations), and by more where fewer than ten loops tell what their scatter is."""
FEW_LOOPS: Final = 3.0
"""The evidence asked for grows by ``(3 / n)²`` of itself for a fit to n loops."""
EDGE_EVIDENCE: Final = 2.0
"""The same for growth or decay by no more than 1 % per loop beside steps that last."""
VISIBLE_CHANGE: Final = (0.2, 10.0)
"""Logarithm by which the steps must have shrunk or grown over the n fitted loops before that is called a law: the first
number plus the second over n², for a few loops wander as far by chance."""
FAR: Final = 1.6
"""Logarithm by which the steps must have shrunk within the fitted loops, a factor of five, before they are believed to
settle although they still turn by another angle at every loop."""
GROWN: Final = 0.35
"""The same for growth, a factor of 1.4 from the smallest fitted step to the last: chaos wanders by less."""
STEADY: Final = 0.03
"""Difference of the cosines of the later fitted loops from the last one, up to which the angle is the same."""
AHEAD: Final = 8
"""How many times the loops run are looked ahead for the depth at which two laws part."""


@dataclass(frozen=True, slots=True, repr=False)
class TrajectoryMap(Shown):
    """`TrajectoryLaw` of many series at once; every array has the leading shape of the input, fields as there.

    ``mean_cosine`` is the mean cosine of successive late steps (NaN where not given). ``first`` and ``second`` are the
    kinds an undecided series is undecided between, and empty elsewhere; ``first_law`` and ``second_law`` say with which
    factor or power of t. ``bad_loop`` is the first loop whose state is not finite, 0 where all are.
    """

    kind: NDArray[np.str_]
    regime: NDArray[np.str_]
    method: NDArray[np.str_]
    residual_ratio: Floats
    growth_ratio: Floats
    rate: Floats
    exponent: Floats
    last_step: Floats
    last_relative_step: Floats
    mean_cosine: Floats
    first: NDArray[np.str_]
    second: NDArray[np.str_]
    first_law: NDArray[np.str_]
    second_law: NDArray[np.str_]
    more_loops: Integers
    bad_loop: Integers
    loops: int

    def law(self, *index: int) -> TrajectoryLaw:
        """Return the verdict of one series, with its sentence.

        >>> print(classify_map(np.ones((2, 16))).law(1).sentence)
        The loop drifts: late steps keep their size (factor 1.000 per loop); the last of 16 is 1.
        """
        between = tuple(str(name[index]) for name in (self.first, self.second) if str(name[index]))
        law = TrajectoryLaw(
            kind=str(self.kind[index]),  # type: ignore[arg-type]
            regime=str(self.regime[index]),  # type: ignore[arg-type]
            residual_ratio=float(self.residual_ratio[index]),
            growth_ratio=float(self.growth_ratio[index]),
            rate=float(self.rate[index]),
            exponent=float(self.exponent[index]),
            last_step=float(self.last_step[index]),
            last_relative_step=float(self.last_relative_step[index]),
            method=str(self.method[index]),
            sentence="",
            between=between,
            more_loops=int(self.more_loops[index]),
        )
        laws = (str(self.first_law[index]), str(self.second_law[index]))
        words = sentence_of(law, self.loops, float(self.mean_cosine[index]), laws, int(self.bad_loop[index]), MIN_LOOPS)
        return replace(law, sentence=words)

    def counts(self) -> dict[str, int]:
        """Return how many series are of each kind (kinds that do not occur are left out).

        >>> classify_map(np.ones((2, 16))).counts()
        {'drifting': 2}
        """
        names, numbers = np.unique(self.kind, return_counts=True)
        return {str(name): int(number) for name, number in zip(names, numbers, strict=True)}


def late_window(loops: int) -> int:
    """Return the first loop that counts as late: half-way up to 24 loops, then the 12th, then a quarter of the way.

    The two ratios are taken over these loops. The fit of the laws begins at a quarter of the way: telling 1/t from a
    geometric law needs a wide span of t.

    >>> [late_window(loops) for loops in (4, 8, 16, 24, 48, 64)]
    [1, 4, 8, 12, 12, 16]
    """
    return max(min(loops // 2, max(loops - 3, 0), 12), loops // 4)


def classify(
    residual_norm: ArrayLike,
    step_cosine: ArrayLike | None = None,
    state_norm: ArrayLike | None = None,
    *,
    round_off: float | None = None,
) -> TrajectoryLaw:
    """How does one loop end: does it settle, drift, orbit or explode?

    Asks which laws fit the steps from a quarter of the way on (`step_laws`), a decaying transient allowed for. Steps
    that shrink geometrically, or like a power below t^-1.25, settle; steps that grow geometrically explode; others
    last, and drift when they keep their direction or carry the state away, and orbit when they turn. Steps that are
    round-off have settled, non-finite ones exploded. Where a second kind is not ruled out, the loop is undecided
    between the two. Costs O(T) for each of about 120 transients.

    Args:
        residual_norm: ``(T,)``, ``‖h[t+1] - h[t]‖``, e.g. the mean over tokens.
        step_cosine: ``(T,)``, cosine of step t with step t - 1; NaN at t = 0. Tells orbits from drifts.
        state_norm: ``(T + 1,)``, ``‖h[t]‖``. Gives the round-off level, the growth ratio, and tells orbits from drifts.
            A NaN at t = 0 with finite norms behind it was not recorded; the loop is then judged from t = 1.
        round_off: Size relative to the state under which a step can be round-off: `ROUND_OFF_OF` the type of the
        states.
            None: not known; a step below the level of float32 can be, one below that of bfloat16 leaves it undecided.

    Returns:
        The law with its verdict. Fewer than 4 loops give ``unknown``, unless they are not finite.

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
    round_off: float | None = None,
) -> TrajectoryMap:
    """Classify many series at once as `classify` does one, e.g. every token of a batch.

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
    laws = _classify_rows(rows, cosine, state, round_off)
    arrays = {f.name: getattr(laws, f.name).reshape(lead) for f in fields(laws) if f.name != "loops"}
    return replace(laws, **arrays)


def _starts_unseen(residual: Floats, state: Floats) -> bool:
    """Whether the first state was not recorded: NaN everywhere, yet finite ones follow, which no NaN state has."""
    missing = np.isnan(state[:, 0]) & np.isnan(residual[:, 0])
    return bool(missing.all() and np.isfinite(state[:, 1]).any())


def _rows(values: ArrayLike | None, name: str, shape: tuple[int, ...]) -> Floats:
    """Return the series as float64 rows; NaN where not given."""
    if values is None:
        return np.full((int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]), np.nan)
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {array.shape}")
    return array.reshape(-1, shape[-1])


def _classify_rows(residual: Floats, cosine: Floats, state: Floats, round_off: float | None) -> TrajectoryMap:
    """Return the whole decision on rows ``(N, T)``."""
    count, loops = residual.shape
    with np.errstate(all="ignore"):
        known = ~_all(np.isnan(state))
        bad = ~_all(np.isfinite(residual)) | (known & ~_all(np.isfinite(state)))
        safe = np.where(bad[:, None], 1.0, residual)
        ratio, growth = _ratios(safe, state, bad, known)
        last = residual[:, -1]
        relative = np.where((last == 0) & known, 0.0, last / state[:, -1])
        decided = (
            _decide(safe, cosine, state, known & ~bad, round_off) if loops >= MIN_LOOPS else _Decision.nothing(count)
        )
        turn = mean_where(cosine, np.arange(loops)[None] >= loops // 4)
    kind = np.where(bad, "exploding", decided.kind)
    regime = np.array([REGIME_OF[name] for name in kind.tolist()], dtype="<U8")
    both_marginal = (kind == "undecided") & (decided.first != "settling") & (decided.second == "orbiting")
    empty = np.where(bad, "", decided.first), np.where(bad, "", decided.second)
    return TrajectoryMap(
        kind=kind,
        regime=np.where(both_marginal & (decided.first == "drifting"), "marginal", regime),
        method=np.where(bad, "non-finite", decided.method),
        residual_ratio=ratio,
        growth_ratio=growth,
        rate=np.where(bad, np.nan, np.where(np.isnan(decided.rate) & (ratio == 0), 0.0, decided.rate)),
        exponent=np.where(bad, np.nan, decided.exponent),
        last_step=last,
        last_relative_step=relative,
        mean_cosine=turn,
        first=empty[0],
        second=empty[1],
        first_law=decided.first_law,
        second_law=decided.second_law,
        more_loops=np.where(bad, 0, decided.more_loops),
        bad_loop=np.where(bad, _first_bad(residual, state, known), 0),
        loops=loops,
    )


def _first_bad(residual: Floats, state: Floats, known: Bools) -> Integers:
    """Return the first loop whose state or step is not finite."""
    not_finite = ~np.isfinite(residual) | (known[:, None] & ~np.isfinite(state[:, 1:]))
    return np.asarray(np.argmax(not_finite, axis=1) + 1, np.int64)


def _ratios(residual: Floats, state: Floats, bad: Bools, known: Bools) -> tuple[Floats, Floats]:
    """Return ``residual_ratio`` and ``growth_ratio``, as ``runfile.ratios`` computes them from a recording."""
    count, loops = residual.shape
    if loops < MIN_LOOPS:
        unknown = np.where(bad, np.inf, np.nan)
        return unknown, np.where(known, unknown, np.nan)
    end = end_above(residual, state, known & ~bad, ROUND_OFF)
    start = np.array([late_window(length) for length in range(loops + 1)], np.int64)[end]
    ratio = np.where(bad, np.inf, np.where(end < 2, 0.0, _ratio(residual, start, end - 1)))
    growth = _ratio(state, np.full(count, late_window(loops)), np.full(count, loops))
    return ratio, np.where(bad & known, np.inf, growth)


def _all(values: Bools) -> Bools:
    """Return whether every entry of each row holds."""
    return np.asarray(values.all(axis=1), np.bool_)


@dataclass(frozen=True, slots=True)
class _Decision:
    """Kinds and their laws of finite rows."""

    kind: NDArray[np.str_]
    method: NDArray[np.str_]
    first: NDArray[np.str_]
    second: NDArray[np.str_]
    first_law: NDArray[np.str_]
    second_law: NDArray[np.str_]
    rate: Floats
    exponent: Floats
    more_loops: Integers

    @staticmethod
    def nothing(count: int) -> _Decision:
        """Return the decision for too few loops."""

        def words(text: str) -> NDArray[np.str_]:
            return np.full(count, text, dtype="<U24")

        return _Decision(
            kind=words("unknown"),
            method=words("none"),
            first=words(""),
            second=words(""),
            first_law=words(""),
            second_law=words(""),
            rate=np.full(count, np.nan),
            exponent=np.full(count, np.nan),
            more_loops=np.zeros(count, np.int64),
        )


def _decide(residual: Floats, cosine: Floats, state: Floats, known: Bools, round_off: float | None) -> _Decision:
    """Return the kind and law of every row of finite numbers, at least `MIN_LOOPS` long."""
    count, loops = residual.shape
    end = end_above(residual, state, known, ROUND_OFF if round_off is None else round_off)
    at_floor = (end < loops) & ~follows_a_law(residual, cosine, end)
    end = np.where(at_floor, end, loops)
    decision = _Decision.nothing(count)
    for length in np.unique(end):
        rows = np.flatnonzero(end == length)
        first = max(1, int(length) // 4)
        if length - first < 3:  # the steps vanished at once
            continue
        window = residual[rows, first:length]
        positive = np.where(window > 0, window, np.inf).min(axis=1, keepdims=True)
        fits = fit_laws(np.maximum(window, np.where(np.isfinite(positive), positive, 1.0)), first)
        leads = direction(residual[rows], cosine[rows], state[rows], first)
        seen = _seen(window, cosine[rows, first:length])
        _fill(decision, rows, fits, leads, seen, loops, int(length) - first)
    doubt, more = humps(residual, state, known & (decision.kind == "exploding"), decision.rate)
    decision.kind[doubt], decision.first[doubt], decision.second[doubt] = "undecided", "exploding", "orbiting"
    decision.second_law[doubt], decision.more_loops[doubt] = "that rise for a while", more[doubt]
    if round_off is None:
        _doubt_short_floats(decision, residual, cosine, state, known & ~at_floor)
    settled = (("kind", "settling"), ("method", "round-off"), ("first", ""), ("second", ""), ("more_loops", 0))
    for name, value in settled:
        getattr(decision, name)[at_floor] = value
    return decision


def _visible(fitted: int) -> float:
    """Return the change of the logarithm of the steps that is called a law, by the number of loops fitted."""
    return VISIBLE_CHANGE[0] + VISIBLE_CHANGE[1] / fitted**2


def _seen(window: Floats, cosine: Floats) -> tuple[Bools, Bools]:
    """Return whether the fitted steps of each row were seen to settle, and seen to explode.

    What settles must have shrunk visibly. And a loop with several directions first sorts them out: as long as its steps
    turn by another angle at every loop, their sizes follow no law yet, and may fall for some loops before they grow for
    ever. Then they must have gone far. Without cosines that cannot be asked.
    """
    fitted = window.shape[1]
    late = cosine[:, fitted // 3 :]
    swings = np.abs(late - late[:, -1:]).max(axis=1) > STEADY
    shrunk, grown = np.log(window.max(axis=1) / window[:, -1]), np.log(window[:, -1] / window.min(axis=1))
    settles = (shrunk > _visible(fitted)) & (~swings | (shrunk > FAR))
    return np.asarray(settles, np.bool_), np.asarray(~swings | (grown > GROWN), np.bool_)


def _fill(
    decision: _Decision,
    rows: Integers,
    fits: LawFits,
    leads: NDArray[np.str_],
    seen: tuple[Bools, Bools],
    loops: int,
    fitted: int,
) -> None:
    """Write the verdict of some rows, whose steps were fitted, into the decision."""
    evidence = EVIDENCE * (1 + (FEW_LOOPS / fitted) ** 2)
    visible = _visible(fitted)
    settling, lasting, exploding = range(len(CLASSES))
    miss = fits.miss.copy()
    # What has not changed visibly may as well last, however small its scatter.
    slight = (np.abs(fits.change) < visible) & (miss <= evidence)
    miss[:, lasting] = np.where(
        slight[:, settling] | slight[:, exploding], np.minimum(miss[:, lasting], evidence), miss[:, lasting]
    )
    doubtful = (~seen[0] & (miss[:, settling] == 0)) | (~seen[1] & (miss[:, exploding] == 0))
    miss[:, lasting] = np.where(doubtful, np.minimum(miss[:, lasting], evidence), miss[:, lasting])
    # Beside steps that last, a law at the very edge of the band is a rival only when it fits as well.
    edge = ~fits.power & (np.abs(np.abs(fits.slope) - BAND) < 1e-9) & (miss > EDGE_EVIDENCE)
    miss = np.where(edge & (np.arange(3) != lasting) & (miss[:, [lasting]] == 0), np.inf, miss)
    order = np.argsort(miss, axis=1, kind="stable")
    best, other = order[:, 0], order[:, 1]
    each = np.arange(len(rows))
    torn = miss[each, other] <= evidence
    turning = np.where(leads == "either", "drifting", leads)
    names = np.where(np.arange(3) == lasting, turning[:, None], np.array(CLASSES)[None])
    kind = np.where(torn, "undecided", names[each, best])
    in_place = ~torn & (best == lasting) & (leads == "either")  # it lasts, but where to?
    decision.kind[rows] = np.where(in_place, "undecided", kind)
    decision.first[rows] = np.where(torn | in_place, names[each, best], "")
    decision.second[rows] = np.where(torn, names[each, other], np.where(in_place, "orbiting", ""))
    power = fits.power[each, best]
    constant = (best == lasting) & ~power
    decision.method[rows] = np.where(power, "power", np.where(constant, "constant", "geometric"))
    slope = fits.slope[each, best]
    decision.rate[rows] = np.exp(np.where(power, fits.plain_slope, slope))
    decision.exponent[rows] = np.where(power, slope, fits.plain_power)
    decision.first_law[rows], decision.second_law[rows] = _law_words(fits, best), _law_words(fits, other)
    decision.more_loops[rows] = np.where(torn, fits.loops_to_part(best, other, loops, AHEAD), in_place * loops)


def _law_words(fits: LawFits, law: Integers) -> NDArray[np.str_]:
    """Return the law of one class in a few characters: ``× 0.972 per loop`` or ``like t^-0.40``."""
    each = np.arange(len(law))
    slopes, powers = fits.slope[each, law], fits.power[each, law]
    return np.array(
        [f"like t^{s:.2f}" if p else f"× {np.exp(s):.3f} per loop" for s, p in zip(slopes, powers, strict=True)],
        dtype="<U24",
    )


def _doubt_short_floats(decision: _Decision, residual: Floats, cosine: Floats, state: Floats, known: Bools) -> None:
    """Doubt steps of states of unknown type that fell and then last, turning: they may be bfloat16 round-off."""
    loops = residual.shape[1]
    end = end_above(residual, state, known, ROUND_OFF_OF["bfloat16"])
    fell = residual.max(axis=1) > FLOOR_GROWTH * residual[:, -1]
    below = np.arange(loops)[None] >= np.minimum(end, loops - 1)[:, None]
    turns = mean_where(cosine, below) < STRAIGHT
    lasts = (decision.kind == "orbiting") | (decision.second == "orbiting") | (decision.first == "orbiting")
    doubt = known & (end < loops) & fell & turns & lasts
    decision.kind[doubt], decision.first[doubt], decision.second[doubt] = "undecided", "settling", "orbiting"
    decision.first_law[doubt], decision.second_law[doubt] = "to bfloat16 round-off", "in an orbit of that size"
    decision.more_loops[doubt] = 0


def _ratio(values: Floats, first: NDArray[np.int64], last: NDArray[np.int64]) -> Floats:
    """Return the geometric mean of successive ratios between two loops of each row."""
    rows = np.arange(len(values))
    first, last = np.clip(first, 0, values.shape[1] - 1), np.clip(last, 0, values.shape[1] - 1)
    first = np.minimum(first, np.maximum(last - 1, 0))
    span = np.maximum(last - first, 1)
    return np.where(last > first, (values[rows, last] / values[rows, first]) ** (1 / span), np.nan)
