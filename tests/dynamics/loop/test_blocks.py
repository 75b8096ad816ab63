"""Blocks of a joint Jacobian: exact where it is formed, the same from products, and what does not converge says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loopscope.dynamics import LoopJacobian, jacobian_blocks
from loopscope.dynamics.loop import blocks as module
from loopscope.dynamics.loop.linearize import linearize_loop

CHANNELS = {"x": slice(0, 3), "y": slice(3, 4), "z": slice(4, 9)}


def a_loop(seed: int = 0, *, positions: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix that mixes 9 channels, and a state of some positions."""
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(9, 9, generator=draw, dtype=torch.float64) * torch.logspace(-2, 0.3, 9, dtype=torch.float64)
    return matrix, torch.randn(1, positions, 9, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("formed", [True, False])
def test_norms_and_radii_are_those_of_the_dense_matrix(monkeypatch, formed: bool) -> None:
    matrix, state = a_loop()
    if not formed:
        monkeypatch.setattr(module, "DENSE_SIZE", 0)
    jacobian = LoopJacobian(lambda h: torch.tanh(h @ matrix.T), state)
    slopes = (1 - torch.tanh(state @ matrix.T) ** 2)[0]
    for block in jacobian_blocks(jacobian, CHANNELS):
        own = [(s[:, None] * matrix)[CHANNELS[block.of], CHANNELS[block.by]].numpy() for s in slopes]
        exact = max(np.linalg.norm(each, 2) for each in own)
        assert block.norm.converged and abs(block.norm.value - exact) <= 1e-3 * exact, (block, exact)
        assert (block.radius is None) == (block.of != block.by)
        if block.radius is not None:
            radius = max(np.abs(np.linalg.eigvals(each)).max() for each in own)
            assert block.radius.converged and abs(block.radius.value - radius) <= 1e-3 * radius


def test_a_block_of_zeros_is_zero_and_not_missing(monkeypatch) -> None:
    matrix, state = a_loop()
    matrix[CHANNELS["x"], CHANNELS["z"]] = 0
    for size in (128, 0):
        monkeypatch.setattr(module, "DENSE_SIZE", size)
        blocks = jacobian_blocks(LoopJacobian(lambda h: h @ matrix.T, state), CHANNELS)
        (zero,) = [b for b in blocks if (b.of, b.by) == ("x", "z")]
        assert zero.norm.value == 0 and zero.norm.converged


def test_a_norm_that_did_not_converge_says_so(monkeypatch) -> None:
    monkeypatch.setattr(module, "DENSE_SIZE", 0)
    monkeypatch.setattr(module, "STEPS", 1)
    matrix, state = a_loop(positions=8)
    blocks = jacobian_blocks(LoopJacobian(lambda h: h @ matrix.T, state), {"a": slice(0, 4), "b": slice(4, 9)})
    assert not all(block.norm.converged for block in blocks)
    assert "not converged" in " ".join(map(str, blocks))


def test_one_variable_may_explode_beside_one_that_settles() -> None:
    decay = torch.tensor([0.5, 0.5, 1.3])
    own = {"calm": slice(0, 2), "wild": slice(2, 3)}
    result = linearize_loop(lambda h: decay * h, torch.ones(1, 2, 3), loops=16, variables=own)
    assert {name: law.kind for name, law in result.variables.items()} == {"calm": "settling", "wild": "exploding"}
    assert "calm settles geometrically, wild explodes" in result.verdict
    radii = {block.of: round(block.radius.value, 3) for block in result.blocks if block.radius is not None}
    assert radii == {"calm": 0.5, "wild": 1.3}
    assert len(result.to_dict()["blocks"]) == 4 and "wild" in result.to_dict()["variables"]
