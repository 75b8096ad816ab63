"""A matrix is A̅ only where the injection was seen to act like it; else its effect is measured, or it is missing."""

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.loops.find import find_site
from loopscope.loops.injection import verified
from loopscope.loops.site import LoopSite, Part
from loopscope.probes import open_run
from torch import nn
from torch.utils.checkpoint import checkpoint

D = 16


class Plain(nn.Linear):
    """A subclass that changes nothing."""


class Scaled(nn.Linear):
    def forward(self, x):
        return 0.5 * super().forward(x)


class ByColumn(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * torch.linspace(0.1, 2, self.in_features), self.bias)


class Unit(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True))


class LowRank(nn.Linear):
    def __init__(self, *sizes, **kw):
        super().__init__(*sizes, **kw)
        self.down, self.up = nn.Parameter(0.3 * torch.randn(3, 2 * D)), nn.Parameter(0.3 * torch.randn(D, 3))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class Noisy(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight + 0.05 * torch.randn_like(self.weight))


class Squashed(nn.Linear):
    def forward(self, x):
        return torch.tanh(super().forward(x))


class RowsQuantised(nn.Linear):
    """Rounds what it is given, each token to its own scale: no matrix does that."""

    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True) / 3
        return super().forward((x / scale.clamp(min=1e-9)).round() * scale)


class Looped(nn.Module):
    def __init__(self, adapter):
        super().__init__()
        self.embed, self.adapter = nn.Embedding(32, D), adapter
        self.block, self.head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D)), nn.Linear(D, 32)

    def forward(self, tokens, num_loops=4):
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        for _ in range(num_loops):
            h = self.adapter(torch.cat([h, e], dim=-1))
            h = h + self.block(h)
        return self.head(h)


def made(kind, **kw):
    torch.manual_seed(0)
    return Looped(kind(2 * D, D, **({"bias": False} | kw)))


def acts(model):
    """What the adapter does to unit vectors of the state."""
    with torch.no_grad():
        units = torch.eye(2 * D)[:D]
        return (model.adapter(units) - model.adapter(torch.zeros_like(units))).T


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", [nn.Linear, Plain, Scaled, ByColumn, LowRank])
def test_the_matrix_is_what_the_layer_does(kind, bias):
    model = made(kind, bias=bias)
    site = find_site(model)
    torch.testing.assert_close(site.a_bar().detach(), acts(model), rtol=1e-5, atol=1e-5)
    assert site.a_bar().requires_grad
    differs = kind not in (nn.Linear, Plain)
    assert any("not what its weight says" in note for note in site.notes) == differs


def test_normalised_and_parametrised_weights():
    model = made(Unit)
    torch.testing.assert_close(find_site(model).a_bar().detach(), acts(model), rtol=1e-5, atol=1e-5)
    model = made(nn.Linear)
    nn.utils.parametrizations.weight_norm(model.adapter)
    model.adapter.parametrizations.weight.original0.data.mul_(2)
    torch.testing.assert_close(find_site(model).a_bar().detach(), acts(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Noisy, Squashed, RowsQuantised])
def test_what_is_no_matrix_has_none(kind, tmp_path):
    model = made(kind)
    site = find_site(model)
    assert site.a_bar is None and site.b_bar is None and "A is missing" in site.notes[-1]
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        probe.step(loss=model(torch.zeros(2, 8, dtype=torch.int64)).mean())
    with open_run(tmp_path / "run.h5") as run:
        assert np.isnan(run["a_bar_radius"]).all() and run["depth"][0] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_the_precision_of_the_layer(dtype):
    model = made(nn.Linear, bias=True).to(dtype)
    site = find_site(model)
    assert not site.notes and torch.equal(site.a_bar(), model.adapter.weight[:, :D].float())
    assert any("not what its weight says" in note for note in find_site(made(Scaled).to(dtype)).notes)


@pytest.mark.parametrize("kind", [Plain, Scaled, Squashed, RowsQuantised])
def test_verifying_again_says_nothing_twice(kind):
    """A probe hands its verified site on, to the measurement of the full loop for one."""
    model = made(kind)
    once = verified(model, find_site(model))
    assert once.notes and verified(model, once).notes == once.notes


def test_a_matrix_given_by_hand_is_checked():
    model = made(nn.Linear)
    read = LoopSite(body="adapter", after="head", state_argument=Part(0, 0, D), input_argument=Part(0, D, 2 * D))

    def given(matrix):
        return verified(model, LoopSite(**{f: getattr(read, f) for f in ("body", "after", "state_argument",
                                        "input_argument")}, a_bar=matrix))  # fmt: skip

    assert not given(lambda: model.adapter.weight[:, :D]).notes
    wrong = given(lambda: model.adapter.weight[:, D:])
    torch.testing.assert_close(wrong.a_bar().detach(), model.adapter.weight[:, :D].detach())
    body = verified(model, LoopSite(body="block", after="head", a_bar=lambda: torch.eye(D)))
    assert torch.equal(body.a_bar(), torch.eye(D)) and "could not be checked" in body.notes[0]


class Wrapper(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.scale = base, nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return self.scale * self.base(x)


@pytest.mark.parametrize(
    "replace", [Wrapper, lambda old: nn.Linear(2 * D, D, bias=False)], ids=["wrapped", "exchanged"]
)
def test_a_module_exchanged_after_attaching_is_noticed(replace, tmp_path):
    model, tokens = made(nn.Linear), torch.zeros(2, 8, dtype=torch.int64)
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for step in range(6):
            if step == 3:
                model.adapter = replace(model.adapter)
            probe.step(loss=model(tokens).mean())
    truth = float(torch.linalg.eigvals(acts(model)).abs().max())
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist()[4:] == [4, 4]  # of the step of the exchange itself, what the old module saw
        assert run["a_bar_radius"][4:].tolist() == pytest.approx([truth] * 2, rel=1e-5)
        assert run["a_bar_radius"][0] != pytest.approx(truth, rel=1e-2)
        assert [event.kind for event in run.events].count("module_exchanged") == 1


def test_what_is_measured_is_recorded_beside_the_loop(tmp_path):
    """Measuring B̅ calls the module that the hooks are on, in the middle of a forward."""
    model, tokens = made(Scaled), torch.arange(16).reshape(2, 8)
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        probe.step(loss=model(tokens).mean())
    e = model.embed(tokens).detach()
    injected = model.adapter(torch.cat([torch.zeros_like(e), e], dim=-1)).detach()
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"][0] == 4 and not [event for event in run.events if event.kind == "state_missing"]
        assert run["injection_norm"][0] == pytest.approx(float(injected.norm(dim=-1).mean()), rel=1e-5)
        assert run["a_bar_radius"][0] == pytest.approx(float(torch.linalg.eigvals(acts(model)).abs().max()), rel=1e-5)


class InCheckpoints(nn.Module):
    """Every loop, or all of them, run again in backward."""

    def __init__(self, layer, whole, reentrant):
        super().__init__()
        self.embed, self.inject, self.head = nn.Embedding(32, D), layer(2 * D, D), nn.Linear(D, 32)
        self.whole, self.reentrant = whole, reentrant

    def turn(self, h, e):
        h = self.inject(torch.cat([h, e], -1))
        return h + 0.1 * torch.tanh(h)

    def turns(self, h, e, loops):
        for _ in range(loops):
            h = self.turn(h, e)
        return h

    def forward(self, tokens, num_loops=4):
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        if self.whole:
            return self.head(checkpoint(self.turns, h, e, num_loops, use_reentrant=self.reentrant))
        for _ in range(num_loops):
            h = checkpoint(self.turn, h, e, use_reentrant=self.reentrant)
        return self.head(h)


@pytest.mark.parametrize("layer", [Scaled, ByColumn, LowRank, Unit])
@pytest.mark.parametrize(("whole", "reentrant"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_measured_matrix_leaves_checkpoints_of_training_alone(layer, whole, reentrant, tmp_path):
    """It is measured within a block that a checkpoint runs again, which counts the tensors that autograd saves."""
    outcome = []
    for path in (None, tmp_path / "a.h5"):
        torch.manual_seed(0)
        model = InCheckpoints(layer, whole, reentrant)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        probe = None if path is None else loopscope.attach(model, path)
        losses = []
        for number in range(12):
            tokens = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(number))
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if probe is not None:
                probe.step(loss=loss)
        if probe is not None:
            probe.close()
        outcome.append((losses, [parameter.tolist() for parameter in model.parameters()]))
    assert outcome[0] == outcome[1]
    with open_run(tmp_path / "a.h5") as run:
        assert np.isfinite(run["a_bar_radius"]).all() and np.isfinite(run["injection_norm"][[0, 10]]).all()
