"""Compute by the paper's formula, against an independent count."""

import math

import pytest
import torch
from loopscope.models import build
from loopscope.models.flops import effective_parameters, training_flops, utilisation
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

S = 16


@pytest.mark.parametrize("name", ["parcae-tiny", "transformer-tiny", "rdm-tiny", "addition-tiny", "demo"])
def test_formula_equals_torchs_own_count_of_a_forward(name):
    """Two FLOPs per multiply-add: the forward at the mean depth costs 2 (N1 + N2) per token, exactly."""
    model = build(name, depth_distribution="fixed").eval()
    tokens = torch.zeros(2, S, dtype=torch.int64)
    # the counter knows matrix products, not the CPU's fused attention: let attention be made of products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    parameters = effective_parameters(model.config, S)
    assert counter.get_total_flops() == 2 * (parameters.without_gradient + parameters.with_gradient) * tokens.numel()


def test_training_counts_gradients_of_the_last_loops_only():
    config = build("parcae-tiny").config
    parameters = effective_parameters(config, S)
    loop = parameters.without_gradient / (config.mean_depth - config.backward_depth)
    assert training_flops(config, S, 10) == pytest.approx(10 * (2 * 4 * loop + 6 * parameters.with_gradient), rel=1e-12)


def test_utilisation_of_an_unknown_device_is_not_a_number():
    assert math.isnan(utilisation(build("demo").config, S, 1000.0, torch.device("cpu")))
