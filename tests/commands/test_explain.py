"""``loopscope explain``: what it prints, what it says before it begins, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopscope.causes.experiment import Alert, Explanation, Outcome
from loopscope.causes.replayable import Change
from loopscope.causes.trained import TrainedRun, quiet_rules, recorded_config
from loopscope.commands.explain import as_text
from loopscope.commands.explain import explain as explain_command
from loopscope.commands.training import one_device, train_run
from loopscope.models.run_config import RunConfig
from loopscope.probes import open_run
from loopscope.rules.rule_files import load_rules

HOT = {"steps": 16, "lr": 0.1, "warmup_steps": 2}
STOPS = '[[rule]]\nid = "LS020"\nactions = ["stop"]\n'


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with an alert at step 13 and one checkpoint, at its end."""
    path = tmp_path_factory.mktemp("runs") / "hot.h5"
    train_run(path, RunConfig(model={"injection": "concatenation"}, train=HOT), device="cpu")
    return path


def explanation(start: int = 100) -> Explanation:
    """Return what an experiment might have found."""
    unchanged = Outcome("", Change("nothing"), frozenset({"alert", "loss"}), ("LS010",), 3.0, jump=4.0)
    norm = Outcome("norm", Change("sandwich norm in the loop", another_model=True), frozenset({"alert"}), (), 2.5)
    batch = Outcome("batch", Change("the batches replaced"), frozenset(), (), 2.0)
    cause = "cause: with the batches replaced, alert and loss are gone; none of the 1 other changes does that"
    others = (Alert("LS040", 290), Alert("LS018", 305))
    return Explanation("LS010", 300, start, 381, unchanged, (norm, batch), "batch", cause, others)


def called(path: Path, **options: Any) -> None:
    """Call the command as the command line does."""
    defaults: dict[str, Any] = {"at": None, "after": 2, "out": None, "rules": None, "device": "cpu", "as_json": False}
    explain_command(path, **(defaults | options))


def test_the_table_says_what_its_words_mean_and_what_else_there_is() -> None:
    said = as_text(explanation(), Path("runs/a.explained"))
    assert "steps 100 to 380 run again, equal bit for bit; another architecture from step 0" in said
    assert "there: as in the recorded run; gone: not any more; new: not in the recorded run" in said
    assert "other alerts of this run: LS040 at step 290, LS018 at step 305; --at STEP explains one of them" in said
    assert "from step 0" not in as_text(explanation(start=0), Path("a")).splitlines()[0]


def test_json_has_all_of_it_and_no_number_that_is_none() -> None:
    told = json.loads(json.dumps(explanation().as_dict(), allow_nan=False))
    assert told["cause"] == "batch" and told["other_alerts"] == [
        {"rule": "LS040", "step": 290},
        {"rule": "LS018", "step": 305},
    ]
    assert [each["change"] for each in told["outcomes"]] == ["norm", "batch"]


def test_before_a_long_replay_it_says_that_no_checkpoint_is_left(
    hot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loopscope.commands.explain.experiment", lambda *args, **options: explanation())
    called(hot)
    assert capsys.readouterr().err == ""  # 200 steps before step 13 there is nothing
    monkeypatch.setattr("loopscope.commands.explain.BEFORE", 4)
    called(hot)
    said = capsys.readouterr().err
    assert "no checkpoint of step 9 or before is left, so that everything is run again from step 0" in said
    assert "keep_checkpoints = 0" in said


def test_a_replay_is_not_stopped_by_a_rule_of_the_project(
    hot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "loopscope.toml").write_text(STOPS)
    monkeypatch.chdir(tmp_path)
    with open_run(hot) as run:
        again = TrainedRun(run, 13)
    again.load(0, "", tmp_path / "again.h5")
    for _ in range(15):
        again.step()
    again.close()
    assert not [record for record in caplog.records if "LS020" in record.getMessage()]
    assert not any(rule.actions for rule in load_rules(quiet_rules(tmp_path)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at": 5}, "--at 5: no rule gave a warning or an error at that step; there are LS033 at step 12, LS020 at"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "toaster"}, "not a device; use auto, cpu, cuda or cuda:N"),
        ({"out": Path(__file__)}, "is a file; give --out a folder"),
    ],
)
def test_what_cannot_be_done_is_said(hot: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        called(hot, **options)


def test_a_healthy_run_has_nothing_to_explain(tmp_path: Path) -> None:
    train_run(tmp_path / "calm.h5", RunConfig(train={"steps": 4}), device="cpu")
    with pytest.raises(ValueError, match="no rule gave a warning or an error in this run"):
        called(tmp_path / "calm.h5")


def test_another_text_is_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "text"
    corpus.mkdir()
    for number in range(40):
        (corpus / f"{number}.txt").write_text("the loop settles. " * 20)
    config = RunConfig(model={"injection": "concatenation"}, data={"source": str(corpus)}, train={"steps": 3})
    train_run(tmp_path / "mine.h5", config, device="cpu")
    (corpus / "7.txt").write_text("the loop explodes. " * 20)
    with open_run(tmp_path / "mine.h5") as run, pytest.raises(ValueError, match="is not what it was when it was rec"):
        TrainedRun(run, 2)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "not recorded by loopscope train"),
        ("demo", "not recorded by loopscope train"),
        ({"preset": "demo", "seed": 0, "model": {"wings": 2}, "data": {}, "train": {}}, "cannot be used"),
        ({"preset": "demo", "seed": 0, "model": 5, "data": {}, "train": {}}, "cannot be used"),
        ({"preset": [], "seed": 0, "model": {}, "data": {}, "train": {}}, "cannot be used"),
        ({"preset": "demo", "seed": 0, "model": {}, "data": [], "train": {"steps": "many"}}, "cannot be used"),
    ],
)
def test_a_configuration_that_no_training_wrote_is_refused(config: object, said: str) -> None:
    run: Any = SimpleNamespace(info={"config": config})
    with pytest.raises(ValueError, match=said):
        recorded_config(run)


def test_auto_is_a_device_that_is_there() -> None:
    assert one_device("auto").type in ("cpu", "cuda")
    assert one_device("cpu").type == "cpu"
