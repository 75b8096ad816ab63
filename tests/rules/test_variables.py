"""Rules judge every variable of a loop: live and from the file they say the same, and they name the variable."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loopscope.probes import open_run
from loopscope.probes.measure.sums import LoopSums
from loopscope.probes.recorder import Record, Recorder, VariableRecord
from loopscope.rules.diagnosis import diagnose
from loopscope.rules.judging import judge
from loopscope.rules.rule_files import load_rules
from loopscope.rules.variable_verdicts import laws_of_passes, lost_since, lost_variables
from loopscope.rules.variables import loops_of_rows, per_pass
from loopscope.runfile.flights import FlightStep
from loopscope.runfile.layout import PASS_ROUNDING, VARIABLE_COLUMNS, VARIABLE_PASSES

RULES = """
[[rule]]
id = "R1"
expr = "last_state_norm > 8"
for = 2
severity = "warning"
[[rule]]
id = "R2"
expr = "residual_norm[-1] > 1.2 * residual_norm[-2]"
severity = "warning"
[[rule]]
id = "R3"
expr = "x > 0.5"
severity = "warning"
"""
INFO = {"variables": ["high", "low"]}
INNER = 3


def sums_of(sizes: np.ndarray) -> LoopSums:
    """The rows of a state of one channel that takes these values."""
    rows = LoopSums(len(sizes), torch.device("cpu"))
    rows.begin()
    for size in sizes:
        rows.add(torch.full((1, 4, 1), float(size)))
    return rows


def record_of(step: int, high: np.ndarray, low: np.ndarray) -> Record:
    """A step in which one variable has a value per pass, the other `INNER` ones."""
    joint = np.hypot(high, low[::INNER])
    places = [np.array([(t, 1 if t else 0) for t in range(len(high))])]
    places += [np.array([(0, 0), *((t, i + 1) for t in range(1, len(high)) for i in range(INNER))])]
    own = [VariableRecord(s.device_rows()["sums"].numpy(), s.counts, p)
           for s, p in zip(map(sums_of, (high, low)), places, strict=True)]  # fmt: skip
    sums = sums_of(joint)
    values = {"loss": 3.0, "x": float(step % 40 > 30)}
    rows = sums.device_rows()["sums"].numpy()
    return Record(step, 1e9 + step, values, rows, sums.counts, flight=FlightStep(), variables=own)


def write(path: Path, rules: list, *, later: bool, steps: int = 120) -> None:
    """Record a run in which `low` grows from step 40 on, and `high` is at rest."""
    recorder = Recorder(path, info={} if later else INFO, scalars=("x",), rules=rules, resume=False, overwrite=False)
    if later:
        recorder.learn(0, INFO)
    for step in range(steps):
        grown = 0.1 * max(0, step - 40)
        high = 1.0 + 0.5 ** np.arange(4.0)
        low = 1.0 + grown * (np.arange(3 * INNER + 1) / (3 * INNER)) ** 3 + 0.01 * np.arange(3 * INNER + 1)
        recorder.put(record_of(step, high, low))
    recorder.close()


@pytest.fixture
def rules(tmp_path: Path) -> list:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return load_rules(file)


@pytest.mark.parametrize("later", [False, True], ids=["known at first", "learnt later"])
def test_a_rule_names_the_variable_and_says_the_same_live_and_of_the_file(tmp_path: Path, rules, later: bool) -> None:
    write(tmp_path / "a.h5", rules, later=later)
    with open_run(tmp_path / "a.h5") as run:
        findings = [f for f in judge(run, rules).findings if f.rule in ("R1", "R2", "R3")]
        told = [(e.step, e.kind, e.message) for e in run.events if e.kind in ("R1", "R2", "R3")]
    first = {f.rule: f for f in reversed(findings)}
    # The norm of the joint state passes a level a step before that of its variable does, and is told of by then.
    assert {(f.rule, f.variable) for f in findings} == {("R1", ""), ("R1", "low"), ("R2", "low"), ("R3", "")}
    own = next(f for f in findings if (f.rule, f.variable) == ("R1", "low"))
    assert own.message.startswith("low: ")
    grown = [step for step in range(120) if 1.0 + 0.1 * max(0, step - 40) + 0.09 > 8.0]
    assert (own.since, own.step) == (grown[0], grown[2]) and first["R1"].step == own.step - 1
    live = [(step, kind, "low" if "low: " in message else "") for step, kind, message in told if kind != "R3"]
    assert sorted(live) == sorted((f.step, f.rule, f.variable) for f in findings if f.rule != "R3")


def test_passes_of_a_variable_are_its_last_updates(tmp_path: Path, rules) -> None:
    write(tmp_path / "a.h5", rules, later=False, steps=50)
    with open_run(tmp_path / "a.h5") as run:
        state, step = per_pass(run, "low", "state_norm"), per_pass(run, "low", "residual_norm")
        every, moves = run.loops("state_norm", variable="low"), run.loops("residual_norm", variable="low")
        table = np.stack([run.loops(name, variable="low")[49] for name in VARIABLE_COLUMNS], axis=1)
    assert np.array_equal(state, every[:, ::INNER])
    assert np.array_equal(step[:, :-1], moves[:, INNER - 1 : -1 : INNER]) and np.isnan(step[:, -1]).all()
    live = loops_of_rows(table.astype(np.float32))
    assert np.array_equal(live[:, :2], np.stack([state[49], step[49]], axis=1).astype(np.float32), equal_nan=True)


def test_depths_that_differ_from_step_to_step(tmp_path: Path, rules) -> None:
    recorder = Recorder(tmp_path / "a.h5", info=INFO, scalars=(), rules=rules, resume=False, overwrite=False)
    for step, passes in enumerate([3, 5, 2, 4]):
        recorder.put(record_of(step, np.arange(1.0, passes + 2), np.arange(1.0, INNER * passes + 2)))
    recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        state = per_pass(run, "low", "state_norm")
    assert [int((~np.isnan(row)).sum()) - 1 for row in state] == [3, 5, 2, 4]
    assert [float(row[~np.isnan(row)][-1]) for row in state] == [INNER * n + 1 for n in (3, 5, 2, 4)]
    assert math.isnan(state[2, 4])


def test_the_shipped_rules_say_which_variable_explodes(tmp_path: Path) -> None:
    shipped = load_rules()
    recorder = Recorder(tmp_path / "a.h5", info=INFO, scalars=(), rules=shipped, resume=False, overwrite=False)
    for step in range(260):
        size = 1.0 if step < 180 else 1000.0
        recorder.put(record_of(step, size * np.linspace(1.0, 1.5, 4), np.linspace(1.0, 1.5, 3 * INNER + 1)))
    recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        findings = diagnose(run, shipped).findings
    grows = [f for f in findings if f.rule == "LS032"]
    assert [f.variable for f in grows] == ["high"] and grows[0].as_dict()["variable"] == "high"


def test_a_verdict_says_what_every_variable_does_from_pass_to_pass(tmp_path: Path) -> None:
    """One settles and one drifts, although the inner updates of neither get smaller."""
    t = np.arange(17.0)
    measured = np.full((2, 17, 3), np.nan, np.float32)
    measured[0, :, 0], measured[0, :-1, 1], measured[0, 1:-1, 2] = 2 - 0.5**t, 0.5 ** t[:-1], 1
    measured[1, :, 0], measured[1, :-1, 1], measured[1, 1:-1, 2] = 1 + t, 1, 1
    recorder = Recorder(tmp_path / "a.h5", info=INFO, scalars=(), rules=[], resume=False, overwrite=False)
    for step in range(30):
        one = record_of(step, np.linspace(1.0, 1.5, 4), np.linspace(1.0, 1.5, 3 * INNER + 1))
        recorder.put(replace(one, arrays={VARIABLE_PASSES: measured}) if step == 20 else one)
    recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        said = diagnose(run, [])
    assert {name: law.kind for name, law in said.variables.items()} == {"high": "settling", "low": "drifting"}
    assert "By variable: high settles geometrically, low drifts" in said.summary
    assert said.as_dict()["variables"]["low"] == {"regime": "marginal", "kind": "drifting", "since": 20, "rule": None}


def test_nothing_is_said_of_passes_where_only_inner_updates_are_known(tmp_path: Path, rules) -> None:
    write(tmp_path / "a.h5", rules, later=False, steps=30)
    with open_run(tmp_path / "a.h5") as run:
        assert diagnose(run, rules).variables == {}


def test_a_damaged_measurement_is_left_out(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.h5", info=INFO, scalars=(), rules=[], resume=False, overwrite=False)
    for step in range(30):
        one = record_of(step, np.linspace(1.0, 1.5, 4), np.linspace(1.0, 1.5, 3 * INNER + 1))
        recorder.put(replace(one, arrays={VARIABLE_PASSES: np.zeros((3, 0), np.float32)}))
    recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        assert diagnose(run, []).variables == {}


def passes(*ratios: float, count: int = 16) -> np.ndarray:
    """What is measured of one variable for each of these ratios: passes whose steps change by it."""
    measured = np.full((len(ratios), count + 1, 3), np.nan, np.float32)
    for number, ratio in enumerate(ratios):
        steps = 0.1 * ratio ** np.arange(float(count))
        measured[number, :, 0], measured[number, :-1, 1] = 1.0, steps
        measured[number, 1:-1, 2] = -0.5
    return measured


def write_measured(path: Path, at: dict[int, np.ndarray], rules: list, *, steps: int = 120) -> None:
    """Record a run whose passes on the fixed batch were measured at some steps."""
    recorder = Recorder(path, info=INFO, scalars=("x",), rules=rules, resume=False, overwrite=False)
    for step in range(steps):
        one = record_of(step, np.linspace(1.0, 1.5, 4), np.linspace(1.0, 1.5, 3 * INNER + 1))
        recorder.put(replace(one, arrays={VARIABLE_PASSES: at[step]} if step in at else {}))
    recorder.close()


@pytest.mark.parametrize("failing", [0, 1])
def test_the_variable_that_does_not_settle_is_named_and_since_when(tmp_path: Path, failing: int) -> None:
    settles, fails = passes(0.7, 0.8), passes(*[(1.0, 0.8), (0.7, 1.0)][failing])
    shipped = load_rules()
    write_measured(tmp_path / "a.h5", {0: settles, 40: settles, 80: fails}, shipped)
    with open_run(tmp_path / "a.h5") as run:
        said = diagnose(run, shipped)
    own = [f for f in said.findings if f.rule == "LS031"]
    assert [(f.variable, f.since, f.step) for f in own] == [(INFO["variables"][failing], 80, 100)]
    assert next(j for j in said.judgements if j.rule == "LS031").state == "judged"


def test_a_rule_over_the_ratio_of_a_variable_speaks_live_as_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nid = "R5"\nexpr = "residual_ratio > 0.9"\nfor = 5\nseverity = "warning"\n')
    own = load_rules(file)
    write_measured(tmp_path / "a.h5", {10: passes(0.5, 0.5), 50: passes(0.5, 0.95)}, own)
    with open_run(tmp_path / "a.h5") as run:
        told = [(e.step, e.message.split(": ")[1]) for e in run.events if e.kind == "R5"]
        of_file = [(f.step, f.variable) for f in judge(run, own).findings if f.rule == "R5"]
    assert told == of_file == [(55, "low")]


def test_a_variable_whose_passes_were_not_measured_is_not_judged_on_them(tmp_path: Path) -> None:
    shipped = load_rules()
    damaged = np.zeros((3, 0), np.float32)
    write_measured(tmp_path / "a.h5", {0: damaged}, shipped)
    with open_run(tmp_path / "a.h5") as run:
        judged = judge(run, shipped)
    assert next(j for j in judged.judgements if j.rule == "LS031").state != "judged"
    assert not [f for f in judged.findings if f.rule == "LS031"]


def test_a_verdict_says_since_when_a_variable_does_not_settle(tmp_path: Path) -> None:
    """It did not at first, then it did, and now it does not again: the last stretch counts."""
    settles, fails = passes(0.7, 0.8), passes(0.7, 1.0)
    write_measured(tmp_path / "a.h5", {0: fails, 20: settles, 40: fails, 60: fails}, [])
    with open_run(tmp_path / "a.h5") as run:
        said = diagnose(run, [])
    assert said.variables["low"].kind in ("orbiting", "drifting")
    told = f"low {said.variables['low'].words} since step 40 (at step 20 it still settled; measured last at step 60)."
    assert f"By variable: high settles geometrically (measured last at step 60), {told}" in said.summary
    assert not any(one.fails for one in said.by_variable)


@pytest.mark.parametrize(("at", "words"), [({0: 1.0, 60: 1.0}, " from the start"), ({0: 1.0, 60: 0.7}, "")])
def test_a_variable_that_never_settled_did_not_from_the_start(tmp_path: Path, at: dict[int, float], words: str) -> None:
    write_measured(tmp_path / "a.h5", {step: passes(0.5, ratio) for step, ratio in at.items()}, [])
    with open_run(tmp_path / "a.h5") as run:
        low = next(one for one in diagnose(run, []).by_variable if one.name == "low")
        assert low.brief == f"low {low.does}{words}" and low.before is None


def test_the_variable_that_explodes_fails_and_its_rule_is_named(tmp_path: Path) -> None:
    shipped = load_rules()
    explodes = passes(0.7, 1.4)
    explodes[1, :, 0] = 1.4 ** np.arange(17.0)
    measured = {step: passes(0.7, 0.8) if step < 40 else explodes for step in range(0, 120, 20)}
    write_measured(tmp_path / "a.h5", measured, shipped)
    with open_run(tmp_path / "a.h5") as run:
        said = diagnose(run, shipped)
    first, second = said.by_variable
    assert (first.name, first.fails, first.since, first.before) == ("low", True, 40, (20, "still settled"))
    assert (second.name, second.fails) == ("high", False)
    assert first.finding is not None and (first.finding.rule, first.finding.variable) == ("LS030", "low")
    told = (
        "By variable: low fails: it explodes since step 40 (at step 20 it still settled; LS030 state-explosion, alarm"
    )
    assert said.summary.startswith(told)
    of_low = said.as_dict()["variables"]["low"]
    assert of_low == {"regime": "unstable", "kind": "exploding", "since": 40, "rule": "LS030"}


def growing(factor: float) -> np.ndarray:
    """Of two variables, the second grows by a factor in each of 64 passes."""
    measured = passes(0.7, factor, count=64)
    measured[1, :, 0] = factor ** np.arange(65.0)
    return measured


@pytest.mark.parametrize(
    ("first", "second", "since", "before"),
    [
        (0.98, 0.98, 40, (20, "still settled")),  # slowly: the ratio that LS031 asks for is 0.97
        (0.7, 1.0, 40, (20, "orbited")),
        (1.0, 0.9, 40, (20, "still settled")),
        (1.2, 1.2, 0, None),
    ],
)
def test_since_when_a_variable_fails_is_read_from_what_it_did_at_every_measurement(
    tmp_path: Path, first: float, second: float, since: int, before: tuple[int, str] | None
) -> None:
    """Not from one ratio, which a variable that settles slowly and one that orbits pass as one that explodes does."""
    at = {step: growing(ratio) if ratio > 1 else passes(0.7, ratio, count=64)
          for step, ratio in ((0, first), (20, second), (40, 1.2), (60, 1.2))}  # fmt: skip
    write_measured(tmp_path / "a.h5", at, [])
    with open_run(tmp_path / "a.h5") as run:
        low = next(one for one in diagnose(run, []).by_variable if one.name == "low")
    assert (low.fails, low.since, low.before) == (True, since, before)


def test_an_undecided_measurement_counts_where_it_may_be_the_same_and_does_not_settle(tmp_path: Path) -> None:
    torn = passes(0.7, 1.0, count=64)
    torn[1, :, 0], torn[1, 1:-1, 2] = np.sqrt(1 + 0.2 * 0.01 * np.arange(65.0)), 0.0  # drifting or orbiting
    at = {0: passes(0.7, 0.8, count=64), 20: torn, 40: passes(0.7, 1.0, count=64)}
    write_measured(tmp_path / "a.h5", at, [])
    with open_run(tmp_path / "a.h5") as run:
        assert laws_of_passes(run, torn)["low"].between == ("drifting", "orbiting")
        low = next(one for one in diagnose(run, []).by_variable if one.name == "low")
    assert (low.kind, low.since, low.before) == ("orbiting", 20, (0, "still settled"))


@pytest.mark.parametrize("factor", [1.02, 1.05, 1.2])
def test_a_variable_whose_state_is_normalised_does_not_explode(tmp_path: Path, factor: float) -> None:
    """HRM, before training: steps grow for 64 passes towards an orbit, the norm of z_L stays."""
    measured = passes(0.7, factor, count=64)
    measured[1, :-1, 1] *= 1e-4
    grown = growing(factor)
    for number, one in enumerate((measured, grown)):
        write_measured(tmp_path / f"{number}.h5", {0: one, 20: one}, [], steps=30)
    with open_run(tmp_path / "0.h5") as bounded, open_run(tmp_path / "1.h5") as free:
        low, other = (diagnose(run, []).variables["low"] for run in (bounded, free))
    assert (low.kind, low.between, low.regime) == ("undecided", ("exploding", "orbiting"), "unknown")
    assert other.kind == "exploding"


@pytest.mark.parametrize(
    ("high", "low", "regime"),
    [(0.7, 0.8, "stable"), (0.7, 1.0, "marginal"), (1.0, 0.7, "marginal"), (0.7, 1.2, "unstable")],
)
def test_the_joint_trajectory_is_that_of_the_variable_farthest_from_settling(
    tmp_path: Path, high: float, low: float, regime: str
) -> None:
    """A run whose variables orbit was called stable where the full loop contracts: its few passes told nothing."""
    measured = growing(low) if low > 1 else passes(high, low, count=64)
    recorder = Recorder(tmp_path / "a.h5", info=INFO, scalars=("x",), rules=[], resume=False, overwrite=False)
    for step in range(60):
        one = record_of(step, np.linspace(1.0, 1.5, 4), np.linspace(1.0, 1.5, 3 * INNER + 1))
        rates = {"lyapunov_max": -0.3, "jacobian_radius": 0.7, "full_loop_seconds": 0.1} if step % 20 == 0 else {}
        arrays = {VARIABLE_PASSES: measured} if step % 20 == 0 else {}
        recorder.put(replace(one, values=one.values | rates, arrays=arrays))
    recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        said = diagnose(run, [])
    assert (said.regimes["trajectory"], said.verdict) == (regime, regime)
    assert said.regimes["loop"] == "stable" and said.summary.startswith("By variable: ")


@pytest.mark.parametrize("bend", [1e-7, 1e-3, None])
def test_an_orbit_of_a_pass_that_computes_in_float32_is_no_bfloat16_round_off(
    tmp_path: Path, bend: float | None
) -> None:
    """Steps that fell and then last at 1 % of the state may be round-off of a short type: where that was tried out."""
    orbits = passes(0.7, 1.0, count=64)
    orbits[1, :-1, 1] = np.maximum(0.5 * 0.8 ** np.arange(64.0), 0.01)
    more = {} if bend is None else {PASS_ROUNDING: np.full(2, bend, np.float32)}
    recorder = Recorder(
        tmp_path / "a.h5", info=INFO | {"parameter_dtype": "float32"}, scalars=(), rules=[], resume=False,
        overwrite=False,
    )  # fmt: skip
    for step in range(30):
        one = record_of(step, np.linspace(1.0, 1.5, 4), np.linspace(1.0, 1.5, 3 * INNER + 1))
        recorder.put(replace(one, arrays={VARIABLE_PASSES: orbits, **more} if step == 20 else {}))
    recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        low = diagnose(run, []).variables["low"]
    assert (low.kind, low.between) == (("orbiting", ()) if bend == 1e-7 else ("undecided", ("settling", "orbiting")))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("from_step", "to_step", "since"), [(50, 120, 50), (50, 60, None), (0, 120, 0)])
def test_the_variable_that_is_not_finite_fails_whatever_was_measured_before(
    tmp_path: Path, value: float, from_step: int, to_step: int, since: int | None
) -> None:
    recorder = Recorder(tmp_path / "a.h5", info=INFO, scalars=(), rules=[], resume=False, overwrite=False)
    for step in range(120):
        high, low = np.linspace(1.0, 1.5, 4), np.linspace(1.0, 1.5, 3 * INNER + 1)
        if from_step <= step < to_step:
            low[1:] = value
        one = record_of(step, high, low)
        recorder.put(replace(one, arrays={VARIABLE_PASSES: passes(0.7, 0.8)}) if step == 0 else one)
    recorder.close()
    with open_run(tmp_path / "a.h5") as run:
        low_verdict = next(one for one in diagnose(run, []).by_variable if one.name == "low")
        assert lost_since(run, "low") == since and lost_since(run, "high") is None
        assert lost_variables(run, 55) == ["low"] and not lost_variables(run, 119 if since is None else -1)
    assert (low_verdict.fails, low_verdict.since) == (since is not None, since)
    assert low_verdict.does == ("settles geometrically" if since is None else "is not finite")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_variable_that_overflows_does_not_make_the_other_one_fail(tmp_path: Path, failing: int) -> None:
    """Once one is infinite, the next passes of both are NaN: what the other did on its own stands before."""
    shipped = load_rules()
    sick = passes(*[(1.4, 0.7), (0.7, 1.4)][failing])
    sick[failing, :, 0] = 1.4 ** np.arange(17.0)
    sick[failing, 12:, :2], sick[1 - failing, 13:, :2] = np.inf, np.nan
    sick[1 - failing, 12, 1] = np.nan
    write_measured(
        tmp_path / "a.h5", {step: passes(0.7, 0.7) if step < 40 else sick for step in range(0, 120, 20)}, shipped
    )
    with open_run(tmp_path / "a.h5") as run:
        said = diagnose(run, shipped)
    told = {one.name: (one.fails, one.does, one.since) for one in said.by_variable}
    names = INFO["variables"]
    assert told == {
        names[failing]: (True, "explodes", 40),
        names[1 - failing]: (False, "settles geometrically", None),
    }
    assert {f.variable for f in said.findings if f.rule == "LS030"} == {names[failing]}
