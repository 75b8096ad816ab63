"""The reader: the numbers it returns, how it follows a live run, and what it says about files that are no runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from loopscope.dynamics.trajectory.trajectory import classify
from loopscope.runfile.layout import LOOP_COLUMNS, DamagedRun, Event, NotARun, RunFileError
from loopscope.runfile.open import open_run
from loopscope.runfile.tables import Tables
from loopscope.runfile.until import until
from loopscope.runfile.writer import RunWriter


def write_ragged(writer: RunWriter, steps: range, seed: int = 0) -> tuple[list[float], list[np.ndarray]]:
    """Append steps of random depths; return the losses and the loop rows as the oracle."""
    rng = np.random.default_rng(seed)
    losses, profiles = [], []
    for step in steps:
        rows = rng.normal(size=(int(rng.integers(1, 9)), 4)).astype(np.float32)
        rows[-1, 1:3] = np.nan
        losses.append(float(rng.normal()))
        profiles.append(rows)
        writer.append_step({"step": step, "loss": losses[-1]}, rows)
    return losses, profiles


def padded(profiles: list[np.ndarray], column: int) -> np.ndarray:
    """The slow twin of ``Run.loops``."""
    table = np.full((len(profiles), max(len(rows) for rows in profiles)), np.nan)
    for i, rows in enumerate(profiles):
        table[i, : len(rows)] = rows[:, column]
    return table


@pytest.mark.parametrize("sealed", [False, True])
def test_every_number_comes_back_as_it_was_given(tmp_path: Path, sealed: bool) -> None:
    writer = RunWriter.create(tmp_path / "a.h5", info={"model": "toy"}, eigenvalues=3)
    losses, profiles = write_ragged(writer, range(3000))
    writer.append_spectrum(10, [0.5j, 1.0])
    writer.append_event(Event(5, 1.5, "a", "error", 2.0, 1.0, "ρ(A̅) rose"))
    writer.seal() if sealed else writer.close()
    with open_run(writer.path) as run:
        assert run.info == {"model": "toy"} and len(run) == 3000 and "loss" in run and "nothing" not in run
        assert run["loss"].dtype == np.float64 and np.array_equal(run["loss"], losses)
        assert np.array_equal(run["step"], np.arange(3000))
        for column, name in enumerate(LOOP_COLUMNS):
            assert np.array_equal(run.loops(name), padded(profiles, column), equal_nan=True)
        part = run.loops("state_norm", rows=slice(100, 200, 7))
        assert np.array_equal(part, padded(profiles[100:200:7], 0), equal_nan=True)
        assert np.array_equal(run["last_state_norm"], [rows[-1, 0] for rows in profiles])
        expected = [rows[-2, 1] if len(rows) > 1 else np.nan for rows in profiles]
        assert np.array_equal(run["last_residual_norm"], expected, equal_nan=True)
        steps, eigenvalues = run.spectra()
        assert steps.tolist() == [10] and np.array_equal(
            eigenvalues[0], [1.0, 0.5j, complex(np.nan, np.nan)], equal_nan=True
        )
        assert run.events == [Event(5, 1.5, "a", "error", 2.0, 1.0, "ρ(A̅) rose")]


def test_names_answer_and_unknown_ones_list_the_known(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}, scalars=("mine",)) as writer:
        write_ragged(writer, range(10))
        writer.append_probe(4, np.ones((9, 4)))
    with open_run(writer.path) as run:
        for name in run.names:
            assert run[name].shape == (10,)
            steps, values = run.series(name)
            assert steps.shape == values.shape and not np.isnan(values).any()
        with pytest.raises(KeyError, match="mine"):
            run["yours"]
        with pytest.raises(KeyError, match="state_norm"):
            run.loops("loss")
        with pytest.raises(ValueError, match="read-only"):
            run["loss"][0] = 1.0


def test_a_run_without_rows_answers_with_empty_arrays(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "a.h5", info={}, eigenvalues=5).seal()
    with open_run(tmp_path / "a.h5") as run:
        assert len(run) == 0 and all(run[name].shape == (0,) for name in run.names)
        assert run.loops("state_norm").shape == (0, 0) and run.probe("state_norm").shape == (0, 0)
        assert run.spectra()[1].shape == (0, 5) and run.events == [] and run.probe_steps.shape == (0,)


def test_ratios_are_those_of_the_decay_law_on_the_probe_batch(tmp_path: Path) -> None:
    passes = []
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step, (depth, ratio) in enumerate([(16, 0.9), (12, 1.1), (16, 0.5), (2, 1.0)]):
            rows = np.ones((depth + 1, 4), dtype=np.float32)
            rows[:, 1] = ratio ** np.arange(depth + 1)
            rows[-1, 1] = np.nan
            rows[:, 0] = 1.0 + np.arange(depth + 1)
            passes.append(rows.astype(float))
            writer.append_step({"step": 10 * step})
            writer.append_probe(10 * step if step else 5, rows)  # the first pass lies between two steps
    with open_run(writer.path) as run:
        laws = [classify(rows[:-1, 1], rows[:-1, 2], rows[:, 0]) for rows in passes]
        assert run.probe_steps.tolist() == [5, 10, 20, 30]
        _, ratios = run.series("residual_ratio")
        known = [law.residual_ratio for law in laws if not np.isnan(law.residual_ratio)]
        assert np.array_equal(ratios, known) and len(known) >= 3
        assert ratios[:3] == pytest.approx([0.9, 1.1, 0.5], rel=1e-6)  # float32 rows
        assert np.isnan(run["residual_ratio"][0]) and run["residual_ratio"][1:3] == pytest.approx([1.1, 0.5], rel=1e-6)
        assert np.array_equal(
            run.series("growth_ratio")[1], [law.growth_ratio for law in laws if not np.isnan(law.growth_ratio)]
        )


def test_an_event_is_left_out_as_soon_as_its_step_was_run_again(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "a.h5", info={})
    writer.append_step({"step": 7})
    writer.append_event(Event(7, 0.0, "old"))
    writer.close()
    writer = RunWriter.resume(writer.path)
    with open_run(writer.path) as run:
        assert run.generation == 1 and len(run.events) == 1
        writer.append_step({"step": 6})
        writer.flush()
        assert run.refresh() and run.events == []
        writer.close()


def test_steps_run_again_supersede_and_history_keeps_all(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={})
    for step in range(10):
        writer.append_step({"step": step, "loss": 1.0}, np.full((2, 4), 1.0))
        writer.append_probe(step, np.full((2, 4), 1.0))
        writer.append_spectrum(step, [1.0])
        writer.append_event(Event(step, 0.0, "old"))
    writer.close()
    writer = RunWriter.resume(path)
    with open_run(path) as run:
        assert len(run) == 10 and len(run.events) == 10
        for step in range(6, 8):  # the checkpoint was older than the kill
            writer.append_step({"step": step, "loss": 2.0}, np.full((3, 4), 2.0))
            writer.append_probe(step, np.full((3, 4), 2.0))
            writer.append_spectrum(step, [2.0])
            writer.append_event(Event(step, 0.0, "new"))
        writer.flush()
        assert run.refresh()
        assert run["step"].tolist() == list(range(8)) and run["loss"].tolist() == [1.0] * 6 + [2.0] * 2
        assert run.loops("state_norm").tolist()[5:7] == [
            [1.0, 1.0, pytest.approx(np.nan, nan_ok=True)],
            [2.0, 2.0, 2.0],
        ]
        assert run["last_state_norm"].tolist() == [1.0] * 6 + [2.0] * 2
        assert (
            run.probe_steps.tolist() == list(range(8))
            and run.probe("state_norm")[:, 0].tolist() == [1.0] * 6 + [2.0] * 2
        )
        assert run.spectra()[1][:, 0].tolist() == [1.0] * 6 + [2.0] * 2
        assert [(e.step, e.kind) for e in run.events] == [(s, "old") for s in range(6)] + [(6, "new"), (7, "new")]
        assert (
            run.history()["step"].tolist() == [*range(10), 6, 7]
            and run.history()["generation"].tolist() == [0] * 10 + [1] * 2
        )
    writer.close()


@pytest.mark.parametrize("ending", ["live", "interrupted", "finished"])
def test_some_loops_of_every_step_are_columns_of_all_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("loopscope.runfile.file_source._LOOPS_AT_ONCE", 37)
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={})
    write_ragged(writer, range(60))
    bad = np.ones((4, 4), dtype=np.float32)
    bad[:, 0], bad[:, 1] = [1.0, np.nan, np.inf, np.nan], [np.nan, 2.0, np.nan, np.nan]
    writer.append_step({"step": 60}, bad)
    writer.append_step({"step": 61})  # without loops
    write_ragged(writer, range(62, 70), seed=1)
    writer.close()
    writer = RunWriter.resume(path)
    write_ragged(writer, range(66, 80), seed=2)  # some steps again
    bad[:, 0], bad[:, 1] = [np.nan, 1.0, np.nan, 3.0], [1.0, np.nan, 1.0, np.nan]
    writer.append_step({"step": 80}, bad)
    writer.flush()
    if ending == "finished":
        writer.seal()
    if ending != "live":
        writer.close()
    wanted = [0, 1, 2, 7, 30, -1, -2, -3, -9]
    with open_run(path) as run:
        assert run.state == ending
        for name in ("state_norm", "residual_norm", "step_cosine", "tokens"):
            read = run.at_loops(name, wanted)
            table = run.loops(name)  # from here on it is kept
            lengths = np.count_nonzero(~np.isnan(run.loops("tokens")), axis=1)
            for loop, values in zip(wanted, read, strict=True):
                at = lengths + loop if loop < 0 else np.full(len(run), loop)
                inside = (at >= 0) & (at < lengths)
                expected = np.where(inside, table[np.arange(len(run)), np.where(inside, at, 0)], np.nan)
                np.testing.assert_array_equal(values, expected, err_msg=f"{name} {loop}")
            for values, again in zip(read, run.at_loops(name, wanted), strict=True):
                np.testing.assert_array_equal(values, again)
        assert np.isinf(run.at_loops("state_norm", [1])[0][60])
        assert [len(values) for values in until(run, 10).at_loops("tokens", [0, -1])] == [11, 11]
    if ending == "live":
        writer.close()


def test_refresh_reads_only_the_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, slice]] = []
    rows, columns = Tables.read, Tables.read_columns
    monkeypatch.setattr(
        Tables, "read", lambda self, table, where: read.append((table, where)) or rows(self, table, where)
    )
    monkeypatch.setattr(
        Tables,
        "read_columns",
        lambda self, table, where, which: read.append((table, where)) or columns(self, table, where, which),
    )
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer, open_run(writer.path) as run:
        first, profiles = write_ragged(writer, range(500))
        writer.flush()
        run.refresh()
        run["loss"], run.loops("state_norm")
        more, further = write_ragged(writer, range(500, 510), seed=1)
        writer.flush()
        read.clear()
        assert run.refresh() and not run.refresh()
        assert np.array_equal(run["loss"], first + more)
        assert np.array_equal(run.loops("state_norm"), padded(profiles + further, 0), equal_nan=True)
        assert sorted(table for table, _ in read) == ["loop_end", "loops", "steps"]  # step and loss lie together
        assert all(where.start >= 500 for _, where in read)


def test_one_reader_follows_a_run_through_sealing_resuming_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={"run": 1})
    run = open_run(path)
    losses, profiles = write_ragged(writer, range(50))
    writer.seal()
    assert run.refresh() and run.state == "finished" and np.array_equal(run["loss"], losses)
    writer = RunWriter.resume(path)
    assert run.state == "live"
    more, further = write_ragged(writer, range(50, 60), seed=1)
    writer.seal()
    assert np.array_equal(run["loss"], losses)  # not refreshed: still the old view
    assert run.refresh() and np.array_equal(run["loss"], losses + more)
    assert np.array_equal(run.loops("state_norm"), padded(profiles + further, 0), equal_nan=True)
    RunWriter.create(path, info={"run": 2}, overwrite=True).seal()
    assert run.refresh() and len(run) == 0 and run.info == {"run": 2}
    path.unlink()
    assert run.refresh() and not run.refresh() and len(run) == 0
    assert [event.kind for event in run.events] == ["file_replaced", "file_deleted"]
    run.close()
    run.close()


@pytest.mark.parametrize("ending", ["deleted", "moved away", "put back from an older copy", "resumed", "sealed"])
def test_what_happened_to_a_followed_file_is_said_once(tmp_path: Path, ending: str) -> None:
    path, copy = tmp_path / "a.h5", tmp_path / "copy.h5"
    writer = RunWriter.create(path, info={"run": 1})
    write_ragged(writer, range(20))
    writer.flush()
    shutil.copyfile(path, copy)
    write_ragged(writer, range(20, 40))
    writer.close()
    with open_run(path) as run:
        before = run["loss"].tolist()
        if ending == "deleted":
            path.unlink()
        elif ending == "moved away":
            path.rename(tmp_path / "b.h5")
        elif ending == "put back from an older copy":
            copy.replace(path)
        elif ending == "resumed":
            RunWriter.resume(path).close()
        else:
            RunWriter.resume(path).seal()
        assert run.refresh() and not run.refresh()
        kinds = {
            "deleted": "file_deleted",
            "moved away": "file_deleted",
            "put back from an older copy": "file_shortened",
        }
        assert [event.kind for event in run.events] == [kinds.get(ending, "run_resumed")]
        assert run["loss"].tolist() == (before[:20] if "copy" in ending else before)
        assert run.events[0].step == (19 if "copy" in ending else 39)


@pytest.mark.parametrize("table", ["loops", "probe"])
def test_a_norm_that_is_not_finite_is_infinite_and_nan_means_not_there(tmp_path: Path, table: str) -> None:
    nan, inf = np.nan, np.inf
    rows = [[nan, 1.0, nan, 8], [nan, nan, nan, 8], [inf, nan, nan, 8]]  # h_0 was not seen, h_1 overflowed
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(2):
            writer.append_step({"step": step}, rows[: 3 - step])
            writer.append_probe(step, rows[: 3 - step])
    with open_run(writer.path) as run:
        ask = run.loops if table == "loops" else run.probe
        assert np.array_equal(ask("state_norm"), [[nan, inf, inf], [nan, inf, nan]], equal_nan=True)
        assert np.array_equal(ask("residual_norm"), [[1.0, inf, nan], [1.0, nan, nan]], equal_nan=True)
        assert np.isnan(ask("step_cosine")).all()


def test_readers_and_a_writer_share_one_process(tmp_path: Path) -> None:
    path, failures = tmp_path / "a.h5", []

    def follow() -> None:
        try:
            with open_run(path) as run:
                while run.state == "live":
                    run.refresh()
                    assert np.array_equal(run["loss"], 0.5 * run["step"])
                    assert np.array_equal(run["last_state_norm"], run["step"])
                run.refresh()
                assert len(run) == 3000 and run.state == "finished"
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    writer = RunWriter.create(path, info={})
    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(3000):
        writer.append_step({"step": step, "loss": 0.5 * step}, np.full((1 + step % 4, 4), step))
        if step % 40 == 0:
            writer.flush()
    writer.seal()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_writer_that_failed_still_shows_what_it_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter.create(tmp_path / "a.h5", info={})
    writer.append_step({"step": 0, "loss": 1.0})
    assert writer.flush()
    writer.append_step({"step": 1, "loss": 2.0})

    def broken(self: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(writer._commits), "write", broken)
    assert not writer.flush() and "Input/output" in writer.failure
    with open_run(writer.path) as run:
        assert run["loss"].tolist() == [1.0] and run.state == "interrupted"
    writer.close()


@pytest.mark.parametrize("locking", ["TRUE", "FALSE", "BEST_EFFORT"])
def test_hdf5_locking_in_the_environment_changes_nothing(tmp_path: Path, locking: str) -> None:
    code = """
import sys
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter
if sys.argv[2] == "write":
    writer = RunWriter.resume(sys.argv[1])
    writer.append_step({"step": 1})
    assert writer.flush()
    writer.seal()
else:
    run = open_run(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()
    assert run.refresh() and len(run) == 2 and run.state == "finished"
"""
    writer = RunWriter.create(tmp_path / "a.h5", info={})
    writer.append_step({"step": 0})
    writer.close()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HDF5_USE_FILE_LOCKING": locking}
    command = [sys.executable, "-c", code, str(writer.path)]
    with subprocess.Popen(
        [*command, "read"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reading:
        assert reading.stdout is not None and reading.stdout.readline() == b"open\n"
        subprocess.run([*command, "write"], env=environment, check=True)
        reading.communicate()
    assert reading.returncode == 0


@pytest.mark.parametrize("sealed", [False, True])
def test_a_reader_written_from_the_format_page_agrees(tmp_path: Path, sealed: bool) -> None:
    writer = RunWriter.create(tmp_path / "a.h5", info={}, scalars=("mine",))
    write_ragged(writer, range(200))
    writer.append_step({"step": 150, "loss": -1.0})  # a rollback
    writer.append_step({"step": 151, "mine": 4.0}, np.ones((2, 4)))
    writer.append_array(3, "map", [True])
    writer.append_array(4, "map", np.arange(6, dtype=">f2").reshape(2, 3))
    writer.seal() if sealed else writer.flush()
    code = """
import json, sys, zlib
import h5py, numpy as np
with h5py.File(sys.argv[1], "r", swmr=True, locking=False) as file:
    assert file.attrs["format"] == "loopscope-run" and file.attrs["version"] <= 3
    row = next(row for row in file["commit"][:][::-1] if row[-1] == zlib.crc32(row[:-1].astype("<i8").tobytes()))
    columns, loops, loop_end, steps = row[:4]
    index = file["array_index"][: row[9]]
    assert index["name"].tolist() == [b"map", b"map"] and index["step"].tolist() == [3, 4]
    start = int(index["end"][0])
    raw = file["arrays"][start : int(index["end"][1])].tobytes()
    shape = index["shape"][1][: index["ndim"][1]]
    assert np.array_equal(np.frombuffer(raw, index["dtype"][1].decode()).reshape(shape), [[0, 1, 2], [3, 4, 5]])
    names = [name.decode() for name in file["columns"][:columns]]
    table, ends = file["steps"][:steps], file["loop_end"][:loop_end]
    step = table[:, 0]
    visible = [i for i in range(steps) if all(step[i] < later for later in step[i + 1:])]
    state = file["loops"][:loops, 0]
    last = [float(state[ends[i] - 1]) if ends[i] > (ends[i - 1] if i else 0) else None for i in visible]
    print(json.dumps([step[visible].tolist(), np.nan_to_num(table[visible][:, names.index("mine")]).tolist(), last]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(writer.path)], capture_output=True, text=True, check=True)
    steps, mine, last = json.loads(done.stdout)
    with open_run(writer.path) as run:
        assert steps == run["step"].tolist() == list(range(152)) and mine == np.nan_to_num(run["mine"]).tolist()
        assert last == [None if np.isnan(value) else value for value in run["last_state_norm"]]
    writer.close()


def make_text(path: Path) -> None:
    path.write_text("step,loss\n0,1.5\n")


def make_foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(10)


def make_foreign_new(path: Path) -> None:
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["data"] = np.arange(10)


def make_newer(path: Path) -> None:
    RunWriter.create(path, info={}).close()
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99


def make_without_table(path: Path) -> None:
    RunWriter.create(path, info={}).close()
    with h5py.File(path, "r+") as file:
        del file["loops"]


def make_cut(path: Path, keep: float, sealed: bool = False) -> None:
    writer = RunWriter.create(path, info={})
    write_ragged(writer, range(2000))
    writer.seal() if sealed else writer.close()
    os.truncate(path, int(path.stat().st_size * keep))


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda path: None, RunFileError, "no such file"),
        (lambda path: path.mkdir(), NotARun, "is a folder"),
        (lambda path: path.touch(), DamagedRun, "is empty"),
        (lambda path: path.write_bytes(b"\x89HD"), DamagedRun, "cut off"),
        (make_text, NotARun, "not an HDF5 file"),
        (make_foreign, NotARun, "not a loopscope run"),
        (make_foreign_new, NotARun, "not a loopscope run"),
        (make_newer, RunFileError, "upgrade"),
        (make_without_table, DamagedRun, "loops is missing"),
        (lambda path: make_cut(path, 0.6), DamagedRun, "loopscope repair"),
        (lambda path: make_cut(path, 0.001), DamagedRun, "loopscope repair"),
        (lambda path: make_cut(path, 0.6, True), DamagedRun, "loopscope repair"),
        (lambda path: make_cut(path, 0.05, True), DamagedRun, "loopscope repair"),
    ],
)
def test_what_is_no_run_is_told_in_one_line(
    tmp_path: Path, make: Callable[[Path], object], kind: type[RunFileError], says: str
) -> None:
    path = tmp_path / "a.h5"
    make(path)
    with pytest.raises(kind, match=says) as caught:
        open_run(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and type(caught.value) is kind
    if kind is not RunFileError or says == "upgrade":
        with pytest.raises(RunFileError):
            RunWriter.resume(path)
        assert not path.with_name("a.h5.lease").exists()


def test_what_belongs_to_an_abandoned_branch_is_gone_at_once(tmp_path: Path) -> None:
    profile = np.ones((3, 4), np.float32)
    writer = RunWriter.create(tmp_path / "a.h5", info={})
    for step in range(20):
        writer.append_step({"step": step, "loss": 1.0})
        if step in (0, 4, 10, 19):
            writer.append_probe(step, profile * step)
            writer.append_spectrum(step, [0.5])
            writer.append_array(step, "map", [step])
            writer.append_event(Event(step, 0.0, "loss_spike", "warning"))
    writer.close()
    with RunWriter.resume(tmp_path / "a.h5") as writer:  # from a checkpoint after step 4
        writer.append_step({"step": 5, "loss": 2.0})
        writer.flush()
        with open_run(tmp_path / "a.h5") as run:
            assert run["step"].tolist() == list(range(6))
            assert run.probe_steps.tolist() == run.spectra()[0].tolist() == run.arrays("map")[0].tolist() == [0, 4]
            assert run.probe("state_norm")[:, 0].tolist() == [0, 4]
            assert [event.step for event in run.events] == [0, 4]
        writer.append_step({"step": 6})
        writer.append_probe(6, profile * 60)
    with open_run(tmp_path / "a.h5") as run:
        assert run.probe_steps.tolist() == [0, 4, 6] and run.probe("state_norm")[-1, 0] == 60
        assert run.generation == 1
