"""What every token of a batch does over the loops: rests, orbits with a period, slides, drifts or explodes.

Legend: T loops, B batch, S positions, D width.

Not covered: periods longer than half the recorded loops, and quasi-periodic motion, which has no period (reported as
0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shown import Shown
from .trajectory import ROUND_OFF_OF, TrajectoryMap, classify_map

__all__ = ["TokenMap", "detect_periods", "token_map"]

RECURRENCE = 0.1
"""A state has come back when it is within this share of its mean step of where it was a period ago."""
SLIDES = 0.5
"""Mean cosine of successive returns above which they lead on in one direction: the states pass by."""
CLOSING = 0.95
"""Returns whose size falls by no more than this from one to the next are not closing in on a cycle."""
STRAIGHT = 0.5
"""Mean cosine of successive steps above which a drift keeps its direction: a slider."""


@dataclass(frozen=True, slots=True, repr=False)
class TokenMap(Shown):
    """Every token's trajectory; all arrays ``(B, S)`` unless said otherwise.

    Attributes:
        laws: Decay law of each token, see `TrajectoryMap`.
        pattern: ``fixed point``, ``orbit``, ``slider``, ``drift``, ``explosion``, ``undecided`` or ``unknown``.
        period: 1 for fixed points, the period of an orbit in loops, 0 where there is none.
        relative_step: ``(B, S, T)``, ``‖h[t+1] - h[t]‖ / ‖h[t+1]‖``: the convergence map.
        settled_at: First loop after which the relative step stays below 0.01; T where it does not.
    """

    laws: TrajectoryMap
    pattern: NDArray[np.str_]
    period: NDArray[np.int64]
    relative_step: NDArray[np.float64]
    settled_at: NDArray[np.int64]

    def counts(self) -> dict[str, int]:
        """Return how many tokens follow each pattern."""
        names, numbers = np.unique(self.pattern, return_counts=True)
        return {str(name): int(number) for name, number in zip(names, numbers, strict=True)}


def token_map(states: Tensor, *, round_off: float | None = None) -> TokenMap:
    """Return the trajectory class of every token of a batch.

    Costs a few passes over the states. A *slider* drifts and keeps its direction; a *drift* does not.

    Args:
        states: ``(T + 1, B, S, D)``, all states of one run, first included.
        round_off: See `loopscope.dynamics.classify`; None takes that of the type of the states.

    Returns:
        Maps over tokens.

    Raises:
        ValueError: Not four-dimensional, or fewer than two states.

    Source: fixed points, orbits and sliders: Geiping et al., arXiv 2502.05171.

    >>> t = torch.arange(13.0)
    >>> rest, flip = 0.3**t, (-1.0) ** t
    >>> states = torch.stack([rest + 1, flip], -1)[:, None, :, None]       # one sequence of two tokens, width 1
    >>> tokens = token_map(states)
    >>> tokens.pattern.tolist(), tokens.period.tolist()
    ([['fixed point', 'orbit']], [[1, 2]])
    """
    if states.dim() != 4 or len(states) < 2:
        raise ValueError(f"states: expected (T + 1, B, S, D) with T >= 1, found shape {tuple(states.shape)}")
    norm = torch.linalg.vector_norm(states, dim=-1)
    steps = states[1:] - states[:-1]
    size = torch.linalg.vector_norm(steps, dim=-1)
    cosine = torch.full_like(size, torch.nan)
    cosine[1:] = torch.nn.functional.cosine_similarity(steps[1:], steps[:-1], dim=-1)
    residual, state, turn = (x.double().cpu().numpy().transpose(1, 2, 0) for x in (size, norm, cosine))
    round_off = ROUND_OFF_OF.get(str(states.dtype).removeprefix("torch.")) if round_off is None else round_off
    laws = classify_map(residual, turn, state, round_off=round_off)
    period = detect_periods(states)
    settled = laws.kind == "settling"
    pattern = np.select(
        [settled, laws.kind == "exploding", laws.kind == "orbiting", laws.kind == "undecided", laws.kind == "unknown"],
        ["fixed point", "explosion", "orbit", "undecided", "unknown"],
        np.where(laws.mean_cosine > STRAIGHT, "slider", "drift"),
    )
    with np.errstate(invalid="ignore"):
        relative = residual / np.where(state[..., 1:] > 0, state[..., 1:], 1.0)
    moving = ~(relative < 0.01)
    last_moving = np.where(moving.any(-1), moving.shape[-1] - np.argmax(moving[..., ::-1], -1), 0)
    return TokenMap(laws, pattern, np.where(settled, 1, np.where(pattern == "orbit", period, 0)), relative, last_moving)


def detect_periods(states: Tensor) -> NDArray[np.int64]:
    """Return the smallest number of loops, at least 2, after which each token's late states come back.

    Compares the states of the last half with those p loops earlier, for p up to half the loops. A return counts when
    its mean distance is below a tenth of the mean step and the token does move. It must be one: either the distance is
    round-off or noise, or it shrinks from one return to the next, as on the way to an attracting cycle. A turn by an
    angle that is no fraction of a full turn comes near to where it was as well, but passes by in the same direction and
    at the same distance every time, and has no period. Costs up to T²/2 norms of ``(B, S, D)``.

    Args:
        states: ``(T + 1, ..., D)``.

    Returns:
        ``(...)`` integers; 0 where nothing returns.

    Source: close returns, as in Lathrop & Kostelich, Phys. Rev. A 40 (1989) 4028.

    >>> t = torch.arange(25) * (2 * torch.pi / 6)
    >>> int(detect_periods(torch.stack([t.cos(), t.sin()], -1)))
    6
    """
    loops = len(states) - 1
    late = states[loops - loops // 2 :]
    periods = torch.zeros(states.shape[1:-1], dtype=torch.int64, device=states.device)
    if len(late) < 2:
        return np.asarray(periods.cpu().numpy(), np.int64)
    step = torch.linalg.vector_norm(late[1:] - late[:-1], dim=-1).mean(0)
    floor = ROUND_OFF_OF[str(states.dtype).removeprefix("torch.")] * torch.linalg.vector_norm(late, dim=-1).mean(0)
    passed: dict[int, Tensor] = {}  # what passes by after p loops does so after twice as many
    for p in range(2, loops // 2 + 1):
        start = loops - loops // 2 - p
        back = torch.linalg.vector_norm(late - states[start : start + len(late)], dim=-1).mean(0)
        near = (periods == 0) & (back < RECURRENCE * step)
        for shorter, by in passed.items():
            near &= ~by if p % shorter == 0 else True
        if bool(near.any()):
            passed[p] = near & _passes_by(states, p, floor)
            periods = torch.where(near & ~passed[p], p, periods)
    return np.asarray(periods.cpu().numpy(), np.int64)


def _passes_by(states: Tensor, period: int, floor: Tensor) -> Tensor:
    """Return where late states lead on past those a period ago, by as much as these did past those before them."""
    loops = len(states) - 1
    first = max(loops - loops // 2, 2 * period)
    now, before, twice = (states[first - shift : loops + 1 - shift] for shift in (0, period, 2 * period))
    size, earlier = (torch.linalg.vector_norm(x, dim=-1).mean(0) for x in (now - before, before - twice))
    along = torch.nn.functional.cosine_similarity(now - before, before - twice, dim=-1).mean(0)
    passes: Tensor = (size > floor) & (along > SLIDES) & (size > CLOSING * earlier)
    return passes
