"""The risk of a run: row by row, at once and across a restart the same; monotone; explained by its parts; bounded."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from loopscope import diagnose, open_run
from loopscope.rules import risk
from loopscope.rules.expression import parse
from loopscope.rules.live_rules import LiveRules
from loopscope.rules.risk import SIGNALS, SOURCES, WINDOW, RunRisk, Term, assess, calibrations, risk_of, signals
from loopscope.rules.rule_files import Rule

VALUES = st.one_of(st.floats(0.01, 50), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 1e-300, 3.0]))


@st.composite
def columns(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Columns of a run in which anything may be missing, strange, or recorded now and then."""
    rows = draw(st.integers(0, 120))
    chosen = draw(st.lists(st.sampled_from(SOURCES), unique=True))
    made = {name: draw(st_numpy.arrays(np.float64, rows, elements=VALUES, fill=st.just(2.5))) for name in chosen}
    for name in made.keys() & {"residual_ratio", "growth_ratio", "c_out_norm"}:
        made[name][np.arange(rows) % draw(st.integers(1, 10)) != 0] = math.nan
    return made


def row(of: dict[str, np.ndarray], number: int) -> dict[str, float]:
    return {name: float(values[number]) for name, values in of.items()}


@settings(max_examples=60, deadline=None)
@given(columns(), st.integers(0, 120))
def test_row_by_row_at_once_and_across_a_restart_are_the_same(of: dict[str, np.ndarray], split: int) -> None:
    rows = len(next(iter(of.values()))) if of else 0
    at_once = RunRisk()
    values = at_once.replay(of)
    followed, seen = RunRisk(), []
    for number in range(rows):
        if number == split:  # a process ends, another goes on from what was kept
            followed = RunRisk.from_state(json.loads(json.dumps(followed.state())))
        seen.append(followed.update(row(of, number)))
    np.testing.assert_equal(np.array(seen), values)
    if of:
        assert str(followed.explain()) == str(at_once.explain())
    goes_on = RunRisk()
    goes_on.replay({name: column[:split] for name, column in of.items()})
    rest = [goes_on.update(row(of, number)) for number in range(min(split, rows), rows)]
    np.testing.assert_equal(np.array(rest), values[min(split, rows) :])
    in_pieces = RunRisk()
    cuts = [0, *sorted({split % (rows + 1), split * 7 % (rows + 1), split * 31 % (rows + 1)}), rows]
    pieces = [
        in_pieces.replay({name: column[start:end] for name, column in of.items()})
        for start, end in itertools.pairwise(cuts)
    ]
    np.testing.assert_equal(np.concatenate(pieces), values)
    assert str(in_pieces.explain()) == str(at_once.explain()) and str(in_pieces.state()) == str(at_once.state())


@settings(max_examples=40, deadline=None)
@given(columns())
def test_a_risk_is_a_probability_and_its_parts_are_its_reasons(of: dict[str, np.ndarray]) -> None:
    followed = RunRisk()
    values = followed.replay(of)
    known = values[~np.isnan(values)]
    assert ((known >= 0) & (known <= 1)).all()
    said = followed.explain(7)
    assert len(said.sentence) < 1500 and "\n" not in said.sentence
    if math.isnan(said.value):
        assert not said.parts
    elif said.parts:
        assert sum(part.share for part in said.parts) == pytest.approx(1)
        assert all(part.logits > 0 for part in said.parts)
        constant = calibrations()[said.basis].constant
        total = constant + sum(part.logits for part in said.parts)
        assert said.value == pytest.approx(1 / (1 + math.exp(-total)), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries({name: st.floats(-5, 5) for name in SIGNALS}),
    st.sampled_from(sorted(SIGNALS)),
    st.floats(0, 5),
    st.booleans(),
)
def test_more_growth_never_lowers_the_risk(drawn: dict[str, float], name: str, more: float, loop: bool) -> None:
    here = {key: np.array([value]) for key, value in drawn.items()}
    here |= {risk.BROKEN: np.array([0.0]), "loop": np.array([1.0 if loop else math.nan]), "lost": np.array([1.0])}
    grown = here | {name: here[name] + more}
    assert risk_of(grown)[0] >= risk_of(here)[0]


@pytest.mark.parametrize("name", ["residual_ratio", "a_bar_radius", "c_out_norm", "jacobian_radius"])
def test_a_recorded_number_that_has_grown_more_never_lowers_it(name: str) -> None:
    of = healthy(80)
    before = -1.0
    for factor in (1.0, 1.3, 2.0, 5.0, 100.0, math.inf):
        grown = np.where(np.arange(80) >= 40, factor, 1.0) * of[name]
        value = float(RunRisk().replay(of | {name: grown})[-1])
        assert value >= before
        before = value


def test_limits_that_fall_or_weights_below_zero_are_refused() -> None:
    for bad in (Term, "lower"), (Term, "weight"):
        with pytest.raises(ValueError, match="limits that rise"):
            Term("x", ("growth",), (0.0,), (0.0 if bad[1] == "lower" else 1.0,), -1.0 if bad[1] == "weight" else 1.0)


def healthy(rows: int = 200) -> dict[str, np.ndarray]:
    steps = np.arange(rows)
    noise = 1 + 0.03 * np.random.default_rng(0).standard_normal(rows)
    return {
        "loss": (2.0 + 3.5 * np.exp(-steps / 15)) * noise,
        "grad_norm": 1.0 * noise,
        "nonfinite": np.zeros(rows),
        "a_bar_radius": np.full(rows, 0.7),
        "c_out_norm": 1 + 0.002 * steps,
        "residual_ratio": np.where(steps % 10 == 0, 0.6, math.nan),
        "growth_ratio": np.where(steps % 10 == 0, 1.0, math.nan),
        "jacobian_radius": np.where(steps == 39, 0.6, math.nan),
    }


def plateau(rows: int = 200) -> dict[str, np.ndarray]:
    """Stuck where context is not used: the loss falls to counting bytes and stays, while the weights run away."""
    of = healthy(rows)
    steps = np.arange(rows)
    return of | {
        "loss": 3.2 + 2.3 * np.exp(-steps / 5) + 0.1 * np.random.default_rng(1).standard_normal(rows),
        "c_out_norm": 1 + 0.3 * np.minimum(steps, 60),
    }


def exploding(rows: int = 200) -> dict[str, np.ndarray]:
    of = healthy(rows)
    late = np.arange(rows) >= 30
    return of | {
        "a_bar_radius": np.where(late, 3.0, 0.8),
        "residual_ratio": np.where(np.isnan(of["residual_ratio"]), math.nan, np.where(late, 3.0, 0.8)),
        "growth_ratio": np.where(np.isnan(of["residual_ratio"]), math.nan, np.where(late, 3.0, 1.0)),
        "c_out_norm": 1 + 0.1 * np.arange(rows),
    }


def test_what_is_lost_and_what_is_not_are_told_apart() -> None:
    assert RunRisk().replay(healthy())[-1] < 0.1
    stuck, gone = RunRisk(), RunRisk()
    assert stuck.replay(plateau())[-1] > 0.5
    assert {part.name for part in stuck.explain().parts[:2]} == {"weights", "plateau"}
    assert gone.replay(exploding())[-1] > 0.5
    assert gone.explain().parts[0].name == "loop"


def test_a_trained_model_that_goes_on_under_a_new_file_is_not_taken_for_one_that_learned_nothing() -> None:
    of = healthy() | {"a_bar_radius": np.full(200, 1.8)}  # held by its blocks
    for fall in (0.0, 0.05, 0.12):
        of["loss"] = 2.5 * (1 - fall * (1 - np.exp(-np.arange(200) / 15)))
        assert np.nanmax(RunRisk().replay(of)) < 0.2


def test_a_long_healthy_run_stays_without_risk() -> None:
    assert np.nanmax(RunRisk().replay(healthy(100_000))[400:]) < 0.2


def test_the_loss_alone_gives_a_risk_of_its_own_calibration() -> None:
    alone = RunRisk()
    alone.replay({"loss": plateau()["loss"]})
    assert alone.explain().basis == "loss" and "from the loss alone" in alone.explain().sentence
    fine = RunRisk()
    fine.replay({"loss": healthy()["loss"]})
    assert fine.explain().value < alone.explain().value


def test_losses_that_are_not_finite_are_lost_and_a_single_one_is_not() -> None:
    of = healthy()
    gone = of | {"loss": np.where(np.arange(200) > 150, math.nan, of["loss"]),
                 "nonfinite": (np.arange(200) > 150).astype(float)}  # fmt: skip
    followed = RunRisk()
    assert followed.replay(gone)[-1] > 0.99 and "not finite" in followed.explain().sentence
    single = of | {"loss": np.where(np.arange(200) == 150, math.nan, of["loss"]),
                   "nonfinite": (np.arange(200) == 150).astype(float)}  # fmt: skip
    assert RunRisk().replay(single)[-1] < 0.1
    rare = of | {"loss": np.where(np.arange(200) % 4 == 0, of["loss"], math.nan)}  # recorded every fourth step
    assert RunRisk().replay(rare)[-1] < 0.3


def test_memory_is_bounded() -> None:
    followed, of = RunRisk(), healthy(2000)
    sizes = []
    for number in range(2000):
        followed.update(row(of, number))
        if number in (499, 1999):
            sizes.append(len(json.dumps(followed.state())))
    assert sizes[1] < sizes[0] + 400  # two milestones for every doubling


def test_a_run_too_short_for_a_risk_says_so() -> None:
    short = RunRisk()
    assert np.isnan(short.replay({"loss": np.full(WINDOW - 1, 3.0)})).all()
    assert short.explain().sentence.startswith("No risk: fewer than 16 steps")
    assert RunRisk().explain().as_dict()["value"] is None


def test_diagnose_and_rules_read_the_same_risk(write_run) -> None:  # type: ignore[no-untyped-def]
    of = plateau()
    with open_run(write_run(**{name: of[name] for name in ("loss", "grad_norm", "c_out_norm", "a_bar_radius")})) as run:
        said = assess(run)
        rule = Rule("MINE", "lost", parse("run_risk >= 0.5"), "error", hold=4)
        found = diagnose(run, [rule])
        whole = RunRisk().replay(risk.columns_of(run))
    assert found.risk == said and said.value == whole[-1] > 0.5
    mine = next(each for each in found.findings if each.rule == "MINE")
    first = int(np.argmax(whole >= 0.5))
    assert mine.since == first and mine.step == first + 4


@pytest.mark.parametrize("resume", [0, 57])
def test_live_rules_fire_where_the_file_does(resume: int) -> None:
    of = plateau()
    rule = Rule("MINE", "lost", parse("run_risk >= 0.5"), "error", hold=4)
    whole = RunRisk().replay(of)
    live = LiveRules([rule], {}, ["loss"])
    events = []
    for step in range(200):
        ratios = {"residual_ratio", "growth_ratio"}
        events += live.add(step, {name: v for name, v in row(of, step).items() if name not in ratios})
        if step % 10 == 0:
            events += live.add_pass(passes(row(of, step))) or []
    events += live.judge(ended=True)
    assert [event.step for event in events] == [int(np.argmax(whole >= 0.5)) + 4]


def passes(of: dict[str, float]) -> np.ndarray:
    """A pass of the fixed batch with these ratios."""
    loops = np.full((17, 4), 1.0, dtype=np.float32)
    loops[:, 0] = of["growth_ratio"] ** np.arange(17)
    loops[:, 1] = 0.5 * of["residual_ratio"] ** np.arange(17)
    loops[-1, 1] = math.nan
    return loops


def test_signals_name_what_they_are_of() -> None:
    followed = RunRisk()
    followed.replay(exploding())
    said = followed.explain().sentence
    assert "multiplies what goes through it by 3 (" in said
    assert set(SIGNALS) <= set(signals(known_of(1)))


def known_of(rows: int) -> dict[str, np.ndarray]:
    names = [
        *SOURCES,
        *(f"first {n}" for n in risk.GROWN),
        *(f"{w} {n}" for w in ("level", "before") for n in risk.COMPARED),
    ]
    return {name: np.full(rows, math.nan) for name in (*names, "best", "start", risk.BROKEN)}
