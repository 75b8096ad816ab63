"""How many loops a model can run before its answer changes.

The answer at one position is the token with the largest logit; its *margin* is how far the runner-up is behind. Between
two loops the margin moves a little; how much it will still move follows from the decay law of the loop's steps. As long
as that is less than the margin, the answer stands.

Numpy only. Legend: T loops run, tokens are any leading axes.

Not covered: answers that change for reasons the last loops do not show (a slow instability hidden under a larger
decaying transient); whether the answer is *right*, which only a loss can say. A read-out that normalises its input
turns ever more slowly while the state drifts away, so that predictions for drifting loops are on the safe side (28
predicted, 64 measured was seen); for exploding loops they were off by up to a third either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..shown import Shown
from .trajectory import ROUND_OFF, TrajectoryMap, classify_map

__all__ = ["SafeDepth", "judged_from", "measured_depth", "predicted_depth"]

Floats = NDArray[np.float64]
SHARE = 0.95
"""Share of the tokens whose answer must stand."""


@dataclass(frozen=True, slots=True, repr=False)
class SafeDepth(Shown):
    """How deep a model can be run.

    Attributes:
        depth: Largest number of loops at which 95 % of the answers are predicted to stand; ``horizon`` when they stand
            as far as was looked.
        horizon: Number of loops looked at.
        unlimited: Whether all that is still to come is less than the margin, if the decay law goes on as it does.
        per_token: The same depth for every token.
        method: What it rests on: ``margin`` (logits) or ``state`` (the state itself moved by a tenth of its norm), with
            ``, seen`` where the answers were also followed from the training depth on.
        sentence: For a person.
        loops: Loops that were run; beyond them it is a prediction.
    """

    depth: int
    horizon: int
    unlimited: bool
    per_token: NDArray[np.int64]
    method: str
    sentence: str
    loops: int

    @property
    def words(self) -> str:
        """The depth for a person, with ``≥`` only where deeper loops were looked at and none was found unsafe."""
        return f"≥ {self.depth}" if self.depth >= self.horizon > self.loops else str(self.depth)


def predicted_depth(
    residual_norm: ArrayLike,
    *,
    state_norm: ArrayLike,
    step_cosine: ArrayLike | None = None,
    logits: tuple[ArrayLike, ArrayLike] | None = None,
    horizon: int = 64,
    round_off: float | None = ROUND_OFF,
) -> SafeDepth:
    """Up to how many loops do the answers stand?

    With the logits of the last two depths, a token's margin m = (largest) - (runner-up) at depth T moves by v per loop
    now, where v is the largest gain of any rival on the answer between T - 1 and T; later by ``v ‖Δ[t]‖ / ‖Δ[T-1]‖``,
    with the steps continued by their decay law. The answer stands until the sum exceeds m. Without logits, a token is
    safe until its state has moved by a tenth of its norm.

    Args:
        residual_norm: ``(..., T)`` per token, ``‖h[t+1] - h[t]‖``, T at least 4.
        state_norm: ``(..., T + 1)``.
        step_cosine: ``(..., T)`` or None, helps the decay law.
        logits: ``(..., V)`` at depths T - 1 and T, or None.
        horizon: Deepest depth looked at.
        round_off: See `loopscope.dynamics.classify`.

    Returns:
        Predicted depth over the tokens and for each. Costs O(T + horizon + V) per token.

    Raises:
        ValueError: Shapes do not fit, or the horizon is below T.

    Source: adaptive exit by the change of the answer, as in Huginn (arXiv 2502.05171), turned into a prediction by the
    decay law.

    >>> t = np.arange(16)
    >>> settles = predicted_depth(0.5**t, state_norm=np.full(17, 4.0), horizon=64)
    >>> settles.depth, settles.unlimited, settles.sentence
    (64, True, 'safe depth >= 64 (if the steps go on as they do, the states move by less than a tenth)')
    >>> predicted_depth(np.ones(16), state_norm=np.full(17, 40.0), horizon=64).depth
    20
    """
    steps, norms = np.asarray(residual_norm, np.float64), np.asarray(state_norm, np.float64)
    loops = steps.shape[-1]
    if horizon < loops:
        raise ValueError(f"horizon: expected at least the {loops} loops that were run, found {horizon}")
    laws = classify_map(steps, step_cosine, norms, round_off=round_off)
    travelled, forever = _travel(steps, laws, horizon)
    if logits is None:
        budget, speed, method = 0.1 * norms[..., -1], steps[..., -1], "state"
    else:
        budget, speed = _margins(*logits)
        method = "margin"
    # Travel is counted in units of the last step: that is what `speed` belongs to.
    with np.errstate(invalid="ignore"):
        moved = np.where(speed[..., None] > 0, speed[..., None] * travelled, 0.0)
    stands = moved <= budget[..., None]
    depths = loops + np.cumprod(stands, axis=-1).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        safe_forever = (speed == 0) | (speed * forever <= budget)
    depth = _reached(depths)
    unlimited = bool(np.mean(safe_forever) >= SHARE)
    said = _sentence(depth, horizon, loops, unlimited, method)
    return SafeDepth(depth, horizon, unlimited, depths.astype(np.int64), method, said, loops)


def judged_from(prediction: SafeDepth, answers: ArrayLike, reference: int) -> SafeDepth:
    """Up to how many loops do the answers of the training depth stand?

    A prediction starts from the last loop that was run. What the answers were at the training depth may be gone by
    then: a token whose answer has changed since is unsafe from where it did, whatever is predicted.

    Args:
        prediction: From the same run, of T loops.
        answers: ``(T + 1, ...)`` integers: the answer of every token at depth 0 to T; -1 for logits not finite.
        reference: Training depth; one of T or more leaves the prediction as it is.

    Returns:
        The depth for both together.

    Source: definition.

    >>> steps = predicted_depth(0.5 ** np.arange(8)[None], state_norm=np.full((1, 9), 4.0), horizon=64)
    >>> judged_from(steps, np.array([[1], [2], [3], [3], [3], [7], [7], [7], [7]]), reference=3).depth
    4
    """
    table = np.asarray(answers)
    if reference >= len(table) - 1:
        return prediction
    same = np.cumprod(table[reference:] == table[reference], axis=0).sum(axis=0)
    stands = (same == len(table) - reference) & (table[reference] >= 0)
    per_token = np.where(stands, prediction.per_token, reference + np.maximum(same, 1) - 1)
    depth, unlimited = _reached(per_token), prediction.unlimited and bool(stands.mean() >= SHARE)
    method = f"{prediction.method}, seen"
    said = _sentence(depth, prediction.horizon, prediction.loops, unlimited, prediction.method)
    return SafeDepth(depth, prediction.horizon, unlimited, per_token.astype(np.int64), method, said, prediction.loops)


def _reached(depths: NDArray[Any]) -> int:
    """Return the largest depth that at least 95 % of the tokens reach (the small number keeps 0.05 * 100 at 5)."""
    return int(np.sort(depths, axis=None)[int((1 - SHARE) * depths.size + 1e-9)])


def _travel(steps: Floats, laws: TrajectoryMap, horizon: int) -> tuple[Floats, Floats]:
    """Return the path still to come up to each depth T + 1 .. horizon, and in all, in units of the last step."""
    loops = steps.shape[-1]
    future = np.arange(loops, horizon, dtype=np.float64)
    with np.errstate(all="ignore"):
        ahead = future - (loops - 1)
        geometric = laws.rate[..., None] ** ahead
        power = ((future + 1) / loops) ** laws.exponent[..., None]
        # What is undecided may last, or grow as fast as its law says.
        lasting = np.where((laws.kind == "undecided")[..., None], np.maximum(geometric, 1.0), 1.0)
        sizes = np.select(
            [
                (laws.kind == "undecided")[..., None],
                laws.method[..., None] == "geometric",
                laws.method[..., None] == "power",
            ],
            [lasting, geometric, power],
            lasting,
        )
        exploding = (laws.kind == "exploding") & (laws.method != "geometric")
        sizes = np.where(exploding[..., None], np.inf, sizes)
        still = (laws.method == "round-off") | (steps[..., -1] == 0)
        sizes = np.where(still[..., None], 0.0, sizes)
        decays = (laws.method == "geometric") & (laws.kind == "settling")
        summable = (laws.method == "power") & (laws.kind == "settling")
        forever = np.where(
            decays, laws.rate / (1 - laws.rate), np.where(summable, loops / (-laws.exponent - 1), np.inf)
        )
    return np.cumsum(sizes, axis=-1), np.where(still, 0.0, forever)


def _margins(before: ArrayLike, after: ArrayLike) -> tuple[Floats, Floats]:
    """Return the margin of each answer, and the fastest gain of any rival on it in the last loop."""
    first, last = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != last.shape:
        raise ValueError(f"logits: expected two arrays of equal shape, found {first.shape} and {last.shape}")
    answer = last.argmax(-1)[..., None]
    lead = np.take_along_axis(last, answer, -1) - last
    earlier = np.take_along_axis(first, answer, -1) - first
    # The rival that would overtake first, not the nearest nor the fastest one alone.
    speed = np.maximum(earlier - lead, 0.0)
    np.put_along_axis(lead, answer, np.inf, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        time = np.where(speed > 0, lead / speed, np.inf)
    rival = time.argmin(-1)[..., None]
    return np.take_along_axis(lead, rival, -1)[..., 0], np.take_along_axis(speed, rival, -1)[..., 0]


def _sentence(depth: int, horizon: int, loops: int, unlimited: bool, method: str) -> str:
    """Return the verdict in words."""
    what = "the answers do not change" if method == "margin" else "the states move by less than a tenth"
    if depth < horizon:
        return f"safe depth {depth}"
    if horizon == loops:
        return f"safe depth {depth}, and no deeper one was looked at"
    return f"safe depth >= {horizon}" + (f" (if the steps go on as they do, {what})" if unlimited else "")


def measured_depth(answers: ArrayLike, reference: int) -> int:
    """Largest depth at which 95 % of the answers are still those at the reference depth, from a run to full depth.

    Args:
        answers: ``(T + 1, ...)`` integers: the answer of every token at depth 0 to T.
        reference: Depth whose answers count, 0 to T.

    Returns:
        The last depth, from the reference on, before more than 5 % of the answers differ. The check on
        `predicted_depth`.

    Raises:
        ValueError: The reference is out of range.

    Source: definition.

    >>> measured_depth(np.array([[0, 0], [1, 1], [1, 1], [1, 2]]), reference=1)
    2
    """
    table = np.asarray(answers)
    if not 0 <= reference < len(table):
        raise ValueError(f"reference: expected 0 to {len(table) - 1}, found {reference}")
    same = (table[reference:] == table[reference]).reshape(len(table) - reference, -1).mean(1) >= SHARE
    return reference + (len(same) if same.all() else int(np.argmin(same))) - 1
