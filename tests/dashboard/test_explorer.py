"""The explorer: its numbers against closed forms, its figures, and what a change of a control does."""

import time
from urllib.parse import parse_qsl

import numpy as np
import pytest
from loopscope.dashboard import explorer, explorer_figures
from loopscope.dashboard.explorer import (
    KINDS,
    LIMITS,
    PRESETS,
    Sandbox,
    explore,
    linear_part,
    parse_matrix,
    query,
    rules,
    sandbox_of,
)
from loopscope.dashboard.pages import explorer as page


def test_the_presets_tell_the_story_of_the_paper():
    told = {name: explore(sandbox) for name, (sandbox, _) in PRESETS.items()}
    assert [one.verdict for one in told.values()] == ["marginal", "stable", "unstable", "stable", "stable"]
    grows = told["Grows before it decays"]
    assert grows.radius < 1 and grows.peak.growth.value > 3 and grows.powers.max() > 3 > 1 > grows.powers[-1]
    assert "can grow" in grows.reason
    assert told["Concatenation, hot"].alone[-1] > 1e3


@pytest.mark.parametrize("delta", [LIMITS["delta"][0], 1.0, LIMITS["delta"][1]])
@pytest.mark.parametrize("rate", [LIMITS["rate"][0], 1.0, LIMITS["rate"][1]])
def test_parcae_is_below_one_whatever_delta_and_a_are(delta, rate):
    explored = explore(Sandbox(kind="parcae", delta=delta, rate=rate))
    assert explored.radius == pytest.approx(np.exp(-delta * rate / 2)) and explored.radius < 1
    assert explored.regimes["lti"] != "unstable" and explored.peak.growth.value == 1


def test_euler_is_unstable_beyond_its_disc_and_the_others_are_not():
    radius = {rule.name: rule.radius for rule in rules(Sandbox(delta=2.0, rate=2.0))}  # ΔA down to −8
    assert radius["euler"] == pytest.approx(7) and max(radius["zoh"], radius["mixture"], radius["bilinear"]) < 1
    assert {rule.name: rule.a_error for rule in rules(Sandbox())}["mixture"] == 0


@pytest.mark.parametrize("width", [2, 3, 16, 32])
def test_the_matrix_of_the_concatenation_has_the_norm_asked_for_and_is_normal_without_skew(width):
    skewed = linear_part(Sandbox(kind="concatenation", norm=1.7, skew=4, width=width)).a_bar
    normal = linear_part(Sandbox(kind="concatenation", norm=1.7, skew=0, width=width)).a_bar
    assert np.linalg.norm(skewed, 2) == pytest.approx(1.7) == np.linalg.norm(normal, 2)
    assert np.abs(normal @ normal.T - normal.T @ normal).max() < 1e-12
    assert np.abs(np.linalg.eigvals(normal)).max() == pytest.approx(1.7)
    assert np.abs(np.linalg.eigvals(skewed)).max() < 1.7


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "run"])
@pytest.mark.parametrize("gain", [0.0, 1.3])
def test_powers_lie_between_their_bounds_and_states_follow_the_recursion(kind, gain):
    sandbox = Sandbox(kind=kind, gain=gain, skew=6, norm=1.5, loops=20)
    explored, system = explore(sandbox), linear_part(sandbox)
    a, _, _ = system.dense()
    assert np.allclose(explored.powers, [np.linalg.norm(np.linalg.matrix_power(a, t), 2) for t in range(21)])
    assert (explored.lower <= explored.powers * (1 + 1e-9)).all() and (
        explored.powers <= explored.upper * (1 + 1e-9)
    ).all()
    assert len(explored.alone) == 21 and len(explored.blocked) == (21 if gain else 0)
    assert len(explored.full) == (system.width if gain else 0)


def test_the_eigenvalues_of_the_full_loop_are_those_of_its_finite_differences():
    sandbox = Sandbox(kind="parcae", gain=3.0, loops=40, width=8)
    system = linear_part(sandbox)
    last = explorer._states(system, sandbox.gain, sandbox.loops)[-1]
    block, (_, given) = explorer._drawn(8)[3:]

    def loop(h):
        return system.a_bar * h + system.b_bar * given + 3.0 * block @ np.tanh(h)

    nudges = 1e-6 * np.eye(8)
    jacobian = np.stack([(loop(last + d) - loop(last - d)) / 2e-6 for d in nudges], axis=1)
    expected = sorted(np.abs(np.linalg.eigvals(jacobian)))
    assert np.allclose(sorted(np.abs(explore(sandbox).full)), expected, atol=1e-6)


def test_a_block_makes_a_contracting_injection_unstable_and_the_reason_says_so():
    explored = explore(Sandbox(kind="parcae", gain=3.0, loops=96, width=32))
    assert explored.regimes["lti"] == "stable" and explored.regimes["loop"] == "unstable" == explored.verdict
    assert "A̅ alone is stable" in explored.reason or "the blocks are the cause" in explored.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no matrix"), ("1 2; 3", "square"), ("a", "numbers only"), ("inf", "finite"), ("1e9", "at most"),
     (";".join(["0 " * 33] * 33), "at most 32")],
)  # fmt: skip
def test_a_matrix_that_is_none_is_said_in_one_line(text, words):
    with pytest.raises(ValueError, match=words):
        parse_matrix(text)


def test_a_jordan_block_grows_as_it_must():
    explored = explore(Sandbox(kind="matrix", matrix="0.5 10; 0 0.5"))
    assert explored.radius == pytest.approx(0.5) and explored.peak.loop == 1 and explored.verdict == "stable"


def test_settings_survive_the_address_and_nonsense_falls_back():
    sandbox = Sandbox(kind="matrix", matrix="1 2; 3 4", gain=0.5, loops=40, run="a-1", at="12", contours="on")
    assert sandbox_of(dict(parse_qsl(query(sandbox)[1:]))) == sandbox
    assert sandbox_of({"kind": "<b>", "scheme": "x", "width": "1e400", "loops": [], "delta": {}}).kind == "parcae"


def test_figures_keep_the_circle_in_sight_and_say_what_they_leave_out():
    hot = explore(Sandbox(kind="concatenation", norm=8.0, loops=96))
    chart = explorer_figures.states(hot.alone, hot.blocked)
    assert "left out" in chart.layout.annotations[-1].text and chart.layout.yaxis.type == "log"
    drawn = page._shown(Sandbox(kind="matrix", matrix="0.01", gain=0.02))["spectrum"]
    assert drawn.layout.xaxis.range[1] > 1 and drawn.layout.yaxis.scaleanchor == "x"
    assert {trace.name for trace in drawn.data} >= {"unit circle", "full loop"}
    euler = explorer_figures.scheme("euler", np.array([-3.0]), np.array([2.0]))
    assert euler.layout.shapes[0].type == "circle" and euler.data[0].marker.symbol == ("triangle-up",)


@pytest.mark.parametrize("kind", ["concatenation", "parcae"])
def test_a_change_takes_less_than_100_ms_of_processor_time(client, tmp_path, kind):
    served, took = client(tmp_path), []
    for gain in (1.0, 1.1, 1.2, 1.3):  # the widest and longest there is; the first one pays for imports
        sandbox = Sandbox(kind=kind, width=32, loops=96, gain=gain, skew=5, norm=2, contours="on")
        values = {f"explorer-{name}.value": getattr(sandbox, name) for name in page.NAMES}
        began = time.process_time()
        assert served.fire("explorer-verdict.children", values)["explorer-query"]["data"] == query(sandbox)
        took.append(time.process_time() - began)
    assert min(took) < 0.1, took


def test_the_page_shows_the_settings_of_the_address_and_a_fault_in_words(client, tmp_path):
    served = client(tmp_path)
    assert "Marginal" in str(served.page("/explorer?kind=addition"))
    broken = str(served.page("/explorer?kind=matrix&matrix=%3Cb%3E"))
    assert "numbers only" in broken


@pytest.mark.parametrize("far", [False, True])
def test_pseudospectra_are_those_of_the_matrix_where_they_are_drawn(far):
    from loopscope.dashboard.loop_figures import drawn_radius

    system = linear_part(Sandbox(kind="concatenation", norm=4.0, skew=3, width=6))
    reach = float(drawn_radius(4.5)) if far else 4.5
    places, logs = explorer.landscape(system, reach, far)
    assert logs.shape == (len(places), len(places)) and np.allclose(logs, logs[::-1])
    for i, k in ((3, 16), (10, 10), (19, 7)):
        z = places[k] + 1j * places[i]
        if far and abs(z) > 1:
            z *= np.exp(abs(z) - 1) / abs(z)
        smallest = np.linalg.svd(z * np.eye(6) - system.a_bar, compute_uv=False)[-1]
        assert 10 ** logs[i, k] == pytest.approx(smallest, rel=1e-6, abs=1e-12)


def test_a_bar_of_a_run_comes_into_the_explorer_and_a_link_leads_back(client, tmp_path, write_run):
    from loopscope.runfile.layout import A_BAR
    from loopscope.runfile.writer import RunWriter

    matrix = np.array([[0.5, 3.0], [0.0, 0.8]], np.float32)
    with RunWriter.create(tmp_path / "kept.h5", info={}, eigenvalues=2) as writer:
        for step in range(30):
            writer.append_step({"step": step, "loss": 3.0}, None)
            if step % 10 == 0:
                writer.append_array(step, A_BAR, matrix * (1 + step / 100))
        writer.flush()
        writer.seal()
    write_run(tmp_path / "spectra.h5", start=0.5, end=1.5, steps=40)
    here = client(tmp_path)
    ids = {entry.name: entry.id for entry in here.index.entries()}
    kept = str(here.page(f"/explorer?kind=run&run={ids['kept']}&at=15"))
    assert "A̅ as recorded at step 10" in kept and f"/run/{ids['kept']}?tab=spectrum&step=10" in kept
    assert "ρ(A̅) = 0.88" in kept
    stand_in = str(here.page(f"/explorer?kind=run&run={ids['spectra']}&at=12"))
    assert "a normal matrix with its 16 leading eigenvalues stands for it" in stand_in
    assert "Choose a run" in str(here.page("/explorer?kind=run&run=none"))
    tab = str(here.page(f"/run/{ids['kept']}?tab=spectrum"))
    assert "open A̅ in the explorer" not in tab or f"run={ids['kept']}" in tab
    assert f"/explorer?kind=run&run={ids['spectra']}&at=39" in str(here.page(f"/run/{ids['spectra']}?tab=spectrum"))


def test_a_normal_stand_in_has_the_eigenvalues_it_was_given():
    from loopscope.dashboard.recorded_matrix import normal_matrix

    values = np.array([1.2, 0.3 + 0.9j, 0.3 - 0.9j, -0.5, 0.1 + 0.2j])  # the last one without its conjugate
    matrix = normal_matrix(values)
    assert np.abs(matrix @ matrix.T - matrix.T @ matrix).max() < 1e-12
    found = np.linalg.eigvals(matrix)
    assert all(np.abs(found - value).min() < 1e-12 for value in [*values, 0.1 - 0.2j]) and len(found) == 6


def test_the_axes_of_loops_begin_at_0_and_end_with_the_loops():
    sandbox = Sandbox(kind="concatenation", norm=3.0, skew=1.6, loops=24, gain=0.5)
    explored = explore(sandbox)
    for chart in (
        explorer_figures.powers(explored.powers, explored.lower, explored.upper),
        explorer_figures.states(explored.alone, explored.blocked),
    ):
        low, high = chart.layout.xaxis.range
        assert -1 < low < 0 and 24 < high < 25


def test_the_preset_whose_settings_are_shown_is_marked_and_no_other(client, tmp_path):
    served = client(tmp_path)
    for name, (sandbox, _) in PRESETS.items():
        values = {f"explorer-{field}.value": getattr(sandbox, field) for field in page.NAMES}
        shown = served.fire("explorer-verdict.children", values)
        marked = [one for one in PRESETS if "ls-chosen" in shown[page._preset_id(one)]["className"]]
        assert marked == [name]
    changed = served.fire("explorer-verdict.children", values | {"explorer-delta.value": 1.7})
    assert not [one for one in PRESETS if "ls-chosen" in changed[page._preset_id(one)]["className"]]
