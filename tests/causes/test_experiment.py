"""Causes by experiment: what may be called a cause, replays that must be equal, and planted causes that are found."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from loopscope.causes.experiment import (
    ONSET,
    Outcome,
    ReplayError,
    conclude,
    explain,
    growth_of,
    jump_of,
    symptom_of,
    with_what_is_left,
)
from loopscope.causes.replayable import Change, first_difference
from loopscope.causes.trained import (
    ChangedTraining,
    Intervention,
    TrainedRun,
    held_injection,
    hold_radius,
    pre_norm_outside,
)
from loopscope.commands.explain import as_text
from loopscope.commands.training import train_run
from loopscope.dynamics import spectral_radius
from loopscope.models import build
from loopscope.models.run_config import RunConfig
from loopscope.models.train import NullObserver
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


def test_a_run_is_explained_from_a_checkpoint_that_it_kept(tmp_path: Path) -> None:
    hot = {"steps": 20, "lr": 0.1, "warmup_steps": 2, "checkpoint_every": 5, "keep_checkpoints": 0}
    config = RunConfig(model={"injection": "concatenation"}, train=hot)
    path = tmp_path / "run.h5"
    train_run(path, config, device="cpu")
    with open_run(path) as run:
        result = explain(run, TrainedRun(run, 13), tmp_path / "replays", at=13, before=8, after=4)
    said = as_text(result, tmp_path)
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


def test_the_radius_is_held_where_it_is_used_and_the_weights_are_the_optimizers() -> None:
    model, free = build("demo", injection="concatenation"), build("demo", injection="concatenation")
    free.load_state_dict(model.state_dict())
    held_injection(model)
    h, e = torch.randn(2, 1, 3, 32)
    assert torch.equal(model.injection(h, e), free.injection(h, e))  # its radius is below the limit
    for times in (4.0, 2.0):  # it follows the weights
        with torch.no_grad():
            for each in (model, free):
                each.injection.adapter.weight[:, :32] *= times
        radius = float(spectral_radius(free.injection.a_bar().detach().numpy()))
        assert float(spectral_radius(model.injection.a_bar().detach().numpy())) == pytest.approx(0.95, abs=1e-5)
        expected = h @ free.injection.a_bar().T * 0.95 / radius + e @ free.injection.b_bar().T
        assert torch.allclose(model.injection(h, e), expected, atol=1e-5)
        assert torch.equal(model.injection.adapter.weight, free.injection.adapter.weight)


def test_a_matrix_that_is_not_finite_has_nothing_to_be_held() -> None:
    model = build("demo", injection="concatenation")
    held_injection(model)
    with torch.no_grad():
        model.injection.adapter.weight[0, 0] = float("nan")
    assert not model.injection.a_bar().isfinite().all()


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planted_causes", ROOT / "benchmarks" / "explain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_causes"] = module
    spec.loader.exec_module(module)
    return module


def hot_injection(planted: ModuleType, steps: int) -> Any:
    """Return the first case of the benchmark, shortened."""
    return replace(next(planted.cases()), steps=steps)


def test_a_planted_cause_is_found(planted: ModuleType, tmp_path: Path) -> None:
    cause, verdict = planted.explained(hot_injection(planted, 18), tmp_path)
    assert cause == "a_bar_radius", verdict


def test_a_replay_that_differs_is_refused_and_says_where(planted: ModuleType, tmp_path: Path) -> None:
    planted.record(hot_injection(planted, 16), tmp_path / "run.h5")
    with open_run(tmp_path / "run.h5") as run:
        again = TrainedRun(run, 13)  # without the fault it is another run
        with pytest.raises(ReplayError, match=r"of step [12] is .* in the replay and .* in the recording"):
            explain(run, again, tmp_path / "replays", after=2)
        assert first_difference(run, run, 25) == ""


def test_a_planted_rate_moves_nothing_but_the_step_of_the_optimizer(planted: ModuleType) -> None:
    """What an intervention does to the weights afterwards is not made larger by the fault in the next step."""
    config = RunConfig(model={"injection": "concatenation"}, train={"lr": 1e-9, "weight_decay": 0.0, "steps": 9})
    model = config.build_model()
    with torch.no_grad():
        model.injection.adapter.weight[:, :32] *= 4
    before = model.injection.adapter.weight.detach().clone()
    acts = [planted.hot_injection(20), Intervention(update=hold_radius)]
    training = ChangedTraining(model, config.open_data(), config, NullObserver(), acts)
    for _ in range(3):
        training.advance()
    after = model.injection.adapter.weight
    held = 0.95 / float(spectral_radius(before[:, :32].numpy()))
    assert torch.allclose(after[:, :32], held * before[:, :32], atol=1e-5)
    assert torch.allclose(after[:, 32:], before[:, 32:], atol=1e-5)


def test_the_twenty_planted_causes_and_their_controls_are_what_the_page_says(planted: ModuleType) -> None:
    cases = list(planted.cases(7))
    assert len({case.name for case in cases}) == 28 and all(case.seed >= 7 for case in cases)
    expected = [case.expected for case in cases]
    assert len(expected) - expected.count("") == 20
    assert expected.count("prelude_norm") >= 3
    for case in cases:
        assert case.since < case.steps - planted.AFTER


def test_sandwich_norm_in_the_loop_leaves_the_input_of_the_loop_as_it_is() -> None:
    """In the prelude it would do what prelude norm does, and neither could be told from the other."""
    config = RunConfig(model={"norm": "sandwich", "prelude_norm": False, "prelude_layers": 2})
    model, plain = config.build_model(), config.updated(model={"norm": "pre"}).build_model()
    pre_norm_outside(model)
    inputs = []
    for each in (model, plain):
        each.injection.register_forward_pre_hook(lambda module, args: inputs.append(args[1]))
        each(torch.arange(8)[None], num_loops=1)
    assert torch.equal(inputs[0], inputs[1])
    assert not isinstance(model.core[0].mlp_post_norm, torch.nn.Identity)


def test_what_grows_is_gone_only_where_hardly_any_growth_is_left() -> None:
    before = replace(outcome("", "alert", "explosion"), growth=float(np.log(1000)))
    weaker = replace(outcome("rate"), growth=float(np.log(90)))  # below a hundredfold, and not removed
    removed = replace(outcome("norm", another_model=True), growth=float(np.log(1.5)))
    assert with_what_is_left(before, weaker).bad == {"explosion"}
    assert conclude(before, [with_what_is_left(before, each) for each in (weaker, removed)])[0] == "norm"


@pytest.mark.parametrize(
    ("norm", "times"),
    [
        ([1.0] * 30 + [300.0] * 20, 300),
        ([1.0] * 30 + [300.0] * 19 + [1.0], 1),  # it did not stay
        ([300.0] * 30 + [1.0] * 30, 1),  # it fell
        ([0.5] * 5 + [float("nan")] * 5 + [5.0] * 20, 10),
        ([1.0, 1000.0], 1),  # too short to tell
    ],
)
def test_a_growth_must_last(norm: list[float], times: float) -> None:
    assert np.exp(growth_of(np.array(norm))) == pytest.approx(times)


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([outcome("a", "loss"), outcome("draws", "loss")], "other random draws too, so that it may have been chance"),
        ([outcome("a", "loss")], "the alert alone goes with: a"),
    ],
)
def test_a_verdict_says_what_comes_near(outcomes: list[Outcome], said: str) -> None:
    assert said in conclude(UNCHANGED, outcomes)[1]


def test_a_verdict_says_that_a_change_breaks_something_else() -> None:
    verdict = conclude(outcome("", "alert", "explosion"), [outcome("hold", "loss")])[1]
    assert "it goes with: hold, but there the loss goes wrong" in verdict


def test_a_run_of_somebody_else_cannot_be_run_again(tmp_path: Path) -> None:
    from loopscope.probes import attach

    model = build("demo")
    with attach(model, tmp_path / "mine.h5") as probe:
        model(torch.zeros(2, 8, dtype=torch.int64))
        probe.step(loss=3.0)
    with open_run(tmp_path / "mine.h5") as run, pytest.raises(ValueError, match="not recorded by loopscope train"):
        TrainedRun(run, 0)
