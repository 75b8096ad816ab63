"""Where an architecture begins to fail: the middle is right, the interval covers it and shrinks with seeds."""

import math

import numpy as np
import pytest
from loopscope.dashboard.boundary import boundaries, boundary, monotone

RATES = np.array([1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])


def sweep(edge: float, seeds: int, rng: np.random.Generator) -> tuple[list[float], list[bool]]:
    """Runs whose chance of failing rises around an edge: a logistic in the logarithm."""
    chance = 1 / (1 + np.exp(-4 * (np.log(RATES) - math.log(edge))))
    values = np.repeat(RATES, seeds)
    return values.tolist(), (rng.random(len(values)) < np.repeat(chance, seeds)).tolist()


def test_the_interval_covers_the_true_edge_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [boundary("a", *sweep(5e-3, 8, rng), log=True) for _ in range(60)]
    covered = [one.low <= 5e-3 <= one.high for one in found if one is not None]
    assert len(covered) > 55 and np.mean(covered) >= 0.85
    assert np.median([one.at for one in found if one]) == pytest.approx(5e-3, rel=0.25)


def test_more_seeds_make_the_interval_narrower():
    rng = np.random.default_rng(1)
    widths = []
    for seeds in (4, 64):
        one = boundary("a", *sweep(5e-3, seeds, rng), log=True)
        assert one is not None
        widths.append(math.log(one.high / one.low))
    assert widths[1] < 0.5 * widths[0]


def test_one_run_on_each_side_is_a_boundary_of_which_little_is_known():
    one = boundary("a", [0.01, 0.1], [False, True], log=True)
    assert one is not None and 0.01 < one.at < 0.1
    assert one.low == -math.inf and one.high == math.inf


@pytest.mark.parametrize("failed", [[False] * 4, [True] * 4])
def test_nothing_is_made_up_where_all_runs_end_alike(failed):
    assert boundary("a", [0.1, 0.2, 0.3, 0.4], failed, log=True) is None
    assert boundary("a", [0.1, 0.1], [True, False], log=True) is None


def test_architectures_are_told_apart_and_a_value_of_zero_makes_the_axis_linear():
    names = ["a", "a", "b", "b", "c"]
    found = boundaries(names, [0.0, 4.0, 1.0, 2.0, 3.0], [False, True, True, True, True])
    assert [one.architecture for one in found] == ["a"] and 0 < found[0].at < 4


def test_monotone_is_the_least_squares_projection():
    rng = np.random.default_rng(2)
    shares, weights = rng.random(12), rng.integers(1, 5, 12).astype(float)
    nearest = monotone(shares, weights)
    assert (np.diff(nearest) >= 0).all()
    for _ in range(200):
        other = np.sort(nearest + rng.normal(0, 0.05, 12))
        assert np.sum(weights * (nearest - shares) ** 2) <= np.sum(weights * (other - shares) ** 2) + 1e-12
