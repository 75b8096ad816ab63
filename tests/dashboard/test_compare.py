"""Compare: axes, lines and differences as functions of arrays, and the page of some runs."""

import json

import numpy as np
import pytest
from loopscope.dashboard import compare_figures
from loopscope.dashboard.compare import Line, axis_of, differences, line, quantities, usual
from loopscope.dashboard.opened import OpenRun
from loopscope.runfile.writer import RunWriter

STEPS = np.arange(5.0)
NONE = np.full(5, np.nan)


@pytest.mark.parametrize(
    ("axis", "tokens", "time", "origin", "expected"),
    [
        ("step", NONE, NONE, None, [0, 1, 2, 3, 4]),
        ("breach", NONE, NONE, 2, [-2, -1, 0, 1, 2]),
        ("breach", NONE, NONE, None, None),
        ("tokens", NONE, NONE, None, None),
        ("tokens", np.array([10.0, 10, np.nan, 10, 10]), NONE, None, [10, 20, 20, 30, 40]),
        ("tokens", np.array([10.0, 20, np.nan, 40, 50]), NONE, None, [10, 20, 30, 40, 50]),
        ("time", NONE, np.array([7200.0, 10800, 9000, np.nan, 18000]), None, [0, 1, 1, 1.75, 3]),
    ],
)
def test_every_step_has_its_place_and_none_lies_before_an_earlier_one(axis, tokens, time, origin, expected):
    places = axis_of(axis, STEPS, tokens, time, origin)
    assert expected is None if places is None else np.allclose(places, expected)


def test_runs_are_aligned_to_their_first_breach(tmp_path, write_run):
    held = OpenRun(write_run(tmp_path / "a.h5", start=0.65, end=2.6))
    stable = OpenRun(write_run(tmp_path / "b.h5"))
    drawn = line("a", held, "a_bar_radius", "breach")
    assert drawn.y[drawn.x < 0].max() <= 1 < drawn.y[drawn.x >= 0].min() and drawn.regime == "unstable"
    assert line("b", stable, "a_bar_radius", "breach") is None and line("b", stable, "nothing", "step") is None
    assert quantities([held, stable])[:2] == ["loss", "a_bar_radius"] and "time" not in quantities([held])
    held.close()
    stable.close()


def test_only_what_differs_is_listed_and_not_what_always_does():
    infos = [
        {"config": {"lr": 0.1, "seed": 1}, "started": 1.0, "host": "a"},
        {"config": {"lr": 0.2, "seed": 1}, "x": "<b>"},
    ]
    assert differences(infos) == [("config.lr", ["0.1", "0.2"]), ("x", ["–", "<b>"])]
    assert differences(infos[:1]) == [] == differences([])


def lines(count: int, top: float = 2.0) -> list[Line]:
    return [Line(f"<b>{i}", "stable", STEPS, np.linspace(1, top, 5), STEPS[:0]) for i in range(count)]


def test_seven_runs_are_told_apart_without_colour_and_eight_have_a_plot_each():
    chart = compare_figures.compared(lines(7), "step", "loss")
    assert len({(trace.line.color, trace.line.dash) for trace in chart.data}) == 7
    assert "<b>" not in chart.to_json().replace("\\u003c", "<") and chart.layout.yaxis.type is None
    many = compare_figures.compared(lines(8, 1e5), "step", "loss")
    assert len({trace.xaxis for trace in many.data}) == 8 and many.layout.yaxis.type == "log"
    assert "<b>" not in many.to_json().replace("\\u003c", "<")
    assert "None of these" in compare_figures.compared([], "step", "loss").layout.annotations[0].text


def test_what_is_not_finite_is_marked():
    odd = Line("a", "unstable", STEPS, np.ones(5), np.array([3.0]))
    chart = compare_figures.overlaid([odd], "step", "loss")
    assert [trace.x.tolist() for trace in chart.data if trace.mode == "markers"] == [[3.0]]


def fire(served, ticked, given=(), axis="step", what=("loss",)):
    stores = {"ticked.data": ticked, "compare-asked.data": list(given), "compare-by.value": axis}
    return served.fire(
        "compare-body.children", {**stores, "compare-what.value": list(what), "compare-version.data": ""}
    )


def test_the_page_draws_the_ticked_runs_or_those_of_the_address(client, runs):
    served = client(runs)
    ids = [entry.id for entry in served.index.entries() if entry.name in ("addition", "concatenation", "foreign")]
    changed = fire(served, ids)
    said = json.dumps(changed, ensure_ascii=False)
    assert "2 runs" in said and "not an HDF5 file" in said and "runs=" + ",".join(ids) in said
    assert "not among the runs" in json.dumps(fire(served, [], given=["../../etc/passwd"]))
    assert "tick some" in json.dumps(fire(served, None))
    assert "without a breach: addition" in json.dumps(fire(served, ids, axis="breach"))


def test_runs_without_a_linear_part_are_compared_by_a_number_that_they_have(tmp_path, write_run, client):
    folder = tmp_path / "both"
    folder.mkdir()
    writer = RunWriter.create(folder / "theirs.h5", info={})
    loops = np.array([[1.0, 0.5, np.nan, 4], [1.2, 0.25, 0.9, 4], [1.3, np.nan, np.nan, 4]])
    for step in range(30):
        writer.append_step({"step": float(step), "loss": 2.0, "depth": 2.0, "jacobian_radius": 0.7}, loops)
    writer.flush()
    writer.seal()
    writer.close()
    theirs, ours = OpenRun(folder / "theirs.h5"), OpenRun(write_run(tmp_path / "ours.h5"))
    assert usual([theirs]) == ["loss", "jacobian_radius"] and usual([ours]) == usual([]) == ["loss", "a_bar_radius"]
    theirs.close()
    ours.close()
    served = client(folder)
    said = fire(served, [entry.id for entry in served.index.entries()], what=())
    assert said["compare-what"]["value"] == ["loss", "jacobian_radius"]
    assert "None of these" not in json.dumps(said)
