"""Faults in the life of a recording: whatever dies, no file claims more than happened, and training goes on.

Each case says what is in the file afterwards: its state, the reason it gives, the steps it holds, and from where on the
loop is missing. Deaths of a process are real deaths of a child process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loopscope
import numpy as np
import pytest
import torch
from loopscope.probes import Probe, open_run
from loopscope.probes import recorder as recording
from loopscope.runfile import writer as writing
from loopscope.runfile.disk import layouts
from loopscope.runfile.disk.handle import LOCK
from loopscope.runfile.ending import KILLED, Ending, ending
from loopscope.runfile.staging import Table

STEPS = 8
DIES_AT = 3


def steps_of(probe: Probe, model: torch.nn.Module, tokens: torch.Tensor, count: int, **numbers: Any) -> None:
    for _ in range(count):
        loss = model(tokens, num_loops=2).logsumexp(-1).mean()
        loss.backward()
        probe.step(loss=loss, lr=0.1, **numbers)


def read(path: Path) -> tuple[Ending, list[int]]:
    """How the run in a file ended, and the steps it holds."""
    with open_run(path) as run:
        return ending(run), run["step"].astype(int).tolist()


def kinds(path: Path) -> list[str]:
    with open_run(path) as run:
        return [event.kind for event in run.events]


def boom(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("on purpose")


# -- what fails inside the probe ---------------------------------------------------------------------------------------


def in_hook(probe: Probe, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(probe._watch.tap.sums, "add", boom)


def in_matrices(probe: Probe, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(probe._watch._reader, "read", boom)


def in_rows(probe: Probe, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(probe._watch.tap.sums, "device_rows", boom)


def in_random_states(probe: Probe, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("loopscope.probes.random_states.RandomReader.read", boom)


def in_sending(probe: Probe, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("loopscope.probes.row_sender.LoopOnItsWay.of", boom)


def in_arriving(probe: Probe, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("loopscope.probes.row_sender.LoopOnItsWay.added_to", boom)


@pytest.mark.parametrize("break_", [in_matrices, in_rows, in_random_states, in_sending, in_arriving])
def test_a_lost_loop_is_dated_and_the_trainings_numbers_go_on(
    break_: Callable[..., None], demo_model: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        steps_of(probe, model, tokens, DIES_AT)
        break_(probe, monkeypatch)
        steps_of(probe, model, tokens, STEPS - DIES_AT)
        probe.step(loss=float("nan"), lr=0.1)
    end, steps = read(tmp_path / "a.h5")
    assert end.state == "finished" and end.lost_from in (DIES_AT, DIES_AT + 1) and "on purpose" in end.lost_reason
    with open_run(tmp_path / "a.h5") as run:
        loops = {int(step): bool(np.isfinite(depth)) for step, depth in zip(run["step"], run["depth"], strict=True)}
        assert np.isfinite(run["loss"][:-1]).all() and (run["lr"] == 0.1).all()
        dropped = int(run["rows_dropped"][-1])
    # Every step has a row, but for one whose row was on its way when it broke; that one is counted.
    assert len(steps) == STEPS + 1 - dropped and dropped <= 1
    assert all(loops[step] for step in range(DIES_AT)) and not any(loops[s] for s in steps if s > end.lost_from)
    assert "non_finite" in kinds(tmp_path / "a.h5")


def test_states_that_no_hook_can_read_are_missing_and_no_gate_takes_them_for_stable(
    demo_model: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopscope.gate.check import check_runs

    model = demo_model()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        in_hook(probe, monkeypatch)
        steps_of(probe, model, tokens, 40)
    end, steps = read(tmp_path / "a.h5")
    assert end.state == "finished" and steps == list(range(40)) and "state_missing" in kinds(tmp_path / "a.h5")
    with open_run(tmp_path / "a.h5") as run:
        assert np.isfinite(run["loss"]).all() and not np.isfinite(run.loops("state_norm")).any()
    assert check_runs([tmp_path / "a.h5"]).exit_code != 0


def test_a_loss_that_spikes_after_the_loop_was_lost_is_an_event(
    demo_model: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        in_rows(probe, monkeypatch)
        model(tokens)
        for step in range(40):
            probe.step(loss=30.0 if step == 35 else 3.0)
    assert ("loss_spike", 35) in [(event.kind, event.step) for event in open_run(tmp_path / "a.h5").events]
    assert read(tmp_path / "a.h5")[0].lost_from == 0


# -- what fails in the recorder's thread -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loop_means", "LTISystem"])
def test_a_record_that_cannot_be_worked_out_costs_its_part(
    where: str, demo_model: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model("parcae")
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        monkeypatch.setattr(recording, where, boom)
        steps_of(probe, model, tokens, STEPS)
    end, steps = read(tmp_path / "a.h5")
    assert end.state == "finished" and steps == list(range(STEPS))
    assert kinds(tmp_path / "a.h5").count("step_incomplete") == 1
    with open_run(tmp_path / "a.h5") as run:
        assert np.isfinite(run["loss"]).all()
        assert np.isfinite(run["depth"]).all() == (where != "loop_means")


@pytest.mark.parametrize("where", ["_take", "_answer"])
def test_a_thread_that_dies_leaves_an_interrupted_run_and_says_why(
    where: str, demo_model: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model()
    probe = loopscope.attach(model, tmp_path / "a.h5")
    steps_of(probe, model, tokens, DIES_AT)
    assert probe.flush()
    monkeypatch.setattr(probe._recorder, where, boom)
    steps_of(probe, model, tokens, STEPS - DIES_AT)
    assert not probe.flush() and not probe.flush()
    probe.close()
    end, steps = read(tmp_path / "a.h5")
    assert end.state == "interrupted" and "on purpose" in end.reason
    assert steps[:DIES_AT] == list(range(DIES_AT))


@pytest.mark.parametrize("when", ["flush", "seal"])
def test_a_disk_that_fails_is_not_called_written(
    when: str, demo_model: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model()
    probe = loopscope.attach(model, tmp_path / "a.h5")
    steps_of(probe, model, tokens, DIES_AT)
    assert probe.flush()
    monkeypatch.setattr(Table, "write", boom)
    steps_of(probe, model, tokens, STEPS - DIES_AT)
    if when == "flush":
        assert not probe.flush()
    probe.close()
    end, steps = read(tmp_path / "a.h5")
    assert (end.state, steps) == ("interrupted", list(range(DIES_AT)))


def test_a_seal_that_fails_leaves_a_whole_finished_run(
    demo_model: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model()
    probe = loopscope.attach(model, tmp_path / "a.h5")
    steps_of(probe, model, tokens, STEPS)
    monkeypatch.setattr(layouts, "copy_run", boom)
    probe.close()
    end, steps = read(tmp_path / "a.h5")
    assert (end.state, steps) == ("finished", list(range(STEPS)))  # every row was published before


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that does not answer from now on; set the event to let it go on."""
    answers = threading.Event()
    write = Table.write

    def wait(table: Table) -> None:
        answers.wait(20)
        write(table)

    monkeypatch.setattr(recording, "CLOSE_PATIENCE", 0.3)
    monkeypatch.setattr(recording, "FLUSH_PATIENCE", 0.3)
    yield monkeypatch.setattr(Table, "write", wait) or answers
    answers.set()


def test_close_and_flush_on_a_hung_disk_end_and_a_fork_does_not_wait(
    hung: threading.Event, demo_model: Any, tokens: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = demo_model()
    probe = loopscope.attach(model, tmp_path / "a.h5")
    steps_of(probe, model, tokens, STEPS)
    began = time.monotonic()
    assert not probe._recorder.flush(0.2)
    child = os.fork()  # in the middle of a flush, whose lock is held
    if not child:
        os._exit(0 if LOCK.__enter__() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    probe.close()
    assert time.monotonic() - began < 10
    assert "does not answer" in caplog.text
    hung.set()
    probe._recorder._thread.join(20)
    end, _ = read(tmp_path / "a.h5")
    assert end.state == "interrupted" and "did not answer" in end.reason


FULL = """
p = loopscope.attach(model, path); train(p)
room = os.statvfs(os.path.dirname(path))
with open(path + ".others", "wb") as others:
    others.write(bytes(room.f_bavail * room.f_frsize - (1 << 20)))  # half of the reserve is left
train(p)
assert not p.flush()
p.close()
print("training went on")
"""


def test_a_full_disk_says_so_in_its_file(small_disk: Path) -> None:
    command = [sys.executable, "-c", CHILD + FULL, str(small_disk / "a.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "training went on\n"), done.stderr
    end, steps = read(small_disk / "a.h5")
    assert (end.state, steps) == ("interrupted", [0, 1, 2, 3])
    assert "the disk stayed full, 4 steps were not recorded" in end.reason


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_went_away_is_noticed(
    how: str, demo_model: Any, tokens: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = demo_model(), tmp_path / "a.h5"
    probe = loopscope.attach(model, path)
    steps_of(probe, model, tokens, DIES_AT)
    assert probe.flush()
    path.unlink()
    if how == "replaced":
        path.write_bytes(b"somebody else's")
    steps_of(probe, model, tokens, DIES_AT)
    assert not probe.flush() and not probe.flush()
    probe.close()
    assert caplog.text.count("recording has stopped") == 1
    assert not path.exists() or path.read_bytes() == b"somebody else's"


# -- what ends the process ---------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys, threading, time
import torch, loopscope
from loopscope.models import build
torch.set_num_threads(1)
model = build("demo")
path = sys.argv[1]
def train(probe, steps=4):
    for _ in range(steps):
        loss = model(torch.zeros(2, 16, dtype=torch.int64), num_loops=2).logsumexp(-1).mean()
        loss.backward()
        probe.step(loss=loss)
    probe.flush()
def fail(): raise ValueError("the data ran out")
def kill(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
"""
DEATHS = {
    "an exception without with": ("train(loopscope.attach(model, path)); fail()", "without probe.close(): ValueError"),
    "an exception in with": ("with loopscope.attach(model, path) as p: train(p); fail()", "ValueError: the data ran"),
    "sys.exit in with": ("with loopscope.attach(model, path) as p: train(p); sys.exit(3)", "SystemExit: 3"),
    "sys.exit(1)": ("train(loopscope.attach(model, path)); sys.exit(1)", "without probe.close()"),
    "the end without close": ("train(loopscope.attach(model, path))", "without probe.close()"),
    "Ctrl-C": (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background has it ignored
        "train(loopscope.attach(model, path)); os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
        "KeyboardInterrupt",
    ),
    "an exception in a thread": (
        "p = loopscope.attach(model, path)\n"
        "t = threading.Thread(target=lambda: (train(p), fail())); t.start(); t.join()",
        "without probe.close()",
    ),
    "SIGTERM": ("train(loopscope.attach(model, path)); os.kill(os.getpid(), signal.SIGTERM)", KILLED),
    "SIGKILL": ("train(loopscope.attach(model, path)); os.kill(os.getpid(), signal.SIGKILL)", KILLED),
    "SIGKILL in a flush": (
        "from loopscope.runfile.staging import Table\n"
        "p = loopscope.attach(model, path); train(p); Table.write = kill; train(p)",
        KILLED,
    ),
    "SIGKILL in a hook": (
        "p = loopscope.attach(model, path); train(p)\np._watch.tap.sums.add = kill; train(p)",
        KILLED,
    ),
    "SIGKILL in close": (
        "from loopscope.runfile.writer import RunWriter\n"
        "p = loopscope.attach(model, path); train(p); RunWriter.seal = kill; p.close()",
        KILLED,
    ),
    "SIGKILL in the seal": (
        "import loopscope.runfile.disk.layouts as layouts\n"
        "p = loopscope.attach(model, path); train(p); layouts.copy_run = kill; p.close()",
        None,
    ),
    "an exception in the forward": (
        "import torch.nn as nn\n"
        "with loopscope.attach(model, path) as p:\n"
        "    train(p); model.read_out.register_forward_pre_hook(lambda *_: fail()); train(p)",
        "ValueError: the data ran",
    ),
    "os._exit": ("train(loopscope.attach(model, path)); os._exit(0)", KILLED),
    "a fork that exits": (
        "p = loopscope.attach(model, path); train(p)\n"
        "if not os.fork(): p.close(); sys.exit(0)\n"
        "os.wait(); train(p); p.close()",
        None,
    ),
    "close": ("p = loopscope.attach(model, path); train(p); p.close()", None),
}


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All processes, a few at a time; each leaves its file."""
    folder = tmp_path_factory.mktemp("dead")
    waiting = list(enumerate(DEATHS.values()))
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < 3:
            number, (code, _) = waiting.pop()
            command = [sys.executable, "-c", CHILD + code, str(folder / f"{number}.h5")]
            running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        running = [process for process in running if process.poll() is None]
        time.sleep(0.05)
    return folder


@pytest.mark.parametrize("name", DEATHS)
def test_the_file_says_how_its_process_ended(name: str, dead: Path) -> None:
    number, reason = list(DEATHS).index(name), DEATHS[name][1]
    end, steps = read(dead / f"{number}.h5")
    assert steps == list(range(8 if "fork" in name else 4))
    if reason is None:
        assert (end.state, end.reason) == ("finished", "")
    else:
        assert end.state == "interrupted" and reason in end.reason, end.reason


def test_a_reason_belongs_to_the_process_that_gave_it(demo_model: Any, tokens: Any, tmp_path: Path) -> None:
    model = demo_model()
    with pytest.raises(OSError, match="first"), loopscope.attach(model, tmp_path / "a.h5") as probe:
        steps_of(probe, model, tokens, 2)
        raise OSError("first")
    assert "first" in read(tmp_path / "a.h5")[0].reason
    writer = writing.RunWriter.resume(tmp_path / "a.h5")
    writer.append_step({"step": 2, "loss": 1.0})
    writer.flush()
    writer.close()  # as a kill leaves it: no word
    assert read(tmp_path / "a.h5")[0].reason == KILLED
    with loopscope.attach(model, tmp_path / "a.h5", resume=True) as probe:
        steps_of(probe, model, tokens, 1)
    assert read(tmp_path / "a.h5")[0].state == "finished"
