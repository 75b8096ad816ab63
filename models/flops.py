"""Training compute by the paper's formula, and how much of a device's peak a run uses.

``C = (2 N1 + 6 N2) D``: N1 parameters that a token passes without gradients, N2 with, D tokens. A block counts once for
every loop it is run in; embeddings and value tables are left out, the output head is counted; attention adds
``2 S D`` multiply-adds per layer and token for S positions (scores and mixing), no discount for the causal half.

Not covered: norms, activations, the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import GATE_CHANNELS, LoopedConfig

# Dense bfloat16 peak in FLOP/s by a word in the device's name; makers' data sheets.
BF16_PEAK = {"B200": 2.25e15, "H200": 9.89e14, "H100": 9.89e14, "A100": 3.12e14, "L40S": 3.62e14}


@dataclass(frozen=True, slots=True)
class EffectiveParameters:
    """Multiply-adds per token of a training forward at the mean depth, attention included, by gradient or not."""

    without_gradient: float
    with_gradient: float


def effective_parameters(config: LoopedConfig, sequence_length: int) -> EffectiveParameters:
    """N1 and N2 of the paper's formula at depth ``mean_depth``, of which ``backward_depth`` loops carry gradients.

    Args:
        config: The model.
        sequence_length: Positions S of a training sequence.

    >>> from loopscope.models.presets import preset
    >>> parameters = effective_parameters(preset("transformer-140m"), 0)  # six blocks of 12 D², gates, and the head
    >>> parameters.without_gradient, parameters.with_gradient == 6 * 12 * 768**2 + 3 * 32 * 6 + 32768 * 768
    (0.0, True)
    """
    square = config.width**2
    block = 4 * square + (3 if config.mlp == "swiglu" else 2) * config.width * config.mlp_width
    block += 2 * sequence_length * config.width
    gated = [layer - config.prelude_layers for layer in config.value_embeddings]
    core_gates = sum(0 <= layer < config.core_layers for layer in gated)
    gate = GATE_CHANNELS * config.heads
    loop = (
        config.core_layers * block
        + core_gates * gate
        + {"addition": 0, "concatenation": 2, "parcae": 1}[config.injection] * square
    )
    outside = (config.prelude_layers + config.coda_layers) * block + (len(gated) - core_gates) * gate
    outside += config.vocab_size * config.width + (square if config.read_out else 0)
    with_gradient = min(config.backward_depth, config.mean_depth)
    return EffectiveParameters(float(loop * (config.mean_depth - with_gradient)), float(loop * with_gradient + outside))


def training_flops(config: LoopedConfig, sequence_length: int, tokens: float) -> float:
    """Return FLOPs of training on so many tokens.

    Args:
        config: The model.
        sequence_length: Positions of a training sequence.
        tokens: Tokens D.
    """
    parameters = effective_parameters(config, sequence_length)
    return (2 * parameters.without_gradient + 6 * parameters.with_gradient) * tokens


def utilisation(config: LoopedConfig, sequence_length: int, tokens_per_second: float, device: torch.device) -> float:
    """Return share of the device's bfloat16 peak, per process; NaN for a device whose peak is not known (every CPU).

    Args:
        config: The model.
        sequence_length: Positions of a training sequence.
        tokens_per_second: Of this process.
        device: Where it runs.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((value for word, value in BF16_PEAK.items() if word in name), float("nan"))
    return training_flops(config, sequence_length, tokens_per_second) / peak
