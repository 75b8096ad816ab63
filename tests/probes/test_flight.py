"""The flight recorder: what it keeps, when it writes, that it is bounded, and that a step can be run again."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from loopscope.probes.flight_recorder import CAPACITY, FOLLOWING, MAX_FLIGHTS, FlightRecorder
from loopscope.probes.measure.sums import LoopSums
from loopscope.probes.random_states import RandomReader, random_states, restore_random
from loopscope.probes.recorder import Record, Recorder
from loopscope.runfile.flights import FlightStep, find_flights, read_flight
from loopscope.runfile.layout import Event
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

NAMES = ["embed", "core.weight", "head"]


def three_loops() -> tuple[np.ndarray, np.ndarray]:
    """The rows of three loops over 8 tokens, as a tap hands them over."""
    sums = LoopSums(4, torch.device("cpu"))
    sums.begin()
    for size in (2.0, 2.5, 3.0, 3.5):
        sums.add(torch.tensor([[[size, 0.0]]]).expand(1, 8, 2))
    return sums.device_rows()["sums"].numpy(), sums.counts


SUMS, COUNTS = three_loops()


def alert(step: int) -> Event:
    return Event(step, 0.0, "loss_spike", "warning")


def drive(path: Path, losses: dict[int, float], *, resume: bool = False, random_too: bool = False) -> None:
    """Records one step per loss through a real recorder, as a probe does."""
    info = {"parameter_names": NAMES}
    recorder = Recorder(path, info=info, scalars=("mine",), resume=resume, overwrite=False)
    for step, loss in losses.items():
        given = FlightStep(
            parameter_norm=np.arange(3, dtype=np.float32) + step if step % 10 == 0 else None,
            batch_hash=np.array([step, -step]),
            random=random_states() if random_too else {},
        )
        recorder.put(Record(step, 1e9 + step, {"loss": loss, "mine": float(step)}, SUMS, COUNTS, flight=given))
        if step % 100 == 0:
            recorder.flush()
    recorder.close()


def spiking(steps: range, *at: int) -> dict[int, float]:
    return {step: 50.0 if step in at else 3.0 + 0.001 * (step % 3) for step in steps}


def test_an_alert_writes_the_steps_before_it_and_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    drive(path, spiking(range(200), 100), random_too=True)
    with open_run(path) as run:
        (flight,) = read_flight(run)
        assert [step.step for step in flight.steps] == list(range(101 - CAPACITY, 101 + FOLLOWING))
        assert flight.number == flight.generation == 0 and flight.alert_step == 100
        assert [event.kind for event in flight.alerts] == ["loss_spike"] and flight.parameter_names == tuple(NAMES)
        for step in flight.steps:
            row = int(np.flatnonzero(run["step"] == step.step)[0])
            assert step.loops is not None and step.batch_hash is not None
            assert np.array_equal(step.loops[:, 0], run.loops("state_norm")[row])
            assert {name: value for name, value in step.scalars.items() if name in ("loss", "mine", "depth")} == {
                "loss": run["loss"][row],
                "mine": step.step,
                "depth": 3.0,
            }
            assert step.batch_hash.dtype == np.int64 and step.batch_hash.tolist() == [step.step, -step.step]
            if step.step % 10:
                assert step.parameter_norm is None
            else:
                assert np.array_equal(step.parameter_norm, np.arange(3) + step.step)
            assert {"python", "numpy", "torch"} <= set(step.random)
        (event,) = (event for event in run.events if event.kind == "flight")
        assert event.step == 100 and event.severity == "note" and event.time == 1e9 + 100
        assert event.message == (
            "flight 0: 64 steps, 37 to 100, and the 8 after are kept at full detail because of loss_spike"
        )
        (listed,) = find_flights(run)  # the same without the detail
        assert [step.step for step in listed.steps] == [step.step for step in flight.steps]
        assert (listed.alert_step, listed.alerts) == (100, flight.alerts) and listed.steps[0].random == {}


def test_the_format_page_names_every_array(tmp_path: Path) -> None:
    drive(tmp_path / "a.h5", spiking(range(40), 30), random_too=True)
    page = (Path(__file__).parents[2] / "docs" / "run-file.md").read_text(encoding="utf-8")
    with open_run(tmp_path / "a.h5") as run:
        assert len(run.array_names) >= 8 and all(f"| `{name}`" in page for name in run.array_names)


def test_a_run_without_alerts_or_without_flight_steps_holds_none(tmp_path: Path) -> None:
    drive(tmp_path / "a.h5", spiking(range(50)))
    recorder = Recorder(tmp_path / "b.h5", info={}, scalars=(), resume=False, overwrite=False)
    for step, loss in spiking(range(50), 40).items():
        recorder.put(Record(step, 0.0, {"loss": loss}))
    recorder.close()
    for name in ("a.h5", "b.h5"):
        with open_run(tmp_path / name) as run:
            assert read_flight(run) == [] and run.array_names == ()


def test_no_step_is_written_twice_and_alerts_that_follow_belong_to_the_same_flight(tmp_path: Path) -> None:
    recorder = FlightRecorder(capacity=5)
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(60):
            events = [alert(step)] if step in (20, 22, 28, 31, 50) else [Event(step, 0.0, "note", "note")]
            recorder.record(writer, FlightStep(step=step), events)
    with open_run(writer.path) as run:
        flights = read_flight(run)
        # 22 and 28 are among the eight steps after 20; 31 comes when two steps are in the ring again.
        assert [flight.alert_step for flight in flights] == [20, 31, 50]
        assert [[s.step for s in f.steps] for f in flights] == [[*range(16, 29)], [*range(29, 40)], [*range(46, 59)]]
        assert np.all(np.diff([array.step for array in run.array_history("flight.alert")]) > 0)


def test_a_run_holds_a_bounded_number_of_flights(tmp_path: Path) -> None:
    recorder = FlightRecorder(capacity=2)
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(1000):
            recorder.record(writer, FlightStep(step=step), [alert(step)] if step % 20 == 19 else [])
    with open_run(writer.path) as run:
        flights = read_flight(run)
        assert [flight.number for flight in flights] == list(range(MAX_FLIGHTS))
        assert [step.step for step in flights[-1].steps] == [318, 319, *range(320, 328)]  # complete
        said = [event.message for event in run.events if event.kind == "flight"]
        assert len(said) == MAX_FLIGHTS and ["last of this run" in message for message in said] == [False] * 15 + [True]
    assert not recorder._ring


def test_a_resumed_run_starts_with_an_empty_ring_and_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    drive(path, spiking(range(60), 50))
    drive(path, spiking(range(45, 80), 52), resume=True)  # back to before the alert
    with open_run(path) as run:
        first, second = read_flight(run)
        assert (first.generation, first.alert_step, first.alerts) == (0, 50, ())  # that step was run again
        assert [step.step for step in first.steps] == list(range(59))  # kept all the same
        assert (second.number, second.generation, second.alert_step) == (1, 1, 52)
        assert [step.step for step in second.steps] == list(range(45, 61))
        assert [event.kind for event in second.alerts] == ["loss_spike"]
        # Every step once, and none that was superseded, for those who do not care about flights.
        assert run.arrays("flight.batch_hash")[0].tolist() == list(range(61))


def test_the_limit_counts_over_resumes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    recorder = FlightRecorder(capacity=1)
    with RunWriter.create(path, info={}) as writer:
        for step in range(15 * 10):
            recorder.record(writer, FlightStep(step=step), [alert(step)] if step % 10 == 0 else [])
    drive(path, spiking(range(150, 400), 200, 250, 300), resume=True)
    with open_run(path) as run:
        assert [flight.number for flight in read_flight(run)] == list(range(16))


def test_a_flight_that_cannot_be_written_costs_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(tmp_path / "a.h5", info={}, scalars=(), resume=False, overwrite=False)
    wrong = FlightStep(random={"torch": np.array(["no state"])})
    with caplog.at_level(logging.ERROR, "loopscope"):
        for step, loss in spiking(range(60), 30, 50).items():
            recorder.put(Record(step, 0.0, {"loss": loss}, flight=wrong))
        recorder.close()
    assert sum("flight recorder failed" in record.message for record in caplog.records) == 1
    with open_run(tmp_path / "a.h5") as run:
        assert len(run) == 60 and run.state == "finished"
        assert [event.step for event in run.events if event.kind == "loss_spike"] == [30, 50]


def draws() -> list[object]:
    """Some of everything, a stored Gaussian included."""
    return [
        random.random(), random.gauss(0, 1), random.getrandbits(77), np.random.rand(3).tolist(),  # noqa: NPY002
        np.random.randn(), torch.rand(5).tolist(), torch.randn(3).tolist(), torch.randperm(9).tolist(),  # noqa: NPY002
    ]  # fmt: skip


@pytest.mark.parametrize("stored", [0, 1])
def test_a_recorded_step_draws_the_same_numbers_again(tmp_path: Path, stored: int) -> None:
    random.seed(3), np.random.seed(4), torch.manual_seed(5)  # noqa: NPY002
    for _ in range(stored):  # leaves the second number of a Gaussian pair in store
        random.gauss(0, 1), np.random.randn()  # noqa: NPY002
    before = random_states()
    assert [np.isnan(before[name][-1]) for name in ("python", "numpy")] == [not stored] * 2
    drawn = draws()
    recorder = FlightRecorder()
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        recorder.record(writer, FlightStep(step=7, random=before), [alert(7)])
    draws()
    with open_run(writer.path) as run:
        (step,) = read_flight(run)[0].steps
    assert set(restore_random(step)) == set(before)
    assert draws() == drawn


def test_taking_the_states_draws_nothing() -> None:
    first = random_states()
    second = random_states()
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_reader_that_skips_generators_at_rest_sees_every_draw() -> None:
    reader = RandomReader()
    draws = [
        lambda: None,
        lambda: np.random.randn(),  # noqa: NPY002 - every second one takes the number in store and draws no word
        lambda: np.random.rand(),  # noqa: NPY002
        lambda: np.random.seed(3),  # noqa: NPY002
        random.random,
        lambda: random.gauss(0, 1),
        lambda: random.seed(5),
        lambda: torch.rand(1),
    ]
    order = np.random.default_rng(0)
    for _ in range(300):
        draws[order.integers(len(draws))]()
        seen, true = reader.read(), random_states()
        assert seen.keys() == true.keys()
        assert all(seen[name].tobytes() == true[name].tobytes() for name in true)


def test_states_of_devices_that_are_not_here_are_left_out_and_none_at_all_is_an_error() -> None:
    states = random_states() | {"cuda99": np.zeros(16, np.uint8)}
    assert "cuda99" not in restore_random(FlightStep(random=states))
    with pytest.raises(ValueError, match="step 5 was recorded without random states"):
        restore_random(FlightStep(step=5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_states_of_cuda_devices_are_kept_without_waiting_for_them() -> None:
    torch.rand(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        states = random_states()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    drawn = torch.rand(5, device="cuda").tolist()
    restore_random(FlightStep(random=states))
    assert torch.rand(5, device="cuda").tolist() == drawn
