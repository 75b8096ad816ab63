"""A batch's number: the same wherever and in whatever integer type, another for another batch."""

import pytest
import torch
from loopscope.probes.measure.hashing import batch_hash


def test_the_same_batch_has_the_same_number():
    tokens = torch.randint(0, 50_000, (8, 64), generator=torch.Generator().manual_seed(0))
    assert batch_hash(tokens) == batch_hash(tokens.clone()) == batch_hash(tokens.int())
    # As Python computes it, with integers that wrap at 64 bits: what a reader in another language has to do.
    mask, scramble = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def signed(x):
        return (x & mask) - (1 << 64) if x & (1 << 63) else x & mask

    total = 0
    for place, token in enumerate(tokens.flatten().tolist(), 1):
        weight = signed(place * scramble)
        for _ in range(2):
            weight = signed((weight ^ (weight >> 29)) * scramble)
        total += (token + 1) * weight
    assert int(batch_hash(tokens)) == signed(total)


def test_other_batches_have_other_numbers():
    # Batches of few small numbers, which a plain weighted sum would confuse; 20,000 of 4^12 possible ones.
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 4, (2, 6), generator=generator) for _ in range(20_000)]
    different = {tuple(batch.flatten().tolist()) for batch in batches}
    assert len({int(batch_hash(batch)) for batch in batches}) == len(different)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_other_numbers_count_by_their_bits(dtype):
    batch = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    changed = batch.clone()
    changed[1, 2] += 1
    assert batch_hash(batch) == batch_hash(batch.clone()) != batch_hash(changed)
    assert int(batch_hash(batch[:0])) == 0
