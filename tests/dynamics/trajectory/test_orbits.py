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


def turning(angles, loops, flat=1.0):
    """States on a circle or an ellipse, ``(T + 1, N, 2)``."""
    t = torch.arange(loops + 1.0, dtype=torch.float64)[:, None]
    return torch.stack([(t * angles).cos(), flat * (t * angles + 0.5).sin()], -1)


@pytest.mark.parametrize("loops", [16, 24, 32, 64])
@pytest.mark.parametrize(("kind", "flat"), [("float64", 1.0), ("float32", 0.4), ("bfloat16", 1.0)])
def test_one_random_angle_has_no_period_however_near_it_comes(loops, kind, flat):
    # Of such turns a fifth come within a tenth of a step of where they were at 16 loops, and three quarters at 64.
    angles = 0.3 + 2.8 * torch.rand(100, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    states = turning(angles, loops, flat).to(getattr(torch, kind))
    wide = states if kind == "float64" else states.float()
    assert (detect_periods(wide) > 0).mean() <= (0.1 if kind == "bfloat16" else 0.03)  # noise hides short ways


@pytest.mark.parametrize("loops", [16, 40])
def test_every_fraction_of_a_turn_has_its_period(loops):
    fractions = [(k, p) for p in range(2, loops // 2 + 1) for k in range(1, p) if np.gcd(k, p) == 1]
    angles = torch.tensor([2 * np.pi * k / p for k, p in fractions], dtype=torch.float64)
    assert detect_periods(turning(angles, loops)).tolist() == [p for _, p in fractions]


@pytest.mark.parametrize(("growth", "period"), [(3.2, 2), (3.5, 4), (3.55, 4)])
def test_a_cycle_that_is_approached_has_its_period(growth, period):
    states = [torch.full((1,), 0.3, dtype=torch.float64)]
    for _ in range(48):
        states.append(growth * states[-1] * (1 - states[-1]))
    # At 3.55 the period is 8; after four loops it is back within 3 % of a step, on alternating sides.
    assert int(detect_periods(torch.stack(states))) == period


def test_a_turn_in_three_dimensions_has_no_period():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
        states = [torch.randn(3, generator=generator, dtype=torch.float64)]
        for _ in range(64):
            states.append(turn @ states[-1])
        assert int(detect_periods(torch.stack(states))) == 0


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
    assert not any(periods), periods


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(T \+ 1, B, S, D\)"):
        token_map(torch.ones(3, 2))
