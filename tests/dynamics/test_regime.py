import itertools
import math

import pytest
from loopscope.dynamics import (
    Regime,
    disagreement,
    full_loop_regime,
    loop_regime,
    lti_regime,
    overall,
    rates_disagree,
    views,
    worst,
)

REGIMES: tuple[Regime, ...] = ("stable", "marginal", "unstable", "unknown")


@pytest.mark.parametrize(
    ("radius", "regime"),
    [
        (0.0, "stable"),
        (0.9899, "stable"),
        (0.99, "marginal"),
        (1.0, "marginal"),
        (1.01, "marginal"),
        (1.0101, "unstable"),
        (math.inf, "unstable"),
        (math.nan, "unknown"),
    ],
)
def test_lti_regime_at_its_edges(radius: float, regime: Regime) -> None:
    assert lti_regime(radius) == regime


@pytest.mark.parametrize(
    ("exponent", "regime"),
    [(-math.inf, "stable"), (-0.051, "stable"), (-0.05, "marginal"), (0.05, "marginal"), (0.051, "unstable")],
)
def test_loop_regime_at_its_edges(exponent: float, regime: Regime) -> None:
    assert loop_regime(exponent) == regime


def test_tolerance_zero_leaves_only_the_exact_edge_marginal() -> None:
    assert [lti_regime(r, 0.0) for r in (1 - 1e-15, 1.0, 1 + 1e-15)] == ["stable", "marginal", "unstable"]


def test_worst_ignores_unknown_unless_nothing_else_is_known() -> None:
    assert worst() == "unknown"
    assert worst("unknown", "unknown") == "unknown"
    assert worst("unknown", "stable") == "stable"
    assert worst("stable", "unstable", "marginal") == "unstable"


@pytest.mark.parametrize("views", list(itertools.product(REGIMES, repeat=3)))
def test_a_sentence_appears_exactly_when_two_known_views_differ(views: tuple[Regime, Regime, Regime]) -> None:
    sentence = disagreement(*views)
    known = {view for view in views if view != "unknown"}
    assert bool(sentence) == (len(known) > 1), views
    if sentence:
        assert sentence.endswith(".") and ". " not in sentence, "one sentence, for a person"
        assert "  " not in sentence


def test_different_disagreements_have_different_sentences() -> None:
    told = [disagreement(*views) for views in itertools.product(REGIMES, repeat=3)]
    told = [sentence for sentence in told if sentence]
    # Views that differ only in a third one that agrees with the told pair share a sentence; nothing else may.
    assert len(set(told)) >= 24


@pytest.mark.parametrize("views", list(itertools.product(REGIMES, repeat=3)))
def test_what_was_measured_on_the_loop_outranks_its_linear_part(views: tuple[Regime, Regime, Regime]) -> None:
    lti, loop, trajectory = views
    measured = worst(loop, trajectory)
    assert overall(*views) == (lti if measured == "unknown" else measured)
    if "unstable" in (loop, trajectory):
        assert overall(*views) == "unstable"


@pytest.mark.parametrize(
    ("log_radius", "exponent", "regime", "differ"),
    [
        (-0.1, 0.18, "marginal", True),
        (0.3, -0.3, "marginal", True),
        (-0.1, math.nan, "stable", False),
        (math.nan, 0.2, "unstable", False),
        (-0.4, -0.1, "stable", False),
        (math.nan, math.nan, "unknown", False),
        (-math.inf, -0.2, "stable", False),
        (-0.04, -0.06, "marginal", False),  # in two regimes, but no farther apart than either is known
        (0.04, 0.08, "marginal", False),
        (-0.2, -0.03, "marginal", True),
    ],
)
def test_neither_rate_of_the_full_loop_outvotes_the_other(
    log_radius: float, exponent: float, regime: Regime, differ: bool
) -> None:
    assert full_loop_regime(log_radius, exponent) == regime
    assert rates_disagree(log_radius, exponent) == differ


@pytest.mark.parametrize("views", list(itertools.product(REGIMES, ("marginal",), REGIMES)))
def test_rates_that_disagree_are_said_to(views: tuple[Regime, Regime, Regime]) -> None:
    said = disagreement(*views, rates_differ=True)
    assert "disagree" in said and "neither grow nor shrink" not in said and "barely forgets" not in said


def test_an_attracting_cycle_is_no_disagreement() -> None:
    assert disagreement("unknown", "stable", "marginal", cycle=True) == ""
    assert disagreement("unknown", "stable", "marginal") != ""


@pytest.mark.parametrize(("log_radius", "exponent"), [(-0.1, 0.18), (-0.7, 0.2), (-0.02, 0.06), (0.0, 0.2)])
def test_where_a_transient_is_all_that_the_exponent_shows_the_radius_decides(
    log_radius: float, exponent: float
) -> None:
    assert full_loop_regime(log_radius, exponent, transient=True) == loop_regime(log_radius)
    seen = views(math.nan, log_radius, exponent, "unknown", transient=True)
    assert (seen.verdict, seen.rates_disagree, seen.sentence) == (loop_regime(log_radius), False, "")
    assert views(math.nan, log_radius, exponent, "unknown").rates_disagree


def test_the_views_are_those_of_the_single_rules() -> None:
    rates = (math.nan, -0.3, 0.0, 0.3)
    for radius, log_radius, exponent, trajectory in itertools.product((math.nan, 0.5, 1.0, 2.0), rates, rates, REGIMES):
        seen = views(radius, log_radius, exponent, trajectory)
        lti, loop = lti_regime(radius), full_loop_regime(log_radius, exponent)
        assert seen.regimes == {"lti": lti, "loop": loop, "trajectory": trajectory}
        assert seen.verdict == overall(lti, loop, trajectory)
        assert seen.rates_disagree == rates_disagree(log_radius, exponent)
        assert seen.sentence == disagreement(lti, loop, trajectory, rates_differ=seen.rates_disagree)


def test_along_a_cycle_the_exponent_speaks_for_the_full_loop() -> None:
    cycle = views(math.nan, 0.7, -0.6, "marginal", orbits=True)
    assert (cycle.cycle, cycle.regimes["loop"], cycle.rates_disagree, cycle.sentence) == (True, "stable", False, "")
    assert not views(math.nan, 0.7, 0.2, "marginal", orbits=True).cycle


@pytest.mark.parametrize(
    ("radius", "regime"),
    [(0.985, "stable"), (0.9899, "stable"), (0.995, "marginal"), (1.005, "marginal"), (1.03, "unstable")],
)
def test_at_rest_the_radius_has_the_band_of_a_matrix(radius: float, regime: Regime) -> None:
    rate = math.log(radius)
    assert full_loop_regime(rate, rate, at_rest=True) == lti_regime(radius) == regime
    assert full_loop_regime(rate, math.nan, at_rest=True) == regime
    assert full_loop_regime(rate, rate) == "marginal", "a rate of some loops is known to 0.05 only"


def test_at_rest_an_exponent_that_disagrees_is_still_heard() -> None:
    assert full_loop_regime(math.log(0.98), 0.3, at_rest=True) == "marginal"
    assert rates_disagree(math.log(0.98), 0.3, at_rest=True)
    assert full_loop_regime(math.log(0.98), 0.3, at_rest=True, transient=True) == "stable"
    assert full_loop_regime(math.nan, 0.3, at_rest=True) == "unstable"


def test_states_that_settle_vouch_for_a_contraction_and_not_for_growth() -> None:
    below, above = math.log(0.97), math.log(1.03)
    assert views(math.nan, below, below, "stable", settled=True).verdict == "stable"
    assert views(math.nan, below, below, "unknown").verdict == "marginal"
    contradiction = views(math.nan, above, above, "stable", settled=True)
    assert contradiction.verdict == "marginal" and "The states settle although" in contradiction.sentence
    assert views(math.nan, above, above, "unknown", steady=True).verdict == "unstable"


@pytest.mark.parametrize(
    ("log_radius", "exponent", "drift", "regime"),
    [
        (0.06, 0.07, 0.08, "marginal"),  # grows like a power of t, as the state does
        (0.06, 0.07, 0.0, "unstable"),
        (0.06, 0.07, 0.055, "unstable"),  # faster than the state
        (0.04, 0.03, 0.01, "marginal"),
        (0.15, 0.19, 0.08, "unstable"),
        (-0.3, -0.2, 0.08, "stable"),
    ],
)
def test_what_grows_no_faster_than_a_drifting_state_is_not_unstable(
    log_radius: float, exponent: float, drift: float, regime: Regime
) -> None:
    assert full_loop_regime(log_radius, exponent, drift=drift) == regime
    assert views(1.0, log_radius, exponent, "marginal", drift=drift).regimes["loop"] == regime


def test_states_that_do_not_explode_by_either_of_two_laws_are_not_unstable_for_the_sake_of_a_bar() -> None:
    held = views(1.5, math.nan, math.nan, "unknown", bounded=True)
    assert (held.verdict, held.regimes["trajectory"]) == ("marginal", "unknown")
    assert "do not run away by either of their two laws" in held.sentence
    assert views(1.5, math.nan, math.nan, "unknown").verdict == "unstable", "too few loops say nothing"
    assert views(0.9, math.nan, math.nan, "unknown", bounded=True).verdict == "stable"
    assert views(1.5, 0.3, 0.3, "unknown", bounded=True).verdict == "unstable", "the full loop is known"
    assert views(0.9, math.nan, math.nan, "unknown", bounded=True).sentence == ""
