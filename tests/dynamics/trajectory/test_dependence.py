"""What end states depend on, on maps where it is known."""

import numpy as np
import pytest
import torch
from loopscope.dynamics.trajectory.dependence import input_dependence, start_dependence


def test_a_contracting_loop_forgets_its_start_at_its_own_rate(loop, state):
    dependence = start_dependence(lambda h: 0.8 * h + 1, [torch.zeros(1, 1, 4), torch.ones(1, 1, 4)], loops=40)
    assert not dependence.depends
    assert dependence.factor == pytest.approx(0.8, rel=1e-3)  # float32 round-off over 20 loops
    assert not start_dependence(loop(1), [state, -state]).depends


def test_two_basins_and_explosions_depend_on_the_start():
    starts = [torch.full((1, 1, 1), x) for x in (-0.5, 0.5)]
    assert start_dependence(lambda h: h + 0.5 * (h - h**3), starts).depends
    overflow = start_dependence(lambda h: 1e10 * h, starts, loops=8)
    assert overflow.depends


def test_gain_from_input_to_end_state():
    e = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(2, 3, 4)
    follows = input_dependence(lambda e: lambda h: 0.5 * h + e, e, zero)
    assert follows.depends and follows.gain == pytest.approx(1, rel=1e-3)  # h* = 2 e, float32
    collapsed = input_dependence(lambda e: lambda h: 0.5 * h + 1 + 1e-6 * e, e, zero)
    assert not collapsed.depends
    assert np.isnan(input_dependence(lambda e: lambda h: 1e20 * h + e, e, zero).gain)


def test_one_start_is_not_enough():
    with pytest.raises(ValueError, match="at least two"):
        start_dependence(lambda h: h, [torch.ones(1, 1, 1)])
