"""Dense matrices wider than an exact solve affords: tracked every step, every value with its status."""

from dataclasses import replace

import numpy as np
import pytest
from loopscope.dynamics.linear import tracker
from loopscope.probes import open_run
from loopscope.probes.recorder import Record, Recorder

WIDTH = 192


def drift(steps: int) -> np.ndarray:
    """``(steps, d, d)``: a random bulk that moves by 2 % per step, and an outlier that grows through 1 past another."""
    random = np.random.default_rng(0)
    bulk = random.standard_normal((WIDTH, WIDTH))
    one, other = np.linalg.qr(random.standard_normal((WIDTH, 2)))[0].T
    matrices = []
    for t in range(steps):
        share = 0.02
        bulk = np.sqrt(1 - share**2) * bulk + share * random.standard_normal((WIDTH, WIDTH))
        growing = 0.8 + 0.4 * t / steps  # passes the other outlier at 0.95, then 1
        matrices.append(0.5 * bulk / np.sqrt(WIDTH) + growing * np.outer(one, one) - 0.95 * np.outer(other, other))
    return np.stack(matrices).astype(np.float32)


@pytest.fixture
def recorded(tmp_path):
    """Runs matrices through a recorder, the spectrum kept every 20 steps as a preset would; returns its file."""

    def record(matrices):
        recorder = Recorder(tmp_path / "run.h5", info={}, scalars=(), resume=False, overwrite=True)
        for step, matrix in enumerate(matrices):
            recorder.put(Record(step, 0.0, {"loss": 1.0}, matrices={"a_bar": matrix}, spectrum=step % 20 == 0))
        recorder.close()
        return tmp_path / "run.h5"

    return record


def test_a_drifting_matrix_is_followed_through_a_crossing(recorded):
    matrices = drift(60)
    radius = np.abs(np.linalg.eigvals(matrices.astype(float))).max(-1)
    norm = np.linalg.norm(matrices.astype(float), 2, axis=(-2, -1))
    assert radius[0] < 1 < radius[-1] and np.argmin(radius) > 0  # the lead changes hands before 1 is crossed
    with open_run(recorded(matrices)) as run:
        assert np.isfinite(run["a_bar_radius"]).all() and np.isfinite(run["a_bar_norm"]).all()
        # The targets of the tracker: 1 % for the radius, 0.1 % for the norm, at every step.
        worst = int(np.argmax(abs(run["a_bar_radius"] / radius - 1)))
        assert run["a_bar_radius"][worst] == pytest.approx(radius[worst], rel=0.01), worst
        np.testing.assert_allclose(run["a_bar_norm"], norm, rtol=1e-3)
        exact = np.arange(60) % 20 == 0
        # Exact steps are LAPACK in float64 on the same float32 entries.
        np.testing.assert_allclose(run["a_bar_radius"][exact], radius[exact], rtol=1e-9)
        assert (run["a_bar_radius_error"][exact] == 0).all()
        tracked = run["a_bar_radius_error"][~exact]
        assert ((tracked > 0) & (tracked <= 1e-3)).all()  # a converged residual by the tracker's tolerance
        assert run.spectra()[0].tolist() == [0, 20, 40]
        assert (run["nonfinite"] == 0).all()


def test_what_did_not_converge_is_not_recorded_but_its_residual_is(recorded, monkeypatch):
    matrices = drift(3)
    arnoldi, golub_kahan = tracker.arnoldi, tracker.golub_kahan
    monkeypatch.setattr(tracker, "arnoldi", lambda *a, **k: replace(arnoldi(*a, **k), converged=False))
    monkeypatch.setattr(tracker, "golub_kahan", lambda *a, **k: replace(golub_kahan(*a, **k), residual=1.0))
    with open_run(recorded(matrices)) as run:
        assert np.isfinite(run["a_bar_radius"]).tolist() == [True, False, False]  # the first is solved exactly
        assert (run["a_bar_radius_error"][1:] > 0).all()
        assert np.isnan(run["a_bar_norm"]).all()
        assert (run["nonfinite"] == 0).all()  # not recorded is not broken


def test_a_matrix_that_is_not_finite_is_counted_and_the_next_one_is_measured(recorded):
    matrices = drift(3)
    matrices[1, 0, 0] = np.nan
    with open_run(recorded(matrices)) as run:
        assert np.isfinite(run["a_bar_radius"]).tolist() == [True, False, True]
        assert run["nonfinite"].tolist() == [0, 2, 0]


def test_small_and_diagonal_matrices_are_exact(recorded):
    diagonal = np.linspace(-1.5, 1, WIDTH, dtype=np.float32)
    with open_run(recorded([diagonal, np.diag(diagonal[:8]), np.float32(0.5)])) as run:
        np.testing.assert_allclose(run["a_bar_radius"], [1.5, 1.5, 0.5])  # exact in binary
        assert (run["a_bar_radius_error"] == 0).all()
