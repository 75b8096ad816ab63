"""Tokens that have stopped are told from a loop that has come to rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loopscope.probes.loop_watch import sums_on
from loopscope.probes.measure.sums import loop_means
from torch import Tensor


def means_of(states: list[Tensor]) -> tuple[np.ndarray, dict[str, float]]:
    sums = sums_on(torch.device("cpu"))
    sums.begin(states[0], has_gradients=True)
    for state in states:
        sums.add(state)
    return loop_means(sums.device_rows()["sums"].numpy(), sums.counts)


def frozen(leave_after: list[int], loops: int = 4, step: float = 0.5) -> list[Tensor]:
    """One token per sequence; token i runs ``leave_after[i]`` loops and stands still from then on."""
    depth = torch.tensor(leave_after)[:, None, None]
    states = [torch.randn(len(leave_after), 1, 8, generator=torch.Generator().manual_seed(0))]
    for t in range(loops):
        states.append(torch.where(t < depth, states[-1] * (1 + step), states[-1]))
    return states


@pytest.mark.parametrize(
    ("leave_after", "tokens"),
    [
        ([1, 2, 2, 2], [4, 3, 0, 0, 4]),  # all have left before the end
        ([1, 1, 1, 2], [4, 1, 0, 0, 4]),
        ([1, 2, 3, 4], [4, 3, 2, 1, 4]),
        ([0, 1, 1, 1], [3, 0, 0, 0, 4]),  # one never started
        ([4, 4, 4, 4], [4, 4, 4, 4, 4]),
        ([2, 2, 2, 2], [4, 4, 0, 0, 4]),  # all at once
        ([1, 1, 1, 1], [4, 0, 0, 0, 4]),
    ],
)
def test_loops_that_nobody_runs_any_more_have_no_tokens(leave_after: list[int], tokens: list[int]) -> None:
    states = frozen(leave_after)
    means, once = means_of(states)
    assert means[:, 3].tolist() == tokens
    empty = np.array(tokens) == 0
    assert (means[empty, 1] == 0).all() and np.isfinite(means[:, 0]).all()
    assert once["depth"] == pytest.approx(np.mean(leave_after))
    for t in np.flatnonzero(~empty)[:-1]:
        own = [i for i, n in enumerate(leave_after) if n > t]
        assert means[t, 0] == pytest.approx(float(states[t][own].norm(dim=-1).mean()), rel=1e-6)


def test_a_loop_that_never_moves_rests() -> None:
    means, once = means_of(frozen([0, 0, 0, 0]))
    assert (means[:, 3] == 4).all() and (means[:-1, 1] == 0).all() and once["depth"] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loop_that_converges_to_the_last_bit_rests_and_has_its_tokens(dtype: torch.dtype) -> None:
    """Tokens come to the fixed point one after the other; none of them has left."""
    point = torch.randn(16, 1, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    states = [torch.zeros_like(point)]
    for _ in range(40):
        states.append(states[-1] + (point - states[-1]) * 0.6)
    means, once = means_of(states)
    assert not (states[-1] != states[-2]).any() and (means[-3:, 3] == 16).all()
    assert means[-2, 1] == 0 and np.isfinite(means[:, 0]).all() and once["depth"] == pytest.approx(40, abs=12)


def test_of_two_batches_the_one_that_goes_on_gives_the_means() -> None:
    sums = sums_on(torch.device("cpu"))
    stops, goes_on = frozen([1, 2, 2, 2]), frozen([4, 4, 4, 4])
    for states in (stops, goes_on):
        sums.begin(states[0], has_gradients=True)
        for state in states:
            sums.add(state)
    means, once = loop_means(sums.device_rows()["sums"].numpy(), sums.counts)
    assert means[:, 3].tolist() == [8, 7, 4, 4, 8] and once["depth"] == pytest.approx((1.75 + 4) / 2)
    for t in (2, 3):
        assert means[t, 0] == pytest.approx(float(goes_on[t].norm(dim=-1).mean()), rel=1e-6)


def test_a_loop_whose_beginning_nobody_saw_and_that_does_not_move_behind_its_first_pass_has_stopped() -> None:
    sums = sums_on(torch.device("cpu"))
    _, *states = frozen([1, 1, 1, 1])
    sums.begin(states[0], has_gradients=True)
    sums.add_missing(states[0])
    for state in states:
        sums.add(state)
    means, once = loop_means(sums.device_rows()["sums"].numpy(), sums.counts)
    assert means[:, 3].tolist() == [4, 0, 0, 0, 4] and once["depth"] == 1
