"""Run by test_structure.py: changes the structure of run files and says what everybody who reads them came to.

    python structure_worker.py FOLDER FIRST_SEED SECONDS
    python structure_worker.py FOLDER every-change

Not bytes but what HDF5 makes of them: kinds of objects, types, shapes, links, where a table is stored, filters,
attributes, declared sizes, depth and number of objects, versions (`structure_changes`). In one case of four bytes of
the metadata too, with their checksums made right. Each case is read, diagnosed, checked in every format of the gate,
looked at as `watch` does, exported, repaired, and one in eight drawn as a report, in a forked process with bounds on
memory and time. For each one line is printed: the change, and ``data``, ``refused`` or what must not be. The last two
lines count. The second form prints each change that cannot be made in a table of a version, and reads nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from damage_worker import questions, write
from loopscope.dashboard.report import report_html
from loopscope.gate.check import check_runs
from loopscope.gate.formats import FORMATS, render
from loopscope.gate.watch import Watch
from loopscope.rules.rule_files import load_rules
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.export import export
from loopscope.runfile.layout import RunFileError
from loopscope.runfile.open import open_run
from loopscope.runfile.rank_names import rank_path
from structure_changes import (
    CHANGES,
    DEEP,
    NAMES,
    Change,
    change_attribute,
    change_many,
    change_metadata,
    change_version,
)

SECRET = b"root:x:0:0:a line of another file"
LEAK = "a line of another file"
ROOM = 500 << 20  # bytes that a case may take on top of what is there
SECONDS = 150.0  # two trials of 15 s of processor time each, a quarter of a busy machine for us, and the reading
RULES = load_rules(None)


def examine(path: Path, draw: bool) -> str:
    """Do with a file what everybody does with files."""
    said = "data"
    try:
        with open_run(path) as run:
            for ask in questions(run).values():
                with contextlib.suppress(RunFileError, KeyError):
                    no_secret(repr(ask()).encode("utf-8", "replace"))
            no_secret(repr(run).encode())
            for table in ("json", "csv"):
                with contextlib.suppress(RunFileError):
                    export(run, path.with_name(f"out.{table}"), force=True)
                    no_secret(path.with_name(f"out.{table}").read_bytes())
    except RunFileError as error:
        said = f"refused ({str(error).split(':', 1)[-1][:80]})"
        assert len(str(error).splitlines()) == 1
    judge(path)
    if draw:
        with contextlib.suppress(RunFileError):
            no_secret(report_html([path]).encode("utf-8", "replace"))
    try:
        repair(path, in_place=True)
    except RunFileError as error:
        assert len(str(error).splitlines()) == 1
    else:
        no_secret(path.read_bytes())
    return said


def judge(path: Path) -> None:
    """Check a file and watch it; the failure of a defect is raised."""
    failures: list[Exception] = []
    result = check_runs([path], on_failure=lambda _, error: failures.append(error))
    if failures:
        raise failures[0]
    for name in FORMATS:
        report = render(result, name)
        no_secret(report.encode("utf-8", "replace"))
        assert "\x1b" not in report, f"a terminal escape in {name}"
        assert name == "json" or not re.search(r"^\s*(PASS|::error::x)$", report, re.M), f"a forged line in {name}"
    watch = Watch([path], RULES)
    watch.look()
    watch.close()


def no_secret(said: bytes) -> None:
    """Raise where bytes of another file are in what somebody would be shown."""
    assert LEAK.encode() not in said, "bytes of another file"


def in_a_child(work: Callable[[], str]) -> tuple[str, int]:
    """Run something in a forked process with bounds; return what it says, or how it ended, and the bytes it took."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * ROOM, size + 2 * ROOM))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            said = work()
        except BaseException as error:
            where = "; ".join(f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:])
            said = f"RAISED {type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})"
        os.write(writing, said.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    _, status, usage = os.wait4(child, 0)
    taken = (usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
    if os.WIFSIGNALED(status):
        said = "HUNG" if os.WTERMSIG(status) == signal.SIGALRM else f"CRASHED by signal {os.WTERMSIG(status)}"
    return said, taken


def one_case(files: list[Path], folder: Path, seed: int) -> tuple[str, int]:
    """Change a copy of a run; return what came of it and the bytes that reading it took."""
    rng = np.random.default_rng(seed)
    source = files[rng.integers(len(files))]
    shutil.copytree(source.parent, folder)
    path = folder / "a.h5"
    shutil.copyfile(source, folder / "other.h5")
    (folder / "secret").write_bytes(SECRET * 4000)
    changed = folder / str(rng.choice(sorted(entry.name for entry in folder.glob("a*.h5"))))
    done, _ = in_a_child(lambda: change(changed, folder, rng))  # HDF5 may not survive making such a file either
    said, taken = in_a_child(lambda: examine(path, draw=seed % 8 == 0))
    if taken > ROOM:
        said = f"{said} MEMORY {taken >> 20} MB"
    shutil.rmtree(folder)
    return f"{seed} {source.parent.name}: {done}: {said}", taken


def change(path: Path, folder: Path, rng: np.random.Generator) -> str:
    """Change a file; return what was done to it, as far as HDF5 let it be done."""
    done: list[str] = []
    try:
        if rng.random() < 0.8:
            among = CHANGES if rng.random() < 0.6 else DEEP
            version = [None, "latest", "v108", ("v110", "v110")][rng.integers(4)]
            with h5py.File(path, "r+", libver=version) as file:
                ones = (among[rng.integers(len(among))] for _ in range(int(rng.choice([1, 1, 1, 2, 3]))))
                done.extend(make(one, file, rng, folder) for one in ones)
        if not done or rng.random() < 0.25:
            done.append(change_metadata(path, rng))
    except Exception as error:  # after a first change a second one may find nothing to change
        done.append(f"stopped by {type(error).__name__}")
    return "; ".join(done)


def make(one: Change, file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    """Make one change in a table that is there."""
    return one(file, rng, folder, str(rng.choice([name for name in NAMES if name in file])))


def sources(folder: Path) -> list[Path]:
    """Write a run of each kind, in a folder each: of this version in every state, of the versions before, of ranks."""
    made = []
    for name, end in (("sealed", "seal"), ("killed", "kill"), ("closed", "close"), ("ranks", "close")):
        (folder / name).mkdir(parents=True)
        made.append(folder / name / "a.h5")
        ranks = 2 if name == "ranks" else 1
        for rank in range(ranks):
            path = rank_path(made[-1], rank)
            write(path, generations=2 if end == "close" else 1, end=end, rank=rank, ranks=ranks, steps=40)
    for kept in sorted(Path(__file__).with_name("files").glob("version*.h5.gz")):
        made.append(folder / kept.name.removesuffix(".h5.gz") / "a.h5")
        made[-1].parent.mkdir()
        made[-1].write_bytes(gzip.decompress(kept.read_bytes()))
    for path in made:
        with contextlib.suppress(RunFileError):
            repair(path, in_place=True)  # closed cleanly, so that h5py opens it for changing
    return made


def every_change(folder: Path) -> None:
    """Make every change in every table of every version, and print what went wrong."""
    for source in sources(folder):
        if source.parent.name in ("ranks", "killed"):  # closed ones have the same tables
            continue
        for one in CHANGES:
            said, _ = in_a_child(lambda one=one, source=source: in_every_table(one, source, folder / "case"))
            if said:
                sys.stdout.write(f"{source.parent.name} {one.__name__}: {said}\n")


def in_every_table(one: Change, source: Path, folder: Path) -> str:
    """Make a change in every table, each in a copy of its own; return nothing, or raise with the table's name."""
    with h5py.File(source, "r") as file:
        tables = [name for name in NAMES if name in file]
    for name in tables[:1] if one in (change_attribute, change_many, change_version) else tables:
        folder.mkdir()
        shutil.copyfile(source, path := folder / "a.h5")
        shutil.copyfile(source, folder / "other.h5")
        try:
            with h5py.File(path, "r+") as file:
                one(file, np.random.default_rng(0), folder, name)
        except Exception as error:
            raise RuntimeError(f"{name}: {error}") from error
        finally:
            shutil.rmtree(folder)
    return ""


def main() -> None:
    """Do what the command line says."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    if sys.argv[2] == "every-change":
        every_change(folder)
        return
    first, seconds = int(sys.argv[2]), float(sys.argv[3])
    files = sources(folder)
    begin, seed, counts, largest = time.monotonic(), first, Counter[str](), 0
    while time.monotonic() - begin < seconds:
        said, taken = one_case(files, folder / "case", seed)
        largest = max(largest, taken)
        for word in ("CRASHED", "HUNG", "RAISED", "bytes of another file", "MEMORY", "stopped by", ": data"):
            counts[word] += word in said
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
        seed += 1
    told = ", ".join(f"{word.strip(': ')} {count}" for word, count in counts.items())
    sys.stdout.write(f"{told}, at most {largest >> 20} MB, {time.monotonic() - begin:.0f} s\n{seed - first} cases\n")


if __name__ == "__main__":
    main()
