"""When the loss shows trouble, and the lead of an alarm over it."""

from __future__ import annotations

import numpy as np
from loopscope.rules.diagnosis import diagnose
from loopscope.rules.lead import LossTrouble, loss_shows
from loopscope.runfile.layout import Event
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter


def test_the_first_trouble_at_or_after_a_step_counts(write_run):
    loss = np.full(200, 3.0)
    loss[50:80], loss[150:] = 5.0, 4.0
    with open_run(write_run(loss=loss)) as run:
        trouble = LossTrouble(run)
        first, later = trouble.first(0), trouble.first(120)
        assert first is not None and 50 <= first <= 60 and later is not None and 150 <= later <= 160
        assert loss_shows(run, 0) == first and trouble.first(first) == first


def test_a_loss_that_is_not_finite_shows_it_at_once_and_a_gap_in_the_log_does_not(write_run):
    loss = np.full(60, 3.0)
    loss[30], loss[40] = np.nan, np.inf
    with open_run(write_run(loss=loss, nonfinite=np.where(np.arange(60) == 40, 1.0, 0.0))) as run:
        assert LossTrouble(run).first(0) == 40


def test_every_finding_has_its_lead_and_a_gap_has_none(write_run, loop_rows):
    loss = np.where(np.arange(120) < 90, 2.0, 4.0)
    path = write_run(loss=loss + 0.01 * np.sin(np.arange(120)), a_bar_radius=np.where(np.arange(120) < 40, 0.8, 1.3),
                     probe={step: loop_rows(0.7 if step < 40 else 1.2) for step in range(0, 120, 10)})  # fmt: skip
    with open_run(path) as run:
        found = {each.rule: each for each in diagnose(run).findings}
    unstable = found["LS020"]
    assert unstable.loss_step is not None and 90 <= unstable.loss_step <= 95
    assert unstable.lead == unstable.loss_step - unstable.step > 40
    assert unstable.as_dict()["lead"] == unstable.lead
    healthy = diagnose(open_run(write_run("b.h5", loss=np.full(30, 2.0) + 0.01 * np.sin(np.arange(30)))))
    assert all(each.lead is None for each in healthy.findings if each.gap)


def test_an_alarm_after_the_loss_has_a_negative_lead(write_run):
    from loopscope.gate.replay import lead_words
    from loopscope.rules.findings import Finding

    late = Finding("R", "r", "error", 50, 40, 1.0, 1.0, "", "", 1, loss_step=45)
    assert late.lead == -5 and lead_words(late) == "5 steps after the loss"


def test_a_finding_about_the_loss_comes_with_the_loss_and_not_before_it(write_run):
    loss = 3.0 + 0.02 * np.sin(np.arange(200))
    loss[60], loss[150:] = 7.0, 5.0  # a single spike, and a rise long after it
    with open_run(write_run(loss=loss)) as run:
        findings = diagnose(run).findings
        spike = next(each for each in findings if each.rule == "LS010")
        assert (spike.step, spike.loss_step, spike.lead) == (60, 60, 0)
        assert loss_shows(run, 40, findings) == 60
        risen = loss_shows(run, 61, findings)
        assert risen is not None and risen > 150


def test_a_spike_that_was_recorded_live_shows_it(tmp_path):
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(60):
            writer.append_step({"step": step, "loss": 2.0})
        writer.append_event(Event(40, 0.0, "loss_spike", "warning"))
    with open_run(writer.path) as run:
        assert (loss_shows(run, 10), loss_shows(run, 41)) == (40, None)
