"""Questions to a checkpoint: its depth curve and its dynamics, against what can be computed directly."""

import json

import numpy as np
import pytest
import torch
from loopscope.commands.checkpoints import HORIZON, depth_curve, linearize_checkpoint, said_by_its_run
from loopscope.commands.training import train_run
from loopscope.dynamics import linearize_loop
from loopscope.models.run_config import RunConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two short runs: one that settles, one whose state explodes over the loops."""
    folder = tmp_path_factory.mktemp("runs")
    for injection in ("parcae", "concatenation"):
        run = RunConfig(seed=0, model={"injection": injection}, train={"lr": 0.05, "steps": 60})
        train_run(folder / f"{injection}.h5", run, device="cpu")
    return folder


def test_the_depth_curve_saturates_where_the_loop_settles(trained):
    curve = depth_curve(trained / "parcae.h5", [1, 2, 4, 8, 16, 32], batches=8, device="cpu")
    assert list(curve.losses) == [1, 2, 4, 8, 16, 32]
    assert curve.law is not None
    # The law's limit is the loss at large depth; the Parcae paper finds them within 0.16 % of each other.
    assert curve.law.limit == pytest.approx(curve.losses[32], rel=3e-3)
    assert curve.losses[1] > curve.losses[8]
    assert (curve.predicted.depth, curve.measured) == (HORIZON, HORIZON)
    said = json.loads(json.dumps(curve.as_dict()))
    assert said["safe_depth"] == {
        "predicted": HORIZON,
        "measured": HORIZON,
        "horizon": HORIZON,
        "training_depth": 8,
        "loss_kept_until": 32,
    }
    assert "safe depth: predicted ≥ 64, measured ≥ 64" in curve.text()


def test_three_depths_fit_no_law_and_say_so_by_leaving_it_out(trained):
    curve = depth_curve(trained / "parcae.checkpoint", [1, 2, 4], batches=2, device="cpu")
    assert curve.law is None
    assert "L(T)" not in curve.text()


def test_a_loop_that_explodes_is_not_safe_at_every_depth(trained):
    curve = depth_curve(trained / "concatenation.h5", [1, 2, 4, 8], batches=2, device="cpu")
    assert curve.predicted.depth < HORIZON
    # The docstring of safe_depth promises a third either way for exploding loops.
    assert curve.predicted.depth == pytest.approx(curve.measured, rel=0.4)


def test_linearize_reads_the_checkpoint(trained):
    linearization = linearize_checkpoint(
        trained / "parcae.checkpoint", num_loops=16, text=None, shape=(1, 8), budget=30, device="cpu"
    )
    from loopscope.models.checkpoint import load_model

    a_bar = load_model(trained / "parcae.checkpoint").injection.a_bar().detach()
    assert linearization.linear is not None
    assert linearization.linear.radius.value == pytest.approx(float(a_bar.abs().max()), rel=1e-6)  # float32 parameters
    assert linearization.regimes["lti"] == "stable"
    assert linearization.verdict.startswith("LTI stable (ρ 0.")
    json.loads(linearization.to_json())


@pytest.mark.parametrize(("rate", "said"), [(0.19, True), (-0.6, False), (np.nan, False)])
def test_a_run_that_is_judged_otherwise_is_named(write_run, rate, said):
    measured = {"lyapunov_max": rate, "jacobian_radius": np.exp(rate), "full_loop_seconds": 0.2}
    path = write_run(loss=np.ones(30), a_bar_radius=0.5, **measured)
    decay = torch.tensor([0.5, 0.2])
    found = linearize_loop(lambda h: decay * h + 1, torch.zeros(1, 3, 2), a_bar=decay)
    words = said_by_its_run(path.with_suffix(".checkpoint"), found)
    assert bool(words) == said
    if said:
        assert "judged unstable, this is stable: full loop unstable there and stable here" in words
        assert "other text" in words and "--sequences" in words
    assert said_by_its_run(path.with_name("none.checkpoint"), found) == ""


def test_text_of_the_users_own_is_the_input(trained, tmp_path):
    (tmp_path / "short.txt").write_text("tiny")
    with pytest.raises(ValueError, match="has 4 bytes, 1 x 8 are needed"):
        linearize_checkpoint(
            trained / "parcae.h5", num_loops=8, text=tmp_path / "short.txt", shape=(1, 8), budget=1, device="cpu"
        )
    with pytest.raises(ValueError, match="at most 32"):
        linearize_checkpoint(trained / "parcae.h5", num_loops=8, text=None, shape=(1, 64), budget=1, device="cpu")


def test_no_checkpoint_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.checkpoint: no such checkpoint folder"):
        depth_curve(tmp_path / "nothing.h5", None, batches=1, device="cpu")


def test_the_analysis_leaves_the_model_as_it_was():
    import loopscope
    from loopscope.models import build

    torch.manual_seed(0)
    model = build("demo")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    loopscope.linearize(model, torch.zeros(1, 4, dtype=torch.int64), num_loops=4, budget=0.1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_loss_that_is_not_finite_is_a_row_of_the_table(trained, monkeypatch):
    import loopscope.commands.checkpoints as checkpoints

    real = checkpoints.loss_at_depths
    monkeypatch.setattr(
        checkpoints, "loss_at_depths", lambda *a, **k: real(*a, **k) | {64: float("nan"), 128: float("nan")}
    )
    curve = depth_curve(trained / "parcae.h5", [1, 2, 4, 8, 16], batches=2, device="cpu")
    assert "nan" in curve.text() and curve.law is not None
    assert "up to depth 16 only" in curve.text()
    assert json.loads(json.dumps(curve.as_dict(), allow_nan=False))["losses"]["64"] is None


def test_the_answers_are_judged_against_the_training_depth(trained):
    curve = depth_curve(trained / "concatenation.h5", [1, 2, 4, 8, 16], batches=2, device="cpu")
    assert curve.training_depth == 8
    assert curve.predicted.method.endswith("seen")
    assert curve.measured >= 8
