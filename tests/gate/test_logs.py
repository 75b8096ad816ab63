"""Logs of other tools at the gate: judged by their loss, and every format says that the loop was not seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
from loopscope.commands.check import check
from loopscope.commands.doctor import doctor
from loopscope.gate.check import check_runs
from loopscope.gate.doctor import examine
from loopscope.gate.formats import FORMATS, render


def log(path, loss):
    path.write_text("step,loss,lr\n" + "".join(f"{step},{float(value)!r},0.001\n" for step, value in enumerate(loss)))
    return path


@pytest.fixture
def healthy(tmp_path):
    rng = np.random.default_rng(0)
    return log(tmp_path / "healthy.csv", 2 + 2 * np.exp(-np.arange(200) / 40) + 0.02 * rng.normal(size=200))


@pytest.mark.parametrize("name", FORMATS)
def test_exit_0_is_only_possible_with_the_words_loss_only(name, healthy, capsys):
    code = check([healthy], rules=None, fail_on="error", output=name, min_steps=None, debug=False)
    assert code == 0 and "loss only" in capsys.readouterr().out


def test_rules_of_the_loop_say_why_they_were_not_judged(healthy):
    (run,) = check_runs([healthy]).runs
    states = {each.rule: (each.state, each.reason) for each in run.diagnosis.judgements}
    assert states["LS020"] == states["LS030"] == states["LS022"] == ("not applicable", "no loop in this log")
    assert states["LS001"][0] == states["LS010"][0] == states["LS012"][0] == "judged"
    assert run.diagnosis.scope == "loss only" and run.limits == " (loss only)"


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lambda loss: np.where(np.arange(200) >= 100, loss + 3, loss), "LS012"),
        (lambda loss: np.where(np.arange(200) == 150, np.nan, loss), "LS001"),
        (lambda loss: np.where(np.arange(200) >= 100, 2.0, loss), "LS013"),
    ],
)
def test_the_rules_of_the_loss_fire(fault, rule, healthy, tmp_path):
    loss = fault(2 + 0.02 * np.random.default_rng(1).normal(size=200))
    result = check_runs([log(tmp_path / "bad.csv", loss)])
    assert result.exit_code == 1 and rule in {f.rule for f in result.runs[0].diagnosis.findings}
    assert "FAIL (loss only)" in render(result, "text")


def test_a_log_without_a_loss_or_too_short_never_passes(tmp_path):
    (tmp_path / "a.csv").write_text("step,accuracy\n0,1\n")
    assert check_runs([tmp_path / "a.csv"]).exit_code == 4
    assert check_runs([log(tmp_path / "b.csv", [2.0, 1.9])]).exit_code == 5


def test_a_log_beside_a_run_is_counted_and_compared(healthy, write_run):
    run = write_run(loss=2.0 + 0.01 * np.sin(np.arange(60)))
    result = check_runs([run, healthy], side_by_side=True)
    assert "(1 of them loss only)" in render(result, "github") and "(1 of them loss only)" in render(result, "markdown")
    assert [row.name for row in result.comparison.rows] == ["loss"]


def test_no_verdict_is_left_beside_a_log(healthy):
    check_runs([healthy])
    assert [path.name for path in healthy.parent.iterdir()] == ["healthy.csv"]


def test_the_doctor_says_what_can_be_judged_what_not_and_what_would_change_that(healthy, write_run, tmp_path, capsys):
    write_run("runs.h5", loss=2.0 + 0.01 * np.sin(np.arange(60)))
    (tmp_path / "train.py").write_text("loss.backward()\noptimizer.step()\n")
    (tmp_path / "watched.py").write_text("import loopscope\nloss.backward()\noptimizer.step()\n")
    (tmp_path / "data.csv").write_text("text,label\na,1\n")
    (tmp_path / "broken.jsonl").write_text('{"step": 0, "loss": 2.5}\nno more\n{}\n')
    (tmp_path / "words.jsonl").write_text("x\ny\n")
    assert doctor(tmp_path) == 0
    said = capsys.readouterr().out
    assert "runs.h5  run file, 60 steps, finished: loop and loss" in said
    assert "healthy.csv  CSV log, 200 steps: loss only" in said and "(no loop in this log)" in said
    assert "loopscope.attach(model" in said and "probe.step(loss=loss)" in said
    assert "loopscope smoke --steps 200 -- python train.py" in said and "watched.py" not in said
    assert "data.csv" not in said and "words.jsonl" not in said and "broken.jsonl  cannot be read" in said
    assert "can be judged: 1 with their loop, 1 by their loss only" in said
    doctor(tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["judgeable"] == 2


def test_a_folder_of_nothing_is_exit_code_5_and_no_folder_an_error(tmp_path, capsys):
    assert doctor(tmp_path) == 5 and "no run, no log" in capsys.readouterr().out
    with pytest.raises(NotADirectoryError, match="no such folder"):
        doctor(tmp_path / "none")


def test_a_large_tree_is_looked_at_in_part_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("loopscope.gate.doctor.MOST_FILES", 5)
    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    assert "more than 5 files" in examine(tmp_path).left_out
