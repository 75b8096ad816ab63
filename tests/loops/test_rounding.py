"""Rounded weights: what a format can hold, and errors carried by Jacobians against errors that were run."""

import math

import pytest
import torch
from loopscope.loops.rounding import FORMATS, RoundedDepth, Rounding, rounded_copy, rounding
from loopscope.models import build
from torch import Tensor, nn


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int6", 6), ("int4", 4)])
def test_whole_numbers_are_at_most_half_a_step_off_and_few(name: str, bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 200) * torch.tensor([1e-6, 1e-2, 1.0, 1e3, 0.0])[:, None]
    rounded = FORMATS[name](weight)
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((rounded - weight).abs() <= step / 2 * (1 + 1e-5)).all()
    assert all(len(row.unique()) < 2**bits for row in rounded)
    assert torch.equal(FORMATS[name](rounded), rounded)  # what a format holds, it keeps


def test_vectors_are_kept_by_whole_numbers_and_rounded_by_bf16() -> None:
    gains = torch.tensor([1.001, 0.3])
    assert torch.equal(FORMATS["int4"](gains), gains)
    assert torch.equal(FORMATS["bf16"](gains), gains.bfloat16().float())


def test_the_model_is_left_as_it_was_and_tied_weights_stay_tied() -> None:
    model = build("demo")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = rounded_copy(model, "int6")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(twin.embedding.weight, model.embedding.weight)


class LinearLoop(nn.Module):
    """``h <- A h + e`` T times, then logits: here the carried error is exact, whatever its size."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embedding = nn.Embedding(16, 8)
        self.body = nn.Linear(8, 8, bias=False)
        self.after = nn.Identity()
        self.head = nn.Linear(8, 16, bias=False)
        q, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
        with torch.no_grad():
            self.body.weight.copy_(gain * q)
            self.head.weight.copy_(torch.randn(16, 8, generator=generator))
            self.embedding.weight.copy_(torch.randn(16, 8, generator=generator))

    def forward(self, tokens: Tensor, num_loops: int = 4) -> Tensor:
        e = self.embedding(tokens)
        h = torch.zeros_like(e)
        for _ in range(num_loops):
            h = self.body(h) + e
        return self.head(self.after(h))

    def loop_site(self) -> dict[str, object]:
        return {"body": "body", "after": "after", "state_argument": 0, "depth_argument": "num_loops", "mean_depth": 4}


@pytest.mark.parametrize("gain", [0.5, 1.3])
def test_the_error_that_a_linear_loop_carries_is_predicted_exactly(gain: float) -> None:
    model = LinearLoop(gain).double()
    tokens = torch.randint(16, (2, 7), generator=torch.Generator().manual_seed(2))
    costs = rounding(model, tokens[:, :-1], tokens[:, 1:], formats=["int6"], depths=[1, 4, 12])
    for row in costs.rows:
        # Second order in the rounding itself is left out: A' carries the error where A is asked for.
        assert row.predicted_error == pytest.approx(row.measured_error, rel=0.2 if gain > 1 else 0.05)
    growth = costs.growth("int6")
    assert growth < 1.1 if gain < 1 else growth > 1.0


def test_a_trained_loops_loss_gap_is_predicted_at_every_depth(trained_demo: tuple[nn.Module, Tensor]) -> None:
    model, tokens = trained_demo
    costs = rounding(model, tokens[:, :-1], tokens[:, 1:], formats=["bf16", "int6"], depths=[1, 8, 16])
    missed = {"bf16": 5e-5, "int6": 1e-3}  # nats: what is of second order in the state is left out
    for row in costs.rows:
        assert abs(row.predicted - row.measured) < missed[row.format]
        assert row.predicted_error == pytest.approx(row.measured_error, rel=0.05)
    coarse = [abs(row.measured) for row in costs.rows if row.format == "int6"]
    fine = [abs(row.measured) for row in costs.rows if row.format == "bf16"]
    assert max(fine) < max(coarse)


@pytest.fixture(scope="module")
def trained_demo() -> tuple[nn.Module, Tensor]:
    from loopscope.models import standard_library
    from loopscope.models.train import TrainConfig, train

    torch.manual_seed(0)
    model = build("demo")
    data = standard_library(sequence_length=32)
    train(model, data, TrainConfig(steps=30, lr=0.01))
    return model, next(data.held_out(2))


def test_a_state_out_of_range_is_not_called_safe() -> None:
    model = LinearLoop(1e6)
    tokens = torch.randint(16, (1, 5), generator=torch.Generator().manual_seed(2))
    costs = rounding(model, tokens[:, :-1], tokens[:, 1:], formats=["bf16"], depths=[1, 2, 8], tolerance=1e9)
    assert math.isnan(costs.rows[-1].measured)
    assert costs.safe_depth("bf16") == 2


def test_safe_depth_ends_at_the_first_gap_above_the_tolerance() -> None:
    rows = tuple(RoundedDepth("int8", d, g, 2 * g, 0.1, 0.1) for d, g in ((1, 0.005), (2, 0.015), (4, 0.001)))
    costs = Rounding(rows, {1: 1.0, 2: 1.0, 4: 1.0})
    assert (costs.safe_depth("int8"), costs.safe_depth("int8", predicted=True)) == (1, 4)


def test_mistakes_are_named() -> None:
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="int3: not a format; choose from bf16, int8"):
        rounding(build("demo"), tokens, tokens, formats=["int3"])
    with pytest.raises(ValueError, match="depths: expected numbers of at least 1"):
        rounding(build("demo"), tokens, tokens, depths=[0])


def test_a_loop_whose_state_is_nothing_gives_no_relative_error() -> None:
    model = LinearLoop(0.5)
    with torch.no_grad():
        model.embedding.weight.zero_()
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    costs = rounding(model, tokens, tokens, formats=["int8"], depths=[1])
    assert math.isnan(costs.rows[0].measured_error) and costs.rows[0].measured == pytest.approx(0.0, abs=1e-9)
