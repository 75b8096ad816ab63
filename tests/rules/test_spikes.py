import math

import numpy as np
import pytest
from loopscope.rules.rule_files import load_rules
from loopscope.rules.spikes import FLOOR, MAX_EXCLUDED, SPIKE, WARM_UP, SpikeScore, loss_zscores


def noisy(steps: int, seed: int = 0, level: float = 3.0) -> np.ndarray:
    return level * np.exp(0.05 * np.random.default_rng(seed).standard_normal(steps))


def test_a_spike_scores_and_its_neighbours_do_not():
    loss = noisy(200)
    loss[150] *= 3
    scores = loss_zscores(loss)
    assert scores[150] > SPIKE
    assert np.nanmax(np.delete(scores, 150)) < SPIKE


def test_a_long_spike_stays_a_spike_and_does_not_become_the_baseline():
    loss = noisy(200)
    loss[120:150] *= 3
    scores = loss_zscores(loss)
    assert (scores[120:150] > SPIKE).all()
    assert (scores[150:] < SPIKE).all()


def test_a_level_that_stays_becomes_the_new_baseline():
    loss = noisy(400)
    loss[120:] *= 3
    scores = loss_zscores(loss)
    assert np.nanmax(scores[120 + MAX_EXCLUDED + WARM_UP + 1 :]) < SPIKE


def test_false_alarms_on_healthy_noise_are_rare():
    # Normal noise passes 6 deviations with probability 1e-9; heavy-tailed noise (t, 5 degrees of freedom) about 1e-3.
    rng = np.random.default_rng(0)
    healthy = 3 * np.exp(0.05 * rng.standard_normal((20, 500)))
    assert sum((loss_zscores(loss) >= SPIKE).sum() for loss in healthy) == 0
    heavy = 3 * np.exp(0.05 * rng.standard_t(5, (20, 500)))
    assert sum((loss_zscores(loss) >= SPIKE).sum() for loss in heavy) <= 30


def test_a_smooth_run_does_not_alarm_at_rounding():
    loss = np.full(100, 2.0)
    loss[60] *= 1 + FLOOR
    assert np.nanmax(loss_zscores(loss)) < 1.1


def test_infinite_nan_and_negative_losses():
    score = SpikeScore()
    for _ in range(WARM_UP):
        score.update(2.0)
    assert score.update(math.inf) == math.inf
    assert math.isnan(score.update(math.nan))
    assert score.update(-1.0) == pytest.approx(-75.0)  # 3 below, in spreads of 2 % of the level
    assert score.update(2.0) == pytest.approx(0.0)


@pytest.mark.parametrize("time_constant", [20, 40, 80, 1e9])
@pytest.mark.parametrize("jump", [1.36, 1.5, 2.0])
def test_a_jump_is_seen_while_the_loss_falls(time_constant, jump):
    for seed in range(5):
        noise = np.random.default_rng(seed).standard_normal(101)
        loss = (2.2 + 2 * np.exp(-np.arange(101) / time_constant)) * (1 + 0.01 * noise)
        loss[100] = loss[99] * jump
        assert loss_zscores(loss)[100] > 2 * SPIKE


@pytest.mark.parametrize("time_constant", [10, 20, 40, 80, 160, 320])
def test_a_loss_that_falls_is_no_spike(time_constant):
    for seed in range(10):
        noise = np.random.default_rng(seed).standard_normal(400)
        loss = (2.2 + 3 * np.exp(-np.arange(400) / time_constant)) * np.exp(0.03 * noise)
        assert np.nanmax(loss_zscores(loss)) < SPIKE


def test_a_spike_of_the_past_leaves_no_hole_that_changes_the_way_of_scoring():
    """Many at once and one at a time go different ways around spikes; see also ``test_loss_series``."""
    loss = noisy(2000)
    loss[np.random.default_rng(3).integers(0, 2000, 60)] *= 2
    score = SpikeScore()
    np.testing.assert_array_equal(loss_zscores(loss), [score.update(value) for value in loss.tolist()])


def test_the_limit_of_a_spike_is_that_of_its_rule():
    (rule,) = (rule for rule in load_rules() if rule.id == "LS010")
    assert rule.expr.text == f"loss_zscore >= {SPIKE:g}"
