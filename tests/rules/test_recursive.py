"""`ewma` and `cusum`: what their definitions say, and the same bit for bit however the rows come."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.rules.recursive import STRETCH, CumulativeSum, ExponentialMean, divide

NUMBERS = {
    "ewma": lambda: ExponentialMean(9),
    "ewma of the last value": lambda: ExponentialMean(1),
    "cusum": lambda: CumulativeSum(0.3),
    "cusum that overflows": lambda: CumulativeSum(-1e308),
}


def a_run(seed, rows, longest_gap=1, odd=0.1):
    """Steps with gaps, and values of which some are missing, infinite or as large as float64 can hold."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, longest_gap + 1, rows)).astype(float)
    values = rng.normal(0.3, 1.0, rows)
    strange = np.array([math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, -0.0])
    return steps, np.where(rng.random(rows) < odd, rng.choice(strange, rows), values)


@pytest.mark.parametrize("name", NUMBERS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 12 * STRETCH),
    gap=st.sampled_from([1, 1, 3]),
    cuts=st.lists(st.integers(0, 12 * STRETCH), max_size=6),
)
def test_rows_in_pieces_with_kills_between_give_the_same_bits(name, seed, rows, gap, cuts):
    steps, values = a_run(seed, rows, gap)
    with np.errstate(all="ignore"):
        whole = NUMBERS[name]().update(steps, values)
        follows, pieces = NUMBERS[name](), []
        for start, end in itertools.pairwise(sorted({0, rows, *(cut for cut in cuts if cut < rows)})):
            kept = json.loads(json.dumps(follows.state()))  # the process is killed here and another goes on
            follows = NUMBERS[name]()
            follows.restore(kept)
            pieces.append(follows.update(steps[start:end], values[start:end]))
        assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("gap", [1, 4])
def test_rows_one_by_one_give_the_same_bits(name, gap):
    steps, values = a_run(3, 20 * STRETCH + 7, gap)
    with np.errstate(all="ignore"):
        whole, follows = NUMBERS[name]().update(steps, values), NUMBERS[name]()
        alone = [follows.update(steps[row : row + 1], values[row : row + 1])[0] for row in range(len(steps))]
    assert np.array(alone).tobytes() == whole.tobytes()


@pytest.mark.parametrize("gap", [1, 3])
def test_an_exponential_mean_is_its_definition(gap):
    steps, values = a_run(5, 900, gap, odd=0.0)
    values[::17] = math.nan
    mean, last, expected = math.nan, math.nan, []
    for step, value in zip(steps, values, strict=True):
        if not math.isnan(value):
            keep = (1 - 2 / 33) ** (step - last) if not math.isnan(last) else 0.0
            mean, last = (1 - keep) * value + (keep * mean if keep else 0.0), step
        expected.append(mean if step - steps[1] >= 31 else math.nan)
    # At most a few dozen roundings of numbers around 1 are between the two.
    np.testing.assert_allclose(ExponentialMean(32).update(steps, values), expected, rtol=0, atol=1e-13)


def test_a_cumulative_sum_is_its_definition():
    steps, values = a_run(6, 900, odd=0.0)
    values[:300] -= 0.6
    total, expected = 0.0, []
    for value in values:
        total = max(0.0, total + value - 0.2)
        expected.append(total)
    # It grows to some hundred, of which a rounding is 1e-14, and is made of less than a thousand of them.
    np.testing.assert_allclose(CumulativeSum(0.2).update(steps, values), expected, rtol=0, atol=1e-11)
    assert expected.count(0.0) > 20 and max(expected) > 10


def test_every_value_belongs_to_one_stretch():
    for values, begun in itertools.product((0, 1, 31, 32, 129, 1000), (0, 1, 31)):
        head, whole = divide(values, begun)
        assert head in (values, (STRETCH - begun) % STRETCH) and whole % STRETCH == 0 and head + whole <= values
