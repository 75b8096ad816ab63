"""The law of the depths: one by one and many at once the same; changes that are seen, and what is no change."""

from __future__ import annotations

import math

import loopscope
import numpy as np
import pytest
from loopscope.gate.check import check_runs
from loopscope.gate.text import as_text
from loopscope.rules.depth_law import CHANGED, IS_ODD, USUAL, DepthLaw
from loopscope.runfile.writer import RunWriter


@pytest.mark.parametrize("seed", range(20))
def test_one_by_one_and_many_at_once_are_the_same(seed):
    draw = np.random.default_rng(seed)
    depths = draw.poisson(8, 3000).astype(float)
    for _ in range(draw.integers(0, 12)):
        at = int(draw.integers(0, 3000))
        depths[at : at + int(draw.choice([1, 3, 40, 400]))] *= draw.choice([0.2, 2.0, 4.0])
    depths[draw.random(3000) < 0.01] = math.nan
    law = DepthLaw()
    single = [law.update(depth) for depth in depths.tolist()]
    cuts = np.sort(draw.integers(0, 3000, 5))
    law = DepthLaw()
    many = np.concatenate([law.update_many(part) for part in np.split(depths, cuts)])
    assert many.tolist() == single
    assert seed or {USUAL, IS_ODD, CHANGED} >= set(single)


@pytest.mark.parametrize(
    ("before", "after", "within"),
    [
        (lambda draw: np.full(100, 8.0), lambda draw: np.full(60, 16.0), 8),
        (lambda draw: np.full(100, 8.0), lambda draw: np.full(60, 9.0), 8),
        (lambda draw: draw.poisson(8, 100), lambda draw: np.full(60, 1.0), 60),
        (lambda draw: draw.poisson(8, 100), lambda draw: draw.poisson(32, 60), 12),
        (lambda draw: 8 + draw.random(100), lambda draw: 4 + draw.random(60), 8),
    ],
    ids=["fixed", "fixed, by one", "to one loop", "Poisson", "means"],
)
def test_a_change_is_seen_once_and_soon(before, after, within):
    for seed in range(10):
        draw = np.random.default_rng(seed)
        depths = np.concatenate([before(draw), after(draw)]).astype(float)
        changes = np.flatnonzero(DepthLaw().update_many(depths) == CHANGED)
        if within == 60:  # one loop is within what Poisson depths do now and then
            assert len(changes) <= 1
        else:
            assert len(changes) == 1 and 100 <= changes[0] < 100 + within


@pytest.mark.parametrize(("law", "odd"), [("poisson", 0.01), ("geometric", 0.03)])
def test_depths_of_one_law_are_hardly_ever_odd_and_never_a_change(law, odd):
    draw = np.random.default_rng(0)
    depths = draw.poisson(8, 100_000) if law == "poisson" else draw.geometric(0.1, 100_000)
    said = DepthLaw().update_many(depths.astype(float))
    assert not (said == CHANGED).any()
    assert (said == IS_ODD).mean() < odd  # measured: 0.005 and 0.023


def test_a_law_that_changes_slowly_is_followed():
    depths = np.linspace(4, 32, 4000) + np.random.default_rng(0).random(4000)
    assert not (DepthLaw().update_many(depths) == CHANGED).any()


@pytest.mark.parametrize(("silent", "seen"), [(0, False), (15, False), (16, True), (200, True)])
def test_a_loop_that_begins_late_is_a_change(silent: int, seen: bool) -> None:
    depths = [math.nan] * silent + [4.0] * 40
    law = DepthLaw()
    single = [law.update(depth) for depth in depths]
    assert single == [USUAL] * silent + [CHANGED if seen else USUAL] + [USUAL] * 39
    for cut in (0, silent // 2, silent, silent + 1):
        law = DepthLaw()
        assert np.concatenate([law.update_many(depths[:cut]), law.update_many(depths[cut:])]).tolist() == single


def test_every_change_is_counted(tmp_path):
    """Thirty steps apart: each is news, and what is said of the first one says how many there were."""
    depths = [2.0, 5.0, 9.0, 3.0]
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(120):
            writer.append_step({"step": float(step), "loss": 2.0 - 0.01 * step, "depth": depths[step // 30]})
    with loopscope.open_run(tmp_path / "a.h5") as run:
        (told,) = [each for each in loopscope.diagnose(run).findings if each.rule == "LS016"]
    assert told.episodes == 3 and told.when == f"step {told.step}, 3 times" and 30 < told.step < 45
    assert f"LS016 depth-changed [note] {told.when}: " in as_text(check_runs([tmp_path / "a.h5"]))
