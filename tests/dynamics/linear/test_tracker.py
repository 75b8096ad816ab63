import time

import numpy as np
import pytest
import torch
from loopscope.dynamics.linear.spectrum import spectral_norm, spectral_radius
from loopscope.dynamics.linear.tracker import SpectralTracker
from numpy.typing import NDArray

RNG = np.random.default_rng
WIDTH, STEPS = 160, 60


def drift(kind: str, rate: float) -> list[NDArray[np.float32]]:
    """A random matrix that moves by ``rate`` a step while outliers grow through |λ| = 1, or two cross each other."""
    rng = RNG(0)
    random = rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
    u, v = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0].T
    steps = []
    for step in range(STEPS):
        size = 0.5 + 0.7 * step / STEPS
        outlier = {
            "bulk": 0 * np.outer(u, u),
            "real": size * np.outer(u, u),
            "pair": size * (0.8 * (np.outer(u, u) + np.outer(v, v)) + 0.6 * (np.outer(u, v) - np.outer(v, u))),
            "crossing": (1.15 - 0.2 * size) * np.outer(u, u) - (0.7 + 0.5 * size) * np.outer(v, v),
        }[kind]
        steps.append((0.8 * random + outlier).astype(np.float32))
        random = np.sqrt(1 - rate**2) * random + rate * rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
    return steps


@pytest.mark.parametrize("rate", [0.003, 0.02])
@pytest.mark.parametrize("kind", ["bulk", "real", "pair", "crossing"])
def test_follows_drift_and_crossings(kind: str, rate: float) -> None:
    radius = SpectralTracker("radius", refresh_every=10**6, background=False)
    norm = SpectralTracker("norm", refresh_every=10**6, background=False)
    for step, a in enumerate(drift(kind, rate)):
        exact = float(np.abs(np.linalg.eigvals(a)).max())
        estimate = radius.update(a)
        # The targets: 1 % for ρ, 0.1 % for σ_max, at every step.
        assert abs(estimate.value / exact - 1) < 0.01, (step, estimate, exact)
        assert estimate.converged and estimate.lower <= exact <= estimate.upper, (step, estimate, exact)
        # Exact refreshes have proven bounds, which are wide.
        assert "LAPACK" in estimate.method or estimate.upper - estimate.lower < 0.02 * exact, (step, estimate)
        stretch = float(np.linalg.norm(a.astype(np.float64), 2))
        estimate = norm.update(a)
        assert abs(estimate.value / stretch - 1) < 0.001, (step, estimate, stretch)
        assert estimate.lower <= stretch


def test_near_one_a_refresh_makes_the_value_exact() -> None:
    a = np.diag(np.linspace(0.0, 0.99, 100))
    tracker = SpectralTracker("radius", background=False, refresh_every=10**6)
    for step in range(3):
        estimate = tracker.update(a)
        assert estimate.method == "eigenvalues (LAPACK)"
        assert tracker.exact == (step, estimate)
        assert estimate.value == pytest.approx(0.99, rel=1e-13)


def test_far_from_one_refreshes_come_at_the_interval() -> None:
    a = np.diag(np.linspace(0.0, 0.5, 100))
    tracker = SpectralTracker("radius", background=False, refresh_every=4)
    methods = [tracker.update(a).method.split()[0] for _ in range(9)]
    assert methods == ["eigenvalues"] + ["Arnoldi,"] * 3 + ["eigenvalues"] + ["Arnoldi,"] * 3 + ["eigenvalues"]


def test_an_eigenvalue_hidden_from_the_start_vector_is_found_by_the_refresh() -> None:
    a = np.zeros((100, 100))
    a[:99, :99] = np.diag(np.linspace(0.1, 0.5, 99))
    tracker = SpectralTracker("radius", refresh_every=2, background=False)
    tracker.update(a)
    tracker._start = np.eye(100)[98]
    tracker._random = _Silent()  # type: ignore[assignment]
    a[99, 99] = 0.8
    # The subspace is invariant: a tiny residual at the wrong eigenvalue, exactly what a residual cannot show.
    wrong = tracker.update(a)
    assert wrong.value == pytest.approx(0.5) and wrong.residual < 1e-6
    assert tracker.update(a).value == pytest.approx(0.8)
    assert tracker.missed == 1
    # The next tracked value starts from what the refresh found.
    estimate = tracker.update(a)
    assert estimate.method.startswith("Arnoldi") and estimate.value == pytest.approx(0.8)


class _Silent:
    """Noise that never reaches the last coordinate, to keep an eigenvalue hidden."""

    def standard_normal(self, count: int) -> NDArray[np.float64]:
        noise = np.ones(count)
        noise[-1] = 0.0
        return noise


@pytest.mark.parametrize("quantity", ["radius", "norm"])
def test_background_refresh_arrives_and_keeps_the_matrix_it_was_given(quantity: str) -> None:
    a = RNG(1).normal(size=(150, 150)) / 30
    exact = (spectral_radius if quantity == "radius" else spectral_norm)(a).value
    tracker = SpectralTracker(quantity)  # type: ignore[arg-type]
    tracker.update(a)
    # The optimizer overwrites the parameter while the thread runs; the copy must not see it.
    a *= 1000
    tracker.wait()
    assert tracker.exact is not None and tracker.error == ""
    assert tracker.exact[0] == 0 and tracker.exact[1].value == exact


def test_small_and_structured_matrices_are_exact() -> None:
    tracker = SpectralTracker()
    assert tracker.update(1.0).value == 1.0
    assert tracker.update(torch.tensor([0.5, -0.7], dtype=torch.float64)).value == 0.7
    assert tracker.update([[0.0, 2.0], [-2.0, 0.0]]).value == pytest.approx(2.0, rel=1e-15)


def test_parameters_of_any_precision_and_changing_size() -> None:
    tracker = SpectralTracker(refresh_every=10**6, background=False)
    for width in (100, 120):
        a = RNG(2).normal(size=(width, width)) / 40
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            parameter = torch.nn.Parameter(torch.tensor(a, dtype=dtype))
            exact = spectral_radius(parameter).value
            assert tracker.update(parameter).value == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-150, 1e-30, 1e30, 1e150])
@pytest.mark.parametrize("quantity", ["radius", "norm"])
def test_magnitudes_outside_the_range_of_squares(quantity: str, scale: float) -> None:
    a = scale * RNG(3).normal(size=(80, 80))
    exact = (spectral_radius if quantity == "radius" else spectral_norm)(a).value
    tracker = SpectralTracker(quantity, background=False)  # type: ignore[arg-type]
    for _ in range(2):
        assert tracker.update(a).value == pytest.approx(exact, rel=1e-3)


def test_rectangles_have_a_norm_and_no_radius() -> None:
    a = RNG(4).normal(size=(100, 200))
    tracker = SpectralTracker("norm", refresh_every=10**6)
    assert tracker.update(a).value == pytest.approx(float(np.linalg.norm(a, 2)), rel=1e-3)
    tracker.wait()
    with pytest.raises(ValueError, match="a must be a square matrix"):
        SpectralTracker("radius").update(a)


def test_results_are_reproducible() -> None:
    steps = drift("real", 0.02)[:10]
    first, second = (SpectralTracker(background=False, seed=3) for _ in range(2))
    assert [first.update(a) for a in steps] == [second.update(a) for a in steps]


def test_nan_is_an_error_and_the_tracker_goes_on_after_it() -> None:
    a = RNG(5).normal(size=(100, 100)) / 20
    broken = a.copy()
    broken[3, 4] = np.nan
    for quantity in ("radius", "norm"):
        tracker = SpectralTracker(quantity, background=False)  # type: ignore[arg-type]
        tracker.update(a)
        with pytest.raises(ValueError, match=r"a must be finite; found 1 .* index \(3, 4\)"):
            tracker.update(broken)
        assert np.isfinite(tracker.update(a).value)


@pytest.mark.parametrize("arguments", [{"quantity": "size"}, {"refresh_every": 0}])
def test_wrong_arguments_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments)))):
        SpectralTracker(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantity", ["radius", "norm"])
def test_the_path_of_other_devices_gives_the_same_values(quantity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a GPU at hand: keep the tensor a tensor, so that everything runs through torch as it would there.
    monkeypatch.setattr("loopscope.dynamics.linear.tracker._on_its_device", lambda a: a.detach())
    tracker = SpectralTracker(quantity, background=False, refresh_every=3)  # type: ignore[arg-type]
    for a in drift("pair", 0.02)[:8]:
        exact = (spectral_radius if quantity == "radius" else spectral_norm)(a).value
        assert tracker.update(torch.tensor(a)).value == pytest.approx(exact, rel=1e-3)
    assert isinstance(tracker._start, torch.Tensor) and tracker.error == ""


def test_background_refreshes_rest_between_runs() -> None:
    a = np.diag(np.linspace(0.0, 1.0, 200))
    tracker = SpectralTracker("radius")
    tracker.update(a)
    tracker.wait()
    began = time.monotonic()
    assert tracker.exact is not None and tracker._not_before > began, "nine times its own duration of rest"
    tracker._not_before = began + 3600
    tracker.update(a)
    # ρ = 1 asks for a refresh at every step; the thread must not be kept busy by it.
    assert tracker._worker is None and tracker.exact[0] == 0
    tracker._not_before = began
    tracker.update(a)
    tracker.wait()
    assert tracker.exact[0] == 2


def test_a_failing_refresh_is_reported_and_tracking_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(quantity: str, a: object) -> None:
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr("loopscope.dynamics.linear.tracker._exactly", fail)
    tracker = SpectralTracker("radius")
    a = np.diag(np.linspace(0.0, 0.5, 100))
    tracker.update(a)
    tracker.wait()
    assert tracker.error == "exact refresh failed: did not converge" and tracker.exact is None
    assert tracker.update(a).value == pytest.approx(0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantity", ["radius", "norm"])
def test_cuda_agrees_with_the_cpu(quantity: str) -> None:
    a = torch.tensor(RNG(6).normal(size=(300, 300)) / 20, dtype=torch.float32)
    exact = (spectral_radius if quantity == "radius" else spectral_norm)(a).value
    tracker = SpectralTracker(quantity, background=False, refresh_every=10**6)  # type: ignore[arg-type]
    tracker.update(a.cuda())
    assert tracker.update(a.cuda()).value == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("update", ["one entry", "rank one", "noise", "low rank", "scaled"])
def test_near_a_multiple_of_the_identity_the_leading_value_is_kept(update: str, dtype: type) -> None:
    # Identity-initialised injections after a few steps: the Krylov space ends after a handful of vectors.
    width, rng = 500, RNG(7)
    u, v = rng.normal(size=(2, width)) / np.sqrt(width)
    noise, wide = rng.normal(size=(width, width)), rng.normal(size=(width, 4)) / np.sqrt(width)
    tracker = SpectralTracker(background=False, refresh_every=10**6)
    for step in range(5):
        change = {
            "one entry": np.diag(np.eye(width)[0]),
            "rank one": np.outer(u, u + 0.5 * v),
            "noise": 1e-5 * noise,
            "low rank": wide @ wide.T,
            "scaled": np.eye(width),
        }[update]
        a = (0.7 * np.eye(width) + 0.012 * step * change).astype(dtype)
        estimate, exact = tracker.update(a), float(np.abs(np.linalg.eigvals(a)).max())
        assert abs(estimate.value / exact - 1) < 1e-4, (step, estimate, exact)
        assert estimate.converged and estimate.lower <= exact <= estimate.upper, (step, estimate, exact)


@pytest.mark.parametrize("kind", ["cycle", "permutation", "rotation", "equal moduli", "nilpotent", "Jordan", "Grcar"])
def test_what_does_not_converge_has_an_interval_that_holds_the_radius(kind: str) -> None:
    width = 150
    if kind == "equal moduli":
        a = np.zeros((width, width))
        for i in range(0, width, 2):
            c, s = 0.8 * np.cos(1 + i / 50), 0.8 * np.sin(1 + i / 50)
            a[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    else:
        ones = [np.diag(np.ones(width - k), k) for k in (1, 2, 3)]
        a = {
            "cycle": 0.8 * np.roll(np.eye(width), 1, 0),
            "permutation": 0.8 * np.eye(width)[RNG(8).permutation(width)],
            "rotation": 0.8 * np.linalg.qr(RNG(9).normal(size=(width, width)))[0],
            "nilpotent": np.diag(np.ones(width - 1), 1),
            "Jordan": 0.5 * np.eye(width) + 0.3 * np.diag(np.ones(width - 1), 1),
            "Grcar": (np.eye(width) - np.diag(np.ones(width - 1), -1) + sum(ones)) / 3,
        }[kind]
    tracker = SpectralTracker(background=False, refresh_every=4)
    for step in range(8):
        drifted = a * (1 + 0.001 * step)
        estimate, exact = tracker.update(drifted), float(np.abs(np.linalg.eigvals(drifted)).max())
        assert np.isfinite(estimate.value) and np.isfinite(estimate.upper)
        if tracker.exact is not None and step > 4:
            assert estimate.lower <= exact * (1 + 1e-9) and exact <= estimate.upper * (1 + 1e-9), (
                step,
                estimate,
                exact,
            )
            assert not estimate.converged or abs(estimate.value - exact) <= 0.01 * exact, (step, estimate, exact)
    assert tracker.drift > 0.1 or kind not in ("nilpotent", "Jordan"), (
        "the last exact value was far from the tracked one"
    )
