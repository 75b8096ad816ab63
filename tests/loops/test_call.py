"""The fixed batch as training calls the model: by name, with targets and masks, and where it cannot be run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.loops.call import Call
from loopscope.loops.site import LoopSiteError
from loopscope.models import build
from loopscope.probes import LoopSite, open_run
from loopscope.probes.measure.fixed_batch import POSITIONS, SEQUENCES
from loopscope.probes.schedule import inspecting
from torch import Tensor, nn

SITE = LoopSite(body="block", after="head", depth_argument="n_loops", mean_depth=3)
TOKENS = torch.randint(0, 11, (4, 80), generator=torch.Generator().manual_seed(0))


SEEN: dict[int, list[tuple[int, tuple[int, ...]]]] = {}  # outside of the model: what a look leaves in it is put back


class Looped(nn.Module):
    """What every model here shares; ``seen`` are the depths and shapes of its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.block, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        SEEN[id(self)] = []

    @property
    def seen(self) -> list[tuple[int, tuple[int, ...]]]:
        return SEEN[id(self)]

    def loop(self, tokens: Tensor, n_loops: int) -> Tensor:
        if not self.training:
            self.seen.append((n_loops, tuple(tokens.shape)))
        h = self.embed(tokens)
        for _ in range(n_loops):
            h = self.block(h)
        return self.head(h)


class WithTargets(Looped):
    def forward(self, tokens: Tensor, targets: Tensor, n_loops: int = 3) -> Tensor:
        return F.cross_entropy(self.loop(tokens, n_loops).flatten(0, 1), targets.flatten())


class NamesOnly(Looped):
    def forward(self, *, n_loops: int = 3, batch: dict[str, Tensor]) -> Tensor:
        logits = self.loop(batch["tokens"], n_loops)
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


class Masked(Looped):
    """A mask of shape (B, 1, S, S) cannot be cut beside the tokens: they are then given whole."""

    def forward(self, tokens: Tensor, n_loops: int, mask: Tensor) -> Tensor:
        logits = self.loop(tokens, n_loops)
        return (mask[:, 0] @ logits).logsumexp(-1).mean()


class Cache:
    """Something a forward might change."""


class WithCache(Looped):
    def forward(self, tokens: Tensor, cache: Any = None, n_loops: int = 3) -> Tensor:
        assert self.training or cache is None
        return self.loop(tokens, n_loops).logsumexp(-1).mean()


MASK = torch.ones(4, 1, 80, 80).tril()
CALLS = {
    "by position": (WithTargets, (TOKENS, TOKENS, 4), {}, POSITIONS),
    "by name": (WithTargets, (), {"tokens": TOKENS, "targets": TOKENS, "n_loops": 2}, POSITIONS),
    "nested": (NamesOnly, (), {"batch": {"tokens": TOKENS, "targets": TOKENS}}, POSITIONS),
    "with a mask": (Masked, (TOKENS, 3, MASK), {}, 80),
    "with a cache": (WithCache, (TOKENS, Cache()), {}, POSITIONS),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_fixed_batch_is_called_as_training_calls(name: str, tmp_path: Path) -> None:
    kind, args, kwargs, positions = CALLS[name]
    model = kind()
    with loopscope.attach(model, tmp_path / "a.h5", site=SITE, preset=inspecting(2, 4)) as probe:
        for _ in range(3):
            loss = model(*args, **kwargs)
            loss.backward()
            probe.step(loss=loss)
    with open_run(tmp_path / "a.h5") as run:
        assert len(run) == 3 and (run["depth"] > 0).all()
        assert run.probe_steps.tolist() == [0, 2] and run.probe("state_norm").shape == (2, 9)
        if name != "with a mask":
            assert np.isfinite(run["jacobian_radius"]).any()
    assert (8, (SEQUENCES, positions)) in model.seen  # trained at three; of fewer than eight a pass tells nothing


def test_an_example_by_name_finds_the_loop_and_is_the_fixed_batch(tmp_path: Path) -> None:
    model = WithTargets()
    example = {"tokens": TOKENS, "targets": TOKENS}
    assert loopscope.describe(model, example).loops == 3
    with loopscope.attach(model, tmp_path / "a.h5", probe_batch=example) as probe:
        model(TOKENS[:, :9], TOKENS[:, :9]).backward()
        probe.step()
    with open_run(tmp_path / "a.h5") as run:
        assert run.probe_steps.tolist() == [0] and run.info["linear_estimate"]["radius"] is not None
    assert (8, (SEQUENCES, 80)) in model.seen
    linearization = loopscope.linearize(model, example, num_loops=3)
    assert (
        linearization.linear is None
        and linearization.regimes["loop"] == "stable"
        and "read_out" not in linearization.verdict
    )


def test_a_model_that_fails_on_the_fixed_batch_is_recorded_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Picky(Looped):
        def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
            if not self.training:
                raise RuntimeError("I only train")
            return self.loop(tokens, n_loops).logsumexp(-1).mean()

    model = Picky()
    caplog.set_level(logging.WARNING, logger="loopscope")
    with loopscope.attach(model, tmp_path / "a.h5", site=SITE) as probe:
        for _ in range(40):
            model(TOKENS).backward()
            probe.step()
    (said,) = [message for message in caplog.messages if "fixed batch" in message]
    assert "I only train" in said and "probe_batch" in said
    with open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3.0] * 40 and not len(run.probe_steps)
        assert [(event.kind, event.severity) for event in run.events] == [("fixed_batch", "warning")]


def test_a_batch_that_holds_no_tensor_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    model = WithTargets()
    with pytest.raises(LoopSiteError, match=r"called without a tensor; give attach\(\) a probe_batch"):
        loopscope.attach(model, tmp_path / "runs" / "a.h5", site=SITE, probe_batch={"n_loops": 3})
    assert not (tmp_path / "runs").exists() and not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_that_is_given_nothing_to_run_again_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FromCache(Looped):
        def forward(self, cache: Cache, n_loops: int = 3) -> Tensor:
            return self.loop(TOKENS, n_loops).logsumexp(-1).mean()

    model = FromCache()
    with loopscope.attach(model, tmp_path / "a.h5", site=SITE) as probe:
        for _ in range(21):
            model(Cache()).backward()
            probe.step()
    (said,) = [message for message in caplog.messages if "fixed batch" in message]
    assert "called without a tensor" in said
    with open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3.0] * 21 and not len(run.probe_steps)


def test_cutting_keeps_what_is_not_the_batchs() -> None:
    call = Call((TOKENS, 3), {"weights": torch.ones(5), "mask": [torch.ones(4, 80), None], "on": True})
    cut = call.cut(2, 16)
    assert cut.args[0].shape == (2, 16) and cut.args[1] == 3 and cut.kwargs["on"] is True
    assert cut.kwargs["weights"].shape == (5,) and cut.kwargs["mask"][0].shape == (2, 16)
    kept = cut.kept()
    kept.args[0].fill_(0)
    assert TOKENS[:2, :16].any()
    with pytest.raises(LoopSiteError, match="a Cache, which a run on the side might change"):
        Call((TOKENS, Cache()), {}).kept()


class Pair(NamedTuple):
    first: Tensor
    second: tuple[Tensor, int]


@dataclass
class Inner:
    z: Tensor
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Frozen:
    mask: Tensor
    kind: torch.dtype = torch.float32


@dataclass
class Carry:
    """As a model of recursive reasoning hands it from step to step: dataclasses in a dataclass, tensors in a dict."""

    inner: Inner
    frozen: Frozen
    steps: Tensor
    data: dict[str, Tensor]
    total: int = field(init=False, default=0)


@dataclass
class CountsItself(Carry):
    """A dataclass that keeps more than its fields: a copy of the fields is no copy of it."""

    def __post_init__(self) -> None:
        self.calls: list[int] = []


def carried() -> Carry:
    return Carry(Inner(torch.ones(4, 6)), Frozen(torch.ones(4)), torch.zeros(4), {"tokens": TOKENS})


def test_named_tuples_and_dataclasses_are_cut_and_copied() -> None:
    carry, pair = carried(), Pair(torch.ones(4, 80), (torch.ones(3), 5))
    call = Call((), {"carry": carry, "pair": pair})
    assert call.tokens is carry.inner.z
    cut = call.cut(2)
    assert type(cut.kwargs["carry"]) is Carry and type(cut.kwargs["pair"]) is Pair
    small = cut.kwargs["carry"]
    assert small.inner.z.shape == (2, 6) and small.inner.ready and small.total == 0
    assert small.frozen.mask.shape == (2,) and small.frozen.kind is torch.float32 and type(small.frozen) is Frozen
    assert small.data["tokens"].shape == (2, 80) and cut.kwargs["pair"].second[0].shape == (3,)
    kept = call.kept()
    for tensor in (kept.kwargs["carry"].inner.z, kept.kwargs["carry"].data["tokens"], kept.kwargs["pair"].first):
        tensor.fill_(7)
    kept.kwargs["carry"].inner.ready = False
    assert carry.inner.z.eq(1).all() and carry.inner.ready and pair.first.eq(1).all() and not TOKENS.eq(7).all()


def test_a_dataclass_with_more_than_its_fields_is_refused() -> None:
    inside = carried()
    other = CountsItself(inside.inner, inside.frozen, inside.steps, inside.data)
    with pytest.raises(LoopSiteError, match="a CountsItself, which a run on the side might change"):
        Call((other,), {"tokens": TOKENS}).kept()


class Carries(Looped):
    """The state comes and goes in a dataclass."""

    def forward(self, carry: Inner, batch: Pair, n_loops: int = 3) -> tuple[Inner, Tensor]:
        h = carry.z[:, :1, None] + self.embed(batch.first)
        for _ in range(n_loops):
            h = self.block(h)
        return Inner(h[..., 0].detach()), self.head(h).logsumexp(-1).mean()


def test_a_fixed_batch_with_a_carry(tmp_path: Path) -> None:
    model, batch = Carries(), Pair(TOKENS, (TOKENS, 5))
    given = {"carry": Inner(torch.zeros(4, 80)), "batch": batch}
    with loopscope.attach(model, tmp_path / "a.h5", site=SITE, probe_batch=given) as probe:
        carry = given["carry"]
        for _ in range(3):
            carry, loss = model(carry, batch)
            loss.backward()
            probe.step(loss=loss)
    with open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3.0] * 3 and len(run.probe_steps)
    assert not given["carry"].z.any()


def test_depth_is_exchanged_however_it_was_given() -> None:
    model = WithTargets()
    expected = model(TOKENS, TOKENS, 5)
    for args, kwargs in (((TOKENS, TOKENS, 2), {}), ((TOKENS, TOKENS), {"n_loops": 2}), ((TOKENS, TOKENS), {})):
        assert torch.equal(Call(args, kwargs).run(model, n_loops=5), expected)


class OfOneBatch(WithTargets):
    """Takes a mapping as its one argument."""

    def forward(self, batch: dict[str, Tensor], *, scale: float = 1.0) -> Tensor:
        return scale * super().forward(batch["tokens"], batch["targets"])


@pytest.mark.parametrize(
    ("model", "args", "kwargs"),
    [
        (WithTargets(), (TOKENS, TOKENS), {}),
        (WithTargets(), (TOKENS,), {"targets": TOKENS}),
        (WithTargets(), (), {"tokens": TOKENS, "targets": TOKENS}),
        (WithTargets(), ({"tokens": TOKENS, "targets": TOKENS},), {}),
        (WithTargets(), ((TOKENS, TOKENS),), {}),
        (OfOneBatch(), ({"tokens": TOKENS, "targets": TOKENS},), {}),
        (OfOneBatch(), ({"tokens": TOKENS, "targets": TOKENS},), {"scale": 2.0}),
        (OfOneBatch(), (), {"batch": {"tokens": TOKENS, "targets": TOKENS}}),
    ],
)
def test_describe_takes_a_call_as_it_is_made(model: nn.Module, args: tuple, kwargs: dict) -> None:
    assert loopscope.describe(model, *args, **kwargs).loops == 3


def test_a_description_and_a_probe_show_themselves_in_a_notebook(tmp_path):
    model = build("demo", injection="parcae", width=8, heads=1, mlp_width=16)
    described = loopscope.describe(model)
    assert repr(described) == str(described) and repr(described).startswith("LoopedTransformer: a loop")
    assert repr(loopscope.describe(nn.Linear(2, 2), torch.zeros(1, 2))).startswith("Linear does not state")
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        assert repr(probe) == f"Probe({str(tmp_path / 'a.h5')!r}, open, next step 0)"
    assert "closed" in repr(probe)
