"""Several runs side by side: the odd one, and in what."""

from __future__ import annotations

import json

import numpy as np
import pytest
from loopscope.gate.check import check_runs
from loopscope.gate.formats import FORMATS, render


@pytest.fixture
def runs(write_run):
    def make(**odd):
        rng = np.random.default_rng(0)
        paths = []
        for number in range(5):
            series = {"loss": 2.0, "a_bar_radius": 0.8, "last": 1.0} | (odd if number == 3 else {})
            last = series.pop("last")
            loops = np.full((5, 4), last, np.float32)
            config = {"lr": 0.5 if odd and number == 3 else 0.1, "seed": number}
            paths.append(write_run(f"{number}.h5", info={"config": config}, loops=loops, depth=4.0,
                                   loss=series["loss"] * (1 + 0.01 * rng.normal()) + 0.01 * rng.normal(size=60),
                                   a_bar_radius=series["a_bar_radius"] + 0.01 * rng.normal()))  # fmt: skip
        return paths

    return make


ODD = [
    ({"loss": 3.5}, "loss"),
    ({"a_bar_radius": 1.4}, "a_bar_radius"),
    ({"last": 1e4}, "last_state_norm"),
    ({"last": np.inf}, "last_state_norm"),
]


@pytest.mark.parametrize(("odd", "name"), ODD)
def test_the_odd_run_is_named_with_what_it_is_odd_in(runs, odd, name):
    result = check_runs(runs(**odd), side_by_side=True)
    comparison = result.comparison
    assert comparison is not None and [number for number, _ in comparison.odd] == [3]
    assert name in comparison.odd[0][1] and "3.h5 is the odd one" in comparison.sentence
    told = {number: [f for f in run.diagnosis.findings if f.rule == "LS093"] for number, run in enumerate(result.runs)}
    assert [number for number, found in told.items() if found] == [3] and name in told[3][0].message
    assert comparison.settings["lr"] == ("0.1", "0.1", "0.1", "0.5", "0.1")
    for each in FORMATS:
        assert "odd" in render(result, each)


def test_runs_that_are_alike_are_said_to_be(runs):
    comparison = check_runs(runs(), side_by_side=True).comparison
    assert comparison is not None and not comparison.odd and "are alike" in comparison.sentence


def test_of_two_runs_nobody_knows_which_is_odd(write_run):
    paths = [write_run(f"{level}.h5", loss=level + 0.01 * np.sin(np.arange(40))) for level in (2.0, 5.0)]
    result = check_runs(paths, side_by_side=True)
    assert result.comparison is not None and "nobody can say" in result.comparison.sentence
    assert "differ in loss" in result.comparison.sentence
    assert all(f.rule != "LS093" for run in result.runs for f in run.diagnosis.findings)
    alone = check_runs([*paths[:1], paths[0].with_name("none.h5")], side_by_side=True)
    assert alone.comparison is not None and "only one run" in alone.comparison.sentence and alone.exit_code == 4


def test_runs_of_different_lengths_are_compared_where_all_of_them_are(write_run):
    short = [write_run(f"{n}.h5", loss=3.0 + 0.01 * np.sin(n + np.arange(40))) for n in range(3)]
    long = write_run("long.h5", loss=np.concatenate([3.0 + 0.01 * np.sin(np.arange(40)), np.full(200, 9.0)]))
    comparison = check_runs([*short, long], side_by_side=True).comparison
    assert comparison is not None and comparison.step == 39 and not comparison.odd


def test_the_comparison_is_json_whatever_is_not_finite(runs):
    said = json.loads(render(check_runs(runs(last=np.inf), side_by_side=True), "json"))["comparison"]
    (row,) = [row for row in said["quantities"] if row["name"] == "last_state_norm"]
    assert row["values"][3] is None and row["scores"][3] is None
