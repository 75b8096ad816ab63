"""Alerts of all runs: what is listed, in which order, and what is kept of those that were seen."""

import hashlib
import json

import pytest
from loopscope.dashboard import alerts
from loopscope.dashboard.alerts import SEEN_FILE, acknowledge, acknowledged, alerts_of, listed
from loopscope.dashboard.index import RunIndex
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.pages import runs as runs_page
from loopscope.runfile.layout import Event
from loopscope.runfile.writer import RunWriter


def test_findings_are_listed_with_their_lead_and_events_that_no_rule_told_of(tmp_path, write_run):
    held = OpenRun(write_run(tmp_path / "a.h5", start=0.65, end=2.6, seed=3))
    story = held.story()
    alerts = alerts_of(held, story)
    held.close()
    assert [one["rule"] for one in alerts][: len(story.findings)] == [one.rule for one in story.findings]
    unstable = next(one for one in alerts if one["severity"] == "error")
    assert unstable["lead"] == story.loss_step - unstable["step"] > 0
    live = {one["rule"] for one in alerts[len(story.findings) :]}
    assert ("LS010" in live) != any(one.rule == "LS010" for one in story.findings)  # its events: not listed twice
    json.dumps(alerts, allow_nan=False)


def test_a_flood_of_hostile_events_is_cut_and_counted(tmp_path):
    writer = RunWriter.create(tmp_path / "a.h5", info={})
    for step in range(300):
        writer.append_step({"step": step, "loss": 2.0}, None)
        severity = "error" if step == 299 else "note"
        writer.append_event(Event(step, 0.0, "<b>odd", severity, message="<a href='javascript:x'>" + "\x1b" * 9))
    writer.flush()
    writer.close()
    held = OpenRun(tmp_path / "a.h5")
    listed = [one for one in alerts_of(held, held.story()) if one["rule"] == "event"]
    held.close()
    assert len(listed) == alerts.KEPT_EVENTS + 1 and listed[0]["severity"] == "error" and listed[0]["step"] == 299
    assert "200 more" in listed[-1]["message"] and "\x1b" not in json.dumps(listed, ensure_ascii=False)


def test_errors_come_first_then_runs_in_order():
    one = {"rule": "LS1", "name": "n", "lead": None, "message": ""}
    details = {"b": [{**one, "severity": "error", "step": 9}], "a": [{**one, "severity": "note", "step": 1}] * 1}
    rows = [{"id": name, "name": name, "href": f"/run/{name}"} for name in "ab"]
    assert [(alert.run, alert.href) for alert in listed(rows, details)] == [
        ("b", "/run/b?step=9"),
        ("a", "/run/a?step=1"),
    ]


def test_what_was_seen_is_kept_beside_the_run_and_never_in_it(tmp_path, write_run):
    path = write_run(tmp_path / "a.h5")
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    acknowledge(path, "LS020 x 3", seen=True)
    acknowledge(tmp_path / "b.h5", "k", seen=True)
    assert set(acknowledged(path)) == {"LS020 x 3"} and set(acknowledged(tmp_path / "b.h5")) == {"k"}
    acknowledge(path, "LS020 x 3", seen=False)
    assert acknowledged(path) == {} and set(acknowledged(tmp_path / "b.h5")) == {"k"}
    assert before == (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.h5", SEEN_FILE]
    assert [entry.name for entry in RunIndex([tmp_path]).entries()] == ["a"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b'{"version": 2, "acknowledged": {}}', b"[" * 100_000, b'{"version": 1}']
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path, content):
    (tmp_path / SEEN_FILE).write_bytes(content)
    assert acknowledged(tmp_path / "a.h5") == {}
    with pytest.raises(OSError, match="move it away"):
        acknowledge(tmp_path / "a.h5", "k", seen=True)
    assert (tmp_path / SEEN_FILE).read_bytes() == content


@pytest.mark.parametrize("target", ["elsewhere", SEEN_FILE, "."])
def test_a_link_or_folder_in_its_place_is_not_followed_into_harm(tmp_path, target):
    (tmp_path / SEEN_FILE).symlink_to(target)
    assert acknowledged(tmp_path / "a.h5") == {}
    with pytest.raises(OSError, match="move it away"):
        acknowledge(tmp_path / "a.h5", "k", seen=True)
    assert not (tmp_path / "elsewhere").exists()


def test_odd_entries_of_the_file_are_skipped(tmp_path):
    kept = {"version": 1, "acknowledged": {"a.h5": {"good": 1.0, "bad": "x", "nan": float("nan")}, "b.h5": 3}}
    (tmp_path / SEEN_FILE).write_text(json.dumps(kept))
    assert acknowledged(tmp_path / "a.h5") == {"good": 1.0} and acknowledged(tmp_path / "b.h5") == {}
    acknowledge(tmp_path / "b.h5", "k", seen=True)
    assert set(acknowledged(tmp_path / "b.h5")) == {"k"}


def test_the_page_lists_marks_and_refuses_what_is_not_there(client, runs):
    served = client(runs)
    with served.app.server.test_request_context():
        served.app.server.preprocess_request()
        table = runs_page.current_table()
        table.read_all()
        first = listed(table.rows(), table.details("alerts"))[0]
    shown = json.dumps(served.page("/alerts"), ensure_ascii=False)
    assert first.name in shown and f"{first.href}" in shown and "steps before" in shown
    acknowledge(next(entry.path for entry in served.index.entries() if entry.id == first.run_id), first.key, seen=True)
    assert f'"key": "{first.key}"' not in json.dumps(served.page("/alerts"), ensure_ascii=False)
    assert f'"key": "{first.key}"' in json.dumps(served.page("/alerts?show=error,seen"), ensure_ascii=False)
