"""A number for a batch, so that the batch of a step that went wrong can be found again in the data.

Not covered: an adversary. By accident two different batches have the same number once in 2⁶⁴; on purpose it is easy.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)  # 2⁶⁴ divided by the golden ratio, as a signed number; odd
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def batch_hash(batch: Tensor) -> Tensor:
    """Return a 64-bit number of a batch's contents, in order, computed where the batch is; the host does not wait.

    Whole numbers give the same number in every integer type; other numbers are taken by their bits. Shape does not
    enter. Costs one pass over the batch.

    Args:
        batch: Tokens ``(B, S)``, or any tensor.

    Returns:
        Int64 tensor without dimensions, the same on every device.

    >>> tokens = torch.tensor([[3, 1], [4, 1]])
    >>> bool(batch_hash(tokens) == batch_hash(tokens.int())), bool(batch_hash(tokens) == batch_hash(tokens.flip(0)))
    (True, False)
    """
    flat = batch.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    words = flat.view(WORDS[flat.element_size()]) if flat.is_floating_point() else flat
    # Addition wraps round and has no order, so that the result does not depend on how a device adds.
    return (words.to(torch.int64) + 1).mul_(_weights(words.numel(), words.device)).sum()


@lru_cache(maxsize=1)  # a batch has a million numbers and more; usually all have as many
def _weights(count: int, device: torch.device) -> Tensor:
    """One scrambled number for each place; plain ones would give batches that differ in two places the same sum."""
    weights = torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(MULTIPLIER)
    for _ in range(2):
        weights = (weights ^ (weights >> 29)).mul_(MULTIPLIER)
    return weights
