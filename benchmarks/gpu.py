"""Everything that needs a GPU, in one command of at most nine minutes; writes docs/gpu.md from what it measured.

    make gpu                                   # on a machine with a CUDA device
    python benchmarks/gpu.py --cpu             # the same parts at tiny sizes on the processor: does the kit work?
    PARCAE=/path/to/parcae make gpu            # tokens per second beside the authors' code as well

Each part is a process of its own with a time limit. What a part printed is kept in ``build/gpu``: a second call goes
on with the parts that are missing, and begins anew after a commit or on another device.

Not covered: several devices, other makes than NVIDIA's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "gpu"
PAGE = ROOT / "docs" / "gpu.md"
BUDGET = 540.0  # seconds for everything
HERE = [sys.executable, str(Path(__file__).resolve())]


@dataclass(frozen=True)
class Part:
    """One thing that is run."""

    name: str
    question: str
    gpu: list[str]
    cpu: list[str]
    limit: float

    def command(self, cpu: bool) -> list[str]:
        """Return what is run, on the processor or the device."""
        return self.cpu if cpu else self.gpu


@dataclass(frozen=True)
class Result:
    """What a part gave."""

    part: str
    code: int
    seconds: float
    output: str
    device: str
    commit: str
    date: str


def parts() -> list[Part]:
    """Return what is run, in order: what decides most comes first."""
    python, loopscope = sys.executable, [sys.executable, "-m", "loopscope"]
    bench = [python, str(ROOT / "benchmarks")]

    def script(name: str, *words: str) -> list[str]:
        return [python, f"{bench[1]}/{name}.py", *words]

    peer = [os.environ["PARCAE"]] if "PARCAE" in os.environ else []
    out = str(KEPT / "run.h5")
    train = [*loopscope, "train", "--out", out, "--overwrite"]
    return [
        Part(
            "tests",
            "Do the tests that need a device pass (fused kernel and oracle, no wait, random states, tracker)?",
            [python, "-m", "pytest", "-m", "gpu", "tests", "-q", "-p", "no:cacheprovider"],
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/probes/measure/test_reduction.py"],
            120,
        ),
        Part(
            "trace",
            "Does a watched step wait for the device?",
            [*HERE, "--part", "trace"],
            [*HERE, "--part", "trace"],
            60,
        ),
        Part(
            "graphs",
            "Are the recorded norms the same where the loop is compiled into CUDA graphs?",
            [*HERE, "--part", "graphs"],
            [*HERE, "--part", "graphs", "--tiny"],
            90,
        ),
        Part(
            "overhead",
            "What does watching every step cost at 140M in bf16?",
            script("probe_overhead", "--size", "140m", "--device", "cuda", "--rounds", "15", "--steps", "0"),
            script("probe_overhead", "--size", "toy", "--rounds", "2", "--warmup", "1", "--steps", "0"),
            120,
        ),
        Part(
            "throughput",
            "How many tokens a second, beside the authors' code where a checkout is given (PARCAE)?",
            script(
                "train_throughput", *peer, "--preset", "parcae-140m", "--batch", "16", "--steps", "4", "--rounds", "3"
            ),
            script("train_throughput", "--preset", "parcae-tiny", "--batch", "2", "--steps", "1", "--rounds", "1"),
            90,
        ),
        Part(
            "train",
            "Does a short 140M run on real text record its loop, and what does the gate say?",
            [*train, "--preset", "parcae-140m", "--steps", "30", "--device", "cuda"],
            [*train, "--preset", "demo", "--steps", "10", "--device", "cpu"],
            90,
        ),
        Part(
            "linearize",
            "How long does the linearisation of 140M take?",
            script("jacobians", "linearize", "--device", "cuda"),
            script("jacobians", "linearize", "--preset", "demo", "--tokens", "8", "--loops", "4"),
            90,
        ),
    ]


def trace() -> None:
    """Watched steps under the profiler: calls that wait, by name, in the steps after the first three."""
    from loopscope.models import build
    from loopscope.probes import attach
    from torch.profiler import ProfilerActivity, profile

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    model = build("demo", injection="concatenation").to(device)
    tokens = torch.zeros(4, 32, dtype=torch.int64, device=device)
    with tempfile.TemporaryDirectory() as folder, attach(model, f"{folder}/a.h5") as probe:

        def step() -> None:
            loss = model(tokens, num_loops=5).logsumexp(-1).mean()
            loss.backward()
            probe.step(loss=loss, lr=1e-3)

        for _ in range(3):
            step()
        with profile(activities=kinds) as recorded:
            for _ in range(3):
                step()
    # Reading a number that lies on the processor is no wait; a read from the device shows as one of these.
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    calls = {event.key: event.count for event in recorded.key_averages() if event.key in waits}
    print(json.dumps({"device": str(device), "steps": 3, "calls that wait": calls}))
    sys.exit(1 if calls else 0)


def graphs(tiny: bool) -> None:
    """Run the same steps eager and with the loop compiled for CUDA graphs: the recorded norms are compared."""
    import numpy as np
    from loopscope.models import build
    from loopscope.probes import attach, open_run

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    norms = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build("demo", injection="concatenation").to(device)
        with tempfile.TemporaryDirectory() as folder:
            with attach(model, f"{folder}/a.h5") as probe:
                if compiled and not tiny:
                    model.compile_loop(mode="reduce-overhead")
                for number in range(4):
                    torch.manual_seed(number)
                    tokens = torch.randint(256, (4, 32)).to(device)
                    loss = model(tokens, num_loops=5).logsumexp(-1).mean()
                    loss.backward()
                    probe.step(loss=loss, lr=1e-3)
            with open_run(f"{folder}/a.h5") as run:
                norms.append(run.loops("state_norm"))
    worst = float(np.nanmax(np.abs(norms[0] / norms[1] - 1)))
    print(json.dumps({"device": str(device), "compiled": not tiny, "largest relative difference": worst}))
    sys.exit(0 if worst < 1e-4 else 1)


def run_part(part: Part, *, cpu: bool, limit: float, device: str, commit: str) -> Result:
    """Run one part, and keep what it printed."""
    began = time.monotonic()
    try:
        done = subprocess.run(part.command(cpu), cwd=ROOT, capture_output=True, text=True, timeout=limit)
        code, output = done.returncode, done.stdout[-6000:] + ("" if done.returncode == 0 else done.stderr[-3000:])
    except subprocess.TimeoutExpired:
        code, output = 124, f"stopped after {limit:.0f} s"
    date = datetime.now(UTC).date().isoformat()
    result = Result(part.name, code, time.monotonic() - began, output.strip(), device, commit, date)
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{part.name}.json").write_text(json.dumps(asdict(result), indent=2), encoding="utf-8")
    return result


def kept(part: Part, device: str, commit: str) -> Result | None:
    """Return what a part gave on this device and commit; None where it has not been run to its end."""
    try:
        result = Result(**json.loads((KEPT / f"{part.name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return result if (result.device, result.commit) == (device, commit) and result.code != 124 else None


def page(results: list[Result], device: str) -> str:
    """Return the document: what was asked, on what, when, and what came out, word for word."""
    asked = {part.name: part.question for part in parts()}
    lines = [
        "# On a GPU",
        "",
        f"Written by `make gpu` on {datetime.now(UTC).date().isoformat()}: {device}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, commit {results[0].commit if results else '?'}.",
        "",
        "| part | question | result | seconds |",
        "|---|---|---|---|",
    ]
    for each in results:
        state = "passed" if each.code == 0 else "out of time" if each.code == 124 else f"failed ({each.code})"
        lines.append(f"| {each.part} | {asked[each.part]} | {state} | {each.seconds:.0f} |")
    for each in results:
        fence = "~~~"
        lines += ["", f"## {each.part}", "", f"{fence}text", each.output.replace(fence, "~ ~ ~") or "(nothing)", fence]
    return "\n".join(lines) + "\n"


def hardware(cpu: bool) -> str:
    """Return the device, in words."""
    return f"{platform.machine()} processor, tiny sizes" if cpu else torch.cuda.get_device_name()


def main() -> int:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the processor; writes no page")
    parser.add_argument("--again", action="store_true", help="run every part, done or not")
    parser.add_argument("--part", choices=["trace", "graphs"], help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        inner: dict[str, Callable[[], Any]] = {"trace": trace, "graphs": lambda: graphs(options.tiny)}
        inner[options.part]()
        return 0
    if not options.cpu and not torch.cuda.is_available():
        print("no CUDA device on this machine: nothing was run, docs/gpu.md is as it was (--cpu tries the kit itself)")
        return 0
    device = hardware(options.cpu)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    began, results = time.monotonic(), []
    for part in parts():
        left = BUDGET - (time.monotonic() - began)
        result = None if options.again else kept(part, device, commit)
        if result is None and left < 10:
            print(f"{part.name}: no time left; call again to go on", flush=True)
            continue
        if result is None:
            print(f"{part.name}: {part.question}", flush=True)
            result = run_part(part, cpu=options.cpu, limit=min(part.limit, left), device=device, commit=commit)
        print(
            f"{part.name}: {'passed' if result.code == 0 else f'exit code {result.code}'}, {result.seconds:.0f} s",
            flush=True,
        )
        results.append(result)
    if not options.cpu:
        PAGE.write_text(page(results, device), encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 0 if all(each.code == 0 for each in results) and len(results) == len(parts()) else 1


if __name__ == "__main__":
    sys.exit(main())
