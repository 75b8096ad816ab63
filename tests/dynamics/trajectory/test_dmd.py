"""Dynamic mode decomposition against chosen spectra and against pydmd."""

import numpy as np
import pytest
from loopscope.dynamics.trajectory.dmd import decompose


def linear(eigenvalues, seed=0, size=6):
    """A real matrix with these eigenvalues (complex ones in pairs) in random coordinates."""
    rng = np.random.default_rng(seed)
    blocks = np.zeros((size, size))
    i = 0
    for value in eigenvalues:
        if np.iscomplex(value):
            a, b = value.real, value.imag
            blocks[i : i + 2, i : i + 2] = [[a, -b], [b, a]]
            i += 2
        else:
            blocks[i, i] = value.real
            i += 1
    basis = rng.normal(size=(size, size))
    return basis @ blocks @ np.linalg.inv(basis)


CHOSEN = [1.02, 0.9 * np.exp(0.7j), 0.5, 0.3, -0.2]
SPECTRUM = np.array([1.02, 0.9 * np.exp(0.7j), 0.9 * np.exp(-0.7j), 0.5, 0.3, -0.2])


def test_recovers_the_spectrum_and_modes_of_a_linear_loop():
    a = linear(CHOSEN)
    x = np.random.default_rng(1).normal(size=(100, 6))
    decomposition = decompose(x, x @ a.T, rank=6)
    assert np.allclose(np.sort_complex(decomposition.eigenvalues), np.sort_complex(SPECTRUM), atol=1e-9)
    assert decomposition.residuals.max() < 1e-10
    for value, mode in zip(decomposition.eigenvalues, decomposition.shapes.T, strict=True):
        assert np.linalg.norm(a @ mode - value * mode) < 1e-8  # basis of condition about 1e2
    assert decomposition.near_unit_mass(0.05) == pytest.approx(1 / 6)


def test_agrees_with_pydmd_on_a_noisy_trajectory():
    pydmd = pytest.importorskip("pydmd")
    a = linear(CHOSEN)
    rng = np.random.default_rng(2)
    states = [rng.normal(size=6)]
    for _ in range(40):
        states.append(a @ states[-1] + 0.01 * rng.normal(size=6))
    snapshots = np.array(states)
    theirs = pydmd.DMD(svd_rank=5).fit(snapshots.T).eigs
    ours = decompose(snapshots[:-1], snapshots[1:], rank=5).eigenvalues
    assert np.allclose(np.sort_complex(ours), np.sort_complex(theirs), atol=1e-8)  # same least squares, two SVDs


def test_residuals_mark_the_modes_that_are_artefacts():
    a = linear(CHOSEN)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 6))
    noise = rng.normal(size=(200, 4))
    before = np.hstack([x, noise])
    after = np.hstack([x @ a.T, rng.normal(size=(200, 4))])
    decomposition = decompose(before, after, rank=10)
    trusted = decomposition.trusted(0.05)
    assert np.allclose(np.sort_complex(trusted), np.sort_complex(SPECTRUM[np.abs(SPECTRUM) > 0.1]), atol=1e-6)
    assert decomposition.residuals.max() > 0.3


def test_rank_follows_the_energy_and_never_enters_round_off():
    x = np.random.default_rng(4).normal(size=(50, 3)) @ np.random.default_rng(5).normal(size=(3, 8))
    assert decompose(x, 0.5 * x, rank=8).rank == 3
    assert decompose(x, 0.5 * x, energy=0.5).rank < 3


def test_unusable_snapshots_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        decompose(np.ones((3, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        decompose(np.full((3, 2), np.nan), np.ones((3, 2)))
    with pytest.raises(ValueError, match="zero"):
        decompose(np.zeros((3, 2)), np.ones((3, 2)))
