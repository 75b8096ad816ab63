"""Halting that stops being used, that always happens, and a gate that is driven to NaN: each is told before the end."""

from __future__ import annotations

import math
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.rules.exits import exit_shares
from loopscope.rules.live_rules import LiveRules
from loopscope.rules.rule_files import load_rules
from loopscope.runfile.layout import Event
from loopscope.runfile.writer import RunWriter
from torch import nn


def rules_of(path: Path) -> dict[str, int]:
    """The first step at which each rule about halting fired."""
    with loopscope.open_run(path) as run:
        findings = loopscope.diagnose(run).findings
    return {f.rule: f.step for f in findings if f.rule in ("LS034", "LS035", "LS036", "LS037") and f.state == "fired"}


def write(path: Path, rows: list[dict[str, float]], active: list[list[float]] | None = None) -> Path:
    """Write steps of four loops, with the tokens that take part in each."""
    loops = np.stack([1 + 0.5 ** np.arange(5.0), 0.5 ** np.arange(1.0, 6), np.ones(5), np.full(5, 64.0)], axis=1)
    with RunWriter.create(path, info={}, scalars=("halt_logit", "halt_target")) as writer:
        for step, row in enumerate(rows):
            own = loops.astype(np.float32)
            own[:, 3] = 64.0 if active is None else active[step]
            writer.append_step({"step": step, "depth": 4.0} | row, own)
    return path


def losses(steps: int) -> list[dict[str, float]]:
    draw = np.random.default_rng(0)
    return [{"loss": 2.0 + 0.01 * float(draw.standard_normal())} for _ in range(steps)]


def test_halting_that_stops_being_used(tmp_path: Path) -> None:
    used, unused = [64, 48, 32, 16, 64], [64, 64, 64, 64, 64]
    active = [used if step < 230 else unused for step in range(400)]
    assert rules_of(write(tmp_path / "a.h5", losses(400), active)) == {"LS035": 280}


def test_halting_that_is_used_or_never_was_is_no_alarm(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    shares = [[64.0, *sorted(draw.integers(8, 64, 3).tolist(), reverse=True), 64.0] for _ in range(400)]
    assert rules_of(write(tmp_path / "a.h5", losses(400), shares)) == {}
    assert rules_of(write(tmp_path / "b.h5", losses(400))) == {}


def test_a_gate_with_targets_that_are_all_false_is_told_long_before_its_nan(tmp_path: Path) -> None:
    """The public report: the step of a scale-invariant optimizer does not shrink as the gradient vanishes."""
    logit, first, second, rows = torch.zeros(1, requires_grad=True), 0.0, 0.0, []
    for _ in range(6000):
        probability = torch.sigmoid(logit)
        target = torch.zeros(1)
        loss = -(target * probability.log() + (1 - target) * (1 - probability).log()).sum()
        (gradient,) = torch.autograd.grad(loss, logit)
        first, second = 0.9 * first + 0.1 * float(gradient), 0.95 * second + 0.05 * float(gradient) ** 2
        rows.append({"loss": 2.0 + float(loss), "halt_logit": float(logit.detach()), "halt_target": 0.0})
        if math.isnan(rows[-1]["loss"]):
            break
        with torch.no_grad():
            logit -= 0.2 * math.atan2(first, math.sqrt(second))
    assert math.isnan(rows[-1]["loss"])
    fired = rules_of(write(tmp_path / "a.h5", rows))
    assert fired.keys() == {"LS036", "LS037"}
    assert all(0 < step < step_of_nan(rows) - 200 for step in fired.values()), (fired, len(rows))


def step_of_nan(rows: list[dict[str, float]]) -> int:
    return next(step for step, row in enumerate(rows) if math.isnan(row["loss"]))


def test_false_targets_at_the_beginning_and_a_gate_that_works_are_no_alarm(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    rows = losses(400)
    for step, row in enumerate(rows):
        solved = min(0.7, max(0.0, (step - 150) / 200))
        row |= {"halt_target": solved, "halt_logit": -4 * math.exp(-solved * 3) + float(draw.standard_normal()) * 0.3}
    assert rules_of(write(tmp_path / "a.h5", rows)) == {}


def test_runs_without_a_gate_say_not_applicable(tmp_path: Path) -> None:
    with loopscope.open_run(write(tmp_path / "a.h5", losses(100))) as run:
        states = {j.rule: (j.state, j.reason) for j in loopscope.diagnose(run).judgements}
    assert states["LS037"] == ("not applicable", "halt_logit was never recorded")
    assert states["LS036"][0] == "not applicable"


def test_the_histogram_of_exits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", losses(40), [[64, 48, 32, 32, 64]] * 40)
    with loopscope.open_run(path) as run:
        assert exit_shares(run).tolist() == [0.0, 0.25, 0.25, 0.0, 0.5]
        said = loopscope.diagnose(run).summary
    assert "Tokens run 2.8 loops in the mean: 1 loop 25 %, 2 loops 25 %, 4 loops 50 %" in said


def test_no_histogram_where_tokens_wait_or_all_run_alike(tmp_path: Path) -> None:
    with loopscope.open_run(write(tmp_path / "a.h5", losses(40), [[16, 32, 64, 64, 64]] * 40)) as run:
        assert len(exit_shares(run)) == 0 and "in the mean" not in loopscope.diagnose(run).summary
    with loopscope.open_run(write(tmp_path / "b.h5", losses(40))) as run:
        assert exit_shares(run).tolist() == [0, 0, 0, 0, 1] and "in the mean" not in loopscope.diagnose(run).summary


def test_micro_batches_of_different_depths_are_counted_at_the_depth_they_ran(tmp_path: Path) -> None:
    """The last state of a shallow forward is in the means of the next loop, which that forward does not run."""

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block, self.head, self.depth = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9), 3

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            h = self.embed(tokens)
            for _ in range(self.depth):
                h = torch.tanh(self.block(h)) + 0.1
            return self.head(h)

    torch.manual_seed(0)
    model, draw = Drawn(), np.random.default_rng(0)
    ran = []
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for _ in range(30):
            for model.depth in draw.choice([3, 5, 8], size=4, p=[0.5, 0.25, 0.25]).tolist():
                model(torch.arange(8).view(2, 4)).square().mean().backward()
                ran.append(model.depth)
            probe.step(loss=1.0)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        shares = exit_shares(run)
        assert np.allclose(shares, np.bincount(ran, minlength=9) / len(ran))
        assert f"Tokens run {np.mean(ran):.1f} loops in the mean" in loopscope.diagnose(run).summary


def halting_run(path: Path, passes: dict[int, list[float]], tokens: list[float], *, told: str = "") -> Path:
    """Write 60 steps whose loops halt, and passes of the fixed batch, given the sizes of their steps."""
    with RunWriter.create(path, info={}) as writer:
        for step in range(60):
            loops = np.array(
                [[1, 0.8, 0, 64], [1, 0.7, 0.1, 40], [1, 0.6, 0.1, 20], [1, np.nan, np.nan, 64]], np.float32
            )
            writer.append_step({"step": float(step), "loss": 2.0 - 0.01 * step, "depth": 2.0, "depth_max": 3.0}, loops)
            if step in passes:
                sizes = np.array([*passes[step], np.nan])
                rows = np.stack([np.ones(len(sizes)), sizes, np.full(len(sizes), 0.5), tokens[: len(sizes)]], axis=1)
                rows[-1, 3] = 64
                writer.append_probe(step, rows.astype(np.float32))
        if told:
            writer.append_event(Event(59, 0.0, "fixed_batch", "note", message=told))
    return path


GROWING = [0.5 * 1.15**t for t in range(8)]


def test_a_fixed_batch_whose_tokens_stop_is_no_trajectory(tmp_path: Path) -> None:
    """The tokens that go on are those that move farthest: means over them grow, and nothing explodes."""
    every = dict.fromkeys(range(0, 60, 10), GROWING)
    with loopscope.open_run(halting_run(tmp_path / "a.h5", every, [64, 64, 50, 30, 20, 10, 5, 4, 64])) as run:
        said = loopscope.diagnose(run)
        assert np.isnan(run["residual_ratio"]).all() and np.isnan(run["growth_ratio"]).all()
    states = {each.rule: (each.state, each.reason) for each in said.judgements}
    assert states["LS030"] == (
        "not applicable",
        "on the fixed batch tokens stop after different numbers of loops (halting)",
    )
    assert said.verdict == "unknown" and "no trajectory" in said.summary and "explodes" not in said.summary
    with loopscope.open_run(halting_run(tmp_path / "b.h5", every, [64] * 9)) as run:
        assert np.nanmin(run["residual_ratio"]) > 1.1 and "explode" in loopscope.diagnose(run).summary


def test_live_and_afterwards_agree_that_there_is_no_ratio(tmp_path: Path) -> None:
    live = LiveRules([rule for rule in load_rules() if rule.id == "LS030"], {}, ["residual_ratio", "growth_ratio"])
    growing = np.array(
        [[1.2**t, 0.5 * 1.2**t, 0.9, n] for t, n in enumerate([64, 50, 30, 20, 10, 5, 4, 64])], np.float32
    )
    growing[-1, 1:3] = np.nan
    alarms = []
    for tokens in (growing[:, 3], np.full(8, 64.0)):
        growing[:, 3] = tokens
        for step in range(len(alarms), 40):
            alarms += live.add(step, {"loss": 1.0})
            live.add_pass(growing)
        if tokens[1] < 64:
            assert not alarms + live.judge(ended=True)
    assert alarms or live.judge(ended=True)


def test_tokens_that_come_to_rest_are_no_halting(tmp_path: Path) -> None:
    settling = [0.5 * 0.1**t for t in range(8)]
    path = halting_run(
        tmp_path / "a.h5", dict.fromkeys(range(0, 60, 10), settling), [64, 64, 64, 64, 60, 40, 20, 5, 64]
    )
    with loopscope.open_run(path) as run:
        assert np.nanmax(run["residual_ratio"]) == pytest.approx(0.1, rel=0.1)
        assert loopscope.diagnose(run).regimes["trajectory"] == "stable"


def test_a_fixed_batch_of_long_ago_says_nothing_of_the_end(tmp_path: Path) -> None:
    """It was given up: what it measured of earlier weights is not what the run ends with, and no data is missing."""
    why = "the fixed batch is not run: of 3 loops a pass no deeper than training would tell too little"
    path = halting_run(tmp_path / "a.h5", {0: GROWING, 10: GROWING}, [64] * 9, told=why)
    with loopscope.open_run(path) as run:
        said = loopscope.diagnose(run)
    assert "explode" not in said.summary and said.regimes["trajectory"] == "unknown"
    ratios = {each.rule: each for each in said.judgements if "ratio" in each.reason or each.rule in ("LS030", "LS021")}
    assert all(each.state != "no data" for each in ratios.values())
    assert not [each for each in said.findings if each.gap and "ratio" in each.message]
