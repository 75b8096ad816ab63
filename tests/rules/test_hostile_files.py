"""Rule files of an enemy: whatever they hold, they are refused in one line or judged, quickly and in bounded memory."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.rules.expression import Evaluator, ExpressionError, parse
from loopscope.rules.grammar import DEEPEST, LARGEST_WINDOW, LONGEST, parse_tree
from loopscope.rules.rule_files import MOST_RULES, Rule, RuleError, load_rules

WORDS = [
    *"()[],+-*/<>`",
    *(
        "<=",
        ">=",
        "==",
        "!=",
        "and",
        "or",
        "not",
        "loss",
        "x",
        "state_norm",
        "tokens",
        "recorded",
        "abs",
        "clip",
        "max",
    ),
    *(
        "min",
        "mean",
        "median",
        "slope",
        "ratio",
        "delta",
        "ewma",
        "cusum",
        "0",
        "1",
        "7",
        "-1",
        "0.5",
        "1e300",
        "1e999",
    ),
    *("99999999999", "10000", "True", "lambda", "if", "\\", "#", "'", '"', "é", "ｌoss"),
    *("\x00", "\n", "\u202e", "9" * 400, "`a b`"),
]
ROWS = 40
SERIES = np.random.default_rng(0).choice([math.nan, math.inf, -math.inf, 0.0, 1.0, -2.5, 1e308, 1e-308], ROWS)


def judged_or_refused(text):
    """Parse a text; where that works, work it out over odd numbers."""
    try:
        expression = parse(text)
    except ExpressionError as error:
        assert 0 <= error.offset <= len(text)
        assert "\n" not in str(error) and len(str(error)) < 600
        return False
    outcome = Evaluator(expression).update(np.arange(float(ROWS)), dict.fromkeys(expression.names, SERIES))
    assert outcome.truth.yes.shape == outcome.truth.no.shape == (ROWS,)
    assert not (outcome.truth.yes & outcome.truth.no).any()
    signs = len(re.findall(r"[<>]|==|!=", re.sub(r"`[^`]*`", "", text)))  # a name may have any of them
    assert len(outcome.sides) == signs or (0 < len(outcome.sides) < signs and not outcome.truth.yes.any())
    return True


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join))
def test_any_words_are_judged_or_refused(text):
    judged_or_refused(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_judged_or_refused(text):
    judged_or_refused(text)


VALID = (
    "slope(median(loss, 20), 50) > 0 and not (ratio(state_norm[-1], 20) <= 1.5 or recorded(`a b`)) "
    "or cusum(clip(x, -3, 3), 1) > 9"
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(VALID)), st.integers(0, 4), st.text(max_size=4))
def test_a_valid_expression_with_a_few_letters_changed_is_judged_or_refused(at, removed, put):
    judged_or_refused(VALID[:at] + put + VALID[at + removed :])


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1000 + "x > 1",
        "-" * 1900 + "x > 1",
        "not " * 450 + "x > 1",
        "abs(" * 400 + "x",
        "max(" * 300 + "x" + ", 1)" * 300 + " > 1",
        "x + " * 480 + "x > 1",
        "x < " * 480 + "x",
        "state_norm[" * 150 + "1",
        "x > 1 and " * 10_000 + "x > 1",
        f"max(x, {LARGEST_WINDOW}) + max(x, 1) > 1",
        f"max(x, {'9' * 5000}) > 1",
        f"state_norm[{'9' * 1900}] > 1",
    ],
    ids=lambda text: text[:12],
)
def test_what_is_made_to_be_deep_long_or_wide_is_refused(text):
    assert not judged_or_refused(text)


def test_the_limits_themselves_are_allowed():
    assert judged_or_refused("x > 1 or " * 200 + "x > 1")
    assert judged_or_refused("(" * (DEEPEST - 1) + "x > 1" + ")" * (DEEPEST - 1))
    assert judged_or_refused(f"max(x, {LARGEST_WINDOW - 1}) + max(x, 1) > 1")
    text = "x > 1".ljust(LONGEST)
    assert judged_or_refused(text) and not judged_or_refused(text + " ")


def test_the_time_of_parsing_grows_with_the_text_and_not_faster():
    """Counted in steps of the parser, not in seconds."""
    import sys

    def calls(text):
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            count += 1

        sys.setprofile(trace)
        try:
            parse_tree(text)
        except ExpressionError:
            pass
        finally:
            sys.setprofile(None)
        return count

    short, long = calls("x > 1 or " * 20 + "x > 1"), calls("x > 1 or " * 200 + "x > 1")
    assert long < 12 * short
    for text in (
        "((" * 15 + "x",
        "not (" * 15 + "x > 1" + ")" * 15,
        "max(max(max(x, 2), 2), 2) > 1 and " * 50 + "x > 1",
    ):
        assert calls(text) < 100 * (len(text) + 10)


TABLES = st.dictionaries(
    st.sampled_from(
        ["id", "expr", "for", "only", "except", "actions", "severity", "message", "enabled", "name", "x", "rule"]
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**20), 10**20)
        | st.floats(allow_nan=False)
        | st.sampled_from(["loss > 1", "A", "LS020", "LS999", "error", "stop", "*", "\u001b[31m", "x" * 3000, ""]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "injection"]), inner, max_size=2)
        ),
        max_leaves=6,
    ),
    max_size=6,
)


def toml(value):
    """A value as TOML writes it, inline; None is left to the caller."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return json.dumps(value).replace("\\u007f", "\\u007F")
    if isinstance(value, list):
        return f"[{', '.join(toml(each) for each in value if each is not None)}]"
    inside = ", ".join(f"{key} = {toml(each)}" for key, each in (value or {}).items() if each is not None)
    return "{" + inside + "}"


@settings(max_examples=120, deadline=None)
@given(st.lists(TABLES, max_size=3), st.booleans())
def test_any_tables_are_rules_or_a_rule_error_of_one_line(tmp_path_factory, tables, inside):
    path = tmp_path_factory.mktemp("t") / ("pyproject.toml" if inside else "r.toml")
    header = "[[tool.loopscope.rule]]" if inside else "[[rule]]"
    lines = []
    for table in tables:
        lines += [header, *(f"{key} = {toml(value)}" for key, value in table.items() if value is not None)]
    path.write_text("\n".join(lines) + "\n")
    try:
        rules = load_rules(path)
    except RuleError as error:
        said = str(error)
        assert "\n" not in said and "\x1b" not in said and len(said) < 700 and path.name in said
        return
    assert all(isinstance(rule, Rule) for rule in rules)


def test_a_file_of_very_many_rules_is_refused(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("".join(f'[[rule]]\nid = "A{n}"\nexpr = "x > 1"\n' for n in range(MOST_RULES + 1)))
    with pytest.raises(RuleError, match="at most"):
        load_rules(path)
