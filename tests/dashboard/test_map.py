"""The map: which numbers runs have, where they are placed, and which learning rates an architecture survives."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from loopscope.dashboard import colours, map_figures
from loopscope.dashboard import run_map as values
from loopscope.dashboard.boundary import boundary
from loopscope.dashboard.map_figures import BAND, plane
from loopscope.dashboard.pages import map as map_page
from loopscope.dashboard.pages import runs as runs_page
from loopscope.dashboard.run_map import Cell, Place, converged, edges, numbers_of, places, quantities, survival

from .two_variables import write_two


def row(name: str, **cells) -> dict:
    return {"id": name, "name": name, "href": f"/run/{name}", "verdict": "stable", "injection": "parcae", **cells}


def test_every_number_of_configuration_and_recording_is_there_and_nothing_else(tmp_path, write_run):
    from loopscope.dashboard.opened import OpenRun

    config = {"train": {"lr": 0.1, "clip": math.inf, "compile": True, "betas": [1, 2]}, "name": "x", "big": 10**400}
    held = OpenRun(write_run(tmp_path / "a.h5", start=0.6, end=1.4, config=config))
    numbers = numbers_of(held)
    held.close()
    assert numbers["config.train.lr"] == 0.1
    assert not {"config.train.clip", "config.train.compile", "config.name", "config.big"} & set(numbers)
    assert numbers["largest.a_bar_radius"] == pytest.approx(1.4, abs=0.01) and "last.loss" in numbers
    assert all(math.isfinite(value) for value in numbers.values())
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize(
    ("loss", "good"),
    [
        (np.full(60, 3.0), True),
        (np.r_[np.full(40, 3.0), np.full(40, 3.2)], True),  # less than a tenth
        (np.r_[np.full(40, 3.0), np.full(40, 4.0)], False),
        (np.r_[np.full(40, 3.0), np.full(40, 4.0), np.full(40, 3.0)], True),  # it came back
        (np.r_[np.full(40, 3.0), np.nan], False),
        (np.r_[np.full(40, 3.0), np.inf], False),
        (np.full(5, 3.0), None),
    ],
)
def test_a_run_converged_where_its_last_loss_is_finite_and_near_its_lowest(loss, good):
    assert converged(np.arange(len(loss), dtype=float), loss, finished=True) is good
    assert converged(np.arange(len(loss), dtype=float), loss, finished=False) is None


def test_runs_without_a_number_are_left_out_and_addition_is_marginal_by_design():
    rows = [row("a", lr=0.1), row("b", lr=None), row("c", lr=True), row("e", lr=0.3, verdict="marginal")]
    rows.insert(3, row("d", lr=0.2, verdict="marginal", injection="addition"))
    numbers = {name: {"last.loss": 2.0} for name in "abde"}
    placed = places(rows, numbers, "setting.lr", "last.loss")
    assert [(one.id, one.by_design) for one in placed] == [("a", False), ("d", True), ("e", False)]
    assert quantities(rows, numbers) == ["setting.lr", "last.loss"]
    assert values.places(rows, numbers, "last.nothing", "last.loss") == []


def test_seeds_are_counted_by_architecture_and_learning_rate():
    rows = [row(f"p{i}", lr=0.1, norm="pre", seed=i) for i in range(3)] + [
        row("c", lr=0.2, injection="concatenation", verdict="unstable", gate="fail")
    ]
    numbers = {"p0": {"converged": 1.0}, "p1": {"converged": 0.0}, "p2": {}, "c": {"converged": 0.0}}
    told = survival(rows, numbers)
    assert told.architectures == ["concatenation", "parcae, pre norm"] and told.rates == [0.1, 0.2]
    assert told.cells == [
        [Cell(), Cell(count=1, unstable=1, failing=1)],
        [Cell(count=2, converged=1, lost_seeds=(1.0,)), Cell()],
    ]


def test_the_figure_tells_regimes_apart_by_glyph_and_takes_names_as_text():
    hostile = "<a href='javascript:x'>n</a>"
    placed = [
        Place("1", hostile, "/run/1", "stable", False, 0.001, 0.5),
        Place("2", "m", "/run/2", "unstable", False, 1, 2),
        Place("3", "d", "/run/3", "marginal", True, 0.1, 1),
    ]
    chart = map_figures.plane(placed, "learning <b>rate", "ρ")
    assert len({trace.marker.symbol for trace in chart.data}) == 3
    assert chart.layout.xaxis.type == "log" and chart.layout.yaxis.type is None
    assert "<a" not in chart.to_json() and "<b>" not in chart.to_json().replace("\\u003c", "<")
    assert {trace.customdata[0] for trace in chart.data} == {"/run/1", "/run/2", "/run/3"}
    assert "No run here" in map_figures.plane([], "x", "y").layout.annotations[0].text


def test_the_page_shows_runs_and_the_table_and_sends_no_details_with_the_rows(client, runs):
    served = client(runs)
    with served.app.server.test_request_context():
        served.app.server.preprocess_request()
        table = runs_page.current_table()
        rows = table.read_all()
        assert not any("numbers" in one or "alerts" in one for one in [*rows, *table.since(0)[1]])
        assert len(table.details("numbers")) == 4
    shown = json.dumps(served.page("/map?x=last.loss&y=largest.a_bar_radius"), ensure_ascii=False)
    assert "concatenation" in shown and "3 of 5 runs have both numbers" in shown


@pytest.mark.parametrize(
    ("tried", "failed", "said"),
    [
        (
            [0.003, 0.01, 0.03, 0.05],
            [0, 0, 1, 1],
            "between 0.01 (stable) and 0.03 (unstable); estimate 0.017, 95 % of the",
        ),
        (
            [0.1] * 9 + [0.4] * 9,
            [0] * 9 + [1] * 9,
            "between 0.1 (stable) and 0.4 (unstable); estimate 0.2, nine tenths of",
        ),
        ([0.1, 0.2, 0.4], [1, 0, 1], "is unstable at 0.1 and stable at 0.2: no sharp boundary"),
        ([0.1, 0.1, 0.2], [0, 1, 1], "has unstable runs at every value, from 0.1 on"),
    ],
)
def test_the_boundary_is_said_in_one_sound_sentence(tried, failed, said):
    one = boundary("a", tried, [bool(bad) for bad in failed], log=True)
    words = values.in_words(one, "setting.lr")
    assert said in words and words.endswith(f"{len(tried)} runs at {len(set(tried))} values).")
    assert "lie between below" not in words and "inf" not in words and "nan" not in words and "–" not in words


@pytest.mark.parametrize("failed", [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 1]])
def test_the_band_ends_where_its_sentence_says(failed):
    tried = (0.003, 0.01, 0.03, 0.05)
    placed = [
        Place(f"a{x}", "a", "/", "unstable" if bad else "stable", False, x, 1.0, "a")
        for x, bad in zip(tried, failed, strict=True)
    ]
    (one,) = edges(placed)
    (band,) = (shape for shape in plane(placed, "x", "y", [one]).layout.shapes if shape.type == "rect")
    assert (band.x0, band.x1) == one.band and tried[0] <= band.x0 <= band.x1 <= tried[-1]
    words = values.in_words(one, "setting.lr").partition("; estimate")[2]
    assert "grey band" in words
    if "do not say" not in words:
        assert all(values.number(end, 2) in words for end in one.band)


def test_the_map_falls_back_on_a_number_that_runs_have(client, tmp_path):
    write_two(tmp_path / "a.h5")
    served = client(tmp_path)
    with served.app.server.test_request_context():
        served.app.server.preprocess_request()
        runs_page.current_table().read_all()
    assert "upwards" in (page := json.dumps(served.page("/map"), ensure_ascii=False))
    assert '"value": "last.residual_ratio"' in page and "1 of 1 runs have both numbers" in page


def test_the_band_of_a_boundary_is_named_once():
    placed = [
        Place(f"{name}{x}", name, "/", "unstable" if x > 2 else "stable", False, x, 1.0, name)
        for name in "ab"
        for x in (1.0, 2.0, 3.0, 4.0)
    ]
    chart = plane(placed, "x", "y", edges(placed))
    named = [shape.name for shape in chart.layout.shapes if shape.showlegend]
    assert named == ["edge of a", BAND, "edge of b"] and not chart.layout.annotations
    alone = [Place(str(x), "c", "/", "unstable" if x > 3 else "stable", False, x, 1.0, "c") for x in (1.0, 2.0, 4.0)]
    beyond = [replace(one, at=math.inf) for one in edges(alone)]
    assert [shape.name for shape in plane(alone, "x", "y", beyond).layout.shapes] == ["edge of c: here or beyond"]
    red = colours.REGIME_COLOURS["unstable"]
    assert not any(red in str(shape.line.color) for shape in chart.layout.shapes)  # no verdict of its own


@pytest.mark.parametrize(
    ("good", "count", "unstable", "said"),
    [(1, 1, 0, "1 of 1 converged"), (1, 1, 1, "1 of 1 unstable, loss of 1 converged"),
     (1, 3, 2, "2 of 3 unstable, loss of 1 converged"), (0, 2, 0, "0 of 2 converged")],
)  # fmt: skip
def test_a_cell_makes_one_statement(good, count, unstable, said):
    cell, *below = map_page._ended(Cell(count, good, unstable, unstable, tuple(range(count - good))))
    assert ("fail" in str(below)) == (unstable > 0) and ("not seed" in str(below)) == (0 < good < count)
    assert cell.className.startswith("ls-badge") and said in str(cell)
    assert ("ls-unstable" in cell.className) == (unstable > 0 or good == 0)
