"""The gate in the dashboard is that of `loopscope check` in the folder of the run."""

from pathlib import Path

import pytest
from loopscope.dashboard import rule_choice
from loopscope.dashboard.index import RunIndex
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.pages.runs import gate_words
from loopscope.dashboard.summary import RunTable
from loopscope.gate.check import check_runs

OWN = """
[[rule]]
id = "MINE"
name = "any-loss"
expr = "loss > 0"
severity = "error"
"""


@pytest.fixture(autouse=True)
def looked_for_at_once(monkeypatch):
    monkeypatch.setattr(rule_choice, "FRESH_SECONDS", 0.0)


def gates(folder: Path) -> tuple[str, str, str]:
    """The gate of the one run of a folder: in its row, on its page, and whose rules the row names."""
    index = RunIndex([folder])
    try:
        (row,) = RunTable(index).read_all()
        return row["gate"], index.open(index.entries()[0]).story().gate, row["rules"]
    finally:
        index.close()


def test_rules_of_the_folder_count_here_as_for_check_and_their_file_is_named(tmp_path, write_run):
    path = write_run(tmp_path / "a.h5")
    assert gates(tmp_path) == ("pass", "pass", "built-in rules")
    assert gate_words(RunIndex([tmp_path])).endswith("by the built-in rules.")
    for name, text in (("loopscope.toml", OWN), ("pyproject.toml", OWN.replace("[[rule]]", "[[tool.loopscope.rule]]"))):
        rules = tmp_path / name
        rules.write_text(text)
        assert gates(tmp_path) == ("fail", "fail", f"rules of {rules}")
        (checked,) = check_runs([path], rules_file=rules).runs
        assert [finding.rule for finding in checked.at_or_above("error")] == ["MINE"]
        assert str(rules) in gate_words(RunIndex([tmp_path]))
        rules.unlink()


def test_rules_that_change_are_followed_by_a_page_that_is_open(tmp_path, write_run):
    held = OpenRun(write_run(tmp_path / "a.h5"))
    assert held.story().gate == "pass"
    (tmp_path / "loopscope.toml").write_text(OWN)
    held.refresh()
    assert held.story().gate == "fail"
    (tmp_path / "loopscope.toml").unlink()
    held.refresh()
    assert held.story().gate == "pass"


@pytest.mark.parametrize("text", ["[[rule", OWN.replace("loss > 0", "__import__('os')"), "[[rule]]\nid = 3"])
def test_a_rule_file_that_is_not_valid_is_said_and_costs_no_verdict(tmp_path, write_run, text):
    write_run(tmp_path / "a.h5")
    (tmp_path / "loopscope.toml").write_text(text)
    gate, _, words = gates(tmp_path)
    assert gate == "pass" and words.startswith("built-in rules, since") and "loopscope.toml" in words
