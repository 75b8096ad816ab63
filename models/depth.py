"""Held-out loss against the number of loops at test time.

Not covered: fitting a law to the result (`loopscope.dynamics.trajectory.scaling`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .data import Data, stream_seed
from .looped import LoopedTransformer


def loss_at_depths(
    model: LoopedTransformer, data: Data, depths: Sequence[int], *, batches: int = 8, batch_size: int = 8, seed: int = 0
) -> dict[int, float]:
    """Return the mean next-token loss in nats on held-out text for each test-time depth.

    Every depth sees the same text and the same initial states, so that differences are the depth's. Costs
    ``batches * batch_size * sum(depths)`` loops. The model's mode and all random states are left as they were.

    Args:
        model: On any device.
        data: Its held-out split is used from the beginning.
        depths: Numbers of loops, each at least 1.
        batches: How many held-out batches, fewer when there are fewer.
        batch_size: Sequences in each.
        seed: Of the initial states.

    Returns:
        Loss in nats per token by depth, in the order given.

    Raises:
        ValueError: No depth, or a depth below 1.

    >>> from loopscope.models import build, standard_library
    >>> losses = loss_at_depths(build("demo"), standard_library(sequence_length=16), [1, 8], batches=1)
    >>> [5 < loss < 6 for loss in losses.values()]       # untrained: near ln 256 = 5.5
    [True, True]
    """
    if not depths or min(depths) < 1:
        raise ValueError(f"depths: expected numbers of at least 1, found {list(depths)}")
    device = next(model.parameters()).device
    chosen = [tokens.to(device) for tokens in itertools.islice(data.held_out(batch_size), batches)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(device_type=device.type if device.type == "cuda" else "cuda"):
            return {depth: _loss(model, chosen, depth, seed) for depth in depths}
    finally:
        model.train(training)


def _loss(model: nn.Module, batches: list[torch.Tensor], depth: int, seed: int) -> float:
    """Return the mean loss over batches at one depth; every sequence counts the same."""
    total, sequences = 0.0, sum(len(tokens) for tokens in batches)
    for index, tokens in enumerate(batches):
        torch.manual_seed(stream_seed(seed, "held-out", index))
        logits = model(tokens[:, :-1], num_loops=depth)
        total += len(tokens) * F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    return total / sequences
