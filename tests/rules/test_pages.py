"""Every rule has a page that says what its TOML says, and a picture of it firing that its script still draws."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from loopscope.gate.check import check_runs
from loopscope.gate.sarif import as_sarif
from loopscope.rules.pages import by_itself, page, page_name, section
from loopscope.rules.rule_files import BUILT_IN, load_rules
from loopscope.rules.series import KNOWN_NAMES

ROOT = Path(__file__).resolve().parents[2]
RULES = {rule.id: rule for rule in load_rules()}
SHIPPED = {table["id"]: table for table in tomllib.loads((ROOT / "rules" / "rules.toml").read_text())["rule"]}
HEADINGS = ["Definition", "Source", "Default", "Calibration", "False alarms", "What to do", "Firing"]
TEXTS = ("message", "remedy")


def figures():
    spec = importlib.util.spec_from_file_location("make_rule_figures", ROOT / "docs" / "make_rule_figures.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("identifier", sorted([*RULES, *BUILT_IN]))
def test_every_rule_has_a_page_with_all_that_is_to_be_said(identifier):
    text = page(identifier)
    assert text, f"docs/rules/{identifier}.md is missing"
    assert page_name(identifier) == f"docs/rules/{identifier}.md"
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    assert all(section(text, heading) for heading in HEADINGS)


@pytest.mark.parametrize("identifier", sorted(RULES))
def test_the_default_on_the_page_is_the_one_that_ships(identifier):
    text = page(identifier)
    assert text.splitlines()[0] == f"# {identifier} {RULES[identifier].name}"
    block = re.search(r"```toml\n(.*?)```", section(text, "Default"), re.S)
    assert block
    (told,) = tomllib.loads(block[1])["rule"]
    assert told == {key: value for key, value in SHIPPED[identifier].items() if key not in TEXTS}
    assert f"(figures/{identifier}.svg)" in section(text, "Firing")


def test_a_shipped_rule_reads_only_what_every_run_can_have():
    for rule in RULES.values():
        assert {name for name in rule.expr.names if "[" not in name} <= KNOWN_NAMES, rule.id


def test_the_index_names_every_page_and_the_grammar_is_the_one_of_the_parser():
    index = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(rules/(LS\d+)\.md\)", index)) >= {*RULES, *BUILT_IN}
    grammar = (ROOT / "rules" / "grammar.py").read_text(encoding="utf-8")
    lines = [
        line.strip() for line in re.search(r"^    expression  =.*?^    name .*?$", grammar, re.S | re.M)[0].splitlines()
    ]
    block = re.search(r"```\n(expression .*?)```", index, re.S)
    assert block
    assert [line.strip() for line in block[1].strip().splitlines()] == lines


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    module = figures()
    cases = module.cases()
    assert cases.keys() == RULES.keys()
    for identifier, case in cases.items():
        drawn = module.drawn(case, RULES[identifier], tmp_path)  # fails where the rule does not fire
        committed = (ROOT / "docs" / "rules" / "figures" / f"{identifier}.svg").read_text(encoding="utf-8")
        step = re.search(r"fires at step (\d+)", drawn)
        assert step and step[0] in committed, f"python docs/make_rule_figures.py: {identifier}"


def test_a_page_is_asked_for_by_an_id_and_nothing_else():
    for name in ("../LS020", "LS020/../../x", "README", "", "LS999", "/etc/passwd"):
        assert page(name) == page_name(name) == ""


def test_code_scanning_shows_the_page_of_each_rule(write_run):
    path = write_run(loss=[2.0 + (step % 3) / 100 for step in range(60)])
    log = json.loads(as_sarif(check_runs([path])))
    shown = {rule["id"]: rule["help"] for rule in log["runs"][0]["tool"]["driver"]["rules"] if rule["id"] in RULES}
    assert shown.keys() == RULES.keys()
    for identifier, help_of in shown.items():
        assert help_of["markdown"] == by_itself(page(identifier)) and help_of["text"]
        assert "](LS" not in help_of["markdown"] and ".svg" not in help_of["markdown"]
