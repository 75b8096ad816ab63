"""Orthogonalised momentum."""

import pytest
import torch
from loopscope.models.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8), (3, 16, 8)])
def test_singular_values_move_to_one_and_vectors_stay(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rotation = orthogonalize(g)
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    # the published quintic maps every singular value above 1/100 of the norm into [0.68, 1.15] after five steps
    inside = u.mT @ rotation @ v.mT
    values = torch.diagonal(inside, dim1=-2, dim2=-1)
    well = s / g.norm(dim=(-2, -1), keepdim=True)[..., 0] > 0.02
    assert torch.all(values[well] > 0.65) and torch.all(values < 1.25)
    off = inside - torch.diag_embed(values)
    assert off.abs().max() < 1e-4  # the polynomial is odd in the matrix: singular vectors are kept to round-off


def test_one_step_against_its_definition():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(12, 4))
    start, gradient = weight.detach().clone(), torch.randn(12, 4)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    nesterov = gradient.lerp(gradient * 0.1, 0.9)  # momentum after one step is 0.1 g
    expected = start * (1 - 0.1 * 0.5) - 0.1 * 3**0.5 * orthogonalize(nesterov)
    assert torch.allclose(weight, expected, atol=1e-6)  # float32 round-off on weights near 1


def test_batching_matrices_of_one_shape_changes_nothing():
    torch.manual_seed(0)
    matrices = [torch.randn(6, 6) for _ in range(3)] + [torch.randn(4, 6)]
    gradients = [torch.randn_like(m) for m in matrices]
    together = [torch.nn.Parameter(m.clone()) for m in matrices]
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient.clone()
    Muon(together, lr=0.1).step()
    for matrix, gradient, batched in zip(matrices, gradients, together, strict=True):
        alone = torch.nn.Parameter(matrix.clone())
        alone.grad = gradient.clone()
        Muon([alone], lr=0.1).step()
        assert torch.allclose(alone, batched, atol=1e-5)  # batched products may be summed in another order
