"""Series made of the loss: the same row by row, at once, and across a resume; and what they see and leave alone."""

import itertools
import math

import numpy as np
import pytest
from loopscope.rules.judging import judge
from loopscope.rules.loss_series import DERIVED, SETTLING, LossSeries
from loopscope.rules.rule_files import load_rules
from loopscope.runfile.open import open_run


def odd_run(seed):
    """Columns of a run in which everything comes and goes."""
    draw = np.random.default_rng(seed)
    rows = int(draw.integers(1, 500))
    loss = 1 + 3 * np.exp(-np.arange(rows) / draw.uniform(20, 400)) + 0.05 * draw.standard_normal(rows)
    for _ in range(draw.integers(0, 5)):
        at = int(draw.integers(0, rows))
        loss[at : at + int(draw.integers(1, 120))] *= draw.choice([0.3, 1.4, 3.0])
    for _ in range(draw.integers(0, 30)):
        loss[draw.integers(0, rows)] = draw.choice([math.nan, math.inf, -math.inf, -1.0, 2.0])
    at = int(draw.integers(0, rows))
    loss[at : at + 25] = 2.0
    norm = np.where(np.arange(rows) < draw.integers(0, 50), math.inf, 1.0)
    rate = draw.choice([0.0, 0.0, 0.0, 0.1, math.nan], rows)
    depth = np.full(rows, 8.0) if draw.random() < 0.3 else draw.poisson(8, rows) + draw.random(rows)
    for _ in range(draw.integers(0, 4)):
        at = int(draw.integers(0, rows))
        depth[at : at + int(draw.integers(1, 200))] *= draw.choice([0.5, 2.0, 3.0])
    depth[draw.random(rows) < 0.02] = math.nan
    odd = (~np.isfinite(norm)).astype(float)
    return {"loss": loss, "lr": rate, "grad_norm": norm, "nonfinite": odd, "depth": depth}


@pytest.mark.parametrize("seed", range(30))
def test_row_by_row_at_once_and_across_a_resume_are_the_same(seed):
    columns = odd_run(seed)
    rows = len(columns["loss"])
    at_once = LossSeries().replay(columns)
    split = int(np.random.default_rng(seed).integers(0, rows + 1))
    for start in (0, split):
        series = LossSeries()
        series.replay({name: values[:start] for name, values in columns.items()})
        for row in range(start, rows):
            said = series.update({name: float(values[row]) for name, values in columns.items()})
            for name in DERIVED:
                np.testing.assert_equal(said[name], at_once[name][row], err_msg=f"{name} of row {row}")


@pytest.mark.parametrize("seed", range(30))
def test_pieces_of_any_length_are_the_same_as_all_rows_at_once(seed):
    columns, draw = odd_run(seed), np.random.default_rng(seed)
    rows = len(columns["loss"])
    at_once = LossSeries().replay(columns)
    cuts = [0, *np.sort(draw.integers(0, rows + 1, draw.integers(0, 8))).tolist(), rows]
    series, pieces = LossSeries(), []
    for start, end in itertools.pairwise(cuts):
        if draw.random() < 0.3:  # live for a while
            here = [series.update({name: float(of[row]) for name, of in columns.items()}) for row in range(start, end)]
            pieces.append({name: np.array([said[name] for said in here]) for name in DERIVED})
        else:
            pieces.append(series.replay({name: values[start:end] for name, values in columns.items()}))
    for name in DERIVED:
        np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), at_once[name], err_msg=name)


def test_some_of_these_runs_change_the_law_of_their_depths():
    changes = [LossSeries().replay(odd_run(seed))["depth_change"].sum() for seed in range(30)]
    assert 10 < sum(changes) < 60


def test_after_a_change_of_depth_spikes_are_looked_for_anew_and_before_it_nothing_is_said():
    draw = np.random.default_rng(0)
    loss = 3.0 + 0.02 * draw.standard_normal(300)
    loss[100:] += 2.0  # shallower loops know less
    loss[250] = 15.0
    depth = np.where(np.arange(300) < 100, 16.0, 4.0)
    columns = {"loss": loss, "depth": depth, **{name: np.zeros(300) for name in ("lr", "grad_norm", "nonfinite")}}
    series = LossSeries().replay(columns)
    assert np.flatnonzero(series["depth_change"]).tolist() == [107]
    assert np.flatnonzero(series["loss_zscore"] >= 6).tolist() == [250]
    assert not (series["loss_rise"] >= 0.15).any()
    blind = LossSeries().replay({**columns, "depth": np.full(300, 16.0)})
    assert (blind["loss_zscore"][100:110] >= 6).all() and (blind["loss_rise"] >= 0.15).any()


def fired(write_run, rules=None, **series):
    path = write_run(**series)
    with open_run(path) as run:
        findings = judge(run, rules or load_rules()).findings
    return {finding.rule: finding for finding in findings if finding.state == "fired"}


def falling(rows=300, noise=0.02, seed=0):
    draw = np.random.default_rng(seed)
    return (2 + 2 * np.exp(-np.arange(rows) / 60)) * (1 + noise * draw.standard_normal(rows))


LOSS_RULES = {"LS010", "LS011", "LS012", "LS013", "LS014"}


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("healthy", lambda loss: loss, set()),
        ("labels wrong from half-way", lambda loss: np.where(np.arange(300) >= 150, 1.5 * loss, loss),
         {"LS010", "LS011", "LS012"}),
        ("slow climb", lambda loss: np.where(np.arange(300) > 100, loss[100] * 1.005 ** (np.arange(300) - 100), loss),
         {"LS011", "LS012"}),
        ("zeros from step 20", lambda loss: np.where(np.arange(300) >= 20, 0.0, loss), {"LS013"}),
        ("a constant that is no zero", lambda loss: np.where(np.arange(300) >= 200, loss[199], loss), {"LS013"}),
        ("negative, then a jump", lambda loss: np.where(np.arange(300) == 150, 40.0, -loss[::-1]), {"LS010"}),
        ("negative throughout", lambda loss: loss - 10, set()),
        ("falling through zero", lambda loss: loss - 2.1, set()),
        ("one spike", lambda loss: np.where(np.arange(300) == 100, 2 * loss, loss), {"LS010"}),
        ("a warm-up that rises a little first", lambda loss: loss * (1 + 0.05 * (np.arange(300) < 30)), set()),
    ],
)  # fmt: skip
def test_what_the_loss_rules_see(write_run, name, change, expected):
    assert fired(write_run, loss=change(falling())).keys() & LOSS_RULES == expected


def test_losses_that_are_logged_now_and_then_are_not_constant(write_run):
    loss = np.where(np.arange(300) % 50 == 0, falling(), np.nan)
    assert not fired(write_run, loss=loss).keys() & LOSS_RULES


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (np.zeros(300), True),
        (np.where(np.arange(300) < 150, 1e-3, 0.0), True),
        (np.linspace(1e-3, 0, 300), False),  # a schedule that ends at 0
        (np.where(np.arange(300) == 0, 0.0, 1e-3), False),  # a warm-up that begins at 0
        (np.full(300, np.nan), False),
    ],
)
def test_a_rate_of_zero(write_run, rate, expected):
    assert ("LS014" in fired(write_run, loss=falling(), lr=rate)) == expected


@pytest.mark.parametrize("skipped", [1, 5, SETTLING])
def test_a_loss_scale_that_settles_is_a_note(write_run, skipped):
    norm = np.where(np.arange(300) < skipped, np.inf, 1.0)
    findings = fired(write_run, loss=falling(), grad_norm=norm)
    assert "LS001" not in findings and (findings["LS006"].severity, findings["LS006"].step) == ("note", 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda norm, loss: norm.__setitem__(slice(0, SETTLING + 1), np.inf),  # it never fits
        lambda norm, loss: norm.__setitem__(100, np.inf),  # not at the start
        lambda norm, loss: norm.__setitem__(0, np.nan),
        lambda norm, loss: (norm.__setitem__(0, np.inf), loss.__setitem__(0, np.nan)),
    ],
)
def test_other_infinite_gradients_are_errors(write_run, change):
    norm, loss = np.ones(300), falling()
    change(norm, loss)
    assert fired(write_run, loss=loss, grad_norm=norm)["LS001"].severity == "error"
