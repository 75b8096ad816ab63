"""Causes by experiment: what may be called a cause, replays that must be equal, and planted causes that are found."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from loopscope.causes.experiment import (
    ONSET,
    Outcome,
    ReplayError,
    conclude,
    explain,
    jump_of,
    symptom_of,
    with_what_is_left,
)
from loopscope.causes.replayable import Change, first_difference
from loopscope.causes.trained import TrainedRun, hold_radius
from loopscope.commands.explain import explain as explain_command
from loopscope.commands.training import train_run
from loopscope.dynamics import spectral_radius
from loopscope.models import build
from loopscope.models.run_config import RunConfig
from loopscope.probes import open_run
from loopscope.rules.findings import Finding
from loopscope.rules.rule_files import load_rules

ROOT = Path(__file__).resolve().parents[2]


def outcome(name: str, *bad: str, another_model: bool = False) -> Outcome:
    return Outcome(name, Change(name, another_model), frozenset(bad), (), 3.0)  # type: ignore[arg-type]


UNCHANGED = outcome("", "alert", "explosion", "loss")


def test_a_cause_removes_everything_and_alone() -> None:
    cause, verdict = conclude(UNCHANGED, [outcome("a"), outcome("b", "alert"), outcome("c", "loss")])
    assert cause == "a" and verdict.startswith("cause: with a, alert, explosion and loss are gone")


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ([outcome("a", "loss"), outcome("b", "alert")], "no single change removes"),
        ([outcome("a"), outcome("b")], "each of these removes"),
        ([outcome("a"), outcome("draws")], "other random draws"),
        ([outcome("draws"), outcome("b", "alert")], "other random draws"),
    ],
)
def test_no_cause_is_named_where_it_is_not_the_only_one(outcomes: list[Outcome], why: str) -> None:
    cause, verdict = conclude(UNCHANGED, outcomes)
    assert cause == "" and why in verdict


def test_another_model_is_no_cause_of_a_loss_that_jumped() -> None:
    jumped = outcome("", "alert", "loss")
    assert conclude(jumped, [outcome("sandwich", another_model=True), outcome("b", "alert")])[0] == ""
    assert conclude(UNCHANGED, [outcome("sandwich", another_model=True), outcome("b", "alert")])[0] == "sandwich"


def test_a_change_that_only_weakens_a_jump_is_no_cause() -> None:
    """Half the rate halves a burst of updates too: the rule is silent, a quarter of the jump is there."""
    before = replace(outcome("", "alert", "loss"), jump=4.0)
    halved, removed = replace(outcome("rate"), jump=1.0), replace(outcome("batch"), jump=0.1)
    assert conclude(before, [with_what_is_left(before, halved), outcome("b", "alert", "loss")])[0] == ""
    both = [with_what_is_left(before, each) for each in (halved, removed)]
    assert conclude(before, both)[0] == "batch"  # what only weakens it does not stand beside its cause either


@pytest.mark.parametrize(
    ("loss", "jump"),
    [
        ([3.0] * 20 + [3.0, 7.0, 5.0], 4.0),
        ([3.0] * 20 + [2.9, 2.8, 2.7], 0.0),  # below what it was
        ([3.0] * 20 + [3.0, float("nan"), 3.0], float("inf")),
        ([3.0, 9.0] * 10 + [9.0, 9.5, 9.0], 0.5),  # no more than such a noisy loss does anyway
        ([5.0, 5.0, 5.0], 0.0),  # nothing before it to compare with
    ],
)
def test_a_jump_is_what_rises_above_the_calm_before(loss: list[float], jump: float) -> None:
    steps = np.arange(len(loss)) + 100
    first = 120 if len(loss) > 3 else 100
    assert jump_of(np.array(loss), steps, first + ONSET - 1) == jump


def test_a_run_is_explained_from_a_checkpoint_that_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loopscope.causes.experiment.BEFORE", 8)
    hot = {"steps": 20, "lr": 0.1, "warmup_steps": 2, "checkpoint_every": 5, "keep_checkpoints": 0}
    config = RunConfig(model={"injection": "concatenation"}, train=hot)
    path = tmp_path / "run.h5"
    train_run(path, config, device="cpu")
    explain_command(path, at=13, after=4, out=None, rules=None, device="cpu", as_json=False)
    said = capsys.readouterr().out
    assert "steps 5 to 17 run again, equal bit for bit" in said
    assert "cause: with ρ(A̅) held at 0.95" in said


def test_a_rule_that_begins_with_no_limit_on_one_number_is_looked_for_as_it_is() -> None:
    """The first name of ``cusum(loss_zscore)`` says nothing by itself, and that of one loop is no series of its own."""
    cut = set()
    for rule in load_rules():
        finding = Finding(rule.id, rule.name, rule.severity, 5, 5, 1.0, 0.5, "", "", 1)
        symptom = symptom_of(finding, rule)
        if symptom.expr != rule.expr:
            cut.add(rule.id)
            assert symptom.expr.text.endswith((">= 0.5", "> 0.5"))
        assert symptom.hold == rule.hold
    assert {"LS010", "LS020"} <= cut and not {"LS017", "LS018", "LS033"} & cut


def test_the_radius_is_held_and_nothing_else_is_touched() -> None:
    model = build("demo", injection="concatenation")
    weight = model.injection.adapter.weight
    with torch.no_grad():
        weight[:, :32] *= 4
    b_bar = weight[:, 32:].clone()
    hold_radius(model)
    assert float(spectral_radius(model.injection.a_bar().detach().numpy())) == pytest.approx(0.95, abs=1e-5)
    assert (weight[:, 32:] == b_bar).all()


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planted_causes", ROOT / "benchmarks" / "explain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_causes"] = module
    spec.loader.exec_module(module)
    return module


def test_a_planted_cause_is_found(planted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "STEPS", 18)
    case = next(case for case in planted.cases() if case.name == "hot-injection-0")
    cause, verdict = planted.explained(case, tmp_path)
    assert cause == "a_bar_radius", verdict


def test_a_replay_that_differs_is_refused_and_says_where(planted: ModuleType, tmp_path: Path) -> None:
    planted.STEPS = 16
    case = next(case for case in planted.cases() if case.name == "hot-injection-0")
    planted.record(case, tmp_path / "run.h5")
    with open_run(tmp_path / "run.h5") as run:
        again = TrainedRun(run, 13)  # without the fault it is another run
        with pytest.raises(ReplayError, match=r"of step [12] is .* in the replay and .* in the recording"):
            explain(run, again, tmp_path / "replays", after=2)
        assert first_difference(run, run, 25) == ""


def test_a_run_of_somebody_else_cannot_be_run_again(tmp_path: Path) -> None:
    from loopscope.probes import attach

    model = build("demo")
    with attach(model, tmp_path / "mine.h5") as probe:
        model(torch.zeros(2, 8, dtype=torch.int64))
        probe.step(loss=3.0)
    with open_run(tmp_path / "mine.h5") as run, pytest.raises(ValueError, match="not recorded by loopscope train"):
        TrainedRun(run, 0)
