"""Files of somebody else: what leads HDF5 out of the file, what is no file at all, and what claims to be large."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from loopscope.gate.check import check_runs
from loopscope.runfile.disk import trial
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.disk.skeleton import as_written
from loopscope.runfile.layout import COMMIT_COLUMNS, TABLES, DamagedRun, Event, NotARun, RunFileError
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

SECRET = b"root:x:0:0:another file of this machine\n"


def make(path: Path, steps: int = 20, seal: bool = True) -> Path:
    """A small run with something in every table."""
    writer = RunWriter.create(path, info={"world_size": 1}, eigenvalues=4)
    for step in range(steps):
        rows = np.full((3, 4), 1.0 + step)
        writer.append_step({"step": step, "loss": 3 - step / 100}, rows)
        writer.append_probe(step, rows)
        writer.append_spectrum(step, [0.5])
        writer.append_array(step, "map", rows)
    writer.append_event(Event(3, 1.0, "loss_spike", "warning"))
    writer.seal() if seal else writer.close()
    return path


def publish(file: h5py.File, table: str, rows: int) -> None:
    """Have a valid commit row say how long a table is."""
    row = file["commit"][-1]
    row[COMMIT_COLUMNS.index(table)] = rows
    row[-1] = zlib.crc32(row[:-1].astype("<i8").tobytes())
    file["commit"][-1] = row


def refused(path: Path, says: str) -> None:
    """Reading and repairing say the same in one line, and another file's verdict is not lost."""
    good = make(path.with_name("good.h5"))
    with pytest.raises(RunFileError, match=says) as caught:
        open_run(path)
    assert len(str(caught.value).splitlines()) == 1 and "another file" not in str(caught.value)
    with pytest.raises(RunFileError):
        repair(path)
    verdicts = check_runs([path, good])
    assert verdicts.exit_code == 4 and len(verdicts.runs) == 2 and verdicts.runs[1].diagnosis is not None


@pytest.mark.parametrize("table", [*TABLES, "commit"])
@pytest.mark.parametrize("how", ["external", "virtual", "soft link", "external link", "group", "scalar", "named type"])
def test_a_table_that_is_not_of_this_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, how: str
) -> None:
    monkeypatch.setattr(trial, "in_a_child", lambda *given: None)  # the check itself, in this process
    path, secret = make(tmp_path / "a.h5"), tmp_path / "secret"
    secret.write_bytes(SECRET * 1000)
    other = make(tmp_path / "other.h5")
    with h5py.File(path, "r+") as file:
        shape, dtype = file[table].shape, file[table].dtype
        del file[table]
        if how == "external":
            file.create_dataset(table, shape=shape, dtype=dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        elif how == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(other), table, shape)
            file.create_virtual_dataset(table, layout)
        elif how == "named type":
            file["type"] = dtype
            file.create_dataset(table, shape=shape, dtype=file["type"])
        elif how == "group":
            file.create_group(table)["inner"] = 1
        elif how == "scalar":
            file[table] = "9f3c1ab"
        else:
            file[table] = h5py.SoftLink("/x") if how == "soft link" else h5py.ExternalLink(str(other), f"/{table}")
    assert not as_written(path)
    with pytest.raises(DamagedRun, match=f"table {table} "):
        open_run(path)


@pytest.mark.parametrize("how", ["external", "self link", "virtual"])
def test_what_leads_out_of_a_file_is_refused_by_everybody(tmp_path: Path, how: str) -> None:
    path, secret = make(tmp_path / "a.h5"), tmp_path / "secret"
    secret.write_bytes(SECRET * 1000)
    with h5py.File(path, "r+") as file:
        dtype = file["events"].dtype
        del file["events"]
        if how == "external":
            file.create_dataset("events", shape=(1,), dtype=dtype, external=[(str(secret), 0, dtype.itemsize)])
        elif how == "virtual":  # of itself: this brought the process down
            layout = h5py.VirtualLayout((1,), dtype)
            layout[...] = h5py.VirtualSource(str(path), "events", (1,))
            file.create_virtual_dataset("events", layout)
        else:
            file["events"] = file["/"]
    refused(path, "table events is")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        server.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize(
    ("create", "kind"),
    [
        (fifo, NotARun),
        (bind, NotARun),
        (lambda path: path.symlink_to("/dev/zero"), NotARun),
        (lambda path: path.symlink_to(path.name), RunFileError),
        (lambda path: path.symlink_to("nowhere"), RunFileError),
        (lambda path: path.mkdir(), NotARun),
    ],
)
def test_what_is_no_file_is_one_line_at_once(
    tmp_path: Path, create: Callable[[Path], object], kind: type[RunFileError]
) -> None:
    path = tmp_path / "a.h5"
    create(path)
    for attempt in (open_run, repair, RunWriter.resume):
        with pytest.raises(kind) as caught:
            attempt(path)
        assert len(str(caught.value).splitlines()) == 1


def test_a_name_with_a_zero_byte_and_a_lease_that_is_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="cannot be reached"):
        open_run(tmp_path / "a\0.h5")
    path = make(tmp_path / "a.h5")
    os.mkfifo(tmp_path / "a.h5.lease")
    with open_run(path) as run:
        assert run.state == "finished"


@pytest.mark.parametrize("table", ["loops", "events", "arrays", "steps", "commit"])
@pytest.mark.parametrize("rows", [2**27, 2**40])
def test_memory_is_taken_for_what_is_there_and_not_for_what_is_claimed(tmp_path: Path, table: str, rows: int) -> None:
    path = make(tmp_path / "a.h5", seal=False)
    with h5py.File(path, "r+") as file:
        data, kept = file[table][...], dict(file[table].attrs)
        del file[table]
        width = data.shape[1:]
        made = file.create_dataset(
            table, shape=(rows, *width), maxshape=(None, *width), chunks=(1, *width), dtype=data.dtype
        )
        made[: len(data)] = data
        made.attrs.update(kept)
    code = (
        "import resource, sys\nfrom loopscope.runfile.open import open_run\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    open_run(sys.argv[1])\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True)
    said, grown = done.stdout.split()
    assert said == "DamagedRun" and int(grown) < 100_000  # kilobytes


def test_packed_rows_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path, rows = make(tmp_path / "a.h5"), 3_000_000
    with h5py.File(path, "r+") as file:
        dtype = file["events"].dtype
        del file["events"]
        events = file.create_dataset("events", shape=(rows,), chunks=(16384,), dtype=dtype, compression="gzip")
        events[: 16384 * 8] = np.zeros(16384 * 8, dtype)
        publish(file, "events", rows)
    with pytest.raises(DamagedRun):
        open_run(path)


def test_one_step_of_a_million_loops_does_not_make_a_rectangle_of_them(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(3000):
            writer.append_step({"step": step}, np.ones((200_000 if step == 7 else 1, 4)))
    with open_run(writer.path) as run:
        with pytest.raises(DamagedRun, match="ragged rows"):
            run.loops("state_norm")
        assert run["last_state_norm"].tolist() == [1.0] * 3000  # the rest is there


def test_a_file_that_another_program_touched_is_tried_once_and_then_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a.h5", seal=False)
    with h5py.File(path, "r+") as file:
        data = file["events"][...]
        del file["events"]
        file["events"] = data
    tried: list[Path] = []
    original = trial.in_a_child
    monkeypatch.setattr(trial, "in_a_child", lambda task, file: tried.append(file) or original(task, file))
    assert not as_written(path)
    for _ in range(3):
        with open_run(path) as run:
            assert len(run) == 20 and run.events[0].kind == "loss_spike"
    assert tried == [path]


@pytest.mark.parametrize("seal", [True, False])
def test_what_the_writer_makes_needs_no_trial(tmp_path: Path, seal: bool) -> None:
    path = make(tmp_path / "a.h5", seal=seal)
    assert as_written(path)
    RunWriter.resume(path).close()
    assert as_written(path)
    writer = RunWriter.resume(path)
    writer.append_step({"step": 20})
    writer.flush()
    assert as_written(path)  # live
    writer.seal()
    assert as_written(path)


@pytest.mark.parametrize(("code", "says"), [("os.abort()", "crashes"), ("time.sleep(60)", "end")])
def test_a_child_that_dies_or_hangs_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    (tmp_path / "dying.py").write_text(f"import os, time\n{code}\n")
    monkeypatch.setattr(trial, "CHILD", "dying")
    monkeypatch.setattr(trial, "_SECONDS", 1.0)
    monkeypatch.syspath_prepend(tmp_path)
    path = make(tmp_path / "a.h5")
    with pytest.raises(DamagedRun, match=says):
        trial.in_a_child("read", path)


def test_a_child_that_computes_for_ever_is_stopped_by_the_time_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the clock: on a busy machine a file that is merely odd would be called damaged."""
    code = (
        "from loopscope.runfile import examine\nexamine.seconds_for = lambda size: 0.5\nexamine._limit(0, writes=False)"
    )
    (tmp_path / "endless.py").write_text(f"{code}\nwhile True:\n    pass\n")
    monkeypatch.setattr(trial, "CHILD", "endless")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DamagedRun, match="too much memory or time"):
        trial.in_a_child("read", make(tmp_path / "a.h5"))


@pytest.mark.parametrize(
    "info",
    ['{"a": ' * 30_000 + "1" + "}" * 30_000, "[1, 2]", "null", '{"n": ' + "9" * 9_000 + "}", "x" * (9 << 20)],
    ids=["deep", "list", "null", "long number", "long"],
)
def test_a_description_that_is_none_is_damage(tmp_path: Path, info: str) -> None:
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        file.attrs["info"] = info
    with pytest.raises(DamagedRun):
        open_run(path)


@pytest.mark.parametrize("value", [np.zeros(3), 7, h5py.Empty("f8"), np.array([b"a", b"b"]), 2.5])
@pytest.mark.parametrize("name", ["format", "version", "run_id", "info", "eigenvalues"])
def test_attributes_of_another_kind_are_one_line(tmp_path: Path, name: str, value: object) -> None:
    value = -1 if name in ("version", "eigenvalues") and isinstance(value, int) else value
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(NotARun if name == "format" else RunFileError):
        open_run(path)
