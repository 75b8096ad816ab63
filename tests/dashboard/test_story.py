"""The story of a run: one moment, the cause before the consequence, the lead over the loss, the right advice."""

import numpy as np
import pytest
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.story import _crossed, as_json
from loopscope.rules.lead import risen_steps


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
