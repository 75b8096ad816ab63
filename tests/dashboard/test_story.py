"""The story of a run: one moment, the cause before the consequence, the lead over the loss, the right advice."""

from dataclasses import replace

import numpy as np
import pytest
from loopscope.dashboard import opened
from loopscope.dashboard.components import verdict
from loopscope.dashboard.example import example_runs
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.story import MARGINAL_ADVICE, Story, _crossed, _gate_words, as_json, tell
from loopscope.gate.check import check_runs
from loopscope.rules.diagnosis import diagnose
from loopscope.rules.findings import Finding
from loopscope.rules.lead import risen_steps
from loopscope.runfile.writer import RunWriter


def told(write_run, path, **run):
    held = OpenRun(write_run(path, **run))
    held.close()
    story = held.story()
    assert story is not None
    return held, story


def test_an_unstable_run_has_one_moment_a_cause_a_lead_and_advice(write_run, tmp_path):
    held, story = told(write_run, tmp_path / "a.h5", start=0.65, end=2.6)
    radius = held.run["a_bar_radius"]
    crossed = int(np.flatnonzero(radius <= 1.0)[-1]) + 1
    assert story.verdict == "unstable" and story.since == crossed
    assert story.sentence.startswith(f"Unstable since step {crossed}: the injection amplifies the state 2.59× per loop")
    assert story.loss_step is not None and story.loss_step > crossed
    assert f"the loss showed it {story.loss_step - crossed} steps later" in story.sentence
    assert "Parcae" in story.advice and not story.advice.startswith("Stop")  # it has ended
    leads = [story.lead(finding) for finding in story.findings if finding.rule == "LS020"]
    assert leads == [story.loss_step - next(f.step for f in story.findings if f.rule == "LS020")]
    since = [finding.since for finding in story.findings]
    assert since == sorted(since)


def test_a_live_run_is_to_be_stopped(training, tmp_path):
    live = training(tmp_path / "live.h5", steps=100, end=2.0)
    for step in range(100):
        live.step(step)
    live.writer.flush()
    held = OpenRun(tmp_path / "live.h5")
    story = held.story()
    assert story is not None and story.advice.startswith("Stop, or ")
    held.close()


def test_stable_and_marginal_runs_say_why(write_run, tmp_path):
    _, stable = told(write_run, tmp_path / "s.h5", start=0.45, end=0.8)
    assert (
        stable.verdict == "stable" and stable.since is None and stable.sentence.startswith("Stable: each loop shrinks")
    )
    _, marginal = told(write_run, tmp_path / "m.h5", start=1.0, end=1.0, a_bar_learned=False)
    assert marginal.verdict == "marginal" and "by design" in marginal.sentence


def test_parcae_is_not_told_to_use_parcae(write_run, tmp_path):
    _, story = told(write_run, tmp_path / "p.h5", start=0.65, end=2.6, config={"model": {"injection": "parcae"}})
    assert "Parcae" not in story.advice and "learning rate" in story.advice


@pytest.mark.parametrize("loss", [np.full(200, 3.0), np.linspace(6, 2, 200), 3 + 0.05 * np.sin(np.arange(200.0))])
def test_a_healthy_loss_never_rises(loss):
    assert len(risen_steps(np.arange(200.0), loss)) == 0


def test_a_single_spike_is_no_rise_but_a_new_level_is():
    loss = np.full(200, 3.0)
    loss[100] = 5.0
    assert len(risen_steps(np.arange(200.0), loss)) == 0
    loss[150:] = 4.0
    assert 150 <= risen_steps(np.arange(200.0), loss)[0] <= 160


def test_what_the_table_keeps_is_json(write_run, tmp_path):
    import json

    _, story = told(write_run, tmp_path / "a.h5", start=0.65, end=2.6)
    kept = json.loads(json.dumps(as_json(story)))
    assert kept["verdict"] == "unstable" and kept["agree"] is True and kept["alert_step"] > 0


@pytest.fixture(scope="module")
def example() -> dict[str, Story]:
    """Return the stories of the runs that ship with the package."""
    stories = {}
    for path in sorted(example_runs().glob("*.h5")):
        held = OpenRun(path)
        stories[path.stem] = held.story()
        held.close()
    return stories


def test_the_gate_of_a_page_is_that_of_the_command(example):
    checks = {check.path.stem: check.verdict("error") for check in check_runs([example_runs()]).runs}
    assert {name: story.gate for name, story in example.items()} == checks
    assert set(checks.values()) == {"pass", "fail"}


def test_no_run_is_called_fine_while_an_error_has_fired(example):
    assert any(story.verdict == "marginal" and story.gate == "fail" for story in example.values())
    for name, story in example.items():
        strip = str(verdict(story))
        errors = [finding.rule for finding in story.findings if finding.severity == "error"]
        assert ("fine" in strip.lower()) <= (not errors), name
        assert ("The gate fails" in strip) == bool(errors), name
        assert all(rule in strip for rule in errors[:1]), name
    assert example["addition-lr0.05"].advice == MARGINAL_ADVICE  # no error: what was said of it still is


def test_a_run_without_steps_is_an_error_of_the_gate_and_not_a_failure(write_run, tmp_path):
    _, story = told(write_run, tmp_path / "none.h5", steps=0)
    assert story.gate == "error" and story.gate_sentence.startswith("The gate cannot judge it: LS000")


def test_the_first_alert_is_the_one_that_alarmed_first_an_error_before_a_warning(example):
    for name, story in example.items():
        alerts = [finding for finding in story.findings if finding.severity != "note"]
        assert (story.first_alert is None) == (not alerts), name
        if story.first_alert is not None:
            assert story.first_alert.step == min(finding.step for finding in alerts), name
    first = example["concatenation-lr0.05"].first_alert
    assert first is not None and (first.rule, first.step) == ("LS020", 13)


def test_of_alerts_at_one_step_the_error_is_first(example):
    story = example["parcae-lr0.05"]
    made = [
        Finding(rule, rule, severity, step, since, 0.0, 0.0, "", "", 1)
        for rule, severity, step, since in (
            ("note", "note", 1, 0), ("early onset", "warning", 9, 2), ("warning", "warning", 5, 3),
            ("error", "error", 5, 4),
        )
    ]  # fmt: skip
    first = replace(story, findings=tuple(made)).first_alert
    assert first is not None and first.rule == "error"
    assert as_json(replace(story, findings=tuple(made)))["alert"] == "error at step 5"


class Numbers:
    """Of a run, one series."""

    def __init__(self, values):
        self.values = values

    def series(self, name):
        return np.arange(float(len(self.values))), self.values


def test_a_number_that_dips_below_its_limit_is_above_it_since_before():
    for dip, since in ((3, 60), (40, 150)):
        radius = np.where(np.arange(200) < 60, 0.8, 1.5)
        radius[150 - dip : 150] = 0.95
        assert _crossed(Numbers(radius), "a_bar_radius", 1.0) == since
    assert _crossed(Numbers(np.append(radius, 0.9)), "a_bar_radius", 1.0) is None


@pytest.mark.parametrize(
    ("severity", "gap", "gate", "said"),
    [
        ("error", False, "fail", "The gate fails: X1 late (alarm at step 9)."),
        ("error", True, "error", "The gate cannot judge it: X1 late."),
        ("warning", False, "pass", "The gate passes: no error."),
    ],
)
def test_a_stable_run_is_not_to_be_counted_on_where_the_gate_fails(write_run, tmp_path, severity, gap, gate, said):
    held = OpenRun(write_run(tmp_path / "s.h5", start=0.45, end=0.8))
    diagnosis = replace(
        diagnose(held.run), findings=[Finding("X1", "late", severity, 9, 4, 0.0, 0.0, "", "", 1, gap=gap)]
    )
    story = tell(held.run, diagnosis, held.settings())
    held.close()
    assert diagnosis.verdict == "stable" and (story.gate, story.gate_sentence) == (gate, said)
    assert ("Do not count on it" in story.advice) is (gate == "fail")


def test_of_many_errors_some_are_named_and_the_rest_is_counted():
    errors = [Finding(f"X{i}", "x", "error", 9 - i, i, 0.0, 0.0, "", "", 1) for i in range(5)]
    named = ", ".join(f"X{i} x (alarm at step {9 - i})" for i in (4, 3, 2))
    assert _gate_words(errors) == f"The gate fails: {named} and 2 more."


def test_a_run_is_judged_while_another_thread_takes_in_that_it_was_resumed(training, tmp_path, monkeypatch):
    live = training(tmp_path / "live.h5", steps=200)
    for step in range(80):
        live.step(step)
    live.writer.close()
    held = OpenRun(tmp_path / "live.h5")
    judged = opened.diagnose

    def meanwhile(run, rules):
        with RunWriter.resume(tmp_path / "live.h5") as writer:
            writer.append_step({"step": 40, "loss": 2.0})
        held.refresh()
        assert run is not held.run and len(run) == 80
        return judged(run, rules)

    monkeypatch.setattr(opened, "diagnose", meanwhile)
    story = held.story()
    assert story is not None and len(held.run) == 41
    held.close()
