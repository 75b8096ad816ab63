"""What the end state of a loop depends on: where it started, and what it was given.

A loop that forgets its start and follows its input is what a looped model needs. One that depends on the start answers
at random; one that does not depend on the input has collapsed.

Legend: T loops, B batch, S positions, D width.

Not covered: which states can be reached at all by choosing the input (the linear part's Gramians say it for A̅ and B̅:
`dynamics.lti`); dependence that shows only at starts or inputs that were not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..loop.jacobian import Step
from ..shown import Shown
from .trajectory import ROUND_OFF, ROUND_OFF_OF

__all__ = ["InputDependence", "StartDependence", "input_dependence", "start_dependence"]

FORGOTTEN = 0.01
"""Runs have forgotten their starts when they end within this share of their norm *and* of their first distance: the
first alone is met by a drift, whose norm grows, the second alone by starts that were far off."""


@dataclass(frozen=True, slots=True, repr=False)
class StartDependence(Shown):
    """How far runs from different starts stay apart.

    Attributes:
        spread: ``(T + 1,)``, mean distance of the runs from their mean, relative to the mean norm of the states.
        factor: Mean factor per loop by which the absolute distance changed over the late half of the
            loops before the runs agreed to round-off; NaN when there were none.
        depends: Whether the last distance is above 0.01 of the norm or of the first distance, and above round-off.
    """

    spread: NDArray[np.float64]
    factor: float
    depends: bool


@dataclass(frozen=True, slots=True)
class InputDependence:
    """How much the end state follows the input.

    Attributes:
        gain: Relative change of the end state per relative change of the input, for small random changes.
        depends: Whether the gain is above 0.01.
    """

    gain: float
    depends: bool


@torch.no_grad()
def start_dependence(step: Step, starts: Sequence[Tensor], *, loops: int = 64) -> StartDependence:
    """Test whether the end state depends on the start.

    Costs ``loops`` forwards per start.

    Args:
        step: One loop, ``(B, S, D) -> (B, S, D)``.
        starts: Two or more first states.
        loops: Loops to run.

    Returns:
        The spread of the runs after every loop.

    Raises:
        ValueError: Fewer than two starts.

    Source: echo-state property, Jaeger, GMD Report 148 (2001); path independence, Anil et al., arXiv 2211.09961.

    >>> starts = [torch.zeros(1, 1, 2), torch.ones(1, 1, 2)]
    >>> start_dependence(lambda h: 0.5 * h + 1, starts).depends
    False
    >>> start_dependence(lambda h: h + 1, starts, loops=1000).depends       # the norm grows, the distance stays
    True
    """
    if len(starts) < 2:
        raise ValueError(f"starts: expected at least two, found {len(starts)}")
    states = torch.stack([start.detach() for start in starts])
    distance, spread = [], []
    for t in range(loops + 1):
        centre = states.mean(0)
        apart = float(torch.linalg.vector_norm(states - centre, dim=-1).mean())
        size = float(torch.linalg.vector_norm(states, dim=-1).mean())
        distance.append(apart)
        spread.append(apart / size if size > 0 else 0.0)
        if t < loops and np.isfinite(apart):
            states = torch.stack([step(state) for state in states])
    # Once the runs agree to round-off, what is left of their distance tells nothing.
    apart_until = next((t for t, s in enumerate(spread) if not s > ROUND_OFF), loops + 1)
    late = distance[apart_until // 2 : apart_until]
    factor = float((late[-1] / late[0]) ** (1 / (len(late) - 1))) if len(late) > 1 else float("nan")
    level = ROUND_OFF_OF.get(str(states.dtype).removeprefix("torch."), ROUND_OFF)
    forgotten = spread[-1] <= FORGOTTEN and distance[-1] <= FORGOTTEN * distance[0]
    return StartDependence(np.array(spread), factor, not (forgotten or spread[-1] <= level))


@torch.no_grad()
def input_dependence(
    step_of: Callable[[Tensor], Step], e: Tensor, state: Tensor, *, loops: int = 64, size: float = 1e-2
) -> InputDependence:
    """Test whether the end state depends on the input.

    Runs the loop with e and with e changed by a random ``size`` of its norm. Costs two runs of ``loops`` forwards.

    Args:
        step_of: e -> one loop with that e bound.
        e: Input, ``(B, S, D)``.
        state: First state of both runs.
        loops: Loops to run.
        size: Relative change of e; large enough to stand above float32 round-off.

    Returns:
        The gain; NaN (and ``depends`` True, as nothing was shown) when a run stopped being finite.

    Source: input-driven fixed points: Anil et al., arXiv 2211.09961.

    >>> e = torch.ones(1, 1, 2)
    >>> round(input_dependence(lambda e: lambda h: 0.5 * h + e, e, torch.zeros(1, 1, 2)).gain, 2)
    1.0
    """
    noise = torch.randn(e.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(e)
    changed = e + size * noise * torch.linalg.vector_norm(e) / torch.linalg.vector_norm(noise)
    ends = []
    for bound in (step_of(e), step_of(changed)):
        h = state
        for _ in range(loops):
            h = bound(h)
        ends.append(h)
    norm = float(torch.linalg.vector_norm(ends[0]))
    gain = float(torch.linalg.vector_norm(ends[1] - ends[0])) / (norm * size) if norm > 0 else 0.0
    if not np.isfinite(norm):
        gain = float("nan")
    return InputDependence(gain, not gain <= FORGOTTEN)
