"""Kills a real writer process again and again while a reader follows it: no acknowledged row may be lost.

``LOOPSCOPE_KILLS=200`` runs the long version.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.open import open_run
from loopscope.runfile.reader import Run

KILLS = int(os.environ.get("LOOPSCOPE_KILLS", "20"))

# Says on its standard output what it is about to do ("f" a flush, "s" sealing) and what was acknowledged ("a<step>").
WRITER = """
import os, signal, sys
import numpy as np
from loopscope.probes import staging
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

path, mode, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = np.random.default_rng(seed)
if mode == "between":  # die between two tables of one flush, at an exact place
    write, left = staging.Table.write, [int(rng.integers(8, 200))]
    def dying(self):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self)
    staging.Table.write = dying

say = lambda text: os.write(1, (text + "\\n").encode())
if os.path.exists(path):
    writer = RunWriter.resume(path)
    with open_run(path) as run:
        step = int(run["step"][-1]) + 1 if len(run) else 0
else:
    writer, step = RunWriter.create(path, info={}, scalars=("double",), eigenvalues=4), 0
say("ready")
flushes = 0
while True:
    for _ in range(int(rng.integers(1, 60))):
        depth = 1 + step % 5
        loops = np.full((depth + 1, 4), float(step % 1000), dtype=np.float32)
        writer.append_step({"step": step, "loss": 0.5 * step, "double": 2.0 * step}, loops)
        if step % 7 == 0:
            writer.append_spectrum(step, np.full(4, complex(step, -step)))
            writer.append_probe(step, loops)
        if step % 11 == 0:
            writer.append_array(step, "ramp", np.arange(step * 7919 % 3000, dtype=np.float32) + step)
            writer.append_array(step, "square", np.full((step % 4, step % 4), step))
        step += 1
    say("f")
    assert writer.flush()
    say(f"a{step - 1}")
    flushes += 1
    if mode == "sealing" and flushes == 5:
        say("s")
        writer.seal()
        writer = RunWriter.resume(path)
        say("s")
        flushes = 0
"""

ARRAYS = {
    "ramp": lambda step: np.arange(step * 7919 % 3000, dtype=np.float32) + step,
    "square": lambda step: np.full((step % 4, step % 4), step),
}
MODES = ("anywhere", "flush", "between", "sealing")


@dataclass
class Tally:
    """What the parent saw over all kills."""

    acknowledged: int = -1
    polls: int = 0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODES, 0))


def check_rows(run: Run, since: int) -> int:
    """Compare every row from ``since`` on with what its step says it must be; return the new length."""
    steps = run["step"]
    assert np.array_equal(steps, np.arange(len(steps)))
    tail = slice(since, None)
    assert np.array_equal(run["loss"][tail], 0.5 * steps[tail])
    assert np.array_equal(run["double"][tail], 2.0 * steps[tail])
    loops = run.loops("state_norm", rows=tail)
    ran = np.arange(loops.shape[1]) <= 1 + steps[tail, None] % 5
    assert np.array_equal(np.isnan(loops), ~ran)
    expected = np.broadcast_to(steps[tail, None] % 1000, loops.shape)
    assert np.array_equal(loops[ran], expected[ran])
    assert np.array_equal(run.probe_steps, steps[steps % 7 == 0])
    spectrum_steps, eigenvalues = run.spectra()
    assert np.array_equal(spectrum_steps, steps[steps % 7 == 0])
    assert np.array_equal(eigenvalues.real, np.broadcast_to(spectrum_steps[:, None], eigenvalues.shape))
    assert run.array_names == (tuple(ARRAYS) if len(steps) else ())
    for name in run.array_names:
        oracle, newest = ARRAYS[name], slice(-3, None) if since else slice(None)
        array_steps, arrays = run.arrays(name, newest)
        assert np.array_equal(array_steps, steps[steps % 11 == 0][newest])
        for step, array in zip(array_steps, arrays, strict=True):
            assert array.dtype == oracle(int(step)).dtype and np.array_equal(array, oracle(int(step)))
    return len(steps)


def run_until_killed(path: Path, mode: str, seed: int, tally: Tally, reader: list[Run]) -> None:
    """Start a writer, poll the file while it writes, kill it at a moment that depends on ``mode``."""
    rng = random.Random(seed)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), mode, str(seed)], stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    stream = child.stdout.fileno()
    text, seen, die_at, wanted = b"", 0, float("inf"), {"flush": b"f", "sealing": b"s"}.get(mode)
    skip = rng.randrange(1, 6) if mode == "flush" else 1
    try:
        while True:
            while time.monotonic() < die_at:
                ready, _, _ = select.select([stream], [], [], max(0.0, min(0.002, die_at - time.monotonic())))
                if ready:
                    break
                if reader and mode != "flush":
                    reader[0].refresh()
                    seen = check_rows(reader[0], min(seen, len(reader[0])))
                    tally.polls += 1
            if time.monotonic() >= die_at:
                child.send_signal(signal.SIGKILL)
                die_at = float("inf")
            if not (got := os.read(stream, 65536)):
                break
            text += got
            *lines, text = text.split(b"\n")
            for line in lines:
                if line == b"ready" and not reader:
                    reader.append(open_run(path))
                if line == b"ready" and mode == "anywhere":
                    die_at = time.monotonic() + rng.uniform(0.0, 0.15)
                elif line == wanted:
                    skip -= 1
                    if skip == 0:  # a flush takes about 2 ms here, sealing and resuming about 200 ms
                        die_at = time.monotonic() + rng.uniform(0.0, 0.002 if mode == "flush" else 0.2)
                elif line.startswith(b"a"):
                    tally.acknowledged = int(line[1:])
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
    tally.kills[mode] += 1


def test_no_acknowledged_row_is_lost_over_many_kills(tmp_path: Path) -> None:
    path, tally, reader = tmp_path / "run.h5", Tally(), []
    for kill in range(KILLS):
        run_until_killed(path, MODES[kill % len(MODES)], kill, tally, reader)
        with open_run(path) as run:  # in this process it shares the handle of the reader that stays open
            assert run.state in ("interrupted", "finished")
            assert check_rows(run, 0) >= tally.acknowledged + 1, f"kill {kill} lost acknowledged rows"
        fresh = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from loopscope.runfile.open import open_run; print(len(open_run({str(path)!r})))",
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(fresh.stdout) >= tally.acknowledged + 1
    reader[0].refresh()
    check_rows(reader[0], 0)
    reader[0].close()
    report = repair(path, in_place=True)
    assert report.rows_lost == 0 and report.found in ("whole", "unclosed")
    with open_run(path) as run:
        check_rows(run, 0)
        print(f"{KILLS} kills {tally.kills}, {tally.polls} live polls, {len(run)} steps, {run.generation} generations")
    assert tally.polls > KILLS
