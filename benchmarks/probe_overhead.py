"""What watching every step costs, beside the alternatives.

    python benchmarks/probe_overhead.py                     # widths 32 and 256, about six minutes
    python benchmarks/probe_overhead.py --size small --rounds 10 --json
    python benchmarks/probe_overhead.py --size medium --rounds 30 --steps 0      # width 512
    python benchmarks/probe_overhead.py --size 140m --device cuda      # parcae-140m in bf16 autocast

Trains copies of one model in one process, one step each in turn (A B C D E, B C D E A, ...), on the same tokens and
depth:

    plain      no probe
    watch      the probe, preset watch, a row on every step
    study      the probe, preset study, in its most frequent steps: blocks and gradients too
    item       hooks that read ‖h_t‖, ‖h_{t+1} − h_t‖ and ‖B̅e‖ with ``.item()`` in every loop
    monitor    in the style of the Parcae authors' monitor: norms at the end of the loop and the optimizer's state
    monitor-h  the same without the optimizer's state

The monitor is a re-creation from a description of what it measures, not their code. A share is the median over rounds
of (step with) / (step without, of the same round) - 1, with the quartiles; on a shared machine they are the point. The
passes of the fixed probe batch fall in one step of 10 at first and of 160 later, and the norms that move slowly in one
of 10: a median does not see them, so such steps are timed apart. ``probe.step`` itself, host memory and device buffers
are measured too.

Not covered: GPUs were not at hand when the numbers of ``docs/performance.md`` were taken; with ``--device cuda`` the
device is waited for at the end of each step. That no step waits by itself is what ``tests/probes/test_no_wait.py``
asks.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from loopscope.models import build
from loopscope.models.looped import LoopedTransformer
from loopscope.probes import attach
from loopscope.probes.loop_watch import LOOP_ROWS
from loopscope.probes.measure.fastest import reduction_for
from loopscope.probes.measure.reduction import EagerReduction
from loopscope.probes.measure.sums import LoopSums
from loopscope.probes.schedule import PRESETS

SIZES: dict[str, dict[str, Any]] = {
    "toy": {"batch": 8, "length": 32},
    "small": {"batch": 4, "length": 128, "width": 256, "heads": 4, "mlp_width": 1024, "max_length": 128},
    "medium": {"batch": 4, "length": 256, "width": 512, "heads": 8, "mlp_width": 2048, "max_length": 256},
    "140m": {"batch": 8, "length": 2048, "preset": "parcae-140m"},  # for a GPU; in bf16 autocast there
}
ON_CPU = ("toy", "small")
LOOPS = 8
# Wall time is what a user sees and what other processes blur. The training thread's own processor time is what a step
# takes longer where a core is free for the recorder's thread; the process's is all the work that was done.
CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time, "process": time.process_time}


def model_of(size: dict[str, Any]) -> LoopedTransformer:
    """Return the model of a size."""
    overrides = {key: value for key, value in size.items() if key not in ("batch", "length", "preset")}
    return build(size.get("preset", "demo"), injection="parcae", **overrides)


class Contender:
    """A model in training with one way of watching it."""

    def __init__(self, name: str, size: dict[str, Any], device: torch.device) -> None:
        self.name, self.device = name, device
        torch.manual_seed(0)
        self.model = model_of(size).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.shape = size["batch"], size["length"]
        self.after_step: Callable[[torch.Tensor, torch.Tensor], None] = lambda loss, norm: None

    def seconds(self, step: int) -> tuple[float, ...]:
        """Return the clocks' times of one training step, its watching included, in the order of `CLOCKS`."""
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(256, (self.shape[0], self.shape[1] + 1), generator=generator).to(self.device)
        torch.manual_seed(step)
        _wait(self.device)
        began = [clock() for clock in CLOCKS.values()]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(tokens[:, :-1], num_loops=LOOPS)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.after_step(loss, norm)
        _wait(self.device)
        return tuple(clock() - start for clock, start in zip(CLOCKS.values(), began, strict=True))


def with_probe(contender: Contender, folder: Path) -> None:
    """Return the probe as a user attaches it; notes the time of every ``probe.step``."""
    probe = attach(contender.model, folder / f"{contender.name}.h5", preset=contender.name)
    contender.calls = []  # type: ignore[attr-defined]

    def after_step(loss: torch.Tensor, norm: torch.Tensor) -> None:
        began = time.perf_counter()
        probe.step(loss=loss, grad_norm=norm, lr=1e-3)
        contender.calls.append(time.perf_counter() - began)  # type: ignore[attr-defined]

    contender.after_step, contender.close = after_step, probe.close  # type: ignore[attr-defined]


def with_item_hooks(contender: Contender) -> None:
    """Return what one writes first: every number read in every loop, kept in a list."""
    model = contender.model
    rows: list[float] = []
    before: list[torch.Tensor] = []

    def loop(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            h, e = args
            rows.append(h.norm(dim=-1).mean().item())
            if before:
                rows.append((h - before.pop()).norm(dim=-1).mean().item())
            rows.append((e @ model.injection.b_bar().mT).norm(dim=-1).mean().item())
            before.append(h.detach())

    def leave(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            rows.append((args[0] - before.pop()).norm(dim=-1).mean().item())

    model.injection.register_forward_pre_hook(loop)
    model.read_out.register_forward_pre_hook(leave)
    contender.after_step = lambda loss, norm: rows.extend([loss.item(), norm.item()])


def with_monitor(contender: Contender, *, optimizer: bool) -> None:
    """Note end-of-loop norms, and norms of parameters, gradients, Adam moments and updates where asked."""
    model = contender.model
    last: dict[str, torch.Tensor] = {}

    def loop(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        last["before"] = last["h"] = args[0].detach()

    def leave(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        last["h"] = args[0].detach()

    model.injection.register_forward_pre_hook(loop)
    model.read_out.register_forward_pre_hook(leave)

    @torch.no_grad()
    def after_step(loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Log by hand what the probe records."""
        h, step = last["h"], last["h"] - last["before"]
        a_bar = model.injection.a_bar()
        norms = [
            h.norm(dim=-1).mean(),
            h.std(),
            step.norm(dim=-1).mean(),
            F.cosine_similarity(h, last["before"], dim=-1).mean(),
            a_bar.max(),
            a_bar.min(),
            loss,
            norm,
        ]
        if optimizer:
            for parameter, state in contender.optimizer.state.items():
                first, second = state["exp_avg"], state["exp_avg_sq"]
                norms += [parameter.norm(), first.norm(), second.norm(), (first / (second.sqrt() + 1e-8)).norm()]
                norms += [] if parameter.grad is None else [parameter.grad.norm()]
        contender.numbers = torch.stack([x.detach().float() for x in norms]).tolist()  # type: ignore[attr-defined]

    contender.after_step = after_step


def interleaved(size: dict[str, Any], rounds: int, warmup: int, device: torch.device, folder: Path) -> dict[str, Any]:
    """Time steps of all contenders in turn; shares of a step are medians of the ratios of a round."""
    plain, watch, study = (Contender(name, size, device) for name in ("plain", "watch", "study"))
    item, monitor, monitor_h = (Contender(name, size, device) for name in ("item", "monitor", "monitor-h"))
    with_probe(watch, folder)
    with_probe(study, folder)
    with_item_hooks(item)
    with_monitor(monitor, optimizer=True)
    with_monitor(monitor_h, optimizer=False)
    contenders = [plain, watch, study, item, monitor, monitor_h]
    seconds: dict[str, list[tuple[float, ...]]] = {one.name: [] for one in contenders}
    for step in range(warmup + rounds):
        turn = step % len(contenders)
        for one in contenders[turn:] + contenders[:turn]:
            took = one.seconds(step)
            if step >= warmup:
                seconds[one.name].append(took)
    for one in (watch, study):
        one.close()  # type: ignore[attr-defined]
        assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), one.model.parameters(), strict=True))
    times = {name: np.array(pairs) for name, pairs in seconds.items()}
    passes = np.array([PRESETS["watch"].probe_batch(step) for step in range(warmup, warmup + rounds)])
    calls = np.array(watch.calls[warmup:])  # type: ignore[attr-defined]
    plain_wall, plain_thread, _ = np.median(times["plain"], axis=0)
    whole = times["watch"][passes, 0] / times["plain"][passes, 0] - 1
    result: dict[str, Any] = {
        "due_step_share": float(np.median(whole)),
        "parameters": sum(p.numel() for p in plain.model.parameters()),
        "plain_ms": 1e3 * plain_wall,
        "plain_thread_ms": 1e3 * plain_thread,
        "probe_step_share": np.median(calls[~passes]) / plain_wall,
        "probe_pass_share": np.median(calls[passes]) / plain_wall,
        "shares": {},
    }
    for one in contenders[1:]:
        # A pass of the probe batch is a forward of its own; it is told apart, as a share of a step. In the same steps
        # fall the norms of B̅e, B̅, C_out and the parameters.
        counted = ~passes if one in (watch, study) else np.ones(rounds, dtype=bool)
        for column, kind in enumerate(CLOCKS):
            ratios = times[one.name][counted, column] / times["plain"][counted, column] - 1
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            # Standard error of a median: 1.25 sigma / sqrt(n), sigma from the quartiles.
            error = 1.25 * (high - low) / 1.35 / math.sqrt(len(ratios))
            shares = {"median": middle, "low": low, "high": high, "error": error}
            result["shares"].setdefault(one.name, {})[kind] = shares
    return result


def taps_alone(size: dict[str, Any], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the tap's own time per step in milliseconds, all hooks: not blurred by what the model's steps vary."""
    from loopscope.loops.find import find_site
    from loopscope.probes.measure.tap import LoopTap

    model = model_of(size).to(device)
    buffer = LoopSums(256, device, reduction_for(device))
    tap = LoopTap(model, find_site(model), buffer, lambda error: None)
    state = torch.randn(size["batch"], size["length"], model.config.width, device=device)
    states, times = [state + t for t in range(LOOPS + 1)], []
    for _ in range(rounds):
        buffer.reset()
        _wait(device)
        began = time.perf_counter()
        tap.see("begin", [], 1)
        for h in states[:-1]:
            tap.see("loop", [h, state], 0)
        tap.see("finish", [states[-1]], 0)
        tap.see("end", [], 0)
        _wait(device)
        times.append(time.perf_counter() - began)
    assert buffer.cursor == LOOPS + 1
    return {"median_ms": 1e3 * statistics.median(times), "fastest_ms": 1e3 * min(times)}


def long_run(steps: int, folder: Path) -> dict[str, float]:
    """Time ``probe.step`` over a long run, and what the process grew by. The model only runs forward, briefly."""
    model: LoopedTransformer = build("demo")
    calls, resident = [], []
    with attach(model, folder / "long.h5") as probe:
        tokens, loss = torch.zeros(1, 8, dtype=torch.int64), torch.tensor(1.0)
        for step in range(steps):
            model(tokens, num_loops=LOOPS)  # with gradients: the batch of a forward without is not taken
            began = time.perf_counter()
            probe.step(loss=loss, grad_norm=loss, lr=1e-3)
            calls.append(time.perf_counter() - began)
            if step % max(1, steps // 100) == 0:
                gc.collect()
                resident.append(_resident_bytes())
    rows_only = [took for step, took in enumerate(calls) if not PRESETS["watch"].probe_batch(step)]
    return {
        "steps": steps,
        **{f"p{q}_us": 1e6 * float(np.quantile(rows_only, q / 100)) for q in (50, 90, 99)},
        "largest_us": 1e6 * max(rows_only),
        "probe_batch_ms": 1e3 * (statistics.median(calls[::400])),
        "grown_mb_first_tenth_to_end": (resident[-1] - resident[len(resident) // 10]) / 1e6,
        "grown_mb_second_half": (resident[-1] - resident[len(resident) // 2]) / 1e6,
    }


def device_bytes(loops: int) -> dict[str, int]:
    """Return the bytes of the buffers of sums, which depend neither on the run's length nor on its depth."""
    sizes = {"loops": loops}
    for kind, parts in (("eager", 1), ("fused", 256)):
        reduction = EagerReduction()
        reduction.parts = parts
        buffer = LoopSums(LOOP_ROWS, torch.device("cpu"), reduction)
        sizes[kind] = sum(value.nbytes for value in vars(buffer).values() if isinstance(value, torch.Tensor))
    return sizes


def _resident_bytes() -> int:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of watching every training step.")
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all", help="all: toy and small")
    parser.add_argument("--rounds", type=int, default=60, help="steps of each contender that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each before those")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the long run; 0 leaves it out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    results: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} torch threads, {device}",
        "torch": torch.__version__,
        "loops": LOOPS,
    }
    with tempfile.TemporaryDirectory() as name:
        for size in ON_CPU if options.size == "all" else [options.size]:
            (folder := Path(name) / size).mkdir()
            rounds = options.rounds * (5 if size == "toy" else 1)  # its steps are short
            results[size] = interleaved(SIZES[size], rounds, options.warmup, device, folder)
            results[size]["tap"] = taps_alone(SIZES[size], device, rounds)
        if options.steps:
            results["long run"] = long_run(options.steps, Path(name))
    results["device bytes"] = device_bytes(64)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{results['date']}, {results['machine']}, torch {results['torch']}, {LOOPS} loops")
    for size in SIZES:
        if size not in results:
            continue
        row = results[size]
        print(
            f"{size}: {row['parameters']:,} parameters, step without anything {row['plain_ms']:.1f} ms "
            f"(thread {row['plain_thread_ms']:.1f} ms)"
        )
        for contender, kinds in row["shares"].items():
            for kind, share in kinds.items():
                print(
                    f"  {contender:10} {share['median']:+7.2%} of a step's {kind} time (standard error "
                    f"{share['error']:.2%}, middle half {share['low']:+.2%} to {share['high']:+.2%})"
                )
        print(f"  probe.step alone {row['probe_step_share']:.2%}, the taps alone {row['tap']['median_ms']:.2f} ms")
        passes = row["probe_pass_share"]
        print(f"  a probe batch pass {passes:.1%} of a step: {passes / 10:.1%} at first, {passes / 160:.2%} later")
        print(f"  watch in one step of 10, with the pass and the slow norms: {row['due_step_share']:+.1%}")
    for part in ("long run", "device bytes"):
        if part in results:
            print(f"{part}:", {key: round(value, 2) for key, value in results[part].items()})


if __name__ == "__main__":
    main()
