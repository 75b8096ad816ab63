"""When each rule would have fired, and how long before the loss, in every format that has room for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from loopscope.gate.check import check_runs
from loopscope.gate.formats import render
from loopscope.gate.replay import alarms, sentence


@pytest.fixture
def unstable(write_run, loop_rows):
    loss = np.where(np.arange(120) < 90, 2.0, 4.0) + 0.01 * np.sin(np.arange(120))
    return write_run(loss=loss, a_bar_radius=np.where(np.arange(120) < 40, 0.8, 1.3),
                     probe={step: loop_rows(0.7 if step < 40 else 1.2) for step in range(0, 120, 10)})  # fmt: skip


def test_the_table_has_first_steps_and_leads(unstable):
    result = check_runs([unstable], replay=True)
    text, markdown = render(result, "text"), render(result, "markdown")
    assert "replay: LS020 would have fired first, at step 43, " in text and "steps before the loss" in text
    assert "| fires at | holds since |" in markdown and "LS020 would have fired first" in markdown
    found = {each["rule"]: each for each in json.loads(render(result, "json"))["runs"][0]["findings"]}
    assert found["LS020"]["lead"] == found["LS020"]["loss_step"] - 43 > 40


def test_a_healthy_run_says_that_nothing_would_have_fired(write_run):
    result = check_runs([write_run(loss=2.0 + 0.01 * np.sin(np.arange(60)))], replay=True)
    assert "no rule of severity error would have fired" in render(result, "text")
    assert alarms(result.runs[0].diagnosis) == [] and "no rule" in sentence([])


def test_at_a_step_is_said(unstable):
    result = check_runs([unstable], at_step=30)
    assert result.exit_code == 0 and "as if it had ended at step 30" in render(result, "text")
    assert json.loads(render(result, "json"))["at_step"] == 30
