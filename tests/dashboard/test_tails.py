"""What a page of a live run is sent: what is new, nothing twice, and the same picture as a whole drawing."""

import json

import numpy as np
import pytest
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.panel import Ask, drawn
from loopscope.dashboard.panels import PANELS
from loopscope.dashboard.tails import tail

OVER_STEPS = [name for name, panel in PANELS.items() if not panel.at_step and not panel.whole]


def have(chart) -> dict[str, float]:
    """What a page says it has of a figure."""
    ends = {}
    for trace in chart.data:
        steps = np.asarray(trace.x, float)
        ends[str(trace.name)] = float(steps[-1]) if len(steps) else -1.0
        if trace.type == "heatmap" and len(steps):
            ends[str(trace.name)] = max(ends[str(trace.name)], float(chart.layout.meta["until"]))
    return ends


@pytest.mark.parametrize("name", OVER_STEPS)
def test_a_tail_behind_what_is_there_makes_the_whole(tmp_path, training, name):
    live = training(tmp_path / "live.h5", steps=200, end=1.1)
    live.study = True
    for step in range(100):
        live.step(step)
    live.writer.flush()
    held = OpenRun(tmp_path / "live.h5")
    ask = Ask(held, batch="fixed")
    before = drawn(PANELS[name], ask)
    for step in range(100, 140):
        live.step(step)
    live.writer.flush()
    held.refresh()
    news = json.loads(json.dumps(tail(PANELS[name], ask, have(before)), allow_nan=False))
    after = {str(trace.name): trace for trace in drawn(PANELS[name], ask).data}
    held.close()
    grown = {part["name"] or "": part for part in news["traces"]}
    for trace in before.data:
        whole, part = after[str(trace.name)], grown.get(str(trace.name) or "", {"x": [], "y": [], "z": None})
        steps = [*np.asarray(trace.x, float), *part["x"]]
        assert steps == pytest.approx(np.asarray(whole.x, float).tolist())
        if trace.type == "heatmap" and part["x"]:
            z = np.concatenate([np.asarray(trace.z, float), np.array(part["z"], float)], axis=1)
            assert z == pytest.approx(np.asarray(whole.z, float), rel=1e-5, nan_ok=True)
        elif part["x"]:
            assert [*np.asarray(trace.y, float), *part["y"]] == pytest.approx(np.asarray(whole.y, float), rel=1e-5)
    assert news["range"][1] > 139


def test_a_line_that_the_page_does_not_have_is_named_so_that_it_asks_for_the_plot(tmp_path, training):
    live = training(tmp_path / "live.h5", steps=200)
    for step in range(50):
        live.step(step)
    live.writer.append_step({"step": 50, "loss": np.nan, "nonfinite": 1.0}, None)
    live.writer.flush()
    held = OpenRun(tmp_path / "live.h5")
    news = tail(PANELS["loss"], Ask(held), {"loss": 49.0})
    held.close()
    assert {"name": "loss not finite", "x": []} in news["traces"]


def test_events_are_sent_as_one_version(tmp_path, training):
    live = training(tmp_path / "live.h5", steps=100, end=2.0)
    live.step(0)
    live.writer.flush()
    held = OpenRun(tmp_path / "live.h5")
    versions = []
    for step in range(1, 101):
        live.step(step)
        if step % 50 == 0:
            live.writer.flush()
            held.refresh()
            versions += [tail(PANELS["events"], Ask(held), {})["version"]] * 2
    held.close()
    assert versions[0] == versions[1] != versions[2] == versions[3]


def test_a_tail_of_a_long_run_is_short(tmp_path, training):
    live = training(tmp_path / "live.h5", steps=20_000, end=0.8)
    for step in range(20_000):
        live.writer.append_step({"step": step, "loss": 3.0 + 0.01 * (step % 7), "a_bar_radius": 0.8}, None)
    live.writer.flush()
    held = OpenRun(tmp_path / "live.h5")
    whole = drawn(PANELS["loss"], Ask(held))
    for step in range(20_000, 20_050):
        live.writer.append_step({"step": step, "loss": 3.0, "a_bar_radius": 0.8}, None)
    live.writer.flush()
    held.refresh()
    news = tail(PANELS["loss"], Ask(held), have(whole))
    held.close()
    (line,) = news["traces"]
    assert line["x"] == list(range(20_000, 20_050)) and len(json.dumps(news)) < 2000
