"""Exit codes 0 to 5 as a user meets them: of `check` in every format, and of every other command that judges.

One table for `check`, one for the others. Each row is a command line and the code it must end with; each format must
say the same as the code, and a mistake of the user's is one line on standard error and nothing on standard output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from junitparser import JUnitXml
from loopscope import cli
from loopscope.gate import check as gate
from loopscope.gate.formats import FORMATS

STEPS = 60
Run = Callable[..., tuple[int, str, str]]


def wavy(steps: int = STEPS) -> np.ndarray:
    return 2 + 0.01 * np.sin(np.arange(steps))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; returns its exit code, what it printed, and what it complained of."""

    def command(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return command


@pytest.fixture
def here(tmp_path: Path, write_run: Callable[..., Path], loop_rows: Callable[..., np.ndarray], monkeypatch) -> Path:
    """A folder with runs of each kind, rule files, baselines, and no project around it."""
    write_run("good.h5", loss=wavy(), a_bar_radius=0.8)
    write_run("bad.h5", loss=wavy(), a_bar_radius=1.3, probe={step: loop_rows(1.3) for step in range(0, STEPS, 10)})
    write_run("short.h5", loss=wavy(1), a_bar_radius=0.8)
    write_run("spike.h5", loss=np.where(np.arange(STEPS) == 45, 9.0, wavy()), a_bar_radius=0.8)
    for number in range(3):
        write_run(f"seed{number}.h5", loss=wavy() + 0.001 * number, a_bar_radius=0.8)
    write_run("other.h5", loss=3 * wavy(), a_bar_radius=0.8)
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\nno more")
    (tmp_path / "notes.h5").write_text("no run at all")
    (tmp_path / "good.toml").write_text('[[rule]]\nid = "A"\nexpr = "loss > 100"\n')
    (tmp_path / "fires.toml").write_text('[[rule]]\nid = "A"\nexpr = "loss > 1"\n')
    (tmp_path / "blind.toml").write_text('[[rule]]\nid = "A"\nexpr = "jacobian_radius > 1 or lr > 5"\n')
    (tmp_path / "wrong.toml").write_text('[[rule]]\nid = "A"\nexpr = "loss >"\n')
    (tmp_path / "wrong.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "good.h5").write_bytes((tmp_path / "good.h5").read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


CHECKS = {
    "passes": (0, ["good.h5"]),
    "a warning passes": (0, ["spike.h5"]),
    "a rule fired": (1, ["good.h5", "bad.h5"]),
    "a warning that fails": (1, ["spike.h5", "--fail-on", "warning"]),
    "a rule of the user's fired": (1, ["good.h5", "--rules", "fires.toml"]),
    "the worst run is the odd one": (1, ["seed0.h5", "seed1.h5", "seed2.h5", "other.h5", "--compare", "--fail-on",
                                         "warning"]),
    "a defect of ours": (3, ["good.h5", "defect.h5"]),
    "a damaged file": (4, ["good.h5", "damaged.h5"]),
    "no run file": (4, ["notes.h5"]),
    "no such file": (4, ["good.h5", "nowhere.h5"]),
    "nothing to judge": (5, ["good.h5", "short.h5"]),
    "too few steps": (5, ["good.h5", "--min-steps", "100"]),
    "not in the baseline": (5, ["other.h5", "--baseline", "baseline.json", "--at-step", "20"]),
    "worse than the baseline": (1, ["other.h5", "--baseline", "baseline.json"]),
    "unreadable outweighs unjudged and failed": (4, ["bad.h5", "short.h5", "damaged.h5"]),
    "a defect outweighs all": (3, ["bad.h5", "short.h5", "damaged.h5", "defect.h5"]),
}  # fmt: skip


@pytest.fixture
def prepared(here: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Path:
    """The folder with a run that meets a defect of ours, and with a baseline."""
    (here / "defect.h5").write_bytes((here / "good.h5").read_bytes())
    judge = gate.diagnose

    def diagnose(recording, *args, **options):
        if recording.path.name == "defect.h5":
            raise IndexError("a defect")
        return judge(recording, *args, **options)

    monkeypatch.setattr(gate, "diagnose", diagnose)
    assert run("check", "seed0.h5", "seed1.h5", "seed2.h5", "--baseline", "baseline.json", "--update-baseline")[0] == 0
    return here


@pytest.mark.parametrize("name", CHECKS)
def test_check_ends_alike_in_every_format_and_each_says_so(name: str, prepared: Path, run: Run) -> None:
    code, words = CHECKS[name]
    for output in FORMATS:
        returned, out, err = run("check", *words, "--format", output)
        assert returned == code, (output, out, err)
        assert err == "", output
        says_so(output, out, code)


def says_so(output: str, text: str, code: int) -> None:
    """Assert that a report says what the exit code says."""
    verdict = "pass" if code == 0 else "fail" if code == 1 else "error"
    match output:
        case "text":
            words = {line.split("  ")[0] for line in text.splitlines() if re.match(r"(PASS|FAIL|ERROR)  ", line)}
            assert words and (verdict.upper() in words) and (code != 0 or words == {"PASS"})
        case "json":
            said = json.loads(text)
            assert (said["exit_code"], said["verdict"]) == (code, verdict)
        case "markdown":
            assert f"loopscope: {verdict} (" in text.splitlines()[0]
        case "github":
            last = text.splitlines()[-1]
            assert last.startswith(f"loopscope: {verdict}, ")
            assert ("::error " in text or "::warning " in text) or code == 0
        case "junit":
            report = JUnitXml.fromstring(text.encode())
            failures = sum(suite.failures for suite in report)
            errors = sum(suite.errors for suite in report)
            assert bool(failures + errors) == (code != 0) and (code != 1 or failures) and (code < 3 or errors)
        case "sarif":
            (invocation,) = json.loads(text)["runs"][0]["invocations"]
            assert invocation["exitCode"] == code and invocation["executionSuccessful"] == (code not in (3, 4))
        case "gitlab":
            levels = {issue["severity"] for issue in json.loads(text)}
            assert code == 0 or levels & {"critical", "blocker", "minor"}
            assert ("blocker" in levels) == (code in (3, 4))


MISTAKES = {
    "no such format": ["check", "good.h5", "--format", "pdf"],
    "no such option": ["check", "good.h5", "--loud"],
    "no run is named": ["check"],
    "no such severity": ["check", "good.h5", "--fail-on", "severe"],
    "a rule file that is wrong": ["check", "good.h5", "--rules", "wrong.toml"],
    "no such rule file": ["check", "good.h5", "--rules", "nowhere.toml"],
    "a rule over what nobody records": ["check", "good.h5", "--rules", "misspelt.toml"],
    "a baseline that is wrong": ["check", "good.h5", "--baseline", "wrong.json"],
    "no such baseline": ["check", "good.h5", "--baseline", "nowhere.json"],
    "an update without a baseline": ["check", "good.h5", "--update-baseline"],
    "a report of no format": ["check", "good.h5", "--report", "a.pdf"],
    "a step that is no number": ["check", "good.h5", "--at-step", "late"],
    "watch: a rule file that is wrong": ["watch", "good.h5", "--until-finished", "--rules", "wrong.toml"],
    "rules: an unknown word": ["rules", "tst", "good.toml", "good.h5"],
    "rules: no such rule": ["rules", "LS999"],
    "rules test: without a run": ["rules", "test", "good.toml"],
    "rules test: a file that is wrong": ["rules", "test", "wrong.toml", "good.h5"],
    "rules test: a folder without runs": ["rules", "test", "good.toml", "empty"],
    "rules validate: a file that is wrong": ["rules", "validate", "wrong.toml"],
    "doctor: no such folder": ["doctor", "nowhere"],
    "smoke: no command": ["smoke", "--steps", "3"],
    "smoke: a command that cannot be started": ["smoke", "--steps", "3", "--", "no-such-program"],
    "smoke: another file is in the way": ["smoke", "--steps", "3", "--out", "notes.h5", "--", "true"],
    "lint: no such configuration": ["lint", "nowhere.toml"],
    "lint: no such module": ["lint", "no_such_module:factory"],
    "no such command": ["chek", "good.h5"],
}


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_of_the_users_is_2_one_line_and_no_output(words: list[str], here: Path, run: Run) -> None:
    (here / "misspelt.toml").write_text('[[rule]]\nid = "A"\nexpr = "a_bar_raduis > 1"\n')
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("loopscope: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("output", FORMATS)
def test_a_mistake_of_the_users_leaves_no_half_report(output: str, here: Path, run: Run) -> None:
    code, out, _ = run("check", "good.h5", "--rules", "wrong.toml", "--format", output, "--report", "a.json")
    assert (code, out) == (2, "") and not (here / "a.json").exists()


OTHERS = {
    "watch: passes": (0, ["watch", "good.h5", "--until-finished"]),
    "watch: a rule fired": (1, ["watch", "bad.h5", "--until-finished"]),
    "watch: no run file": (4, ["watch", "notes.h5", "--until-finished"]),
    "watch: nothing to judge": (5, ["watch", "short.h5", "--until-finished"]),
    "rules: the list": (0, ["rules"]),
    "rules: one": (0, ["rules", "LS020"]),
    "rules validate": (0, ["rules", "validate", "good.toml"]),
    "rules test: passes": (0, ["rules", "test", "good.toml", "good.h5"]),
    "rules test: a rule fired": (1, ["rules", "test", "fires.toml", "good.h5"]),
    "rules test: a damaged file": (4, ["rules", "test", "good.toml", "good.h5", "damaged.h5"]),
    "rules test: no such file": (4, ["rules", "test", "good.toml", "nowhere.h5"]),
    "rules test: no data": (5, ["rules", "test", "blind.toml", "half.h5"]),
    "doctor: something can be judged": (0, ["doctor", "runs"]),
    "doctor: nothing can": (5, ["doctor", "empty"]),
    "smoke: a command that trains nothing": (5, ["smoke", "--steps", "3", "--", "true"]),
    "smoke: a command that fails": (5, ["smoke", "--steps", "3", "--", "false"]),
    "lint: nothing warns": (0, ["lint", "loopscope.models:demo_parcae"]),
    "lint: a check warned": (1, ["lint", "loopscope.models:demo_hot", "--lr", "0.05"]),
    "lint: no loop": (5, ["lint", "torch.nn:Identity"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_commands_end_as_check_does(name: str, here: Path, run: Run, write_run, monkeypatch) -> None:
    from loopscope import models

    for name_of, injection in (("demo_parcae", "parcae"), ("demo_hot", "concatenation")):
        monkeypatch.setattr(
            models,
            name_of,
            lambda kind=injection: models.build("demo", injection=kind, width=16, max_length=16),
            raising=False,
        )
    monkeypatch.setattr("loopscope.commands.lint._BUDGET", 0.5)  # seconds; the findings here come without the full loop
    write_run("half.h5", loss=wavy(), a_bar_radius=0.8, lr=np.where(np.arange(STEPS) < 5, 0.1, np.nan))
    code, words = OTHERS[name]
    returned, out, err = run(*words)
    assert returned == code, (out, err)
    assert "Traceback" not in out + err


def test_a_json_report_of_the_other_commands_says_the_code_too(here: Path, run: Run) -> None:
    for words, code in (
        (["rules", "test", "fires.toml", "good.h5", "--json"], 1),
        (["rules", "test", "good.toml", "good.h5", "--json"], 0),
    ):
        returned, out, _ = run(*words)
        assert (returned, json.loads(out)["exit_code"]) == (code, code)
    assert json.loads(run("doctor", "empty", "--json")[1])["judgeable"] == 0
