"""Text as numbered batches."""

import pytest
import torch
from loopscope.models import ByteText, standard_library


def documents(count=40):
    return [bytes([65 + i]) * 50 for i in range(count)]


def test_batches_are_a_function_of_seed_and_number():
    a, b = (ByteText(documents(), sequence_length=8, seed=3) for _ in range(2))
    later = a.batch(7, 4)
    a.batch(0, 4)
    assert torch.equal(a.batch(7, 4), later) and torch.equal(b.batch(7, 4), later)
    other = ByteText(documents(), sequence_length=8, seed=4)
    assert not torch.equal(other.batch(7, 4), later) and not torch.equal(a.batch(8, 4), later)


def test_held_out_text_is_never_trained_on():
    text = ByteText(documents(), sequence_length=8)
    held_out = torch.cat(list(text.held_out(2)))
    training = torch.cat([text.batch(i, 64) for i in range(20)])
    assert set(held_out.flatten().tolist()) == {65 + 19, 65 + 39}  # every twentieth document
    assert not set(training.flatten().tolist()) & set(held_out.flatten().tolist())


def test_held_out_windows_follow_each_other():
    text = ByteText([bytes(range(i % 5, 200)) for i in range(20)], sequence_length=8)
    windows = torch.cat(list(text.held_out(1)))
    assert torch.equal(windows[1:, 0], windows[:-1, -1])  # the last target is the next first input


def test_standard_library_is_text():
    text = standard_library(sequence_length=32)
    said = text.describe()
    assert said["training_tokens"] > 10 * said["held_out_tokens"] > 100_000
    assert bytes(text.batch(0, 1)[0].tolist()).isascii()
    assert len(said["sha256"]) == 64


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="held-out split has 0 bytes, expected more than sequence_length = 8"):
        ByteText(documents(3), sequence_length=8)
