"""Rules while training runs: they say what `evaluate` says of the file, as it is written and across resumes."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loopscope.models import build
from loopscope.probes import attach, open_run
from loopscope.probes.flight_recorder import FlightRecorder
from loopscope.probes.measure.sums import LoopSums
from loopscope.probes.recorder import Record, Recorder
from loopscope.rules.detectors import EventDetector
from loopscope.rules.diagnosis import diagnose
from loopscope.rules.judging import evaluate
from loopscope.rules.live_rules import LiveRules
from loopscope.rules.rule_files import RuleError, load_rules
from loopscope.runfile.flights import FlightStep, read_flight

INFO = {"a_bar_learned": True}
RULES = """
[[rule]]
id = "R1"
expr = "x > 1.5"
keep_firing_for = 3
[[rule]]
id = "R2"
expr = "x > 1.0 and not residual_ratio < 1.05"
for = 3
keep_firing_for = 10
severity = "warning"
[[rule]]
id = "R3"
expr = "last_residual_norm > 3 or (rare > 1 and loss < 2.5)"
for = 1
[[rule]]
id = "R4"
expr = "loss_zscore > 4 and x < 0.5"
keep_firing_for = 0
[[rule]]
id = "R5"
expr = "never_given > 0 or x > 1.8"
"""


def loop_of(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a loop of 12 whose steps grow by a ratio, as a tap hands them over."""
    rows = LoopSums(13, torch.device("cpu"))
    rows.begin()
    for size in np.concatenate([[1.0], 1.0 + np.cumsum(ratio ** np.arange(12.0))]):
        rows.add(torch.tensor([[[size, 0.0]]]).expand(1, 8, 2))
    return rows.device_rows()["sums"].numpy(), rows.counts


def record(step: int, draw: np.random.Generator) -> list[Record]:
    """A step of a run in which everything comes and goes."""
    level = 2.0 * abs(math.sin(step / 23.0)) + 0.3 * draw.standard_normal()
    values = {"x": level, "loss": 3.0 + 0.1 * draw.standard_normal() + 3.0 * (draw.random() < 0.03)}
    values |= {"a_bar_radius": 1.0 + 0.1 * math.sin(step / 31.0)}
    if draw.random() < 0.1:
        values["rare"] = 2.0 * draw.random()
    if draw.random() < 0.05:
        values["x"] = math.nan
    rows = [Record(step, 1e9 + step, values, *loop_of(0.6 + 0.6 * draw.random()), flight=FlightStep())]
    if step % 7 == 0:
        rows.append(Record(step, 1e9 + step, {}, *loop_of(0.8 + 0.5 * draw.random()), is_probe=True))
    return rows


def run_on(path: Path, rules: list, steps: range, seed: int) -> None:
    draw = np.random.default_rng(seed)
    scalars = ("x", "rare")
    recorder = Recorder(path, info=INFO, scalars=scalars, rules=rules, resume=True, overwrite=False)
    for step in steps:
        for row in record(step, draw):
            recorder.put(row)
        if draw.random() < 0.05:  # flushes at any moment, as checkpoints make them
            recorder.flush()
    recorder.close(interrupted="killed")


def shared_rules(tmp_path: Path) -> list:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return load_rules(file)


@pytest.mark.parametrize("seed", range(8))
def test_what_fires_live_is_what_the_file_says(tmp_path, seed):
    rules, path = shared_rules(tmp_path), tmp_path / "a.h5"
    run_on(path, rules, range(300), seed)
    compare(path, rules)


@pytest.mark.parametrize("seed", range(8))
def test_after_resumes_from_older_checkpoints_too(tmp_path, seed):
    rules, path = shared_rules(tmp_path), tmp_path / "a.h5"
    draw = np.random.default_rng(seed)
    first = 0
    for generation in range(4):
        last = first + int(draw.integers(30, 90))
        run_on(path, rules, range(first, last), 100 * seed + generation)
        first = last - int(draw.integers(0, 25))
    compare(path, rules)


def compare(path: Path, rules: list) -> None:
    with open_run(path) as run:
        findings, skipped = evaluate(run, rules)
        findings = [finding for finding in findings if finding.state == "fired"]
        told = [event for event in run.events if event.kind in {rule.id for rule in rules}]
    assert {"R1", "R2", "R3", "R4", "R5"}.isdisjoint(skipped)
    spoken = {
        f.rule: (f.step, f.episodes) for f in findings if f.severity != "note" and f.rule not in {"LS001", "LS010"}
    }
    live = {kind: [event.step for event in told if event.kind == kind] for kind in {event.kind for event in told}}
    assert {kind: (steps[0], len(steps)) for kind, steps in live.items()} == spoken
    assert {"R1", "R2", "R3", "LS020"} <= spoken.keys()  # otherwise nothing would have been compared
    by_rule = {finding.rule: finding for finding in findings}
    for kind, steps in live.items():
        event = next(event for event in told if event.kind == kind and event.step == steps[0])
        assert (event.value, event.threshold) == (by_rule[kind].value, by_rule[kind].threshold)
        assert event.message == f"{by_rule[kind].name}: {by_rule[kind].message}"


def test_a_rule_that_fires_is_said_once_and_keeps_a_flight(tmp_path, caplog):
    path = tmp_path / "a.h5"
    with caplog.at_level(logging.WARNING, logger="loopscope"):
        recorder = Recorder(path, info=INFO, scalars=(), rules=load_rules(), resume=False, overwrite=False)
        for step in range(150):
            radius = 1.2 if step >= 60 else 0.9
            recorder.put(Record(step, 0.0, {"a_bar_radius": radius}, *loop_of(1.0), flight=FlightStep()))
        recorder.close()
    (line,) = [message for message in caplog.messages if "LS023" in message]
    assert line == (
        "loopscope: step 100: LS023 injection-not-held: "
        "ρ(A̅) = 1.2 is at or above 1 and the steps of the loop do not shrink "
        f"(`loopscope check {path}` says what to try)"
    )
    with open_run(path) as run:
        (flight,) = read_flight(run)
        assert flight.alert_step == 100 and [event.kind for event in flight.alerts] == ["LS023"]
        kept = [step.step for step in flight.steps]
        assert {80, 100, 108} <= set(kept) and len(kept) == len(set(kept))


def test_other_ranks_write_their_alerts_and_leave_the_log_to_the_first(tmp_path, caplog):
    path = tmp_path / "a.rank1.h5"
    with caplog.at_level(logging.WARNING, logger="loopscope"):
        info = INFO | {"rank": 1}
        recorder = Recorder(path, info=info, scalars=(), rules=load_rules(), resume=False, overwrite=False)
        for step in range(60):
            recorder.put(Record(step, 0.0, {"a_bar_radius": 1.2}))
        recorder.close()
    assert not caplog.messages
    with open_run(path) as run:
        assert [event.kind for event in run.events] == ["LS023"]


def test_an_alert_of_the_last_rows_has_its_flight(tmp_path):
    path = tmp_path / "a.h5"
    recorder = Recorder(path, info=INFO, scalars=(), rules=load_rules(), resume=False, overwrite=False)
    for step in range(41):
        recorder.put(Record(step, 0.0, {"a_bar_radius": 1.2}, *loop_of(1.0), flight=FlightStep()))
    recorder.close(interrupted="killed")  # as a crash of the training leaves it
    with open_run(path) as run:
        (flight,) = read_flight(run)
        assert flight.alert_step == 40 and flight.steps[-1].step == 40


@pytest.mark.parametrize(
    ("of", "method", "kind"),
    [
        (LiveRules, "add", "rules_off"),
        (LiveRules, "add_pass", "rules_off"),
        (LiveRules, "judge", "rules_off"),
        (EventDetector, "update", "spikes_off"),
        (FlightRecorder, "record", "flights_off"),
    ],
)
def test_a_part_that_breaks_costs_no_row_and_the_file_says_so(tmp_path, caplog, monkeypatch, of, method, kind):
    def fail(self, *_: object, **__: object) -> None:
        raise ZeroDivisionError("by nothing\nat all")

    monkeypatch.setattr(of, method, fail)
    path = tmp_path / "a.h5"
    recorder = Recorder(path, info=INFO, scalars=(), rules=load_rules(), resume=False, overwrite=False)
    for step in range(30):
        if step == 5:
            recorder.put(Record(step, 0.0, {}, *loop_of(1.0), is_probe=True))
        recorder.put(Record(step, 0.0, {"loss": 3.0}, *loop_of(1.0), flight=FlightStep()))
    recorder.close()
    assert len([message for message in caplog.messages if "failed and" in message and "off" in message]) == 1
    with open_run(path) as run:
        assert run.state == "finished" and len(run) == 30
        (event,) = [event for event in run.events if event.kind.endswith("_off")]
        assert event.kind == kind and event.severity == "warning" and "ZeroDivisionError: by nothing" in event.message
        told = [each for each in diagnose(run).findings if each.name == kind.replace("_", "-")]
        assert [each.severity for each in told] == ["note"] and "\n" not in event.message


def test_a_wrong_rule_file_is_refused_before_anything_is_made(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nid = "X"\nexpr = "loss >"\n')
    model = build("demo")
    with pytest.raises(RuleError, match=r"rules.toml:3:15: rule X"):
        attach(model, tmp_path / "runs" / "a.h5", rules=file)
    assert not (tmp_path / "runs").exists()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_finished_run_resumed_in_vain_is_finished(tmp_path):
    path = tmp_path / "a.h5"
    for resume in (False, True, True):
        recorder = Recorder(path, info=INFO, scalars=(), resume=resume, overwrite=False)
        if not resume:
            recorder.put(Record(0, 0.0, {"loss": 3.0}))
        recorder.close(interrupted="refused" if resume else "")
        with open_run(path) as run:
            assert run.state == "finished" and len(run) == 1
    recorder = Recorder(path, info=INFO, scalars=(), resume=True, overwrite=False)
    recorder.put(Record(1, 0.0, {"loss": 3.0}))
    recorder.close(interrupted="killed")
    with open_run(path) as run:
        assert run.state == "interrupted" and len(run) == 2
