"""Rule files: every mistake is refused with its place, and no input is anything but a rule file or a RuleError."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.rules.expression import parse
from loopscope.rules.places import Places
from loopscope.rules.rule_files import Rule, RuleError, load_rules

RULE = '[[rule]]\nid = "A"\nexpr = "loss > 1"\n'


def refused(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RuleError) as error:
        load_rules(path)
    said = str(error.value)
    assert "\n" not in said and len(said) < 600
    return said.removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        (RULE + "message = 3\n", "r.toml:4:11", "must be a text"),
        (RULE + "name = true\n", "r.toml:4:8", "must be a text"),
        (RULE + "remedy = ['x']\n", "r.toml:4:10", "must be a text"),
        (RULE + "severity = 1\n", "r.toml:4:12", "must be"),
        (RULE + 'severity = "fatal"\n', "r.toml:4:12", "must be one of"),
        (RULE + "for = true\n", "r.toml:4:7", "whole number"),
        (RULE + "for = 1.5\n", "r.toml:4:7", "whole number"),
        (RULE + "for = -1\n", "r.toml:4:7", "whole number"),
        (RULE + f"for = 1{'0' * 400}\n", "r.toml:4:7", "whole number"),
        (RULE + 'keep_firing_for = "5"\n', "r.toml:4:19", "whole number"),
        (RULE + 'enabled = "no"\n', "r.toml:4:11", "true or false"),
        (RULE + "enabled = 0\n", "r.toml:4:11", "true or false"),
        (RULE + "colour = 1\n", "r.toml:4:10", "unknown field colour"),
        (RULE + "hold = 1\n", "r.toml:4:8", "unknown field hold"),
        (RULE + "place = 1\n", "r.toml:4:9", "unknown field place"),
        (RULE + 'message = "{value:400000000}"\n', "r.toml:4:11", "only {value} and {threshold}"),
        (RULE + 'message = "{value.__class__}"\n', "r.toml:4:11", "only {value} and {threshold}"),
        ("[[rule]]\nid = 'A'\nexpr = '" + "not " * 900 + "loss > 1'\n", "r.toml:3:8", "too long"),
        ("[[rule]]\nid = 'A'\nexpr = '" + "not " * 90 + "loss > 1'\n", "r.toml:3:", "inside each other"),
        ("[[rule]]\nid = 'A'\nexpr = 'loss > 1" + "0" * 400 + "'\n", "r.toml:3:16", "too large"),
        ("[[rule]]\nid = 'A'\nexpr = 'loss > 1 and f(x) > 2'\n", "r.toml:3:22", "call is not allowed"),
        ("[[rule]]\nid = 'A'\nexpr = 3\n", "r.toml:3:8", "must be a text"),
        ("[[rule]]\nid = 3\n", "r.toml:2:6", "must be a text"),
        ("[[rule]]\nid = 'a b'\nexpr = 'loss > 1'\n", "r.toml:2:6", "letters"),
        (RULE + "\n# twice\n" + RULE, "r.toml:7:6", "there twice, first in line 1"),
        ("\n[[rules]]\nid = 'A'\n", "r.toml:2:1", "unknown name 'rules'"),
        ("rule = 3\n", "r.toml:1:1", "two brackets"),
        ("rules = []\n", "r.toml:1:1", "unknown name 'rules'"),
        ("[tool]\nx = 1\n", "r.toml:1:1", "unknown name 'tool'"),
        (RULE + "[rule.x]\ny = 1\n", "r.toml:", "unknown field x"),
        ("[[rule]]\nid = 'LS0200'\nexpr = 'loss > 1'\n", "r.toml:2:6", "no shipped rule"),
        ("[[rule]]\nid = 'LS003'\nenabled = false\n", "r.toml:2:6", "cannot be changed"),
        ("[[rule]]\nid = 'B'\nenabled = false\n", "r.toml:2:6", "expr is missing"),
        ("[[rule]]\nid =\n", "r.toml:2:5", "cannot be read as a rule file"),
        (b"\xff\xfe[[rule]]", "r.toml", "cannot be read"),
        ("a = " + "[" * 5000, "r.toml", "cannot be read"),
        ("a = 1" + "0" * 5000, "r.toml", ""),
        ("x = 1\n" * 300_000, "r.toml", "larger than"),
    ],
    ids=range(38),
)
def test_mistakes_are_refused_with_their_place(tmp_path, text, place, says):
    said = refused(tmp_path, text)
    assert said.startswith(place) and says in said


def test_a_folder_and_a_missing_file_are_no_rule_files(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(RuleError, match="cannot be read as a rule file"):
            load_rules(path)


def test_messages_replace_two_names_and_nothing_else():
    rule = Rule("A", "a", parse("loss > 1"), "error", message="{value} {threshold} {0} {value!r} {{value}} %s")
    assert rule.said(1.23456, 1e9) == "1.235 1e+09 {0} {value!r} {1.235} %s"


def test_shipped_rules_know_where_they_stand():
    lines = {rule.id: rule.place.line for rule in load_rules()}
    assert all(place > 0 for place in lines.values()) and list(lines.values()) == sorted(lines.values())


KEYS = st.sampled_from(["id", "expr", "for", "name", "severity", "enabled", "message", '"quoted key"', "a.b"])
VALUES = st.sampled_from(
    ["1", "true", '"x = [1]"', "'''a\n[[rule]]\nb = 1\n'''", '"""\nid = 3\n\\""" # """', "[1, [2,\n 3]] # ]", "{a = 1}"]
)


@given(st.lists(st.lists(st.tuples(KEYS, VALUES), max_size=4, unique_by=lambda kv: kv[0]), max_size=4))
@settings(max_examples=100, deadline=None)
def test_places_are_where_keys_and_tables_are(tables):
    text, expected, line = "# a comment with [[rule]]\n", [], 2
    for index, table in enumerate(tables):
        expected.append((("rule", index, None), line))
        text, line = text + "[[rule]]  # x\n", line + 1
        for key, value in table:
            expected.append((("rule", index, key.strip('"').replace(" ", "")), line))
            text += f"{key} = {value}\n"
            line += 1 + value.count("\n")
    tomllib.loads(text)
    places = Places("f", text)
    for (name, index, key), at in expected:
        place = places.table(name, index) if key is None else places.key(name, index, key)
        assert place.line == at, (text, key)


@given(st.text(alphabet="[]{}\"'=#\\\n .abdeilnorstux0123456789_-$<>()", max_size=120))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_rule_file_or_a_rule_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "r.toml"
    path.write_text(text)
    try:
        load_rules(path)
    except RuleError as error:
        assert "\n" not in str(error)
