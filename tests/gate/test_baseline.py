"""The committed baseline: seeds do not fail it, regressions do, and what cannot be compared is no pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopscope.commands.check import Asked, check
from loopscope.gate.baseline import Baseline, BaselineError, read_baseline, update
from loopscope.gate.check import check_runs
from loopscope.gate.levels import QUANTITIES, Quantity, expected, levels, student_quantile
from loopscope.gate.text import as_text
from loopscope.runfile.open import open_run


@pytest.fixture
def train(write_run):
    """A run of a configuration, with the noise of its seed."""

    def make(seed: int, *, loss=2.0, radius=0.8, steps=100, lr=0.01, **more):
        rng = np.random.default_rng(seed)
        level = loss * (1 + 0.02 * rng.normal())
        config = {"train": {"lr": lr, "seed": seed}, "out": f"runs/{seed}.h5"}
        series = {"loss": level + 0.02 * rng.normal(size=steps), "a_bar_radius": radius + 0.01 * rng.normal()} | more
        return write_run(
            f"{seed}-{loss}-{radius}-{lr}-{steps}-{len(more)}.h5", info={"config": config, "model": "Loop"}, **series
        )

    return make


def rules_of(path: Path, baseline: Path) -> list[str]:
    found = check_runs([path], baseline=baseline).runs[0].diagnosis
    assert found is not None
    return [each.rule for each in found.findings if each.rule in ("LS091", "LS092", "LS094")]


def test_seeds_pass_and_a_regression_is_a_finding_with_an_id(train, tmp_path):
    baseline = tmp_path / "baseline.json"
    assert "3 runs of 100 steps" in update(baseline, [train(seed) for seed in range(3)], "abc")
    for seed in range(10, 40):
        assert rules_of(train(seed), baseline) == []
    text = as_text(check_runs([train(60)], baseline=baseline))
    assert "LS091 (loss, a_bar_radius: against 3 runs of baseline.json)" in text
    assert "against" not in as_text(check_runs([train(61, lr=0.5)], baseline=baseline))
    worse = check_runs([train(50, loss=2.8)], baseline=baseline)
    assert worse.exit_code == 1
    (finding,) = [each for each in worse.runs[0].diagnosis.findings if each.rule == "LS091"]
    assert "loss = 2.8" in finding.message and finding.severity == "error" and finding.value > finding.threshold
    assert rules_of(train(51, radius=1.09), baseline) == ["LS091"]
    better = check_runs([train(52, loss=1.4)], baseline=baseline)
    assert better.exit_code == 0 and [f.rule for f in better.runs[0].diagnosis.findings if f.rule == "LS092"]


def test_what_cannot_be_compared_is_exit_code_5(train, tmp_path, write_run):
    baseline = tmp_path / "baseline.json"
    update(baseline, [train(seed, grad_norm=1.0) for seed in range(3)], "")
    assert check_runs([train(9, lr=0.5, grad_norm=1.0)], baseline=baseline).exit_code == 5  # another configuration
    assert check_runs([train(9, steps=50, grad_norm=1.0)], baseline=baseline).exit_code == 5  # half as long
    assert check_runs([train(9)], baseline=baseline).exit_code == 5  # a quantity is gone
    assert check_runs([train(9, grad_norm=1.0)], baseline=baseline).exit_code == 0


def test_an_update_takes_the_place_of_its_configuration_and_keeps_the_others(train, tmp_path):
    baseline = tmp_path / "b" / "baseline.json"
    update(baseline, [train(1), train(2), train(3, lr=0.5)], "")
    update(baseline, [train(4, loss=4.0)], "")
    whole = json.loads(baseline.read_text())
    assert whole["format"] == "loopscope-baseline" and whole["version"] == 1
    assert sorted((each["configuration"]["train.lr"], len(each["runs"])) for each in whole["configurations"]) == [
        (0.01, 1),
        (0.5, 1),
    ]
    assert "seed" not in str(whole["configurations"][0]["configuration"])
    assert rules_of(train(5, loss=4.0), baseline) == []


def test_runs_that_fail_are_never_learned_from(train, tmp_path, capsys, write_run):
    baseline = tmp_path / "baseline.json"
    bad = write_run("bad.h5", loss=np.full(60, 2.0))  # exactly constant
    options = {"rules": None, "fail_on": "error", "output": "text", "min_steps": None, "debug": False}
    assert check([bad], asked=Asked(baseline=baseline, update_baseline=True), **options) == 1
    assert not baseline.exists() and "not all runs pass" in capsys.readouterr().err
    assert check([train(1)], asked=Asked(baseline=baseline, update_baseline=True), **options) == 0
    assert baseline.exists() and "learned 1 run of 100 steps; one run says little" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--update-baseline needs --baseline"):
        check([bad], asked=Asked(update_baseline=True), **options)


SOUND = {"configuration": {}, "steps": 10, "runs": [], "limits": {"loss": {"expected": 1, "low": 0, "high": 2}}}
HUGE = {"loss": {"expected": 1, "low": 0, "high": 10**400}}


def baseline_of(**changed):
    return json.dumps({"format": "loopscope-baseline", "version": 1, "configurations": [SOUND | changed]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "no baseline"),
        ('{"format": "loopscope-baseline", "version": 7}', "version 7"),
        ('{"format": "loopscope-baseline", "version": 1}', "must be a list"),
        (baseline_of(limits={}), "everything pass"),
        (baseline_of(steps=True), "'steps'"),
        (baseline_of(limits={"los": {}}), "unknown quantity los"),
        (baseline_of(limits=HUGE), "loss: must"),
    ],
)
def test_a_baseline_that_is_none_is_one_line(text, said, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=said) as error:
        read_baseline(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_baseline_that_is_not_there_is_an_error_of_use(write_run, tmp_path):
    with pytest.raises(BaselineError, match="no such baseline"):
        check_runs([write_run(loss=np.full(30, 2.0))], baseline=tmp_path / "no.json")


KEYS = st.sampled_from(["configuration", "steps", "runs", "limits", "loss", "expected", "low", "high"])
LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=20))
def test_any_json_is_read_or_refused(tmp_path_factory, entry):
    path = tmp_path_factory.mktemp("b") / "b.json"
    path.write_text(json.dumps({"format": "loopscope-baseline", "version": 1, "configurations": [entry]}))
    try:
        assert isinstance(read_baseline(path), Baseline)
    except BaselineError as error:
        assert str(path) in str(error)


def test_the_tolerance_is_the_usual_one_for_one_run_and_the_measured_one_for_many():
    usual = Quantity("loss", 0.03, "relative")
    one = expected(usual, [2.0])
    assert 0.2 < one.tolerance / 2.0 < 0.25  # t(8) at 0.9995 is 5.04; times 0.03 times sqrt 2
    rng = np.random.default_rng(0)
    many = expected(usual, list(2.0 + 0.3 * rng.normal(size=200)))
    assert 0.8 < many.tolerance / (3.33 * 0.3) < 1.25
    log = expected(Quantity("last_state_norm", 0.25, "log"), [1.0, 1.0, 1.0])
    assert log.low == pytest.approx(1 / log.high) and log.score(log.high) == pytest.approx(1)
    with pytest.raises(ValueError, match="not finite"):
        expected(usual, [np.inf])


def test_sound_runs_are_seldom_outside_and_the_rate_is_the_one_that_is_stated():
    """Three seeds learned, one checked; the spread between runs is the usual one."""
    rng = np.random.default_rng(1)
    outside = sum(
        expected(quantity, values[:3]).score(values[3]) > 1
        for quantity in QUANTITIES[2:4]
        for values in (1 + quantity.spread * rng.normal(size=(4000, 4)))
    )
    assert outside / 8000 < 0.001


@pytest.mark.parametrize("freedom", [8, 10, 17, 60, 1000])
def test_the_quantile_is_that_of_scipy(freedom):
    from scipy.stats import t

    assert student_quantile(0.9995, freedom) == pytest.approx(t.ppf(0.9995, freedom), rel=3e-3)
    assert student_quantile(0.975, freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-3)


def test_a_level_is_of_the_last_quarter(write_run):
    with open_run(
        write_run(loss=np.repeat([4.0, 2.0], [150, 50]), lyapunov_max=np.where(np.arange(200) == 10, 0.2, np.nan))
    ) as run:
        assert levels(run)["loss"] == 2.0 and levels(run, 149)["loss"] == 4.0
        assert levels(run)["lyapunov_max"] == 0.2 and "jacobian_radius" not in levels(run)
