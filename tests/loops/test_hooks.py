"""Hooks leave nothing in a copy, a pickle, a saved or a traced model, and a visitor sees each place once."""

from __future__ import annotations

import copy
import pickle
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import loopscope
import pytest
import torch
from loopscope.loops.hooks import Hook, LoopHooks, state_in
from loopscope.loops.site import LoopSite
from torch import nn

TOKENS = torch.zeros(1, 4, dtype=torch.int64)


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)

    def forward(self, tokens: torch.Tensor, n_loops: int = 3) -> torch.Tensor:
        h = self.embed(tokens)
        for _ in range(n_loops):
            h = self.block(h)
        return self.head(h)


def test_a_visitor_sees_every_place_in_order_and_is_gone_afterwards() -> None:
    model, seen = Looped(), []
    places = {
        name: lambda *given, name=name: seen.append((name, len(given))) for name in ("begin", "enter", "after", "end")
    }
    with LoopHooks(model, LoopSite(body="block", after="head"), **places):
        model(TOKENS, n_loops=2)
    assert seen == [("begin", 3), ("enter", 3), ("enter", 3), ("after", 3), ("end", 4)]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_state_is_seen_where_it_is_returned_if_the_site_says_so() -> None:
    model, seen = Looped(), []
    site = LoopSite(body="block", after="head", output="block")
    with LoopHooks(model, site, returned=lambda *_: seen.append("returned"), after=lambda *_: seen.append("after")):
        model(TOKENS)
    assert seen == ["returned"] * 3


def test_what_enter_returns_replaces_the_state() -> None:
    model = Looped()
    with LoopHooks(model, LoopSite(body="block", after="head"), enter=lambda module, args, kw: ((0 * args[0],), kw)):
        assert torch.equal(model(TOKENS), model.head(model.block.bias.expand(1, 4, 4)))
    assert state_in([TOKENS, None]) is TOKENS


@pytest.mark.parametrize("how", ["save", "pickle", "deepcopy"])
def test_a_copy_of_a_watched_model_knows_nothing_of_us(how: str, tmp_path: Path) -> None:
    model = Looped()
    right = model(TOKENS)
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        if how == "save":
            torch.save(model, tmp_path / "m.pt")
            with zipfile.ZipFile(tmp_path / "m.pt") as file:
                written = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
            copied = torch.load(tmp_path / "m.pt", weights_only=False)
        elif how == "pickle":
            written = pickle.dumps(model)
            copied = pickle.loads(written)  # noqa: S301 - written one line above
        else:
            copied, written = copy.deepcopy(model), pickle.dumps(Looped())
        assert not [arg for _, arg, _ in pickletools.genops(written) if "loopscope" in str(arg)]
        assert torch.equal(copied(TOKENS), right)
        probe.step()
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert not (run["depth"] > 0).any()  # the copy did not record into the run of the original


class Marked(Looped):
    """Two variables, one of which is named by hand."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        e = self.embed(tokens)
        y, z = torch.zeros_like(e), torch.zeros_like(e)
        for _ in range(3):
            z = loopscope.mark(torch.tanh(self.block(z + y + e)), "z")
            y = loopscope.mark(torch.tanh(self.block(y + z)), "y")
        return self.head(y)


class Unfound(Looped):
    """Its loop is looked for as long as none is seen."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(tokens)))


class Compared(Looped):
    """Draws its depth itself, so that its A̅ is compared in training, by hooks that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        for _ in range(int(torch.randint(2, 4, ()))):
            h = torch.tanh(self.block(self.mix(torch.cat([h, e], -1))))
        return self.head(h)


@pytest.mark.parametrize("preset", ["watch", "inspect", "study"])
@pytest.mark.parametrize("kind", [Looped, Marked, Unfound, Compared])
def test_whatever_is_watched_nothing_of_it_is_saved_with_the_model(
    kind: type[Looped], preset: str, tmp_path: Path
) -> None:
    model = kind()
    with loopscope.attach(model, tmp_path / "a.h5", preset=preset) as probe:
        for step in range(3):
            before = pickle.dumps(model)
            loss = model(TOKENS).sum()
            during = pickle.dumps(model)
            loss.backward()
            probe.step(loss=loss)
            for written in (before, during):
                assert not [arg for _, arg, _ in pickletools.genops(written) if "loopscope" in str(arg)], step
        copied = copy.deepcopy(model)
    assert copied(TOKENS).shape == (1, 4, 9)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_saved_model_loads_where_loopscope_is_not_installed(tmp_path: Path) -> None:
    """In another process that cannot import it; the model's class is given to it by its source."""
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.block, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)\n"
        "    def forward(self, tokens):\n"
        "        h = self.embed(tokens)\n"
        "        for _ in range(3):\n"
        "            h = self.block(h)\n"
        "        return self.head(h)\n",
        encoding="utf-8",
    )
    saves = (
        "import sys; sys.path.insert(0, '.'); import torch, loopscope, mine\n"
        "model = mine.Mine(); probe = loopscope.attach(model, 'a.h5'); torch.save(model, 'm.pt'); probe.close()\n"
    )
    loads = (
        "import sys; sys.path.insert(0, '.'); sys.modules['loopscope'] = None; import torch\n"
        "model = torch.load('m.pt', weights_only=False); print(tuple(model(torch.arange(4)[None]).shape))\n"
    )
    for code in (saves, loads):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 4, 9)"


def test_a_watched_model_is_traced_as_if_it_were_not(tmp_path: Path) -> None:
    model = Looped()
    with loopscope.attach(model, tmp_path / "a.h5"):
        traced = torch.jit.trace(model, TOKENS)
    assert torch.equal(traced(TOKENS), model(TOKENS)) and "loopscope" not in str(traced.graph)


@pytest.mark.parametrize("place", ["forward_pre", "forward"])
@pytest.mark.parametrize("kwargs", [True, False])
def test_a_hook_that_is_taken_off_in_the_call_under_way_does_nothing(place: str, kwargs: bool) -> None:
    """Torch goes on to it, and has forgotten that it takes keywords."""
    model, seen = Looped(), []
    register = {"forward_pre": nn.Module.register_forward_pre_hook, "forward": nn.Module.register_forward_hook}[place]

    def first(*given: object) -> None:
        handle.remove()

    takes = {
        ("forward_pre", True): lambda module, args, kwargs: seen.append(args),
        ("forward", True): lambda module, args, kwargs, output: seen.append(args),
        ("forward_pre", False): lambda module, args: seen.append(args),
        ("forward", False): lambda module, args, output: seen.append(args),
    }
    register(model.block, first)
    handle = register(model.block, Hook(takes[place, kwargs]), with_kwargs=kwargs)
    model(TOKENS, n_loops=3)
    assert len(seen) == (0 if kwargs else 1)
