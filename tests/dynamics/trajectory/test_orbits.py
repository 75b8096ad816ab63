"""Token maps on motions of known pattern and period."""

import numpy as np
import pytest
import torch
from loopscope.dynamics.trajectory.orbits import detect_periods, token_map


def motion(name, loops=32):
    t = torch.arange(loops + 1.0, dtype=torch.float64)
    zero = torch.zeros_like(t)
    x, y = {
        "fixed point": (0.7**t, zero),
        "orbit": ((2 * np.pi / 5 * t).cos(), (2 * np.pi / 5 * t).sin()),
        "slider": (t, zero),
        "explosion": (1.5**t, zero),
    }[name]
    return torch.stack([x + 3, y], -1)


def test_every_pattern_of_a_batch():
    names = ["fixed point", "orbit", "slider", "explosion"]
    states = torch.stack([motion(n) for n in names], 1)[:, None]
    patterns = token_map(states)
    assert patterns.pattern.tolist() == [names]
    assert patterns.period.tolist() == [[1, 5, 0, 0]]
    assert patterns.counts() == dict.fromkeys(names, 1)
    # 0.3 * 0.7^t < 0.01 * 3 from t = 7 on, so the seventh step is the last one above.
    assert patterns.settled_at[0, 0] == 7
    assert patterns.relative_step.shape == (1, 4, 32)


@pytest.mark.parametrize("period", [2, 3, 7, 12])
def test_periods_with_noise(period):
    t = torch.arange(33.0)
    angle = 2 * np.pi * t / period
    states = torch.stack([angle.cos(), angle.sin()], -1)
    noisy = states + 0.01 * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    assert int(detect_periods(noisy)) == period


def test_quasi_periodic_motion_has_no_period():
    angle = torch.arange(25.0) * 1.0  # 2 pi / 1 is irrational: closest return within 12 loops is 0.28 of a step of 0.96
    assert int(detect_periods(torch.stack([angle.cos(), angle.sin()], -1))) == 0


@pytest.mark.parametrize("width", [6, 16])
@pytest.mark.parametrize("loops", [16, 33])
def test_random_rotations_have_no_period(width, loops):
    generator = torch.Generator().manual_seed(width)
    periods = []
    for _ in range(30):
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
        states = [torch.randn(width, generator=generator, dtype=torch.float64)]
        for _ in range(loops):
            states.append(turn @ states[-1])
        periods.append(int(detect_periods(torch.stack(states))))
    assert sum(period > 0 for period in periods) <= 1, (
        periods
    )  # one angle alone, as in 3 dimensions, comes near to some fraction of a turn


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(T \+ 1, B, S, D\)"):
        token_map(torch.ones(3, 2))
