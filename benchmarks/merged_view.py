"""What it costs to read a live run of several ranks as one run, beside reading the file of one rank alone.

    python benchmarks/merged_view.py [--ranks 8] [--rows 1000000] [--resumed]

A child process writes the files, 8 loops per step, and goes on with 20 more steps on every rank whenever it gets a line
to; this process follows it. A tick is a refresh and then the numbers of a live view. ``--resumed`` has every rank go
back by 100 steps half way, as after a kill. Prints one JSON object last.

Not covered: the time that a figure takes to draw (the dashboard), and disks slower than the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from loopscope.runfile.open import open_run
from loopscope.runfile.rank_names import rank_path
from loopscope.runfile.reader import Run
from loopscope.runfile.writer import RunWriter

LOOPS = 8
NEW_ROWS = 20
TICKS = 10
METRICS = ("loss", "a_bar_radius", "input_norm", "last_residual_norm")  # a mean, a maximum, two token means


def write(path: Path, ranks: int, rows: int, resumed: bool) -> None:
    """Write the files of all ranks, then 20 more steps of each for every line on standard input."""
    random = np.random.default_rng(0)
    profiles = random.uniform(0.5, 2.0, (64, LOOPS + 1, 4)).astype(np.float32)
    profiles[:, :, 3] = 1024
    values = random.uniform(0.5, 2.0, (64, 3))
    writers = []
    for rank in range(ranks):
        info = {"rank": rank, "world_size": ranks, "started": time.time()}
        writers.append(RunWriter.create(rank_path(path, rank), info=info))

    def go_on(first: int, count: int) -> None:
        for rank, writer in enumerate(writers):
            for step in range(first, first + count):
                loss, radius, norm = values[(step + 7 * rank) % 64].tolist()
                row = {"step": step, "loss": loss, "a_bar_radius": radius, "input_norm": norm}
                writer.append_step(row, profiles[(step + 7 * rank) % 64])
            writer.flush()

    go_on(0, rows // 2)
    back = 0
    if resumed:
        for rank, writer in enumerate(writers):
            writer.close()
            writers[rank] = RunWriter.resume(rank_path(path, rank))
        back = 100
    go_on(rows // 2 - back, rows - rows // 2)
    print("ready", flush=True)
    for step, _ in enumerate(sys.stdin):
        go_on(rows - back + step * NEW_ROWS, NEW_ROWS)
        print("ready", flush=True)


def milliseconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call: other work on the machine does not count."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def resident_megabytes() -> float:
    """Return the memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def follow(open_it: Callable[[], Run], more: Callable[[], None]) -> Iterator[tuple[str, float]]:
    """Open a run, ask for its numbers, then follow it for some ticks: names and milliseconds (means of ticks)."""
    before = resident_megabytes()
    start = time.process_time()
    run = open_it()
    yield "open", 1e3 * (time.process_time() - start)
    with run:
        for name in METRICS:
            yield name, milliseconds(lambda name=name: run[name])  # type: ignore[misc]
        yield "50 profiles", milliseconds(lambda: run.loops("residual_norm", rows=slice(len(run) - 50, len(run))))
        yield "megabytes", resident_megabytes() - before
        ticks: dict[str, list[float]] = {}
        for _ in range(TICKS):
            more()
            rows = len(run)
            ticks.setdefault("tick: refresh", []).append(milliseconds(run.refresh))
            assert len(run) == rows + NEW_ROWS
            for name in METRICS:
                ticks.setdefault(f"tick: {name}", []).append(milliseconds(lambda name=name: run[name]))  # type: ignore[misc]
            profiles = milliseconds(lambda: run.loops("residual_norm", rows=slice(len(run) - 50, len(run))))
            ticks.setdefault("tick: 50 profiles", []).append(profiles)
        yield from ((name, float(np.mean(times))) for name, times in ticks.items())
        yield "tick", float(np.sum([np.mean(times) for times in ticks.values()]))
        yield "all profiles", milliseconds(lambda: run.loops("residual_norm"))


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description="Cost of reading a live run of several ranks as one.")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1_000_000, help="steps of each rank")
    parser.add_argument("--resumed", action="store_true", help="all ranks went back by 100 steps half way")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # the child
    options = parser.parse_args()
    if options.write:
        write(options.write, options.ranks, options.rows, options.resumed)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        child = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--write", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None and child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def more() -> None:
            print("more", file=stdin, flush=True)
            assert stdout.readline() == "ready\n"

        assert stdout.readline() == "ready\n"
        alone = dict(follow(lambda: Run(path), more))
        merged = dict(follow(lambda: open_run(path), more))
        for name in merged:
            ratio = merged[name] / alone[name]
            print(f"{name:>28}: all ranks {merged[name]:9.1f}, one rank {alone[name]:8.1f}, ratio {ratio:6.1f}")
        stdin.close()
        child.wait()
        print(json.dumps({"merged": merged, "alone": alone}))


if __name__ == "__main__":
    main()
