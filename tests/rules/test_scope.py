"""Which runs a rule is about: globs over what a run says of itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopscope.rules.judging import judge
from loopscope.rules.rule_files import RuleError, load_rules, refuse_unknown_settings
from loopscope.rules.scope import Said, Scope, why_not
from loopscope.runfile.open import open_run

INFO = {
    "model": "Looped",
    "preset": "watch",
    "config": {
        "model": {"injection": "concatenation", "width": 32, "tied": True},
        "train": {"lr": 0.05, "model": "other"},
    },
}


@pytest.mark.parametrize(
    ("table", "fits"),
    [
        ({"injection": "concatenation"}, True),
        ({"injection": "conc*"}, True),
        ({"injection": ["parcae", "*tion"]}, True),
        ({"injection": "Concatenation"}, False),
        ({"config.model.injection": "concatenation"}, True),
        ({"model.injection": "concatenation"}, True),
        ({"width": 32}, True),
        ({"width": 64}, False),
        ({"tied": True}, True),
        ({"tied": "true"}, True),
        ({"lr": 0.05}, True),
        ({"model": "Looped"}, True),  # the least deep of those that end so
        ({"train.model": "other"}, True),
        ({"injection": "concatenation", "width": 64}, False),
        ({"colour": "red"}, False),
        ({}, True),
    ],
)
def test_only(table, fits):
    assert (why_not(Scope.of(table), Scope(), Said(INFO)) == "") is fits


def test_except_leaves_out_runs_that_say_any_of_it_and_no_others():
    assert why_not(Scope(), Scope.of({"injection": "parcae"}), Said(INFO)) == ""
    assert why_not(Scope(), Scope.of({"colour": "red"}), Said(INFO)) == ""
    assert why_not(Scope(), Scope.of({"width": 64, "tied": True}), Said(INFO)) == "not for tied = true"


def test_a_rule_for_other_runs_is_not_applicable_and_says_why(write_run, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[[rule]]\nid = "A"\nexpr = "loss > 1"\nonly = { injection = "parcae" }\n'
                    '[[rule]]\nid = "B"\nexpr = "loss > 1"\nexcept = { injection = "parcae" }\n')  # fmt: skip
    rules = [rule for rule in load_rules(file) if rule.id in "AB"]
    with open_run(write_run(loss=np.linspace(3, 2, 40), info={"config": {"injection": "addition"}})) as run:
        judged = judge(run, rules)
    assert [(each.rule, each.state) for each in judged.judgements] == [("A", "not applicable"), ("B", "judged")]
    assert judged.judgements[0].reason == "only for injection = parcae; this run has addition"
    assert [finding.rule for finding in judged.findings] == ["B"]


def test_a_setting_that_no_run_says_is_refused(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[[rule]]\nid = "A"\nexpr = "loss > 1"\nonly = { injektion = "parcae" }\n')
    rules = load_rules(file)
    with pytest.raises(RuleError, match=r"rule A: no run says its 'injektion'"):
        refuse_unknown_settings(rules, [Said(INFO), Said({})])
    refuse_unknown_settings(rules, [Said(INFO), Said({"injektion": "x"})])


@given(st.text(max_size=200), st.text(max_size=60))
def test_any_glob_over_any_text_gives_a_reason_of_one_kind(value, pattern):
    said = why_not(Scope.of({"key": pattern}), Scope(), Said({"key": value}))
    assert said == "" or said.startswith("only for key = ")


def test_a_glob_made_to_be_slow_is_not():
    pattern = "*a" * 90
    assert why_not(Scope.of({"key": pattern}), Scope(), Said({"key": "a" * 80 + "b" + "a" * 800})) == ""
    assert why_not(Scope.of({"key": pattern + "c"}), Scope(), Said({"key": "a" * 1000})) != ""


def test_what_a_run_says_is_bounded():
    deep = nested = {}
    for _ in range(100):
        nested["x"] = {}
        nested = nested["x"]
    nested["key"] = 1
    assert Said(deep).find("key") is None
    assert Said({"key": "v" * 10**6}).find("key") == "v" * 1000
    assert Said({str(i): i for i in range(10**5)}).find("5") == "5"
