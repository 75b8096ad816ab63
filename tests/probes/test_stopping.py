"""What a rule that fires does to the training: nothing by default; calls back; stops it, on all ranks in one step."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from pathlib import Path

import pytest
import torch
from loopscope import LoopUnstable, attach, open_run
from loopscope.commands.training import train_run
from loopscope.models.run_config import RunConfig
from loopscope.probes.recorder import Record, Recorder
from loopscope.rules.rule_files import DEFAULT_ACTIONS, RuleError, load_rules, stopping_on
from loopscope.runfile.ending import ending
from loopscope.runfile.flights import read_flight

STEPS = 40


def train(model, path, tokens, bad=5, steps=STEPS, **options):
    """Train with a loss that is NaN in one step; return the last step that was done."""
    with attach(model, path, **options) as probe:
        for step in range(steps):
            model(tokens, num_loops=2)
            probe.step(loss=math.nan if step == bad else 2.0 + 0.01 * math.sin(step))
            time.sleep(0.02)  # as long as a step takes; the recorder has its thread
    return step


def own_rules(tmp_path, text):
    file = tmp_path / "own.toml"
    file.write_text(text)
    return file


def test_no_shipped_rule_stops_a_training(demo_model, tokens, tmp_path):
    assert all(rule.actions == DEFAULT_ACTIONS and "stop" not in rule.actions for rule in load_rules())
    assert train(demo_model(), tmp_path / "a.h5", tokens) == STEPS - 1
    with open_run(tmp_path / "a.h5") as run:
        assert ending(run).state == "finished" and "non_finite" in [event.kind for event in run.events]


@pytest.mark.parametrize("how", ["argument", "severity", "file"])
def test_a_rule_that_stops_ends_the_training_and_the_file_says_which_and_why(demo_model, tokens, tmp_path, how):
    rules = own_rules(tmp_path, '[[rule]]\nid = "LS001"\nactions = ["record", "stop"]\n')
    most = 1000  # of steps: when the rule is asked is a matter of the recorder's thread
    options = {"argument": {"stop_on": ["LS001"]}, "severity": {"stop_on": ["error"]}, "file": {"rules": rules}}[how]
    with pytest.raises(LoopUnstable, match=r"interrupted by rule LS001: not finite: loss \(step 5\)") as stopped:
        train(demo_model(), tmp_path / "a.h5", tokens, steps=most, **options)
    assert (stopped.value.rule, stopped.value.rank) == ("LS001", 0)
    assert 5 <= stopped.value.step < most - 1
    with open_run(tmp_path / "a.h5") as run:
        end = ending(run)
        assert end.state == "interrupted" and "interrupted by rule LS001" in end.reason
        assert int(run["step"][-1]) == stopped.value.step
        assert "stopped_by_rule" in [event.kind for event in run.events]


def test_what_is_trained_after_the_stop_is_not_recorded_and_hurts_nobody(demo_model, tokens, tmp_path):
    model = demo_model()
    probe = attach(model, tmp_path / "a.h5", stop_on=["LS001"])
    stopped = after = 0
    for step in range(1000):
        model(tokens, num_loops=2)
        after += stopped
        try:
            probe.step(loss=math.nan if step == 2 else 2.0)
        except LoopUnstable:
            stopped += 1
        time.sleep(0.02)
        if after == 10:
            break
    probe.close()
    assert stopped == 1 and after == 10
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_word_that_is_no_rule_stops_nothing_but_is_refused(demo_model, tmp_path):
    for word, says in (("LS999", "no rule and no severity"), ("note", "not looked for"), ("LS022", "not looked for")):
        with pytest.raises(RuleError, match=says):
            attach(demo_model(), tmp_path / "runs" / "a.h5", stop_on=[word])
    assert not (tmp_path / "runs").exists()
    stops = {rule.id for rule in stopping_on(load_rules(), ["error"]) if "stop" in rule.actions}
    assert stops == {rule.id for rule in load_rules() if rule.severity == "error"}


def test_a_callback_is_called_on_the_training_thread_once_for_each_alert(demo_model, tokens, tmp_path):
    heard = []
    train(
        demo_model(),
        tmp_path / "a.h5",
        tokens,
        on_alert=lambda event: heard.append((event, threading.current_thread())),
    )
    assert [(event.kind, event.step) for event, _ in heard] == [("non_finite", 5)]
    assert heard[0][1] is threading.main_thread()


def test_a_callback_that_fails_is_logged_once_and_costs_nothing(demo_model, tokens, tmp_path, caplog):
    def fail(event):
        raise ZeroDivisionError("mine")

    rules = own_rules(tmp_path, '[[rule]]\nid = "M"\nexpr = "loss > 1"\nfor = 1\nkeep_firing_for = 0\n')
    assert train(demo_model(), tmp_path / "a.h5", tokens, rules=rules, on_alert=fail) == STEPS - 1
    assert len([line for line in caplog.messages if "on_alert failed" in line]) == 1
    with open_run(tmp_path / "a.h5") as run:
        assert ending(run).state == "finished" and len(run) == STEPS


@pytest.mark.parametrize("actions", [[], ["record"], ["notify"], ["flight"], ["callback"], ["record", "flight"]])
def test_each_action_is_done_where_it_is_asked_for_and_nowhere_else(demo_model, tokens, tmp_path, caplog, actions):
    rules = own_rules(tmp_path, f'[[rule]]\nid = "LS001"\nactions = {json.dumps(actions)}\n')
    heard = []
    train(demo_model(), tmp_path / "a.h5", tokens, rules=rules, on_alert=heard.append)
    with open_run(tmp_path / "a.h5") as run:
        done = {
            "record": "non_finite" in [event.kind for event in run.events],
            "flight": bool(read_flight(run)),
            "notify": any("non_finite" in line for line in caplog.messages),
            "callback": bool(heard),
        }
    assert {name for name, was in done.items() if was} == set(actions)


@pytest.mark.parametrize("value", ['"stop"', '["sotp"]', "[1]", "{}", "true", '["record", ["stop"]]'])
def test_actions_that_there_are_not_are_refused_with_their_place(tmp_path, value):
    file = own_rules(tmp_path, f'[[rule]]\nid = "LS001"\nactions = {value}\n')
    with pytest.raises(RuleError, match=r"own.toml:3:11: rule LS001: actions = .* must be a list of record, flight"):
        load_rules(file)


def test_two_ranks_one_nan_both_stop_in_the_same_step(torchrun, tmp_path):
    torchrun(Path(__file__).with_name("stop_worker.py"), tmp_path)
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["raised"]["rule"] for each in said] == ["LS001", "LS001"]
    assert [each["raised"]["rank"] for each in said] == [1, 1]
    assert said[0]["raised"]["step"] == said[1]["raised"]["step"] < 59
    assert "not finite: loss" in said[1]["raised"]["message"] and "of rank 1" in said[0]["raised"]["message"]
    assert "non_finite" in said[1]["told"] and "non_finite" not in said[0]["told"]
    for name in ("a.h5", "a.rank1.h5"):
        with open_run(tmp_path / name) as run:
            own = run.ranks[1] if name == "a.rank1.h5" and 1 in run.ranks else run
            assert ending(own).state == "interrupted" and "rule LS001 of rank 1" in ending(own).reason


def test_a_training_that_hangs_is_told_of_while_it_hangs(tmp_path, caplog):
    rules = load_rules(own_rules(tmp_path, '[[rule]]\nid = "H"\nexpr = "seconds >= 0.6"\nseverity = "warning"\n'))
    with caplog.at_level(logging.WARNING, logger="loopscope"):
        recorder = Recorder(tmp_path / "a.h5", info={}, scalars=(), rules=rules, resume=False, overwrite=False)
        for step in range(5):
            recorder.put(Record(step, time.time(), {"loss": 3.0 - step / 10}))
        deadline = time.monotonic() + 20
        while not any(" H " in line for line in caplog.messages) and time.monotonic() < deadline:
            time.sleep(0.05)
        told = [line for line in caplog.messages if " H " in line]
        time.sleep(1.2)
        assert len(told) == 1 and len([line for line in caplog.messages if " H " in line]) == 1  # once a pause
        recorder.put(Record(5, time.time(), {"loss": 2.0}))
        recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        assert [(event.kind, event.step) for event in run.events if event.kind == "H"] == [("H", 4)]


def test_train_can_be_stopped_by_a_rule(tmp_path):
    rules = own_rules(tmp_path, '[[rule]]\nid = "M"\nexpr = "loss > 0"\nfor = 3\nseverity = "warning"\n')
    torch.manual_seed(0)
    config = RunConfig(preset="demo", train={"steps": 150})
    with pytest.raises(LoopUnstable, match="interrupted by rule M"):
        train_run(tmp_path / "a.h5", config, device="cpu", rules=rules, stop_on=["M"])
    with open_run(tmp_path / "a.h5") as run:
        assert ending(run).state == "interrupted" and len(run) < 150
