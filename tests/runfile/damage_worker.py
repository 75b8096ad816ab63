"""Run by test_damage.py: damages copies of run files at random and says what reading and repairing them came to.

    python damage_worker.py <folder> <first seed> <cases> [seconds per case]

Each case runs in a process of its own, with little memory and little time, forked from this one, which has imported
everything and opened nothing. For each it prints one line: the file, the damage, and ``data``, ``refused`` or what
must not be.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from loopscope.probes.flight_recorder import FlightRecorder
from loopscope.rules.diagnosis import diagnose
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.disk.superblock import open_clean
from loopscope.runfile.flights import FlightStep, read_flight
from loopscope.runfile.layout import LOOP_COLUMNS, TABLES, Event, RunFileError
from loopscope.runfile.open import open_run
from loopscope.runfile.rank_names import rank_path
from loopscope.runfile.reader import Run
from loopscope.runfile.writer import RunWriter
from numpy.typing import NDArray

ROOM = 1 << 30  # bytes a case may have on top of what is there: far more than the files need
PAGE = 4096


def write(path: Path, *, generations: int, end: str, rank: int = 0, ranks: int = 1, steps: int = 80) -> None:
    """A run with something in every table; ``end`` is ``seal``, ``close`` or ``kill``."""
    if (child := os.fork()) == 0:
        info = {"rank": rank, "world_size": ranks, "started": 1.0, "name": "damage"}
        _write(path, generations, end, info | {"variables": ["z_H", "z_L"]}, steps)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def _write(path: Path, generations: int, end: str, info: dict[str, Any], steps: int) -> None:
    rng = np.random.default_rng(7)
    next_step = 0
    for generation in range(generations):
        writer = RunWriter.resume(path) if generation else RunWriter.create(path, info=info, eigenvalues=4)
        flights = FlightRecorder(capacity=3)
        first, next_step = max(0, next_step - 10), next_step + steps
        for step in range(first, next_step):
            rows = rng.uniform(0.5, 2.0, (2 + step % 4, 4)).astype(np.float32)
            rows[:, 3] = 8
            values = {"loss": rng.normal(), "a_bar_radius": rng.uniform(0.5, 1.1), "mine": rng.normal()}
            writer.append_step({"step": step} | values, rows)
            event = Event(step, 1e9, "loss_spike", "warning", 2.0, 1.0, "it jumped")
            writer.append_variable(step, 0, two_numbers(rows[:2], inner=False))
            writer.append_variable(step, 1, two_numbers(rows, inner=True))
            if step % 9 == 0:
                writer.append_probe(step, rows)
                writer.append_spectrum(step, rng.normal(size=4))
                writer.append_array(step, "map", rng.normal(size=(step % 5, 7)))
            if step % 40 == 39:
                writer.append_event(event)
            given = FlightStep(step=step, scalars=values, loops=rows, random={"torch": np.arange(50, dtype=np.uint8)})
            flights.record(writer, given, [event] if step % 40 == 39 else [])
            if step % 13 == 0:
                writer.flush()
        writer.flush()
        if end == "kill" and generation == generations - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        writer.seal() if end == "seal" else writer.close()


def two_numbers(rows: NDArray[np.float32], *, inner: bool) -> NDArray[np.float32]:
    """Return rows of a variable: those of a loop, and which pass and which update of it each is."""
    number = np.arange(len(rows), dtype=np.float32)[:, np.newaxis]
    return np.hstack([rows, number > 0, number] if inner else [rows, number, number > 0]).astype(np.float32)


def make_files(folder: Path) -> list[Path]:
    """One of each kind of run file, in a folder each."""
    kinds: dict[str, dict[str, Any]] = {
        "sealed": {"generations": 1, "end": "seal"},
        "killed": {"generations": 1, "end": "kill"},
        "resumed": {"generations": 3, "end": "close"},
        "resumed-sealed": {"generations": 3, "end": "seal"},
        "ranks": {"generations": 2, "end": "kill", "ranks": 3},
        "ranks-sealed": {"generations": 2, "end": "seal", "ranks": 3},
    }
    for name, kind in kinds.items():
        (folder / name).mkdir()
        for rank in range(kind.get("ranks", 1)):
            write(rank_path(folder / name / "a.h5", rank), rank=rank, **kind)
    return [folder / name / "a.h5" for name in kinds]


def rows_of(path: Path) -> dict[str, tuple[int, int]]:
    """Where the first rows of each table lie in a file: first and last byte."""
    with open_clean(path) as file:
        places = {}
        for table in (*TABLES, "commit"):
            if (dataset := file[table]).chunks is None:
                places[table] = dataset.id.get_offset(), dataset.nbytes
            elif dataset.id.get_num_chunks():
                chunk = dataset.id.get_chunk_info(0)
                used = chunk.size if dataset.compression else min(chunk.size, dataset.nbytes)
                places[table] = chunk.byte_offset, used
    return {table: (first, first + used) for table, (first, used) in places.items()}


def damage(path: Path, rows: dict[str, tuple[int, int]], rng: np.random.Generator) -> str:
    """Change a file in one of the ways in which files go bad; return what was done."""
    size = path.stat().st_size
    kind = rng.choice(["flip", "flips", "cut", "page", "pages", "head", "table", "table", "table"])
    if kind == "cut":
        length = int(rng.integers(0, size))
        os.truncate(path, length)
        return f"cut to {length}"
    with path.open("r+b") as stream:
        if kind in ("page", "pages"):
            starts = rng.integers(0, size, 1 if kind == "page" else 8) // PAGE * PAGE
            for start in starts:
                os.pwrite(stream.fileno(), bytes(min(PAGE, size - int(start))), int(start))
            return f"zeros at {starts.tolist()}"
        # Most of a file is numbers; its first pages, and small tables, are what they hang on.
        table = str(rng.choice(sorted(rows)))
        first, last = {"head": (0, min(size, 3 * PAGE)), "table": rows[table]}.get(kind, (0, size))
        places = rng.integers(first, last, 1 if rng.random() < 0.5 or kind == "flip" else int(rng.integers(2, 60)))
        for place in places:
            before = os.pread(stream.fileno(), 1, int(place))
            changed = before[0] ^ (1 << int(rng.integers(8)) if rng.random() < 0.5 else int(rng.integers(1, 256)))
            os.pwrite(stream.fileno(), bytes([changed]), int(place))
    return f"{kind} {table if kind == 'table' else ''} at {places.tolist()}"


def questions(run: Run) -> dict[str, Callable[[], Any]]:
    """Everything a run can be asked."""
    asked: dict[str, Callable[[], Any]] = {
        "steps": lambda: len(run),
        "history": run.history,
        "spectra": run.spectra,
        "events": lambda: [repr(event) for event in run.events],
        "flights": lambda: repr(read_flight(run)),
        "array names": lambda: run.array_names,
        "array history": lambda: run.array_history(""),
        "refresh": run.refresh,
    }
    asked |= {f"series {name}": lambda name=name: run.series(name) for name in run.names}
    asked |= {f"column {name}": lambda name=name: run[name] for name in run.names}
    asked |= {f"loops {name}": lambda name=name: run.loops(name) for name in LOOP_COLUMNS}
    asked |= {f"probe {name}": lambda name=name: run.probe(name) for name in LOOP_COLUMNS}
    asked |= {
        f"{variable} {name}": lambda name=name, variable=variable: run.loops(name, variable=variable)
        for name in LOOP_COLUMNS
        for variable in run.variables
    }
    asked["map"] = lambda: run.arrays("map") if "map" in run.array_names else None
    asked["diagnosis"] = lambda: diagnose(run).as_dict()
    return asked


def answers(path: Path) -> dict[str, bytes]:
    """All that a run says; what it could not answer is missing."""
    replies = {}
    with open_run(path) as run:
        for question, ask in questions(run).items():
            with contextlib.suppress(RunFileError):
                replies[question] = pickle.dumps(ask())
        assert run.state in ("live", "interrupted", "finished") and repr(run)
        if len(run.ranks) < len(list(path.parent.glob("a*.h5"))):  # an event says that a rank is missing
            replies.clear()
    return replies


def known_of(path: Path) -> dict[str, Any]:
    """What is known of a whole run: where its rows lie and, of a sealed one, what it has to say."""
    files = sorted(path.parent.glob("a*.h5"))
    known: dict[str, Any] = {"places": {file.name: rows_of(file) for file in files}}
    if "sealed" not in path.parent.name:
        return known
    rows = {}
    for file in files:
        with Run(file) as run:
            rows[file.name] = run.history()
    return known | {"right": {"answers": answers(path), "rows": rows}}


def examine(path: Path, damaged: Path, right: dict[str, Any] | None) -> str:
    """Read, repair and resume a damaged run; of a sealed one, for which ``right`` is given, compare what it says."""
    said = "data"
    try:
        for question, answer in answers(path).items():
            assert right is None or right["answers"][question] == answer, f"{question} is silently wrong"
    except RunFileError as error:
        said = "refused"
        assert "\n" not in str(error)
    try:
        report = repair(damaged, in_place=True)
    except RunFileError as error:
        assert "\n" not in str(error)
        return f"{said}, not repaired ({str(error).removeprefix(str(damaged))})"
    with Run(damaged) as run:
        for ask in questions(run).values():
            ask()  # what was repaired gives answers
        rows = run.history()
        assert len(rows["step"]) == report.rows
        for name in rows if right is not None else ():
            assert np.array_equal(rows[name], right["rows"][damaged.name][name][: report.rows], equal_nan=True), name
    if damaged != path:
        answers(path)
    with RunWriter.resume(damaged) as writer:
        writer.append_step({"step": 10_000, "loss": 1.0}, np.ones((3, 4)))
        assert writer.flush()
    with Run(damaged) as run:
        assert run["step"][-1] == 10_000
    return f"{said}, repaired {report.found}"


def in_a_child(work: Callable[[], str], seconds: float) -> str:
    """Run something in a forked process with bounds on time and memory; return what it says, or how it ended."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            said = work()
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"RAISED {type(error).__name__}: {' '.join(str(error).split())[:200]} ({where.name}:{where.lineno})"
            if os.environ.get("VERBOSE"):
                traceback.print_exc()
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "HUNG" if os.WTERMSIG(status) == signal.SIGALRM else f"CRASHED by signal {os.WTERMSIG(status)}"
    return said


def main() -> None:
    """Damage and examine."""
    folder, first, cases = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 20.0
    (folder / "whole").mkdir()
    files = make_files(folder / "whole")
    for path in files:
        in_a_child(lambda path=path: str(kept_beside(path).write_bytes(pickle.dumps(known_of(path)))), seconds)
    for seed in range(first, first + cases):
        print(one_case(files[seed % len(files)], folder / "copy", seed, seconds), flush=True)


def kept_beside(path: Path) -> Path:
    """Return where it is kept what is known of a whole run."""
    return path.with_name("answers")


def one_case(source: Path, folder: Path, seed: int, seconds: float) -> str:
    """Damage a copy of a run and say what came of it."""
    rng = np.random.default_rng(seed)
    shutil.copytree(source.parent, folder)
    damaged = folder / str(rng.choice(sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".h5")))
    known = pickle.loads(kept_beside(source).read_bytes())  # noqa: S301
    done = damage(damaged, known["places"][damaged.name], rng)
    said = in_a_child(lambda: examine(folder / "a.h5", damaged, known.get("right")), seconds)
    shutil.rmtree(folder)
    return f"{seed} {source.parent.name}/{damaged.name}: {done}: {said}"


if __name__ == "__main__":
    main()
