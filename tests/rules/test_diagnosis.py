from dataclasses import replace

import numpy as np
import pytest
from loopscope.probes import diagnose, open_run
from loopscope.rules.findings import Finding


def wavy(steps):
    """A loss that is nowhere exactly constant."""
    return 2 + 0.01 * np.sin(np.arange(steps))


def diagnosis(path):
    with open_run(path) as run:
        return diagnose(run)


@pytest.mark.parametrize(
    ("radius", "ratio", "regimes", "verdict"),
    [
        (0.8, 0.8, ("stable", "stable"), "stable"),
        (1.0, 1.0, ("marginal", "marginal"), "marginal"),
        (3.0, 3.0, ("unstable", "unstable"), "unstable"),
        (
            3.0,
            0.7,
            ("unstable", "stable"),
            "stable",
        ),  # a measurement of the loop outranks A̅ alone
        (0.8, 2.0, ("stable", "unstable"), "unstable"),
    ],
)
def test_regimes_come_from_the_numbers(write_run, loop_rows, radius, ratio, regimes, verdict):
    path = write_run(loss=wavy(30), a_bar_radius=radius, probe={29: loop_rows(ratio)})
    diagnosed = diagnosis(path)
    assert (diagnosed.regimes["lti"], diagnosed.regimes["trajectory"]) == regimes
    assert diagnosed.regimes["loop"] == "unknown"  # no Jacobian was recorded
    assert diagnosed.verdict == verdict
    assert f"{radius:.3f}" in diagnosed.summary
    assert ("A̅" in diagnosed.summary.replace("ρ(A̅)", "")) == (regimes[0] != regimes[1])  # a disagreement is named
    assert diagnosed.summary.endswith(".") and ".." not in diagnosed.summary


def test_without_a_probe_batch_the_deepest_recent_step_is_read(write_run, loop_rows):
    path = write_run(loss=wavy(30), loops=loop_rows(1.8, loops=9))
    assert diagnosis(path).regimes["trajectory"] == "unstable"


def test_the_crossing_is_the_last_one(write_run):
    radius = np.concatenate([np.full(10, 0.9), np.full(5, 1.2), np.full(5, 0.9), np.full(10, 1.3)])
    assert "above 1 since step 20" in diagnosis(write_run(loss=wavy(30), a_bar_radius=radius)).summary


def test_nothing_recorded_is_said(write_run):
    diagnosed = diagnosis(write_run())
    assert diagnosed.verdict == "unknown"
    assert [finding.rule for finding in diagnosed.findings] == ["LS000"]
    assert "no step was recorded" in diagnosed.summary


def test_rows_without_any_measurement_are_no_data(write_run):
    diagnosed = diagnosis(write_run(lr=np.ones(5)))
    assert "LS000" in [finding.rule for finding in diagnosed.findings]
    assert diagnosed.evaluated is False


def test_the_first_breach_is_no_note(write_run, loop_rows):
    path = write_run(loss=wavy(60), a_bar_radius=1.0, info={"a_bar_learned": False})
    diagnosed = diagnosis(path)
    assert [finding.severity for finding in diagnosed.findings] == ["note"]
    assert diagnosed.first_breach is None
    made = [Finding(each, each, each, 5, 5, 0.0, 0.0, "", "", 1) for each in ("note", "warning", "error")]
    first = replace(diagnosed, findings=made).first_breach
    assert first is not None and first.severity == "error"  # of several at one step


@pytest.mark.parametrize(
    ("exponent", "radius", "regime"),
    [
        (-0.3, 0.7, "stable"),
        (0.01, 1.01, "marginal"),
        (0.4, 1.5, "unstable"),
        (0.08, 1.03, "marginal"),  # a transient of a drifting loop: the two disagree
        (0.4, np.nan, "unstable"),
        (np.nan, 1.5, "unstable"),
        (np.nan, 0.0, "stable"),
    ],
)
def test_the_loop_regime_is_what_exponent_and_radius_agree_on(write_run, exponent, radius, regime):
    measured = {"lyapunov_max": exponent, "jacobian_radius": radius, "full_loop_seconds": 0.2}
    diagnosed = diagnosis(write_run(loss=wavy(30), a_bar_radius=0.8, **measured))
    assert diagnosed.regimes["loop"] == regime
    shown = [f"λ {exponent:+.2f}"] if np.isfinite(exponent) else []
    shown += [f"log ρ(J) {np.log(radius) if radius else -np.inf:+.2f}"] if np.isfinite(radius) else []
    assert f"Full loop {regime}: {', '.join(shown)} per loop" in diagnosed.summary


@pytest.mark.parametrize(
    ("ratio", "radius", "regime"), [(0.97, 0.97, "stable"), (0.97, 1.03, "marginal"), (1.0, 0.97, "marginal")]
)
def test_a_radius_just_below_one_is_stable_where_the_states_settle(write_run, loop_rows, ratio, radius, regime):
    rows = loop_rows(ratio, loops=64)
    measured = {"lyapunov_max": np.log(radius), "jacobian_radius": radius, "full_loop_seconds": 0.2}
    diagnosed = diagnosis(write_run(loss=wavy(30), a_bar_radius=0.8, probe={29: rows}, **measured))
    assert (diagnosed.regimes["loop"], diagnosed.verdict) == (regime, regime), diagnosed.summary


@pytest.mark.parametrize(("ratio", "turn", "verdict"), [(0.989, -0.2, "marginal"), (1.04, 1.0, "unstable")])
def test_a_bar_alone_condemns_no_loop_whose_states_do_not_run_away(write_run, loop_rows, ratio, turn, verdict):
    # Too few loops to tell orbiting from settling; or, in the other case, growth from a drift.
    rows = loop_rows(ratio, loops=8)
    rows[1:8, 2] = turn
    if turn < 0:
        rows[:, 0] = 5.0
    diagnosed = diagnosis(write_run(loss=wavy(30), a_bar_radius=1.5, probe={29: rows}, info={"a_bar_learned": True}))
    assert diagnosed.regimes["trajectory"] == "unknown" and diagnosed.verdict == verdict, diagnosed.summary
    assert ("do not run away" in diagnosed.summary) == (verdict == "marginal")


def test_a_measurement_that_failed_at_the_end_leaves_the_loop_unknown(write_run):
    exponent = np.array([-0.3] * 20 + [np.nan] * 10)
    diagnosed = diagnosis(write_run(loss=wavy(30), lyapunov_max=exponent, full_loop_seconds=0.2))
    assert diagnosed.regimes["loop"] == "unknown"


@pytest.mark.parametrize(
    ("measured", "steps", "counts"),
    [
        ((0,), 9, True),
        ((0,), 14, False),
        ((0, 4), 12, True),
        ((0, 4), 14, False),
        ((0, 20, 39), 60, True),
        ((), 40, False),
    ],
)
def test_a_measurement_of_other_weights_says_nothing_of_the_end(write_run, measured, steps, counts):
    at = np.isin(np.arange(steps), measured)
    values = {"lyapunov_max": np.where(at, 0.5, np.nan), "full_loop_seconds": np.where(at, 0.2, np.nan)}
    diagnosed = diagnosis(write_run(loss=wavy(steps), a_bar_radius=0.8, **values))
    assert diagnosed.regimes["loop"] == ("unstable" if counts else "unknown")
    assert any(each.rule == "LS005" for each in diagnosed.findings) is counts
    assert ("too long ago to count: λ +0.50" in diagnosed.summary) is (bool(measured) and not counts)


def test_an_expansive_loop_is_warned_of(write_run):
    exponent = np.where(np.arange(30) % 10 == 0, np.arange(30) / 100, np.nan)  # 0, 0.1 and 0.2 at every tenth step
    seconds = np.where(np.isnan(exponent), np.nan, 0.1)
    measured = {"lyapunov_max": exponent, "full_loop_seconds": seconds, "a_bar_radius": 0.8}
    result = diagnosis(write_run(loss=wavy(30), **measured))
    by_rule = {finding.rule: finding for finding in result.findings}
    assert by_rule.keys() == {"LS040"} | ({"LS005"} if result.verdict == "unstable" else set())
    warning = by_rule["LS040"]
    assert (warning.severity, warning.step, warning.value) == ("warning", 10, 0.1)
    assert diagnosis(write_run("b.h5", loss=wavy(30), lyapunov_max=0.04, a_bar_radius=0.8)).findings == []
    drifting = {"lyapunov_max": 0.1, "jacobian_radius": 1.02, "a_bar_radius": 0.8}
    assert diagnosis(write_run("c.h5", loss=wavy(30), **drifting)).findings == []


@pytest.mark.parametrize("bad", [1, 9, 12, 16])
def test_a_pass_that_stops_being_finite_is_unstable(write_run, loop_rows, bad):
    rows = loop_rows(0.5)
    rows[bad:, 0], rows[bad - 1 : -1, 1] = np.nan, np.nan
    diagnosed = diagnosis(write_run(loss=np.ones(30), a_bar_radius=0.8, probe={29: rows}))
    assert (diagnosed.regimes["trajectory"], diagnosed.verdict) == ("unstable", "unstable")
    assert f"not finite from loop {bad} of 16 on" in diagnosed.summary


def test_steps_in_which_sequences_ran_different_loops_are_no_trajectory(write_run, loop_rows):
    rows = loop_rows(1.3)
    rows[8:, 3] = 4.0  # half of the tokens stopped
    diagnosed = diagnosis(write_run(loss=np.ones(30), loops=rows))
    assert diagnosed.regimes["trajectory"] == "unknown"
    assert "no trajectory" in diagnosed.summary


@pytest.mark.parametrize(("kind", "regime"), [("bfloat16", "stable"), ("float32", "unknown"), (None, "unknown")])
def test_the_floor_of_bfloat16_states_is_settled_where_their_type_is_known(write_run, loop_rows, kind, regime):
    rows = loop_rows(0.3)
    rows[:, 0], rows[5:16, 1], rows[1:16, 2] = 1.0, 4e-3, -0.5
    diagnosed = diagnosis(write_run(loss=np.ones(30), probe={29: rows}, info={"parameter_dtype": kind}))
    assert diagnosed.regimes["trajectory"] == regime


def test_rates_that_disagree_are_said_to(write_run, loop_rows):
    measured = {"lyapunov_max": 0.3, "jacobian_radius": 0.74, "full_loop_seconds": 0.2}
    diagnosed = diagnosis(write_run(loss=np.ones(30), a_bar_radius=0.8, probe={29: loop_rows(0.7)}, **measured))
    assert diagnosed.regimes["loop"] == "marginal"
    assert "which disagree" in diagnosed.summary and "barely forgets" not in diagnosed.summary


def test_an_attracting_cycle_is_no_disagreement(write_run, loop_rows):
    rows = loop_rows(1.0)
    rows[:, 0], rows[1:16, 2] = 3.0, -1.0
    measured = {"lyapunov_max": -0.6, "jacobian_radius": 2.1, "full_loop_seconds": 0.2}
    diagnosed = diagnosis(write_run(loss=np.ones(30), probe={29: rows}, **measured))
    assert (diagnosed.regimes["loop"], diagnosed.regimes["trajectory"]) == ("stable", "marginal")
    assert "attracting" in diagnosed.summary and "disagree" not in diagnosed.summary


@pytest.mark.parametrize(
    ("deeper", "state", "verdict"),
    [(False, 1.0, "unknown"), (True, 1.0, "unstable"), (False, 1.2, "unstable")],
)
def test_steps_that_grow_in_the_last_loops_of_training_are_an_explosion_only_where_the_state_grows_too(
    write_run, deeper, state, verdict
):
    steps = [4.0, 2.0, 1.0, 0.6, 0.7, 1.0, 1.6, 2.5, 4.0, 6.5]
    rows = np.full((11, 4), np.nan, np.float32)
    rows[:, 0], rows[:-1, 1], rows[1:-1, 2], rows[:, 3] = 10 * state ** np.arange(11), steps, 0.9, 64
    path = write_run(loss=wavy(40), depth=5 if deeper else 10, probe=dict.fromkeys(range(0, 40, 10), rows))
    with open_run(path) as run:
        assert diagnose(run).regimes["trajectory"] == verdict
        assert ("what the last loops are trained to do" in diagnose(run).summary) == (verdict == "unknown")


def test_a_diagnosis_shows_itself_on_one_screen_and_what_a_file_says_is_no_command(write_run):
    path = write_run(loss=np.linspace(3, 2, 60), a_bar_radius=np.linspace(0.9, 1.3, 60))
    with open_run(path) as run:
        said = diagnose(run)
    first, *rest, last = repr(said).splitlines()
    assert first.startswith(f"{said.verdict} after 60 steps: ") and said.summary in first
    assert [line.split()[0] for line in rest] == [each.rule for each in said.findings] and rest
    assert last.endswith("(.judgements)") and str(said) == repr(said)
    forged = replace(said, findings=[replace(said.findings[0], message="x\x1b]0;owned\x07\n::error::y")])
    assert "\x1b" not in repr(forged) and "\n::" not in repr(forged)
