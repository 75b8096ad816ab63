"""What recording costs, and how fast a long run opens.

    python benchmarks/recorder.py [--rows 20000] [--long 1000000]

Writes the same 30 scalars per step with ``RunWriter`` (which also writes a profile of 9 loops) and, where it is
installed, with TensorBoard's ``SummaryWriter``, in turns within one run, so that a busy machine slows both. Then opens
runs of 10⁵ and ``--long`` steps, as they are while live and sealed. Prints one JSON object last.

Not covered: the tap and the hand-over between threads (``benchmarks/probe_overhead.py``).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

SCALARS = tuple(f"scalar{i}" for i in range(28))  # with loss and lr: 30
LOOPS = 8
ROWS_PER_FLUSH = 100
TURNS = 5


def percentile(seconds: list[float], share: float) -> float:
    """Return the quantile in microseconds."""
    return 1e6 * float(np.quantile(seconds, share))


def values_of(step: int) -> dict[str, float]:
    """Return 30 scalars of one step."""
    return {"loss": 1.0 / (1 + step), "lr": 1e-3} | {name: step + i for i, name in enumerate(SCALARS)}


class Ours:
    """Rows through a ``RunWriter``, flushed like the recorder thread does."""

    name = "loopscope"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.h5"
        self.writer = RunWriter.create(self.path, info={}, scalars=SCALARS)
        self.loops = np.random.default_rng(0).random((LOOPS + 1, 4), dtype=np.float32)
        self.flushes: list[float] = []

    def step(self, step: int) -> None:
        """Record one step."""
        self.writer.append_step({"step": step} | values_of(step), self.loops)

    def flush(self) -> None:
        """Bring everything to the file."""
        start = time.perf_counter()
        assert self.writer.flush()
        self.flushes.append(time.perf_counter() - start)

    def size(self) -> int:
        """Return the bytes on disk."""
        return self.path.stat().st_size


class TensorBoard:
    """The same 30 scalars through ``SummaryWriter``; its own thread writes."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / "tensorboard"
        self.writer = SummaryWriter(str(self.folder))  # type: ignore[no-untyped-call]

    def step(self, step: int) -> None:
        """Record one step."""
        for name, value in values_of(step).items():
            self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Bring everything to the file."""
        self.writer.flush()  # type: ignore[no-untyped-call]

    def size(self) -> int:
        """Return the bytes on disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir())


def measure(folder: Path, rows: int) -> dict[str, dict[str, float]]:
    """Record ``rows`` steps with each, in turns; times in microseconds per step."""
    contenders: list[Ours | TensorBoard] = [Ours(folder)]
    try:
        contenders.append(TensorBoard(folder))
    except ImportError:
        print("tensorboard is not installed: no comparison")
    calls: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    whole = dict.fromkeys(calls, 0.0)
    for turn in range(TURNS):
        for contender in contenders:
            begin = time.perf_counter()
            for step in range(turn * rows // TURNS, (turn + 1) * rows // TURNS):
                start = time.perf_counter()
                contender.step(step)
                calls[contender.name].append(time.perf_counter() - start)
                if step % ROWS_PER_FLUSH == ROWS_PER_FLUSH - 1:
                    contender.flush()
            contender.flush()
            whole[contender.name] += time.perf_counter() - begin
    costs = {}
    for contender in contenders:
        times = calls[contender.name]
        costs[contender.name] = {
            "append_p50_us": percentile(times, 0.5),
            "append_p99_us": percentile(times, 0.99),
            "per_step_with_flush_us": 1e6 * whole[contender.name] / rows,
            "rows_per_s": rows / whole[contender.name],
            "bytes_per_row": contender.size() / rows,
        }
    ours = contenders[0]
    assert isinstance(ours, Ours)
    costs["loopscope"] |= {
        "flush_p50_us": percentile(ours.flushes, 0.5),
        "flush_p99_us": percentile(ours.flushes, 0.99),
    }
    ours.writer.seal()
    costs["loopscope"]["bytes_per_row_sealed"] = ours.size() / rows
    return costs


def milliseconds(call: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def opening(folder: Path, rows: int) -> dict[str, dict[str, float]]:
    """Time opening a run of ``rows`` steps, its loss and its residual norms, and a refresh; live layout and sealed."""
    path = folder / "long.h5"
    writer = RunWriter.create(path, info={}, overwrite=True)
    random = np.random.default_rng(0)
    profiles = random.random((64, LOOPS + 1, 4), dtype=np.float32)
    losses = random.random(rows)
    begin = time.perf_counter()
    for step in range(rows):
        writer.append_step({"step": step, "loss": losses[step], "lr": 1e-3}, profiles[step % 64])
    writer.close()
    times = {"write": {"rows_per_s": rows / (time.perf_counter() - begin), "megabytes": path.stat().st_size / 1e6}}
    for kind in ("live layout", "sealed"):
        if kind == "sealed":
            writer = RunWriter.resume(path)
            times["seal"] = {"ms": milliseconds(writer.seal), "megabytes": path.stat().st_size / 1e6}
        start = time.perf_counter()
        with open_run(path) as run:
            opened = 1e3 * (time.perf_counter() - start)
            times[kind] = {
                "open_ms": opened,
                "loss_ms": milliseconds(lambda run=run: run["loss"]),  # type: ignore[misc]
                "residual_norm_ms": milliseconds(lambda run=run: run.loops("residual_norm")),  # type: ignore[misc]
                "again_ms": milliseconds(lambda run=run: run.loops("residual_norm")),  # type: ignore[misc]
                "refresh_ms": milliseconds(run.refresh),
            }
            assert len(run) == rows and np.array_equal(run["loss"], losses)
    return times


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description="Cost of recording a run and of opening a long one.")
    parser.add_argument("--rows", type=int, default=20_000, help="steps recorded by each contender")
    parser.add_argument("--long", type=int, default=1_000_000, help="steps of the longest run opened")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results: dict[str, object] = {"recording": (recording := measure(Path(name), options.rows))}
        for contender, numbers in recording.items():
            print(contender, {key: round(value, 1) for key, value in numbers.items()})
        if "tensorboard" in recording:
            ratios = {
                key: recording["tensorboard"][key] / recording["loopscope"][key]
                for key in ("append_p50_us", "append_p99_us", "per_step_with_flush_us", "bytes_per_row")
            }
            results["tensorboard / loopscope"] = ratios
            print("tensorboard / loopscope", {key: round(value, 1) for key, value in ratios.items()})
        for rows in sorted({100_000, options.long}):
            results[f"opening {rows}"] = (times := opening(Path(name), rows))
            for kind, numbers in times.items():
                print(f"{rows} steps, {kind}:", {key: round(value, 1) for key, value in numbers.items()})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
