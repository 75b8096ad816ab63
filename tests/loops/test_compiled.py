"""Hooks of a compiled module are called outside of its graph, which stays as it is without them."""

from __future__ import annotations

import copy
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.compiled import CompiledCall
from loopscope.loops.find import find_site
from loopscope.loops.hooks import LoopHooks, hook_before, hook_behind
from loopscope.loops.site import LoopSite
from torch import Tensor, nn
from torch._higher_order_ops import scan

TOKENS = torch.arange(8).reshape(2, 4)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        if h.shape[0] == 7:
            raise ValueError("seven")
        return torch.tanh(self.linear(h))


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(16, 8), Body(), nn.Linear(8, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for _ in range(3):
            h = self.body(h)
        return self.head(h)


class Graphs:
    """A backend that counts the graphs it is given, and what is in them."""

    def __init__(self) -> None:
        self.operations: list[list[str]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        self.operations.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(model: nn.Module, run: nn.Module, probe: loopscope.Probe | None, steps: int = 3) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = run(TOKENS).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if probe is not None:
            probe.step(loss=loss)
    return [*losses, *(p.detach().clone() for p in model.parameters())]


def test_hooks_around_a_compiled_module_see_and_replace_what_it_is_given_and_returns():
    body = Body()
    body.compile(backend="eager")
    own, seen = body._compiled_call_impl, []
    h = torch.ones(2, 8)
    plain = body(h)
    offs = [
        hook_before(body, lambda module, args, kwargs: seen.append((module is body, args[0] is h, kwargs))),
        hook_before(body, lambda module, args, kwargs: ((0 * args[0],), kwargs)),
        hook_before(body, lambda module, args, kwargs: seen.append("first"), prepend=True),
        hook_behind(body, lambda module, args, kwargs, output: 2 * output),
        hook_behind(body, lambda module, args, kwargs, output: seen.append(output is not None), always=True),
    ]
    assert torch.equal(body(h), 2 * torch.tanh(body.linear.bias).expand(2, 8))
    assert seen == ["first", (True, True, {}), True]
    with pytest.raises(ValueError, match="seven"):
        body(torch.ones(7, 8))
    assert seen[-1] is False  # called behind the exception, with no output
    assert copy.deepcopy(body)._compiled_call_impl is None
    for off in (*offs, *offs):
        off()
    assert body._compiled_call_impl is own and torch.equal(body(h), plain)


def test_what_was_compiled_anew_meanwhile_is_left_in_place():
    body = Body()
    body.compile(backend="eager")
    off = hook_behind(body, lambda *_: None)
    body.compile(backend="aot_eager")
    newer = body._compiled_call_impl
    off()
    assert body._compiled_call_impl is newer and not isinstance(newer, CompiledCall)


def test_the_graphs_of_a_compiled_body_are_those_without_a_probe(tmp_path: Path):
    """A bare ``nn.Linear`` is left uncompiled by Dynamo; with a hook that torch calls it would get a graph."""
    results, graphs = [], []
    for path in (None, tmp_path / "a.h5"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, backend = Looped(), Graphs()
        model.body.compile(backend=backend)
        model.head.compile(backend=backend)
        probe = None if path is None else loopscope.attach(model, path)
        results.append(train(model, model, probe))
        if probe is not None:
            probe.close()
        graphs.append(backend.operations)
    assert graphs[0] == graphs[1] and len(graphs[0]) == 1
    assert all(map(torch.equal, *results))
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3, 3, 3] and run.loops("state_norm").shape == (3, 4)


def test_a_body_that_ran_before_attaching_is_recorded_all_the_same(tmp_path: Path):
    model, backend = Looped(), Graphs()
    model.body.compile(backend=backend)
    train(model, model, None, 2)
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        train(model, model, probe)
    assert len(backend.operations) == 1  # nothing was compiled again
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3, 3, 3]


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_body_inside_a_compiled_model_is_seen_in_the_larger_graph(how: str, tmp_path: Path):
    results = []
    for path in (None, tmp_path / "a.h5"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, backend = Looped(), Graphs()
        model.body.compile(backend=backend)
        if how == "in place":
            model.compile(backend=backend)
        run = torch.compile(model, backend=backend) if how == "wrapped" else model
        probe = None if path is None else loopscope.attach(run, path)
        results.append(train(model, run, probe))
        if probe is not None:
            probe.close()
    assert all(map(torch.equal, *results))
    with loopscope.open_run(tmp_path / "a.h5") as run:
        norms = run.loops("state_norm")
    assert norms.shape == (3, 4) and bool((norms > 0).all())


def test_a_visitor_that_steers_a_compiled_body_is_gone_afterwards():
    model = Looped()
    model.body.compile(backend="eager")
    plain = model(TOKENS)
    with LoopHooks(model, LoopSite(body="body", after="head"), enter=lambda module, args, kw: ((0 * args[0],), kw)):
        assert not torch.equal(model(TOKENS), plain)
    assert torch.equal(model(TOKENS), plain)
    assert not isinstance(model.body._compiled_call_impl, CompiledCall)


class Joined(nn.Module):
    """A loop inside a part of the model, with a linear injection, and a depth that is an attribute of that part."""

    class Core(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inject, self.body, self.loops = nn.Linear(16, 8, bias=False), Body(), 3

        def forward(self, e: Tensor) -> Tensor:
            h = torch.zeros_like(e)
            for _ in range(self.loops):
                h = self.body(self.inject(torch.cat([h, e], -1)))
            return h

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.core, self.head = nn.Embedding(16, 8), self.Core(), nn.Linear(8, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.embed(tokens)))


@pytest.mark.parametrize("wrapped", [("core",), ("core.inject", "core.body"), ("core", "core.body", "head")])
def test_parts_wrapped_by_torch_compile_are_what_they_wrap(wrapped: tuple[str, ...], tmp_path: Path):
    torch.manual_seed(0)
    plain = Joined()
    model = copy.deepcopy(plain)
    for name in reversed(wrapped):
        holder, _, last = name.rpartition(".")
        setattr(model.get_submodule(holder), last, torch.compile(model.get_submodule(name), backend="eager"))
    sites = [find_site(each, None) for each in (plain, model)]
    names = [(site.modules, site.state_argument, site.input_argument, site.depth_attribute) for site in sites]
    assert names[0] == names[1] and names[0][3] == "core.loops"
    assert torch.equal(sites[0].a_bar(), sites[1].a_bar())
    radii = [loopscope.linearize(each, TOKENS).loop.radius.value for each in (plain, model)]
    assert radii[0] == pytest.approx(radii[1], abs=1e-9)
    results = []
    for each, path in ((plain, None), (model, tmp_path / "a.h5")):
        probe = None if path is None else loopscope.attach(each, path)
        results.append(train(each, each, probe))
        if probe is not None:
            probe.close()
    assert all(map(torch.equal, *results))
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3, 3, 3] and np.isfinite(run["a_bar_radius"]).all()
        assert "module_exchanged" not in [event.kind for event in run.events]


class Counted(Body):
    """A module that has a length, and so a truth that says nothing of whether it is there."""

    def __len__(self) -> int:
        return 0


class Unmeasurable(Body):
    def __len__(self) -> int:
        raise TypeError("no length")


@pytest.mark.parametrize("kind", [Counted, Unmeasurable])
def test_the_truth_of_a_module_is_never_asked_for(kind: type[Body], tmp_path: Path):
    model = Looped()
    model.body = kind()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        train(model, model, probe)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3, 3, 3]


def test_a_fault_of_the_search_costs_no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from loopscope.loops import discovery

    def fails(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(discovery, "site_of_trace", fails)
    model = Looped()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        train(model, model, probe)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert len(run["loss"]) == 3
        assert "on purpose" in next(event.message for event in run.events if event.kind == "loop_awaited")


class Breaking(Looped):
    """A graph breaks in its loop, whose body is a module of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh())

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for _ in range(3):
            h = self.body(h)
            if float(h.detach().norm()) > 1e6:
                break
        return self.head(h)


def graphs_of_breaking(watch) -> list[list[str]]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, graphs = Breaking(), Graphs()
    model.compile(backend=graphs)
    watch(model)
    model(TOKENS)
    return [operations for operations in graphs.operations if not any("loopscope" in name for name in operations)]


def test_behind_a_broken_graph_torchs_own_modules_are_left_alone_where_they_hold_our_hooks() -> None:
    without = graphs_of_breaking(lambda model: None)
    assert graphs_of_breaking(lambda model: hook_before(model.body, lambda *_: None)) == without
    assert graphs_of_breaking(lambda model: hook_behind(model.body[1], lambda *_: None)) == without


def test_where_a_user_has_hooked_such_a_module_it_goes_on_being_compiled() -> None:
    def users(model: nn.Module) -> None:
        model.body[2].register_forward_hook(lambda *_: None)

    def both(model: nn.Module) -> None:
        users(model)
        hook_behind(model.body[2], lambda *_: None)

    with_users = graphs_of_breaking(users)
    assert with_users != graphs_of_breaking(lambda model: None) and graphs_of_breaking(both) == with_users


class InAnOperator(nn.Module):
    """Loops that are one operator of torch's, and one that is not, over one module."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.embed, self.body, self.head, self.operator = (
            nn.Embedding(16, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 16),
            operator,
        )

    def inside(self, h: Tensor) -> Tensor:
        if self.operator == "scan":
            rows = h[None].expand(3, *h.shape)
            return scan(lambda c, x: (loopscope.mark(torch.tanh(self.body(c) + x), "h"), c.clone()), 0 * h, rows)[0]
        if self.operator == "cond":
            return torch.cond(h.sum() > 0, lambda h: torch.tanh(self.body(h)), lambda h: torch.sin(self.body(h)), (h,))
        weight = self.body.weight
        with torch.no_grad():
            step = lambda i, h: (i + 1, loopscope.mark(torch.tanh(h @ weight), "h"))  # noqa: E731
            return torch.while_loop(lambda i, h: i < 3, step, (torch.tensor(0), h))[1]

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.inside(self.embed(tokens))
        for _ in range(3):
            h = torch.tanh(self.body(h))
        return self.head(h)


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("operator", ["scan", "cond", "while"])
def test_a_loop_that_is_one_operator_trains_as_without_a_probe(operator: str, stated: bool, tmp_path: Path) -> None:
    ended = []
    site = LoopSite(body="body", after="head", state_argument=None, output="body") if stated else None
    for watched in (False, True):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = InAnOperator(operator)
        probe = loopscope.attach(model, tmp_path / "a.h5", site=site) if watched else None
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(TOKENS).square().mean()
            loss.backward()
            optimizer.step()
            if probe is not None:
                probe.step(loss=loss)
        ended.append([loss, *model.parameters()])
        if probe is not None:
            probe.close()
    assert all(map(torch.equal, *ended))
