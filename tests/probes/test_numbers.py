"""What a training loop hands over as a number: one that is none costs itself, by name, and nothing else."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import loopscope
import numpy as np
import pytest
import torch
from loopscope.probes import open_run
from loopscope.probes.notices import Notices
from loopscope.probes.numbers import accepted, one_number

GOOD: dict[str, tuple[Any, float]] = {
    "an integer": (3, 3.0),
    "a flag": (True, 1.0),
    "numpy's own": (np.float16(0.5), 0.5),
    "an array of one": (np.array([[2.0]]), 2.0),
    "a Decimal": (Decimal("1.25"), 1.25),
    "a Fraction": (Fraction(1, 4), 0.25),
    "a list of one": ([4.0], 4.0),
    "a tensor of one": (torch.ones(1, 1), 1.0),
    "a tensor with gradient": (torch.tensor(2.0, requires_grad=True), 2.0),
    "a bf16 tensor": (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
    "a flag tensor": (torch.tensor(True), 1.0),
    "an integer beyond float64": (10**400, math.inf),
}
ODD: dict[str, Any] = {
    "a string": "3.0",
    "bytes": b"3",
    "a complex number": 1 + 2j,
    "numpy's complex": np.complex64(1),
    "a complex tensor": torch.tensor(1 + 2j),
    "a vector": torch.ones(4),
    "an empty tensor": torch.empty(0),
    "an empty list": [],
    "an array": np.ones(3),
    "an array of words": np.array(["a"]),
    "nested lists": [[1.0, 2.0]],
    "a mapping": {"a": 1.0},
    "an object": object(),
    "a function": len,
    "a tensor on meta": torch.empty((), device="meta"),
}


@pytest.mark.parametrize("name", GOOD)
def test_one_real_number_is_taken_whatever_holds_it(name: str) -> None:
    given, expected = GOOD[name]
    assert one_number(given) == expected


def test_each_odd_one_is_refused_by_name_once_and_the_rest_is_recorded(
    demo_model: Any, tokens: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = demo_model()
    odd = {name.replace(" ", "_").replace("'", ""): value for name, value in ODD.items()}
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for _ in range(3):
            model(tokens).sum().backward()
            probe.step(loss=torch.ones(2), grad_norm="big", lr=0.1, tokens=7, nothing=None, **odd)
    with open_run(tmp_path / "a.h5") as run:
        assert (run["lr"] == 0.1).all() and (run["tokens"] == 7).all() and np.isnan(run["loss"]).all()
        assert np.isfinite(run["depth"]).all() and len(run) == 3
        refused = [event for event in run.events if event.kind == "number_refused"]
        assert {event.message.partition(" ")[0] for event in refused} == {"loss", "grad_norm", *odd}
        assert len(refused) == len(odd) + 2 and all((e.step, e.severity) == (0, "warning") for e in refused)
        assert "nothing" not in run.names
    assert sum("is not recorded" in record.message for record in caplog.records) == len(refused)


@pytest.mark.parametrize(
    ("given", "recorded", "said"),
    [
        ([0.1], 0.1, 0),
        ([0.1, 0.1], 0.1, 0),
        ((0.2, 0.1), 0.2, 1),
        ([torch.tensor(0.5)], 0.5, 0),
        ([np.float64(0.5), 0.5], 0.5, 0),
    ],
)
def test_rates_of_parameter_groups_are_the_first_ones(given: Any, recorded: float, said: int) -> None:
    events: list[Any] = []
    notices = Notices(events.append)
    for step in range(3):
        assert accepted({"lr": given}, step, notices).here == {"lr": recorded}
    assert [(event.kind, event.severity) for event in events] == [("first_group_lr", "note")] * said


@pytest.mark.parametrize("name", ["depth", "state_norm", "time", "nonfinite", "a_bar_radius", "residual_ratio"])
def test_a_measured_number_is_never_overwritten(name: str, demo_model: Any, tokens: Any, tmp_path: Path) -> None:
    model = demo_model()
    with pytest.raises(ValueError, match=f"{name}.*measures itself"):
        loopscope.attach(model, tmp_path / "a.h5", scalars=[name])
    assert not (tmp_path / "a.h5").exists()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        model(tokens, num_loops=3).sum().backward()
        probe.step(loss=1.0, **{name: -7.0})
        probe.step(loss=1.0, **{name: -7.0})  # no forward: nothing measured stands in its way
    with open_run(tmp_path / "a.h5") as run:
        assert run["depth"][0] == 3 and not (np.asarray(run["depth"]) == -7).any()
        assert all(not (np.asarray(run[column]) == -7).any() for column in ("time", "nonfinite", "a_bar_radius"))
        assert [event.message for event in run.events if event.kind == "number_refused"] == [
            f"{name} is not recorded: loopscope measures a number of this name itself; choose another name"
        ]


def test_numbers_of_a_model_that_never_gets_memory_are_recorded_and_its_loop_is_said_to_be_missing(
    demo_model: Any, tmp_path: Path
) -> None:
    model = demo_model().to("meta")
    with loopscope.attach(model, tmp_path / "a.h5", scalars=("accuracy",)) as probe:
        for step in range(3):
            lost = model(torch.zeros(2, 8, dtype=torch.int64, device="meta"), num_loops=3).logsumexp(-1).mean()
            probe.step(loss=lost if step == 2 else 3.0, accuracy=0.5)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_array_equal(run["loss"], [3.0, 3.0, np.nan])
        assert run["accuracy"].tolist() == [0.5] * 3 and np.isnan(run["depth"]).all()
        awaited = [event.message for event in run.events if event.kind == "loop_awaited"]
        assert awaited == [
            "the model is on the meta device: its loop is watched from the step on that finds it with values"
        ]
        refused = [event for event in run.events if event.kind == "number_refused"]
        assert [event.step for event in refused] == [2] and refused[0].message.startswith("loss is not recorded")
