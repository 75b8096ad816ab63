"""Held-out loss against depth."""

import pytest
import torch
from loopscope.models import ByteText, TrainConfig, build, standard_library
from loopscope.models.depth import loss_at_depths
from loopscope.models.train import train


def test_loss_is_the_mean_over_tokens_from_the_same_start():
    torch.manual_seed(0)
    model, text = build("demo", state_init="zero"), standard_library(sequence_length=16)
    losses = loss_at_depths(model, text, [2], batches=2, batch_size=4)
    tokens = torch.cat([b for _, b in zip(range(2), text.held_out(4), strict=False)])
    with torch.no_grad():
        logits = model(tokens[:, :-1], num_loops=2)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert losses[2] == pytest.approx(expected.item(), rel=1e-5)  # float32 means in another order


def test_nothing_is_disturbed_and_numbers_repeat():
    torch.manual_seed(0)
    model, text = build("demo").train(), standard_library(sequence_length=16)
    state = torch.get_rng_state()
    losses = loss_at_depths(model, text, [1, 4], batches=1)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert loss_at_depths(model, text, [4, 1], batches=1) == {4: losses[4], 1: losses[1]}


def test_a_trained_loop_gets_better_with_depth_and_then_saturates():
    torch.manual_seed(0)
    model, text = build("demo"), standard_library(sequence_length=32)
    result = train(model, text, TrainConfig(steps=150, lr=0.01, eval_every=100, eval_depths=(1, 8)))
    assert list(result.evaluations) == [100, 150]
    losses = loss_at_depths(model, text, [1, 8, 16], batches=8)
    assert losses[1] > losses[8] and abs(losses[16] - losses[8]) < (losses[1] - losses[8]) / 2, losses
    assert result.evaluations[150][8] == pytest.approx(losses[8], abs=0.2)  # other initial states


def test_refusals():
    model, text = build("demo"), standard_library(sequence_length=32)
    with pytest.raises(ValueError, match=r"^depths: "):
        loss_at_depths(model, text, [])
    with pytest.raises(ValueError, match=r"^depths: "):
        loss_at_depths(model, text, [0])


def test_a_small_held_out_text_counts_every_sequence_once():
    text = ByteText([bytes(range(97, 97 + 26)) * 4] * 20, sequence_length=32)  # three windows and a bit
    assert [len(b) for b in text.held_out(2)] == [2, 1]
    model = build("demo", state_init="zero")
    one, three = (loss_at_depths(model, text, [2], batch_size=size)[2] for size in (1, 3))
    assert one == pytest.approx(three, rel=1e-6)  # float32 means in another order
