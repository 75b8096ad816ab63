"""A run as it was after one of its steps: everything later is not there, whoever asks."""

from __future__ import annotations

import numpy as np
from loopscope.gate.check import check_runs
from loopscope.runfile.layout import Event
from loopscope.runfile.open import open_run
from loopscope.runfile.until import until
from loopscope.runfile.writer import RunWriter


def test_rows_passes_events_and_arrays_end_at_the_step(tmp_path, loop_rows):
    with_pass = {step: loop_rows(0.5 + step / 100) for step in (0, 10, 20, 30)}
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={"a_bar_learned": True})
    for step in range(40):
        writer.append_step(
            {"step": float(step), "time": 1.0 + step, "loss": 3.0 - step / 100, "depth": 4.0}, loop_rows(0.5)
        )
        if step in with_pass:
            writer.append_probe(step, with_pass[step])
        if step in (5, 25):
            writer.append_event(Event(step, 0.0, "loss_spike", "warning", message="x"))
    writer.close()
    with open_run(path) as whole:
        run = until(whole, 24)
        assert len(run) == 25 and run["step"].tolist() == list(range(25)) and run.state == "finished"
        assert run.probe_steps.tolist() == [0, 10, 20] and len(run.probe("state_norm")) == 3
        assert [event.step for event in run.events] == [5]
        np.testing.assert_array_equal(run.loops("residual_norm"), whole.loops("residual_norm")[:25])
        np.testing.assert_array_equal(run.loops("state_norm", slice(-3, None)), whole.loops("state_norm")[22:25])
        np.testing.assert_array_equal(run["last_state_norm"], whole["last_state_norm"][:25])
        np.testing.assert_array_equal(run["residual_ratio"], whole["residual_ratio"][:25])
        assert len(until(whole, 1000)) == 40 and len(until(whole, -1)) == 0
        assert run.history("loss")["loss"].shape == (25,) and run.committed_at == 25.0


def test_a_rule_has_fired_at_a_step_exactly_when_replay_says_so(write_run, loop_rows):
    """What rules say of the first N steps never depends on the steps after them."""
    rng = np.random.default_rng(0)
    radius = np.where(np.arange(120) < 40, 0.8, 1.3)
    loss = np.where(np.arange(120) < 90, 2.0, 4.0) + 0.01 * rng.normal(size=120)
    path = write_run(loss=loss, a_bar_radius=radius, lr=1e-3, grad_norm=1.0,
                     probe={step: loop_rows(0.7 if step < 40 else 1.2) for step in range(0, 120, 10)})  # fmt: skip
    whole = check_runs([path]).runs[0].diagnosis
    assert whole is not None
    fired = {each.rule: each.step for each in whole.findings if each.state == "fired" and not each.gap}
    assert {"LS020", "LS030", "LS010"} <= fired.keys()
    for step in (25, 41, 43, 60, 70, 89, 90, 110):
        then = check_runs([path], at_step=step).runs[0].diagnosis
        assert then is not None and then.steps == step + 1
        now = {each.rule for each in then.findings if each.state == "fired" and not each.gap and each.rule != "LS005"}
        assert now == {rule for rule, first in fired.items() if first <= step}


def test_before_its_first_step_a_run_has_no_data(write_run):
    result = check_runs([write_run(loss=np.full(30, 2.0))], at_step=-1)
    assert result.exit_code == 5
