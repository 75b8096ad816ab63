"""The ratios of a run file against those of the decay law, over random loops."""

import numpy as np
import pytest
from loopscope.dynamics.trajectory.trajectory import classify_map
from loopscope.runfile.ratios import late_ratios


@pytest.mark.parametrize("seed", range(40))
def test_ratios_are_those_of_classify(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, loops = 50, int(rng.integers(1, 40))
    t = np.arange(loops)
    steps = 10 ** rng.uniform(-8, 8, (count, 1)) * rng.uniform(0.1, 3, (count, 1)) ** t
    steps *= np.exp(rng.uniform(0, 1, (count, 1)) * rng.normal(size=(count, loops)))
    steps[rng.random((count, loops)) < 0.05] = 0.0
    state = 10 ** rng.uniform(-8, 8, (count, 1)) * rng.uniform(0.5, 2, (count, 1)) ** np.arange(loops + 1)
    broken = rng.random(count) < 0.2
    steps[broken, rng.integers(0, loops)] = rng.choice([np.nan, np.inf])
    state[rng.random(count) < 0.1] = np.nan  # not recorded
    if seed % 3 == 0:
        steps[:, 0], state[:, 0] = np.nan, np.nan  # the first state was not seen
    laws = classify_map(steps, None, state)
    residual, growth = late_ratios(steps, state)
    np.testing.assert_array_equal(residual, laws.residual_ratio)
    np.testing.assert_array_equal(growth, laws.growth_ratio)
