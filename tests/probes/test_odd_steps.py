"""One odd shape or one odd way of calling costs that number, never the recording: loss, NaN and spikes go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.probes import open_run
from loopscope.runfile.ending import ending
from torch import Tensor, nn

D, STEPS, BAD = 8, 40, 34


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(16, D), nn.Linear(D, D), nn.Linear(D, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for loop in range(4):
            h = self.between(self.body(h), loop)
        out: Tensor = self.head(h)
        return out

    def between(self, h: Tensor, loop: int) -> Tensor:
        return torch.tanh(h)


class DropsSequences(Looped):
    """Those that have halted leave the batch."""

    def between(self, h: Tensor, loop: int) -> Tensor:
        return torch.tanh(h)[: max(1, len(h) - loop)]


class PacksTokens(Looped):
    def between(self, h: Tensor, loop: int) -> Tensor:
        return torch.tanh(h)[:, : max(2, h.shape[1] - 2 * loop)]


class AddsTokens(Looped):
    """A memory that grows."""

    def between(self, h: Tensor, loop: int) -> Tensor:
        return torch.cat([torch.tanh(h), h[:, :1]], dim=1)


class Flattens(Looped):
    """From the second loop on all tokens of the batch are one sequence."""

    def between(self, h: Tensor, loop: int) -> Tensor:
        return torch.tanh(h).reshape(1, -1, D) if loop == 1 else torch.tanh(h)


class Empties(Looped):
    def between(self, h: Tensor, loop: int) -> Tensor:
        return torch.tanh(h)[:, :0] if loop == 2 else torch.tanh(h)


class OtherTypes(Looped):
    def between(self, h: Tensor, loop: int) -> Tensor:
        return torch.tanh(h).double().float() if loop else torch.tanh(h).half().float()


def plainly(model: Looped, tokens: Tensor) -> Tensor:
    loss = model(tokens).logsumexp(-1).sum() / tokens.numel()
    loss.backward()
    return loss.detach() + 2.0


def per_sample(model: Looped, tokens: Tensor) -> Tensor:
    """Gradients of every sample, as for differential privacy."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, weights, (one[None],))
        return out.logsumexp(-1).mean()

    found, _ = torch.func.vmap(torch.func.grad_and_value(loss), (None, 0))(weights, tokens)
    del found
    return torch.func.vmap(loss, (None, 0))(weights, tokens).mean()


def forward_mode(model: Looped, tokens: Tensor) -> Tensor:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    value, _ = torch.func.jvp(
        lambda w: torch.func.functional_call(model, w, (tokens,)).logsumexp(-1).mean(), (weights,), (weights,)
    )
    return value.detach()


def without_gradients(model: Looped, tokens: Tensor) -> Tensor:
    """Evolution strategies."""
    with torch.inference_mode():
        return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).clone()


WAYS: list[tuple[type[Looped], Callable[[Looped, Tensor], Tensor]]] = [
    *((kind, plainly) for kind in (DropsSequences, PacksTokens, AddsTokens, Flattens, Empties, OtherTypes)),
    *((Looped, way) for way in (per_sample, forward_mode, without_gradients)),
]


@pytest.mark.parametrize(("kind", "way"), WAYS, ids=lambda given: given.__name__)
@pytest.mark.parametrize("always", [True, False])
def test_the_recording_goes_on(
    kind: type[Looped], way: Callable[[Looped, Tensor], Tensor], always: bool, tmp_path: Path
) -> None:
    """Odd in every step, or in one of ten."""
    torch.manual_seed(0)
    model, twin = kind(), Looped()
    twin.load_state_dict(model.state_dict())
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for step in range(STEPS):
            tokens = torch.randint(0, 16, (5, 12), generator=torch.Generator().manual_seed(step))
            if always or step % 10 == 5:
                loss = way(model, tokens)
            else:
                type(model).between, kept = Looped.between, type(model).between
                loss = plainly(model, tokens)
                type(model).between = kept  # type: ignore[method-assign]
            probe.step(loss=float("nan") if step == BAD else loss * (30 if step == BAD - 2 else 1))
    with open_run(tmp_path / "a.h5") as run:
        assert run["step"].astype(int).tolist() == list(range(STEPS))
        assert np.isfinite(np.delete(run["loss"], BAD)).all()
        kinds = [event.kind for event in run.events]
        end = ending(run)
    assert end.lost_from is None and "probe_lost" not in kinds
    assert "non_finite" in kinds and "loss_spike" in kinds
