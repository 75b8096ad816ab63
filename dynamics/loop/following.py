"""Follow a loop as far as it takes to tell what its steps do: their mean sizes over tokens, and the laws of these.

A few loops may fit two laws, and the steps of an orbit may grow for a while and shrink again. A loop is a function: it
can be run on, at the price of one forward pass per loop, and no state is kept for that.

Not covered: single tokens (`trajectory.orbits`), whose map is of the loops that were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..trajectory.trajectory import ROUND_OFF_OF, classify
from ..trajectory.trajectory_law import STATE_GROWS, TrajectoryLaw
from .jacobian import Step

FARTHEST: Final = 8
"""How many times the loops that were asked for a loop is followed where these do not tell.

Of 300 narrow ellipses, all of them orbits, 53 seemed to explode over 8 loops and 20 to settle, and 217 were undecided;
followed so far 2, 22 and 95. Of 16 loops 40, 27 and 219, then none, 27 and 14. Stopped at the first answer 57 would
seem to settle.
"""

Floats = NDArray[np.float64]


class _Sizes(NamedTuple):
    """Means over tokens, as a probe records them: of the states, of their steps, of the cosines of successive steps."""

    norm: Floats
    step: Floats
    turn: Floats

    @classmethod
    def of(cls, states: Tensor) -> _Sizes:
        """Return those of states ``(T + 1, B, S, D)``: ``(T + 1,)``, ``(T,)`` and ``(T - 1,)``."""
        steps = states[1:] - states[:-1]
        turn = nn.functional.cosine_similarity(steps[1:], steps[:-1], dim=-1)
        return cls(
            _mean(torch.linalg.vector_norm(states, dim=-1)), _mean(torch.linalg.vector_norm(steps, dim=-1)), _mean(turn)
        )

    def law(self, round_off: float) -> TrajectoryLaw:
        """Return the law that they follow."""
        return classify(self.step, np.concatenate([[np.nan], self.turn]), self.norm, round_off=round_off)

    def and_then(self, later: _Sizes) -> _Sizes:
        """Return these and those of the states that follow, whose first two states are the last two of these."""
        parts = zip(self, (later.norm[2:], later.step[1:], later.turn), strict=True)
        return _Sizes(*(np.concatenate(part) for part in parts))


def follow(
    step: Step,
    states: Tensor,
    variables: Mapping[str, slice],
    *,
    go_on: Callable[[], bool] = lambda: True,
) -> tuple[TrajectoryLaw, dict[str, TrajectoryLaw], int]:
    """Return the laws of a loop and of its variables, followed for longer where its first loops do not tell.

    Args:
        step: One loop.
        states: The first states, ``(T + 1, B, S, D)``; if they stop being finite, that is the law.
        variables: Which channels each variable has.
        go_on: Asked before the loop is followed by another T loops.

    Returns:
        The law of the whole state, those of the variables, and the loops they were seen over, from T to 8 T.
    """
    level = ROUND_OFF_OF[str(states.dtype).removeprefix("torch.")]
    own = {"": slice(None), **variables}
    sizes = {name: _Sizes.of(states[..., part]) for name, part in own.items()}
    laws = {name: each.law(level) for name, each in sizes.items()}
    asked, loops, last = len(states) - 1, len(states) - 1, states[-2:]
    if any(map(_is_open, laws.values())):
        # All the way at once: asked again and again, the laws of an orbit would sooner or later be those of a rest.
        while loops < FARTHEST * asked and go_on():
            last, chunk = _on(step, last, asked)
            sizes = {name: sizes[name].and_then(_Sizes.of(chunk[..., part])) for name, part in own.items()}
            loops += asked
        laws = {name: each.law(level) for name, each in sizes.items()}
    laws = {name: _without_growth(law, loops) if _is_open(law) else law for name, law in laws.items()}
    return laws.pop(""), laws, loops


@torch.no_grad()
def _on(step: Step, last: Tensor, loops: int) -> tuple[Tensor, Tensor]:
    """Run on from the last of two states; return the last two then, and all from the two on."""
    states = list(last)
    for _ in range(loops):
        states.append(step(states[-1]))
    chunk = torch.stack(states)
    return chunk[-2:], chunk


def _is_open(law: TrajectoryLaw) -> bool:
    """Return whether more loops would tell more: two laws fit, or steps grow in a state that does not."""
    return law.kind == "undecided" or (law.kind == "exploding" and law.growth_ratio < STATE_GROWS)


def _without_growth(law: TrajectoryLaw, loops: int) -> TrajectoryLaw:
    """Return what is known of growing steps in a state that does not grow; of all else, what it says."""
    if law.kind != "exploding":
        return law
    said = (
        f"Late steps grow by a factor {law.rate:.3f} per loop and the state does not ({law.growth_ratio:.3f}), over "
        f"{loops} loops: an explosion that begins, or an orbit"
    )
    return replace(law, kind="undecided", regime="unknown", between=("exploding", "orbiting"), sentence=said)


def _mean(values: Tensor) -> Floats:
    """Return the mean over tokens of ``(T, B, S)``."""
    means: Floats = values.double().mean((1, 2)).cpu().numpy()
    return means
