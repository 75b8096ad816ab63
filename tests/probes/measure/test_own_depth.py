"""The fixed batch where nothing sets the depth of the loop, or the loop cannot run deeper than it does in training."""

from __future__ import annotations

from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.probes import open_run
from loopscope.probes.schedule import Preset, every
from torch import Tensor, nn

D, STEPS = 12, 26
OFTEN = Preset("often", rows=every(1), spectrum=every(1), probe_batch=every(5))


class OwnLoops(nn.Module):
    """Runs a number of loops that no argument and no attribute holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(32, D), nn.Linear(D, D), nn.Linear(D, 32)

    def loops(self) -> int:
        return 9

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for loop in range(self.loops()):
            h = self.turn(h, loop)
        return self.head(h)

    def turn(self, h: Tensor, loop: int) -> Tensor:
        return torch.tanh(self.body(h))


class Embedded(OwnLoops):
    """Has an embedding for each loop: it can be asked for fewer loops, never for more."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(0.1 * torch.randn(10, D))

    def forward(self, tokens: Tensor, steps: int = 10) -> Tensor:
        h = self.embed(tokens)
        for loop in range(steps):
            h = torch.tanh(self.body(h + self.number[loop]))
        return self.head(h)


class Deepened(OwnLoops):
    """Trains deeper from its twelfth step on."""

    seen = 0

    def loops(self) -> int:
        return 9 if self.seen < 12 else 11

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return super().forward(tokens)


class Drawn(OwnLoops):
    def loops(self) -> int:
        return int(torch.randint(9, 14, ()))


class Short(OwnLoops):
    def loops(self) -> int:
        return 5


class ShortEmbedded(Embedded):
    """As deep as six loops, and said to fail beyond them, not to have no depth that can be set."""

    def forward(self, tokens: Tensor, steps: int = 6) -> Tensor:
        if steps > 7:
            raise IndexError("no such loop")
        return super().forward(tokens, steps)


class DrawnByNumpy(OwnLoops):
    def loops(self) -> int:
        return int(np.random.randint(9, 14))  # noqa: NPY002 - as users' code does


def train(kind: type[OwnLoops], path: Path | None) -> list[float]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = loopscope.attach(model, path, preset=OFTEN) if path is not None else None
    losses = []
    for number in range(STEPS):
        tokens = torch.randint(0, 32, (3, 8), generator=torch.Generator().manual_seed(number))
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if probe is not None:
            probe.step(loss=loss)
    if probe is not None:
        probe.close()
    return losses


@pytest.mark.parametrize(("kind", "depths"), [(OwnLoops, [9]), (Embedded, [10]), (Deepened, [9, 11])])
def test_it_runs_as_deep_as_the_model_does(kind: type[OwnLoops], depths: list[int], tmp_path: Path) -> None:
    assert train(kind, tmp_path / "a.h5") == train(kind, None)
    with open_run(tmp_path / "a.h5") as run:
        assert run.probe_steps.tolist() == [0, 5, 10, 15, 20, 25]
        counted = np.count_nonzero(~np.isnan(run.probe("tokens")), axis=1)
        assert len(np.unique(counted)) == len(depths) and (np.diff(counted) >= 0).all()
        assert np.isfinite(run["residual_ratio"]).any()
        (event,) = [event for event in run.events if event.kind == "fixed_batch"]
        assert event.severity == "note" and "no deeper: no way to run the loop deeper is known" in event.message
        assert "LS030" in {each.rule for each in loopscope.diagnose(run).judgements if each.state == "judged"}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Drawn, "draws random numbers"),
        (DrawnByNumpy, "draws random numbers"),
        (ShortEmbedded, "ShortEmbedded fails at 12 loops (IndexError('no such loop')), and of 6 loops"),
        (Short, "of 5 loops a pass no deeper than training would tell too little"),
    ],
)
def test_a_model_whose_passes_would_tell_nothing_is_left_alone_and_the_file_says_why(
    kind: type[OwnLoops], why: str, tmp_path: Path
) -> None:
    assert train(kind, tmp_path / "a.h5") == train(kind, None)
    with open_run(tmp_path / "a.h5") as run:
        assert not len(run.probe_steps)
        (event,) = [event for event in run.events if event.kind == "fixed_batch"]
        assert event.severity == "note" and why in event.message
        (judged,) = [each for each in loopscope.diagnose(run).judgements if each.rule == "LS030"]
        assert judged.state == "not applicable" and why in judged.reason  # the model is such: no gap of the recording


class Graph(torch.nn.Module):
    """Messages along edges: of the nodes no part can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.cell = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 4), torch.nn.GRUCell(4, 4)
        self.head, self.depth = torch.nn.Linear(4, 8), 9

    def forward(self, nodes, edges):
        h = loopscope.mark(self.embed(nodes), "h")
        for _ in range(self.depth):
            m = torch.zeros_like(h).index_add(0, edges[1], self.message(h)[edges[0]])
            h = loopscope.mark(self.cell(m, h), "h")
        return self.head(h)


def test_a_batch_that_was_given_and_cannot_be_cut_is_run_whole(tmp_path):
    model, nodes, edges = Graph(), torch.arange(6), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    with loopscope.attach(model, tmp_path / "a.h5", probe_batch=(nodes, edges)) as probe:
        model(nodes, edges).sum().backward()
        probe.step(loss=0.0)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run.probe("state_norm").size and "fixed_batch" not in [event.kind for event in run.events]


class InTraining(OwnLoops):
    """Its call nobody can guess, so its loop is found in training; a configuration holds its depth."""

    class Config:
        rows, cycles, heads = 3, 3, 3

    def __init__(self, cycles: int = 3) -> None:
        super().__init__()
        self.config = InTraining.Config()
        vars(self.config).update(rows=3, cycles=cycles, heads=3)

    def forward(self, carry: dict[str, Tensor], *, batch: dict[str, Tensor]) -> Tensor:
        h = carry["h"] + self.embed(batch["tokens"])
        for loop in range(self.config.cycles):
            h = self.turn(h, loop)
        return self.head(h)


class AtMostFive(InTraining):
    """Has room for five cycles, as a cache may."""

    def turn(self, h: Tensor, loop: int) -> Tensor:
        return super().turn(h, [0, 1, 2, 3, 4][loop])


def train_carried(model: InTraining, path: Path | None) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = None if path is None else loopscope.attach(model, path, preset=OFTEN)
    for number in range(STEPS):
        tokens = torch.randint(0, 32, (3, 8), generator=torch.Generator().manual_seed(number))
        loss = F.cross_entropy(model({"h": torch.zeros(3, 8, D)}, batch={"tokens": tokens}).mT, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if probe is not None:
            probe.step(loss=loss)
    if probe is not None:
        probe.close()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("kind", "loops", "said"),
    [
        (InTraining, 8, "the fixed batch runs 8 loops: 'config.cycles' sets the depth"),
        (AtMostFive, 0, "is not run: AtMostFive fails at 8 loops (IndexError"),
    ],
)
def test_the_first_batch_shows_what_sets_the_depth_of_a_loop_that_is_found_in_training(
    kind: type[InTraining], loops: int, said: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    plain = train_carried(kind(), None)
    torch.manual_seed(0)
    model = kind()
    watched = train_carried(model, tmp_path / "a.h5")
    assert all(map(torch.equal, plain, watched)) and vars(model.config) == {"rows": 3, "cycles": 3, "heads": 3}
    with open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3] * STEPS
        assert run.probe_steps.tolist() == ([0, 5, 10, 15, 20, 25] if loops else [])
        assert not loops or run.probe("state_norm").shape[1] == loops + 1
        (event,) = [event for event in run.events if event.kind == "fixed_batch"]
        assert event.severity == "note" and said in event.message
