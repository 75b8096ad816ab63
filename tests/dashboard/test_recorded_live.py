"""What was recorded live beside what the rules say today: in the lane of events, and in the list of alerts."""

from dataclasses import replace

import pytest
from loopscope.dashboard.alerts import alerts_of
from loopscope.dashboard.example import example_runs
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.panel import Ask, drawn
from loopscope.dashboard.panels import PANELS, marks
from loopscope.dashboard.recorded_live import CONFIRMED, NOT_CONFIRMED, recorded_live
from loopscope.rules.findings import Finding, Judgement
from loopscope.runfile.layout import Event

OVERRULED = NOT_CONFIRMED.format(severity="an error")


@pytest.fixture
def sandwich():
    """Return a run of the example whose live alerts are not those of today's rules."""
    held = OpenRun(next(path for path in example_runs().glob("*.h5") if "sandwich" in path.stem))
    held.story()
    yield held
    held.close()


def test_the_lane_has_every_finding_of_the_list_at_its_alarm(sandwich):
    story = sandwich.story()
    lane = {
        (int(step), str(text).split(" ")[0], trace.name)
        for trace in drawn(PANELS["events"], Ask(sandwich)).data
        if trace.name != "flights"
        for step, text in zip(trace.x, trace.text, strict=True)
    }
    assert {(one.step, one.rule, one.severity) for one in story.findings} <= lane
    assert (70, "LS020", "note") in lane  # raised as an error while it trained; no rule of today says so
    texts = [mark.text for mark in marks(sandwich) if mark.step == 70]
    assert len(texts) == 1 and OVERRULED in texts[0]
    assert len([mark for mark in marks(sandwich) if mark.step == 25]) == 1  # told twice, drawn once


def test_alerts_name_the_rule_of_what_was_recorded_live(sandwich):
    alerts = alerts_of(sandwich, sandwich.story())
    live = next(one for one in alerts if one["step"] == 70)
    assert (live["rule"], live["name"]) == ("LS020", "injection-unstable")
    assert live["message"].startswith(OVERRULED) and "injection-unstable" not in live["message"]
    assert live["severity"] == "note" and live["lead"] is None  # nobody has to act on it: the gate does not count it
    fails = [one for one in alerts if one["severity"] == "error"]
    assert {(one["rule"], one["step"]) for one in fails} == {
        (one.rule, one.step) for one in sandwich.story().findings if one.severity == "error"
    }


def test_each_event_finds_its_rule_by_id_or_by_kind():
    fired = Finding("LS010", "loss-spike", "warning", 5, 5, 0.0, 0.0, "", "", 1)
    judged = [
        Judgement("LS010", "loss-spike", "warning", "judged", 9),
        Judgement("LS030", "explodes", "error", "judged", 9),
    ]
    said = [
        Event(5, 0.0, "loss_spike", "warning", message="spike"),
        Event(7, 0.0, "LS010", "warning", message="loss-spike: again"),
        Event(8, 0.0, "explodes", "error", message="explodes: grows"),
        Event(9, 0.0, "resumed", "note", message="from step 9"),
    ]
    live = recorded_live(said, [fired], judged)
    assert [one.rule for one in live] == ["LS010", "LS010", "LS030", ""]
    assert [one.told for one in live] == [True, False, False, False]
    assert [one.message for one in live][1:] == [f"{CONFIRMED}: again", f"{OVERRULED}: grows", "from step 9"]
    later = recorded_live(said, [replace(fired, step=7)], judged)
    assert [one.told for one in later] == [False, True, False, False]
