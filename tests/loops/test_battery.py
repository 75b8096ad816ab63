"""Two lines record every loop of the battery as its instrumented twin sees it, and change nothing.

Every model notes its own states as it runs. The recording must have the same variables, passes and norms, from the
first step on, and training with a probe must end in the same bits as without one.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.discovery import discover
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from battery.shapes import CASES, Case, plain_call

STEPS = 3
ALL = os.environ.get("LOOPSCOPE_BATTERY", "")


def train(
    case: Case, path: Path | None, *, part: str = "", backend: str = "", low: str = ""
) -> tuple[list[Tensor], list[list[tuple[str, Tensor]]]]:
    """Losses and parameters in the end, and of every step the states that the model noted."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = case.make()
    if low == "parameters":
        model.bfloat16()
    if part == "model":
        model.compile(backend=backend)
    for name, child in list(model.named_children()) if part in ("body", "wrapped") else ():
        if not isinstance(child, nn.Embedding | nn.ModuleList | nn.ParameterList):
            if part == "body":
                child.compile(backend=backend)
            else:
                setattr(model, name, torch.compile(child, backend=backend))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    probe = None if path is None else loopscope.attach(model, path, site=case.site)
    results, seen = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low == "autocast"):
            loss = case.call(model, step)
        seen.append(list(model.seen))
        loss.backward()
        optimizer.step()
        results.append(loss.detach())
        if probe is not None:
            probe.step(loss=loss)
    if probe is not None:
        probe.close()
    return [*results, *(p.detach().clone() for p in model.parameters())], seen


def twin_of(states: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean norms of states and of the steps between them, over the tokens that move: in bfloat16 some stand still."""
    moving = [(b != a).any(-1) for a, b in pairwise(states)]
    moving = [moves if moves.any() else torch.ones_like(moves) for moves in moving]
    last = torch.ones_like(states[-1][..., 0], dtype=torch.bool)
    norms = [float(h.norm(dim=-1)[at].mean()) for h, at in zip(states, [*moving, last], strict=True)]
    steps = [float((b - a).norm(dim=-1)[at].mean()) for (a, b), at in zip(pairwise(states), moving, strict=True)]
    return np.array(norms), np.array(steps)


def check_recording(path: Path, case: Case, seen: list[list[tuple[str, Tensor]]]) -> None:
    """What a run file says of the loop equals what the model noted, step by step."""
    with loopscope.open_run(path) as run:
        said = [f"{event.kind}: {event.message}" for event in run.events]
        assert run["depth"].tolist() == [case.passes] * STEPS, (run["depth"], said)
        if len(case.variables) > 1 or run.variables:
            assert set(run.variables) == set(case.variables), (run.variables, said)
        for name in case.variables:
            where = {"variable": name} if run.variables else {}
            recorded, moved = run.loops("state_norm", **where), run.loops("residual_norm", **where)
            for step in range(STEPS):
                states = [h.double() for of, h in seen[step] if of == name]
                norms, steps = twin_of(states)
                row, gap = recorded[step], moved[step]
                first = len(row) - len(norms)  # 1 where nothing shows the value before the loop to anybody
                assert first in (0, 1) and (first == 0 or np.isnan(row[0])), (row, norms, said)
                known = ~np.isnan(row[first:])
                assert known[1:].all(), (row, norms)
                assert np.allclose(row[first:][known], norms[known], rtol=1e-6), (step, row, norms)
                kept = ~np.isnan(gap[first:-1])
                assert kept[1:].all() and np.allclose(gap[first:-1][kept], steps[kept], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loop_is_recorded_as_its_twin_notes_it_and_training_is_the_same(case: Case, tmp_path: Path) -> None:
    plain, _ = train(case, None)
    watched, seen = train(case, tmp_path / "a.h5")
    assert all(map(torch.equal, plain, watched))
    check_recording(tmp_path / "a.h5", case, seen)


# With a state or an image of their own in float32 they do not train with parameters in bfloat16, with a probe or not.
OWN_FLOAT32 = {"OneNetworkTwoVariables", "OneNetworkTwoVariables twice", "OneNetworkTwoVariables marked", "LooksAhead"}
OWN_FLOAT32 |= {"Anderson", "Anderson marked", "Slots", "Flow marked"}
LOW = [(case, low) for low in ("autocast", "parameters") for case in CASES]


@pytest.mark.parametrize(("case", "low"), LOW, ids=lambda each: each if isinstance(each, str) else each.name)
def test_the_same_in_bfloat16(case: Case, low: str, tmp_path: Path) -> None:
    if low == "parameters" and case.name in OWN_FLOAT32:
        with pytest.raises(RuntimeError):
            train(case, None, low=low)
        return
    plain, _ = train(case, None, low=low)
    watched, seen = train(case, tmp_path / "a.h5", low=low)
    assert all(map(torch.equal, plain, watched))
    check_recording(tmp_path / "a.h5", case, seen)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.call is plain_call and c.site is None], ids=lambda case: case.name
)
def test_the_passes_that_discovery_tells_of_are_those_that_run(case: Case) -> None:
    assert discover(case.make()).mean_depth == case.passes


# A case each for how a state is seen: received, returned, in turn by one network, marked, on the first batch only.
BODIES = {"Plain", "Gated", "LayerStack", "OneNetworkTwoVariables", "ManyVariables", "LooksAhead", "InDict"}
BODIES |= {"TwoLevels marked"}
FEWER = {"Plain", "Gated", "OneNetworkTwoVariables", "TwoLevels marked"}
PARTS = {"body": BODIES, "wrapped": FEWER, "model": FEWER}
COMPILED = [(case, part) for part, names in PARTS.items() for case in CASES if ALL or case.name in names]


@pytest.mark.parametrize(("case", "part"), COMPILED, ids=lambda each: each if isinstance(each, str) else each.name)
def test_the_same_with_the_body_or_the_model_compiled(case: Case, part: str, tmp_path: Path) -> None:
    """``LOOPSCOPE_BATTERY=inductor`` (or another backend) runs all of them with it; that takes minutes."""
    backend = ALL or "aot_eager"
    plain, _ = train(case, None, part=part, backend=backend)
    watched, seen = train(case, tmp_path / "a.h5", part=part, backend=backend)
    assert all(map(torch.equal, plain, watched))
    check_recording(tmp_path / "a.h5", case, seen)
