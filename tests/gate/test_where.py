"""Where a finding points: the user's own line, the baseline, the code of the loop, or nowhere."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from loopscope.commands.check import Asked, check
from loopscope.gate.check import check_runs
from loopscope.gate.formats import render
from loopscope.gate.where import LoopCode, Spot, loop_code

ASKED = Asked()
INFO = {
    "site": {"body": "injection"},
    "a_bar_parameters": ["injection.linear.weight"],
    "loop_code": {"file": "net/loop.py", "line": 12, "holds_loop": True},
}


@pytest.fixture
def project(tmp_path, monkeypatch, write_run, loop_rows):
    """A checkout with the code of a loop, a rule of its own, a rule that is changed, and a run that fails by both."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "loop.py").write_text("# the loop\n" * 20)
    (tmp_path / "loopscope.toml").write_text(
        '[[rule]]\nid = "LS020"\nfor = 5\n\n[[rule]]\nid = "MINE"\nexpr = "loss > 1"\n'
    )
    monkeypatch.chdir(tmp_path)
    passes = {step: loop_rows(1.3) for step in range(0, 60, 10)}
    write_run("a.h5", loss=np.append(2 + 0.01 * np.sin(np.arange(59)), 9.0), a_bar_radius=1.3, probe=passes, info=INFO)
    return tmp_path


def places(output, capsys, *names, asked=ASKED):
    """What a format says of each rule: file and line."""
    check([Path(name) for name in names or ("a.h5",)], rules=None, fail_on="error", output=output, min_steps=None,
          debug=False, asked=asked)  # fmt: skip
    text = capsys.readouterr().out
    if output == "github":
        found = re.findall(r"^::\w+ (?:file=([^,]*),line=(\d+),)?title=loopscope (\w+)", text, re.M)
        return {rule: (file, int(line)) if file else None for file, line, rule in found}
    if output == "gitlab":
        return {each["check_name"].split()[0]: (each["location"]["path"], each["location"]["lines"]["begin"])
                for each in json.loads(text)}  # fmt: skip
    results = json.loads(text)["runs"][0]["results"]
    return {each["ruleId"]: (at["artifactLocation"]["uri"], at.get("region", {}).get("startLine"))
            for each in results for at in [each["locations"][0]["physicalLocation"]]}  # fmt: skip


@pytest.mark.parametrize(("output", "nowhere"), [("github", None), ("gitlab", ("a.h5", 1)), ("sarif", ("a.h5", None))])
def test_a_finding_points_at_what_it_is_about(output, nowhere, project, capsys):
    at = places(output, capsys)
    assert at["MINE"] == ("loopscope.toml", 7)  # the rule of the user's own
    assert at["LS020"] == at["LS030"] == ("net/loop.py", 12)  # the loop; what is changed in LS020 is not its condition
    assert at["LS010"] == nowhere  # a loss has no line


@pytest.mark.parametrize("output", ["github", "gitlab", "sarif"])
def test_code_that_the_checkout_does_not_have_is_not_pointed_at(output, project, capsys):
    (project / "net" / "loop.py").unlink()
    assert places(output, capsys)["LS020"] in (None, ("a.h5", 1), ("a.h5", None))


def test_the_root_of_the_checkout_is_what_the_ci_says(project, capsys, monkeypatch):
    monkeypatch.chdir(project / "net")
    assert places("github", capsys, "../a.h5")["MINE"] == ("loopscope.toml", 7)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project / "net"))
    at = places("github", capsys, "../a.h5")
    assert at["MINE"] == (str(project / "loopscope.toml"), 7) and at["LS020"] is None


def test_a_regression_points_at_the_baseline(project, capsys, write_run):
    for seed in range(3):
        write_run(f"good{seed}.h5", loss=1 - 0.1 * np.sin(np.arange(60) + seed), a_bar_radius=0.5)
    good = [Path(f"good{seed}.h5") for seed in range(3)]
    asked = Asked(baseline=Path("baseline.json"), update_baseline=True)
    (project / "loopscope.toml").unlink()
    assert check(good, rules=None, fail_on="error", output="text", min_steps=None, debug=False, asked=asked) == 0
    write_run("worse.h5", loss=3 - 0.1 * np.sin(np.arange(60)), a_bar_radius=0.5)
    capsys.readouterr()
    at = places("github", capsys, "worse.h5", asked=Asked(baseline=Path("baseline.json")))
    assert at["LS091"] == ("baseline.json", 1)


@pytest.mark.parametrize("output", ["text", "markdown", "github", "junit", "sarif", "gitlab"])
def test_the_parameters_of_a_bar_are_named(output, project):
    text = json.dumps(json.loads(said), ensure_ascii=False) if (said := render(check_runs([Path("a.h5")]), output))[
        0
    ] in "[{" else said  # fmt: skip
    assert re.search(r"A̅ is made of injection\.linear\.weight, the loop is in net/loop\.py:12", text)
    assert re.search(r"[Tt]he loop begins at injection, the loop is in net/loop\.py:12", text)


def test_json_has_the_code_of_the_loop_and_a_kept_verdict_has_it_too(project, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        (run,) = json.loads(render(check_runs([Path("a.h5")]), "json"))["runs"]
        assert run["loop_code"] == {"body": "injection", "a_bar_parameters": ["injection.linear.weight"],
                                    "file": "net/loop.py", "line": 12, "holds_loop": True}  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        {"file": "../../etc/passwd", "line": 1},
        {"file": "/etc/passwd", "line": 1},
        {"file": "a\n::error::x", "line": 1},
        {"file": "a" * 300, "line": 1},
        {"file": "a.py", "line": 0},
        {"file": "a.py", "line": True},
        {"file": "a.py", "line": math.nan},
        {"file": 3, "line": 3},
        "a.py:3",
        None,
    ],
)
def test_what_a_hostile_run_says_of_its_code_is_not_believed(said):
    info = {"site": "no", "a_bar_parameters": [3, "x\x1b[0m", "w" * 999], "loop_code": said}
    assert loop_code(info) == LoopCode()


def test_a_spot_without_a_column_is_a_line():
    assert (Spot("a.py", 3).column, LoopCode().words) == (0, "")


def test_a_line_that_only_led_to_the_loop_is_not_called_the_loop():
    assert LoopCode(file="a.py", line=3).words == "the probe was attached from a.py:3"
    assert LoopCode(file="a.py", line=3, holds_loop=True).words == "the loop is in a.py:3"
