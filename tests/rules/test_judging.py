import numpy as np
import pytest
from loopscope.probes import open_run
from loopscope.rules.judging import evaluate, judge
from loopscope.rules.rule_files import RuleError, load_rules
from loopscope.runfile.layout import Event
from loopscope.runfile.writer import RunWriter


def wavy(steps):
    """A loss that is nowhere exactly constant."""
    return 2 + 0.01 * np.sin(np.arange(steps))


def findings(path, rules=None):
    with open_run(path) as run:
        return evaluate(run, rules or load_rules())[0]


def rules_of(tmp_path, text):
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return load_rules(path)


def only(tmp_path, **fields):
    text = "\n".join(f"{key} = {value!r}" for key, value in fields.items())
    return [rule for rule in rules_of(tmp_path, f"[[rule]]\nid = 'X1'\n{text}") if rule.id == "X1"]


def test_a_condition_must_hold_for_its_steps(write_run, tmp_path):
    radius = np.full(100, 0.9)
    radius[20:39] = 1.1  # 18 steps from its first to its last: not 20
    radius[60:] = 1.2
    path = write_run(loss=wavy(100), a_bar_radius=radius)
    (finding,) = findings(path, only(tmp_path, expr="a_bar_radius >= 1", **{"for": 20}))
    assert (finding.since, finding.step, finding.value, finding.threshold) == (60, 80, 1.2, 1.0)


def test_flapping_within_keep_firing_for_is_one_episode(write_run, tmp_path):
    x = np.zeros(200)
    x[[10, 30, 150]] = 1
    path = write_run(loss=wavy(200), x=x)
    (finding,) = findings(path, only(tmp_path, expr="x > 0", keep_firing_for=50))
    assert (finding.step, finding.episodes) == (10, 2)


def test_rare_series_keep_their_last_value(write_run, loop_rows, tmp_path):
    passes = {0: loop_rows(0.8), 10: loop_rows(1.5), 30: loop_rows(0.8)}
    path = write_run(loss=wavy(40), probe=passes)
    (finding,) = findings(path, only(tmp_path, expr="residual_ratio > 1.1", **{"for": 15}))
    assert (finding.since, finding.step) == (10, 25)
    assert finding.value == pytest.approx(1.5, rel=1e-5)  # float32 loop rows


@pytest.mark.parametrize(
    ("radius", "learned", "ratio", "expected"),
    [
        (0.95, True, 0.9, []),
        (1.2, True, 1.2, ["LS020", "LS030"]),
        (1.2, True, 0.6, ["LS021"]),
        (1.2, True, None, ["LS023"]),
        (1.2, True, 1.01, ["LS023"]),
        (1.0, False, 1.0, ["LS022"]),
        (0.9, True, 1.3, ["LS030"]),
    ],
)
def test_shipped_rules_on_the_regimes(write_run, loop_rows, radius, learned, ratio, expected):
    probe = None if ratio is None else {step: loop_rows(ratio) for step in range(0, 60, 10)}
    path = write_run(loss=wavy(60), a_bar_radius=radius, probe=probe, info={"a_bar_learned": learned})
    assert [finding.rule for finding in findings(path)] == expected


def excursion(first: int, last: int, height: float, steps: int = 120) -> np.ndarray:
    """Return ρ(A̅) that passes 1 for some steps and goes back."""
    radius = np.full(steps, 0.9)
    radius[first : last + 1] = height
    return radius


@pytest.mark.parametrize(
    ("first", "last", "ratio", "expected"),
    [
        (29, 33, 1.13, []),  # one pass of the fixed batch, in which the state grows, but not fourfold in eight loops
        (61, 93, 1.06, []),
        (40, 75, 1.02, []),
        (40, 75, 1.25, ["LS020", "LS030"]),
        (29, 33, 1.4, ["LS020"]),
        (40, 90, 1.02, ["LS023"]),
    ],
)
def test_an_injection_that_passes_one_for_a_while_is_no_error_unless_the_state_explodes(
    write_run, loop_rows, first, last, ratio, expected
):
    radius = excursion(first, last, 1.15)
    passes = {step: loop_rows(ratio if radius[step] > 1 else 0.8) for step in range(0, 120, 10)}
    path = write_run(loss=wavy(120), a_bar_radius=radius, probe=passes, info={"a_bar_learned": True})
    assert [finding.rule for finding in findings(path) if finding.severity == "error"] == expected


def test_non_finite_and_spike(write_run):
    loss = wavy(80)
    loss[50], loss[60] = 9.0, np.nan
    path = write_run(loss=loss)
    assert [(finding.rule, finding.step) for finding in findings(path)] == [("LS010", 50), ("LS001", 60)]


def test_rules_whose_series_are_missing_are_said_to_be_skipped(write_run, tmp_path):
    path = write_run(loss=wavy(5))
    with open_run(path) as run:
        findings, skipped = evaluate(run, only(tmp_path, expr="frobnication > 1"))
    assert (findings, skipped) == ([], ["X1"])


def test_a_users_file_changes_adds_and_removes(tmp_path):
    rules = {
        rule.id: rule
        for rule in rules_of(
            tmp_path,
            """
            [[rule]]
            id = "LS020"
            for = 5
            [[rule]]
            id = "LS010"
            enabled = false
            [[rule]]
            id = "ME1"
            expr = "loss > 8"
            severity = "warning"
            """,
        )
    }
    assert rules["LS020"].hold == 5
    assert "a_bar_radius" in rules["LS020"].expr.names
    assert "LS010" not in rules
    assert rules["ME1"].severity == "warning"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule]]\nid = 'A'\nexpr = 'loss >'", "not an expression"),
        ("[[rule]]\nid = 'A'", "expr is missing"),
        ("[[rule]]\nexpr = 'loss > 1'", "expected \\[\\[rule\\]\\] tables"),
        ("[[rule]]\nid = 'A'\nexpr = 'loss > 1'\nseverity = 'fatal'", "severity = 'fatal' must be one of"),
        ("[[rule]]\nid = 'A'\nexpr = 'loss > 1'\nfor = -1", "whole number"),
        ("[[rule]]\nid = 'A'\nexpr = 'loss > 1'\ncolour = 'red'", "unknown field colour"),
        ("[[rule]]\nid = 'A'\nexpr = 'loss > 1'\nmessage = '{nothing}'", "only {value} and {threshold}"),
        ("[[rule", "cannot be read as a rule file"),
    ],
)
def test_a_bad_rule_file_is_told_in_one_line(tmp_path, text, says):
    with pytest.raises(RuleError, match=says) as refused:
        rules_of(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert "rules.toml" in str(refused.value)


EVERY_KIND = """
[[rule]]
id = "X1"
expr = "residual_ratio > 1.1 or not recorded(residual_ratio)"
for = 7
[[rule]]
id = "X2"
expr = "x > 0"
keep_firing_for = 12
[[rule]]
id = "X3"
expr = "x > 0 and mean(loss, 9) > 1.9 and cusum(x, 0.2) >= 0"
[[rule]]
id = "X4"
expr = "run_risk >= 0.02"
for = 5
[[rule]]
id = "X5"
expr = "loss > 1 and not recorded(y)"
for = 30
[[rule]]
id = "X6"
expr = "last_state_norm > 2 and residual_norm[-2] > 0 and tokens[1] >= 0"
for = 40
"""


@pytest.mark.parametrize("at_once", [1, 3, 16, 50])
def test_a_run_says_the_same_however_many_rows_are_looked_at_together(
    write_run, loop_rows, tmp_path, monkeypatch, at_once
):
    draw = np.random.default_rng(at_once)
    x = np.where(draw.random(170) < 0.1, 1.0, np.where(draw.random(170) < 0.5, np.nan, 0.0))
    y = np.where(np.arange(170) < 100, np.nan, 4.0)
    passes = {step: loop_rows(1.2 if step < 90 else 0.8) for step in range(5, 170, 23)}
    loss = wavy(170) + 3 * (np.arange(170) > 120)
    path = write_run(loss=loss, x=x, y=y, probe=passes, loops=loop_rows(0.9), a_bar_radius=np.where(x > 0, 1.1, 0.9))
    rules = rules_of(tmp_path, EVERY_KIND)
    with open_run(path) as run:
        together = judge(run, rules)
        monkeypatch.setattr("loopscope.rules.judging.ROWS_AT_ONCE", at_once)
        monkeypatch.setattr("loopscope.rules.series.ROWS_AT_ONCE", at_once)
        assert str(judge(run, rules)) == str(together)
    assert {"X1", "X2", "X3", "X4", "X5", "X6", "LS010"} <= {each.rule for each in together.findings}


@pytest.mark.parametrize("said", ["", "the full loop is not measured in this run: found torch.bfloat16"])
def test_a_full_loop_that_could_not_be_measured_says_why(said, tmp_path):
    with RunWriter.create(tmp_path / "a.h5", info={"a_bar_learned": None}) as writer:
        for step in range(30):
            writer.append_step({"step": float(step), "loss": 2.0 + step % 3, "depth": 4.0, "nonfinite": 0.0})
        if said:
            writer.append_event(Event(0, 0.0, "full_loop", "warning", message=said))
    with open_run(tmp_path / "a.h5") as run:
        judged = {each.rule: each for each in judge(run, load_rules()).judgements}
    assert judged["LS040"].state == "not applicable"
    assert judged["LS040"].reason == (said or "the full loop was not measured; the preset inspect measures it")
