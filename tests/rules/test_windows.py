"""Windows of steps: each number is what its definition says, whatever rows come together and wherever a run is cut."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.rules.expression import Evaluator, parse

FUNCTIONS = ("max", "min", "mean", "median", "slope", "ratio", "delta", "ewma")
VALUES = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308])
)
GAPS = st.integers(1, 4)


@st.composite
def runs(draw):
    """Steps with gaps, two series with holes, and where the rows are cut into pieces."""
    rows = draw(st.integers(1, 40))
    steps = np.cumsum([draw(GAPS) for _ in range(rows)]).astype(float)
    series = {name: np.array([draw(VALUES) for _ in range(rows)]) for name in ("x", "y")}
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=8)))
    return steps, series, [0, *cuts, rows]


@st.composite
def numbers(draw, depth=2):
    """A number of the grammar."""
    kind = draw(st.integers(0, 6 if depth else 1))
    if kind == 0:
        return draw(st.sampled_from(["x", "y"]))
    if kind == 1:
        return draw(st.sampled_from(["0", "1", "2.5", ".5", "1e3"]))
    inner = draw(numbers(depth - 1))
    if kind == 2:
        return f"({inner} {draw(st.sampled_from('+-*/'))} {draw(numbers(depth - 1))})"
    if kind == 3:
        return f"abs({inner})"
    if kind == 4:
        return f"cusum(clip({inner}, -3, 3), {draw(st.sampled_from(['0.5', '1', '0']))})"
    return f"{draw(st.sampled_from(FUNCTIONS))}({inner}, {draw(st.integers(1, 12))})"


@st.composite
def conditions(draw):
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        sign = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
        negation = draw(st.sampled_from(["", "not "]))
        parts.append(f"{negation}{draw(numbers())} {sign} {draw(numbers())}")
    return draw(st.sampled_from([" and ", " or "])).join(parts)


@settings(max_examples=150, deadline=None)
@given(conditions(), runs())
def test_rows_in_pieces_with_kills_between_say_what_all_rows_at_once_say(text, run):
    steps, series, cuts = run
    expression = parse(text)
    given_series = {name: series[name] for name in expression.names}
    whole = Evaluator(expression).update(steps, given_series)
    evaluator = Evaluator(expression)
    pieces = []
    for start, end in itertools.pairwise(cuts):
        kept = json.loads(json.dumps(evaluator.state()))  # the process is killed here and another goes on
        evaluator = Evaluator(expression)
        evaluator.restore(kept)
        part = {name: values[start:end] for name, values in given_series.items()}
        pieces.append(evaluator.update(steps[start:end], part))
    for side in (0, 1):
        assert np.array_equal(np.concatenate([piece.truth[side] for piece in pieces]), whole.truth[side])
    for start, piece in zip(cuts, pieces, strict=False):
        assert len(piece.sides) == len(whole.sides) or not piece.truth.yes.any() or not whole.truth.yes.any()
        for ours, sides in zip(piece.sides, whole.sides, strict=False):  # of what holds nowhere some may be left out
            for mine, all_rows in zip(ours, sides, strict=True):
                same = all_rows[start : start + len(mine)]
                assert np.array_equal(mine, same, equal_nan=True)  # bit for bit, but the sign of zero


def by_definition(function, steps, values, length):
    """Each number from its definition, row by row."""
    known = np.flatnonzero(~np.isnan(values))
    found = []
    for row, step in enumerate(steps):
        inside = [i for i in range(row + 1) if step - length < steps[i] and not math.isnan(values[i])]
        full = len(known) and steps[known[0]] <= step - length + 1
        if function in ("ratio", "delta"):
            earlier = [i for i in range(row + 1) if steps[i] <= step - length]
            then = values[earlier[-1]] if earlier else math.nan
            with np.errstate(all="ignore"):
                found.append(values[row] / then if function == "ratio" else values[row] - then)
        elif not full or not inside:
            found.append(math.nan)
        elif function == "slope":
            ages, y = steps[inside] - step, values[inside]
            spread = ((ages - ages.mean()) ** 2).sum()
            found.append(((ages - ages.mean()) * y).sum() / spread if spread else math.nan)
        else:
            found.append({"max": np.max, "min": np.min, "mean": np.mean, "median": np.median}[function](values[inside]))
    return np.array(found)


@pytest.mark.parametrize("function", ["max", "min", "mean", "median", "slope", "ratio", "delta"])
@pytest.mark.parametrize("seed", range(6))
def test_each_number_is_what_its_definition_says(function, seed):
    draw = np.random.default_rng(seed)
    steps = np.cumsum(draw.integers(1, 4, 200)).astype(float)
    values = np.where(draw.random(200) < 0.2, np.nan, draw.normal(size=200))
    length = int(draw.integers(1, 60))
    outcome = Evaluator(parse(f"{function}(x, {length}) > 0")).update(steps, {"x": values})
    expected = by_definition(function, steps, values, length)
    assert np.allclose(outcome.sides[0][0], expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert np.isfinite(expected).any() or length == 1


def test_an_exponential_mean_weighs_steps_and_not_rows():
    every = Evaluator(parse("ewma(x, 9) > 0"))
    steps = np.arange(41.0)
    series = np.where(steps < 20, 0.0, 1.0)
    level = every.update(steps, {"x": series}).sides[0][0]
    assert level[40] == pytest.approx(1 - 0.8**21)  # weight 2 / (9 + 1) a step
    rare = Evaluator(parse("ewma(x, 9) > 0")).update(steps[::2], {"x": series[::2]}).sides[0][0]
    assert rare[20] == pytest.approx(1 - 0.8**22)  # the last zero was two steps before the first one


def test_one_infinite_value_is_forgotten_again():
    values = np.zeros(100)
    values[50] = math.inf
    for text in ("mean(x, 10) < 1", "slope(x, 10) < 1", "max(x, 10) < 1", "ewma(x, 10) < 1", "cusum(x, 1) < 1"):
        yes = Evaluator(parse(text)).update(np.arange(100.0), {"x": values}).truth.yes
        assert yes[30] and yes[70], text


@pytest.mark.parametrize("function", ["max", "min", "median"])
def test_of_the_two_zeros_a_window_gives_the_positive_one(function):
    """Which of them is larger nobody says; a quotient by it must not be +inf in one piece and -inf in another."""
    for zeros in itertools.product([0.0, -0.0], repeat=6):
        sides = Evaluator(parse(f"{function}(x, 3) > 0")).update(np.arange(6.0), {"x": np.array(zeros)}).sides
        assert not np.signbit(sides[0][0][2:]).any()


def test_what_a_window_keeps_is_bounded():
    evaluator = Evaluator(parse("median(x, 100) > 1 or ratio(x, 50) > 2"))
    for start in range(0, 20_000, 1000):
        steps = np.arange(start, start + 1000.0)
        evaluator.update(steps, {"x": np.sin(steps)})
    assert [len(window["steps"]) for window in evaluator.state()] == [100, 50]
