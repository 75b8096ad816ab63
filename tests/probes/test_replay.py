"""The step that went wrong is found in the data and run again, from what the flight recorder wrote."""

import math

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.probes import batch_hash, open_run, read_flight, restore_random
from loopscope.probes.flight_recorder import FOLLOWING

BAD = 47


def batch_of(step):
    return torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(step))


def one_step(model, optimizer, tokens):
    """A step with random depth and a random initial state: it draws from torch's generator."""
    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_the_step_that_went_wrong_can_be_found_and_run_again(demo_model, tmp_path):
    model = demo_model("parcae")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    began_with, losses = {}, []
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        torch.manual_seed(11)  # after attaching, as some do
        for step in range(60):
            began_with[step] = {name: p.detach().clone() for name, p in model.named_parameters()}
            loss = one_step(model, optimizer, batch_of(step))
            losses.append(float(loss))
            probe.step(loss=math.nan if step == BAD else loss)
    with open_run(tmp_path / "run.h5") as run:
        [flight] = read_flight(run)
        profile = run.loops("state_norm")[BAD]
    assert flight.alert_step == BAD
    assert [one.step for one in flight.steps] == list(range(BAD + FOLLOWING + 1))
    wanted = flight.steps[BAD]
    np.testing.assert_array_equal(wanted.loops[:, 0], profile[np.isfinite(profile)])
    [bad_step] = [step for step in range(60) if [int(batch_hash(batch_of(step)[:, :-1]))] == wanted.batch_hash.tolist()]
    assert bad_step == BAD
    again = demo_model("parcae", seed=1)
    for step in (BAD, 0):  # the first one too, whose seed was set after attaching
        again.load_state_dict(began_with[step], strict=False)
        restore_random(flight.steps[step])
        assert float(one_step(again, torch.optim.AdamW(again.parameters(), lr=0.01), batch_of(step))) == losses[step]
    measured = [one for one in flight.steps if one.parameter_norm is not None]
    assert [one.step for one in measured] == [0, 10, 20, 30, 40, 50]
    assert flight.parameter_names == tuple(began_with[0])
    for name, norm in zip(flight.parameter_names, measured[1].parameter_norm, strict=True):
        assert norm == pytest.approx(float(began_with[11][name].norm()), rel=1e-6)


def test_micro_batches_have_a_fingerprint_each(demo_model, tmp_path):
    model = demo_model("addition")
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for part in batch_of(0)[:, :-1].split(2):
            model(part, num_loops=2).sum().backward()
        probe.step(loss=math.inf)
    with open_run(tmp_path / "run.h5") as run:
        [flight] = read_flight(run)
    assert flight.steps[0].batch_hash.tolist() == [int(batch_hash(part)) for part in batch_of(0)[:, :-1].split(2)]


def test_parameters_without_a_norm_are_left_out(demo_model, tmp_path):
    model = demo_model("addition")
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))
    model.register_parameter("small", torch.nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn), requires_grad=False))
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        model(batch_of(0)[:, :-1], num_loops=2).sum().backward()
        probe.step(loss=math.inf)
    with open_run(tmp_path / "run.h5") as run:
        [flight] = read_flight(run)
    assert not {"scale", "small"} & set(flight.parameter_names)
    assert len(flight.steps[0].parameter_norm) == len(flight.parameter_names) == len(list(model.parameters())) - 2
