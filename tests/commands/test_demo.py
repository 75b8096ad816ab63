"""The demo preset shows the paper's picture: at one hot rate concatenation explodes, addition drifts, Parcae settles.

Setting and thresholds: sixty steps at learning rate 0.05, judged by the states at twice the training depth, because the
losses still overlap (measured beforehand with an independent implementation).
"""

import numpy as np
import pytest
import torch
from loopscope.models import TrainConfig, build, standard_library
from loopscope.models.train import train


def state_norms(injection, seed=0):
    """Mean ‖h_t‖ for t = 0 .. 16 on held-out text after training, and ρ(A̅)."""
    torch.manual_seed(seed)
    model = build("demo", injection=injection)
    text = standard_library(sequence_length=32, seed=seed)
    train(model, text, TrainConfig(steps=60, lr=0.05, seed=seed))
    states = []
    model.eval().injection.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    with torch.no_grad():
        model(next(text.held_out(16))[:, :-1], num_loops=17)
        a_bar = model.injection.a_bar()
    radius = a_bar.abs().max() if a_bar.ndim < 2 else torch.linalg.eigvals(a_bar).abs().max()
    return torch.stack([h.norm(dim=-1).mean() for h in states]).double().numpy(), radius.item()


def test_concatenation_explodes():
    norms, radius = state_norms("concatenation")
    assert norms[16] > 1e4 and radius > 1.2
    growth = norms[11:17] / norms[10:16]
    assert growth.min() > 1.2  # geometric, every loop


def test_addition_drifts():
    norms, radius = state_norms("addition")
    assert radius == 1.0 and 100 < norms[16] < 1e4
    steps = np.diff(norms[5:17])
    assert steps.max() / steps.min() < 1.2  # the same amount every loop: linear growth


def test_parcae_settles():
    norms, radius = state_norms("parcae")
    assert radius < 0.98 and norms[16] < 300
    assert norms[16] == pytest.approx(norms[12], rel=0.05)
