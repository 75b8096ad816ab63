import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopscope.rules.expression import ExpressionError, parse


def holds(text, **series):
    return parse(text).holds({name: np.asarray(values, float) for name, values in series.items()}).tolist()


def test_comparisons_arithmetic_and_words():
    x = [0.0, 1.0, 2.0]
    assert holds("x > 1", x=x) == [False, False, True]
    assert holds("2 * x - 1 >= y / 2", x=x, y=[2, 2, 8]) == [False, True, False]
    assert holds("x > 0 and not x > 1 or x == 0", x=x) == [True, True, False]
    assert holds("-x < -1", x=x) == [False, False, True]


def test_what_was_not_recorded_never_fires_a_comparison():
    assert holds("x > 1", x=[np.nan, 2]) == [False, True]
    assert holds("x != 1", x=[np.nan, 2]) == [False, True]
    assert holds("not x < 1", x=[np.nan, 2]) == [False, True]  # three values: not unknown is unknown
    assert holds("not recorded(x) or x >= 1", x=[np.nan, 0, 2]) == [True, False, True]  # said where it is wanted


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
def test_of_two_numbers_that_have_overflowed_neither_is_the_larger(sign):
    inf = np.inf
    assert holds(f"x {sign} 1.2 * y", x=[inf, -inf], y=[inf, -inf]) == [False, False]
    assert holds(f"not x {sign} 1.2 * y", x=[inf, -inf], y=[inf, -inf]) == [False, False]
    assert holds("x >= 1.2 * y", x=[inf, inf, 1], y=[1, -inf, inf]) == [True, True, False]
    assert holds("x > 3", x=[inf, -inf]) == [True, False]


def test_a_bare_name_is_true_when_recorded_and_not_zero():
    assert holds("flag and x > 0", flag=[0, 1, np.nan], x=[1, 1, 1]) == [False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "x.real > 1",
        "x[0] > 1",
        "(lambda: 1)() > 0",
        "[x for x in y] > 1",
        "f'{x}' > 1",
        "x > 'a'",
        "0 < x < 1",
        "x := 1",
        "x ** 9 > 1",
        "x",
        "1 +",
        "",
        "True > x",
        "(" * 300 + "x" + ")" * 300 + " > 1",
    ],
)
def test_everything_else_is_refused_in_one_line(text):
    with pytest.raises(ExpressionError) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


@given(st.text(alphabet="xy0123456789.<>=!+-*/() andortn_[]{}'\"", max_size=40))
def test_any_text_is_parsed_or_refused(text):
    try:
        parsed = parse(text)
    except ExpressionError:
        return
    assert parsed.holds({name: np.array([1.0]) for name in parsed.names}).dtype == bool
