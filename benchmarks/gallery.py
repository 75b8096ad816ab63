"""A gallery of planted faults: what the gate says of each, when, and what simpler watchers say of the same runs.

Each fault is planted in small trainings over three seeds; healthy twins of the same settings are trained beside them.
Every run is judged by ``loopscope check`` with the shipped rules, and its loss, gradient norm and rate by four other
watchers: the rules that Lightning's EarlyStopping (``check_finite``), llm-foundry's KillLossSpike and OLMo-core's
SkipStepOptimizer publish, written here anew, and trainproof, run as a program where ``--trainproof`` names its folder.

    python benchmarks/gallery.py --out runs/gallery                       # trains what is missing, writes the tables
    python benchmarks/gallery.py --out runs/gallery --trainproof FOLDER   # after pip install --target FOLDER trainproof

The golden verdicts are in ``gallery.json`` beside this file, the tables in docs/gallery.md. No threshold was chosen on
these runs.

Not covered: halting (no model of ours halts), faults of several machines at once, runs longer than a minute.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STEPS, AT = 160, 60  # length of a training, and the step at which a fault begins
SEEDS = (0, 1, 2)
BATCH, LENGTH = 8, 32
GOLDEN = Path(__file__).with_name("gallery.json")
PAGE = Path(__file__).parents[1] / "docs" / "gallery.md"


class Training:
    """A small training in which something can be made to go wrong.

    Attributes:
        lr: Peak learning rate.
        factor: What the rate is multiplied by now.
        skip_bad: Whether a step with a loss that is not finite is skipped.
        change: What is done to a batch before it is used.
        report: What the trainer logs as the loss.
    """

    def __init__(self, seed: int, injection: str, lr: float, **model: Any) -> None:
        import torch
        from loopscope.models import build, standard_library

        torch.manual_seed(seed)
        self.torch, self.seed, self.lr = torch, seed, lr
        self.model = build("demo", injection=injection, **model)
        self.text = standard_library(sequence_length=LENGTH, seed=seed)
        self.optimizer = self._adam()
        self.noise = torch.Generator().manual_seed(seed)
        self.factor, self.sign, self.clip = 1.0, 1.0, 1.0
        self.skip_bad = False
        self.depth: int | None = None
        self.change: Callable[[Any, Any], tuple[Any, Any]] = lambda inputs, targets: (inputs, targets)
        self.report: Callable[[Any], Any] = lambda loss: loss
        self.frozen: int | None = None  # the only batch that comes, from now on
        self.spoil: Callable[[Any], Any] = lambda loss: loss
        self.probe: Any = None

    def _adam(self) -> Any:
        return self.torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.95))

    def renew_optimizer(self) -> None:
        """Start the optimizer anew."""
        self.optimizer = self._adam()

    def step(self, number: int) -> None:
        """Train one step and record it."""
        torch = self.torch
        batch = self.text.batch(number if self.frozen is None else self.frozen, BATCH)
        inputs, targets = self.change(batch[:, :-1], batch[:, 1:])
        logits = self.model(inputs) if self.depth is None else self.model(inputs, num_loops=self.depth)
        loss = self.spoil(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        self.optimizer.zero_grad()
        (self.sign * loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        rate = self.lr * self.factor * min(1.0, (number + 1) / 10)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not (self.skip_bad and not math.isfinite(float(loss))):
            self.optimizer.step()
        self.probe.step(loss=self.report(loss.detach()), grad_norm=norm, lr=rate)


Plant = Callable[[Training, int], None]


@dataclass(frozen=True)
class Case:
    """A training with a fault, or without.

    Attributes:
        name: Short name.
        what: What goes wrong, for a reader; empty for a healthy twin.
        plant: Called before every step.
        injection: Of the model.
        lr: Peak learning rate.
        start: The step at which the fault begins.
        ending: How the recording ends: ``closed``, ``killed``, ``full disk``, ``rank``.
    """

    name: str
    what: str
    plant: Plant
    injection: str = "parcae"
    lr: float = 0.01
    start: int = AT
    ending: str = "closed"


def nothing(training: Training, step: int) -> None:
    """Plant no fault."""


def at(first: int, last: int | None = None) -> Callable[[Callable[[Training, bool], None]], Plant]:
    """Turn a change that is on or off into one that is on between two steps."""

    def decorate(change: Callable[[Training, bool], None]) -> Plant:
        return lambda training, step: change(training, step >= first and (last is None or step <= last))

    return decorate


def _rate(value: float) -> Callable[[Training, bool], None]:
    return lambda training, on: setattr(training, "factor", value if on else 1.0)


def _labels(training: Training, on: bool) -> None:
    def shuffled(inputs: Any, targets: Any) -> tuple[Any, Any]:
        order = training.torch.randperm(targets.numel(), generator=training.noise)
        return inputs, targets.flatten()[order].view_as(targets)

    training.change = shuffled if on else lambda inputs, targets: (inputs, targets)


def _garbage(training: Training, on: bool) -> None:
    def random(inputs: Any, targets: Any) -> tuple[Any, Any]:
        draw = [training.torch.randint(0, 256, t.shape, generator=training.noise) for t in (inputs, targets)]
        return draw[0], draw[1]

    training.change = random if on else lambda inputs, targets: (inputs, targets)


def _same_token(training: Training, on: bool) -> None:
    training.change = (lambda inputs, targets: (inputs, inputs)) if on else lambda inputs, targets: (inputs, targets)


def _frozen(training: Training, on: bool) -> None:
    training.frozen = 7 if on else None


def _nan_loss(training: Training, on: bool) -> None:
    training.spoil = (lambda loss: loss * math.nan) if on else lambda loss: loss


def _nan_skipped(training: Training, on: bool) -> None:
    training.skip_bad = True
    _nan_loss(training, on)


def _zero_for_nan(training: Training, on: bool) -> None:
    _nan_loss(training, on)
    training.report = lambda loss: loss.nan_to_num(0.0)


def _depth(loops: int) -> Callable[[Training, bool], None]:
    return lambda training, on: setattr(training, "depth", loops if on else None)


def _ascend(training: Training, on: bool) -> None:
    training.sign = -1.0 if on else 1.0


def _evaluation(training: Training, on: bool) -> None:
    training.model.train(not on)


def once(step: int, change: Callable[[Training], None]) -> Plant:
    """Turn a change into one that is made before one step."""
    return lambda training, number: change(training) if number == step else None


def _grow_injection(training: Training) -> None:
    with training.torch.no_grad():
        for name, parameter in training.model.named_parameters():
            if "injection" in name and parameter.ndim == 2:
                parameter.mul_(2.0)


def _explode_injection(training: Training) -> None:
    with training.torch.no_grad():
        for name, parameter in training.model.named_parameters():
            if "injection" in name and parameter.ndim == 2:
                parameter.mul_(20.0)


def _wrong_resume(training: Training) -> None:
    """Resume with fresh weights and a fresh optimizer: the checkpoint was not loaded."""
    for module in training.model.modules():
        if isinstance(module, training.torch.nn.Linear | training.torch.nn.Embedding):
            module.reset_parameters()
    training.renew_optimizer()


def _optimizer_lost(training: Training) -> None:
    """Resume with the weights and without the optimizer's state."""
    training.renew_optimizer()


def _injection_in_bf16(training: Training, on: bool) -> None:
    """Round the injection to bfloat16 after every step, as a model that is kept in it does."""
    with training.torch.no_grad():
        for name, parameter in training.model.named_parameters():
            if on and "injection" in name:
                parameter.copy_(parameter.bfloat16().float())


def _weights_frozen(training: Training) -> None:
    """Have the optimizer step what the model does not use any more."""
    copies = [p.detach().clone().requires_grad_() for p in training.model.parameters()]
    training.optimizer = training.torch.optim.AdamW(copies, lr=training.lr)


def _probe_fails(training: Training) -> None:
    """Have the probe fail inside a step."""
    watch = training.probe._watch

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("planted: the tap lost its loop")

    if watch is not None:
        watch.tap.finish = broken
        training.probe._lose_loop(RuntimeError("planted: the tap lost its loop"))


FAULTS: tuple[Case, ...] = (
    Case("rate-x100-5", "rate × 100 for five steps", at(AT, AT + 4)(_rate(100.0))),
    Case("rate-x10", "rate × 10 from step 60 on", at(AT)(_rate(10.0))),
    Case("rate-zero-half", "rate 0 from step 60 on", at(AT)(_rate(0.0))),
    Case("rate-zero", "rate 0 throughout", at(0)(_rate(0.0)), start=0),
    Case("six-bad-batches", "six batches of random bytes", at(AT, AT + 5)(_garbage)),
    Case("garbage-half", "random bytes from step 60 on", at(AT)(_garbage)),
    Case("labels-half", "labels shuffled from step 60 on", at(AT)(_labels)),
    Case("labels", "labels shuffled throughout", at(0)(_labels), start=0),
    Case("wrong-target", "the token itself as its label, from step 60 on", at(AT)(_same_token)),
    Case("frozen-data", "the same batch from step 60 on", at(AT)(_frozen)),
    Case("frozen-weights", "the optimizer steps copies from step 60 on", once(AT, _weights_frozen)),
    Case("nan-recovered", "a loss of NaN in one step, which is skipped", at(AT, AT)(_nan_skipped)),
    Case("nan-kept", "a loss of NaN in one step reaches the weights", at(AT, AT)(_nan_loss)),
    Case("nan-hidden", "the same, logged as 0", at(AT, AT)(_zero_for_nan)),
    Case("ascent", "the sign of the loss is wrong from step 60 on", at(AT)(_ascend)),
    Case("deeper", "32 loops instead of 8 from step 60 on", at(AT)(_depth(32))),
    Case("one-loop", "1 loop instead of 8 from step 60 on", at(AT)(_depth(1))),
    Case("hot-concatenation", "concatenation at lr 0.05", nothing, "concatenation", 0.05, 0),
    Case("hot-parcae", "Parcae at lr 0.5", nothing, "parcae", 0.5, 0),
    Case("injection-x2", "A̅, B̅ × 2 at step 60", once(AT, _grow_injection), "concatenation", 0.003),
    Case("injection-x20", "A̅, B̅ × 20 at step 60", once(AT, _explode_injection), "concatenation", 0.003),
    Case("injection-bf16", "injection rounded to bfloat16 after every step", at(0)(_injection_in_bf16), start=0),
    Case("wrong-resume", "fresh weights from step 60 on: the checkpoint was not loaded", once(AT, _wrong_resume)),
    Case("optimizer-lost", "fresh optimizer at step 60", once(AT, _optimizer_lost)),
    Case("evaluation-mode", "the model left in evaluation mode from step 60 on", at(AT)(_evaluation)),
    Case("probe-lost", "the probe fails at step 60", once(AT, _probe_fails)),
    Case("hangs", "the process is killed at step 60 after it hung", nothing, ending="killed"),
    Case("disk-full", "no room for the recording any more", nothing, ending="full disk"),
    Case("rank-lost", "the second of two ranks is killed at step 60", nothing, ending="rank"),
)  # fmt: skip
HEALTHY: tuple[Case, ...] = (
    Case("healthy-parcae", "", nothing),
    Case("healthy-concatenation", "", nothing, "concatenation", 0.003),
    Case("healthy-addition", "", nothing, "addition", 0.01),
)
CASES = (*FAULTS, *HEALTHY)
BY_NAME = {case.name: case for case in CASES}


# -- training ---------------------------------------------------------------------------------------------------------


def train(case: Case, seed: int, path: Path) -> None:
    """Train one case and record it; a run that is there is kept.

    It is trained in a folder of its own and moved when it is done, so that a gallery that was broken off goes on.
    """
    if path.exists():
        return
    begun = path.parent / "begun"
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    new = begun / path.name
    if case.ending in ("killed", "full disk"):
        _in_a_child(lambda: _train(case, seed, new))
    elif case.ending == "rank":
        child = _start(lambda: _train(case, seed, new, rank=1))
        _train(case, seed, new)
        os.waitpid(child, 0)
    else:
        _train(case, seed, new)
    for file in sorted(begun.iterdir(), key=lambda file: file == new):
        file.rename(path.parent / file.name)


def _train(case: Case, seed: int, path: Path, rank: int = 0) -> None:
    """Train in this process."""
    import loopscope
    import torch
    from loopscope.probes import probe as probe_module

    torch.set_num_threads(1)
    logging.getLogger("loopscope").setLevel(logging.CRITICAL)
    training = Training(seed, case.injection, case.lr)
    ranks = probe_module.rank_and_world_size
    if case.ending == "rank":  # two processes that train alone and say that they are two ranks
        probe_module.rank_and_world_size = lambda path: (rank, 2)
    try:
        training.probe = loopscope.attach(training.model, path, config={"case": case.name, "seed": seed, "lr": case.lr})
    finally:
        probe_module.rank_and_world_size = ranks
    for step in range(STEPS):
        case.plant(training, step)
        training.step(step)
        if step == AT and (case.ending == "killed" or rank):
            training.probe.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == AT and case.ending == "full disk":
            training.probe.flush()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            size = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    training.probe.close()


def _in_a_child(work: Callable[[], None]) -> None:
    """Do something in a process that may end badly, and wait for its end."""
    os.waitpid(_start(work), 0)


def _start(work: Callable[[], None]) -> int:
    """Do something in a process beside this one."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


# -- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """What a watcher says of a run: whether it would have stopped it, when, and in what words."""

    alarm: bool
    step: int | None
    words: str


def judge(case: Case, path: Path) -> dict[str, Any]:
    """Return what the gate says of a run, as the golden file holds it."""
    from loopscope.gate.check import check_runs

    result = check_runs([path])
    (run,) = result.runs
    if run.diagnosis is None:
        return {"exit": result.exit_code, "error": [], "warning": [], "note": [], "step": None, "lead": None}
    told = [f for f in run.diagnosis.findings if f.step >= case.start or f.gap]
    serious = [f for f in told if f.severity == "error"]
    first = min((f.step for f in serious if not f.gap), default=None)
    leads = [f.lead for f in serious if f.lead is not None]
    return {
        "exit": result.exit_code,
        "error": sorted({f"{f.rule} {f.name}" for f in serious}),
        "warning": sorted({f"{f.rule} {f.name}" for f in told if f.severity == "warning"}),
        "note": sorted({f"{f.rule} {f.name}" for f in told if f.severity == "note"}),
        "step": first,
        "lead": max(leads, default=None),
    }


Log = Mapping[str, np.ndarray]


def log_of(path: Path) -> Log:
    """Return what a log without a loop would hold of a run."""
    from loopscope import open_run

    with open_run(path) as run:
        return {name: np.array(run[name]) for name in ("step", "loss", "grad_norm", "lr")}


def lightning(log: Log) -> Word:
    """EarlyStopping with ``check_finite``: stops where the monitored loss is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(log["loss"]))
    return Word(bool(len(bad)), int(log["step"][bad[0]]) if len(bad) else None, "check_finite")


def llm_foundry(log: Log, patience: int = 4, multiplier: float = 2.0, size: int = 100, cap: float = 10.0) -> Word:
    """KillLossSpike as published: five losses in a row at twice the mean of 100, or half of a window above 10."""
    window: deque[float] = deque(maxlen=size)
    outliers = 0
    for number, loss in enumerate(log["loss"].tolist()):
        if len(window) == size:
            mean = sum(window) / size
            outliers = outliers + 1 if loss >= multiplier * mean else 0
            high = number >= 2 * size and sum(each > cap for each in window) >= size / 2
            if outliers > patience or high:
                return Word(True, int(log["step"][number]), "KillLossSpike")
        window.append(loss)
    return Word(False, None, "KillLossSpike")


def olmo(log: Log, length: int = 128, sigma: float = 6.0) -> Word:
    """SkipStepOptimizer as published: a loss or gradient norm six deviations or more from the mean of the last 128."""
    for number in range(max(20, length // 2) - 1, len(log["loss"])):
        for name in ("loss", "grad_norm"):
            before = log[name][max(0, number - length) : number]
            spread = float(np.std(before, ddof=1))
            distance = abs(float(log[name][number]) - float(np.mean(before)))
            if not distance <= sigma * spread:
                return Word(True, int(log["step"][number]), f"SkipStep {name}")
    return Word(False, None, "SkipStep")


def trainproof(folder: Path) -> Callable[[Log], Word]:
    """Return a watcher that runs trainproof as a program on a CSV of the log."""

    def watch(log: Log) -> Word:
        """Return what trainproof says of one log."""
        table = folder / "log.csv"
        rows = [f"{s:.0f},{v!r},{g!r},{r!r}" for s, v, g, r in zip(*(log[n].tolist() for n in log), strict=True)]
        table.write_text("step,loss,grad_norm,lr\n" + "\n".join(rows) + "\n")
        done = subprocess.run(
            [sys.executable, "-m", "trainproof", "epoch", str(table), "--format", "csv", "--json"],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)},
        )  # fmt: skip
        try:
            (report,) = json.loads(done.stdout)["reports"]
        except (ValueError, KeyError):
            return Word(False, None, f"gave no report, exit code {done.returncode}")
        told = [each for each in report["findings"] if each["level"] != "PASS"]
        return Word(report["verdict"] == "FAIL", None, ", ".join(sorted({f"{e['id']} {e['level']}" for e in told})))

    return watch


# -- the tables -------------------------------------------------------------------------------------------------------


def gallery(
    out: Path, watchers: Mapping[str, Callable[[Log], Word]], cases: Sequence[Case], seeds: Sequence[int]
) -> dict[str, Any]:
    """Train and judge cases; returns what the golden file holds."""
    rows: dict[str, Any] = {}
    for seed in seeds:
        for case in cases:
            path = out / f"{case.name}-{seed}.h5"
            train(case, seed, path)
            said = judge(case, path)
            log = log_of(path) if said["exit"] != 4 else {}
            others = {name: [word.alarm, word.step, word.words] for name, watch in watchers.items() if log
                      for word in [watch(log)]}  # fmt: skip
            rows[f"{case.name}-{seed}"] = said | {"others": others}
            print(f"{case.name}-{seed}: exit {said['exit']} {said['error']} {said['warning']} {others}", flush=True)
    for case in cases:
        for seed in seeds:
            rows[f"{case.name}-{seed}"]["baseline"] = regressions(case, seed, out)
    return rows


def regressions(case: Case, seed: int, out: Path) -> list[str] | None:
    """Return in what a run has left the limits learned from the healthy twins of the other seeds.

    None where there are fewer than two such twins, or the run is not as long as they are.
    """
    from loopscope import open_run
    from loopscope.gate.levels import BY_NAME, expected, levels

    same = [each for each in HEALTHY if (each.injection, each.lr) == (case.injection, case.lr)]
    paths = [out / f"{each.name}-{other}.h5" for each in same for other in SEEDS if other != seed]
    twins = [path for path in paths if path.exists()]
    if len(twins) < 2:
        return None
    learned = []
    for path in twins:
        with open_run(path) as run:
            learned.append(levels(run))
    with open_run(out / f"{case.name}-{seed}.h5") as run:
        if len(run) < STEPS:
            return None
        own = levels(run)
    names = [name for name in BY_NAME if name in own and all(name in each for each in learned)]
    return [n for n in names if expected(BY_NAME[n], [each[n] for each in learned]).score(own[n]) > 1]


def page(rows: Mapping[str, Any]) -> str:
    """Return docs/gallery.md."""
    names = sorted({name for row in rows.values() for name in row["others"]})
    seen = {case.name: [rows[f"{case.name}-{s}"] for s in SEEDS if f"{case.name}-{s}" in rows] for case in CASES}
    missed = [c for c in FAULTS if seen[c.name] and not any(r["exit"] for r in seen[c.name])]
    partly = [c for c in FAULTS if 0 < sum(bool(r["exit"]) for r in seen[c.name]) < len(seen[c.name])]
    alarms = [f"{c.name}, seed {s}" for c in HEALTHY for s, r in zip(SEEDS, seen[c.name], strict=False) if r["exit"]]
    warned = sum(bool(r["warning"]) for c in HEALTHY for r in seen[c.name])
    healthy = sum(len(seen[c.name]) for c in HEALTHY)
    numbers = sorted({len(seen[case.name]) for case in FAULTS})
    counts = str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"
    lines = [
        "# The fault gallery",
        "",
        f"{len(FAULTS)} faults, each planted in {counts} small trainings (the demo model on "
        f"the standard library's source, {STEPS} steps, fault at step {AT}), and {healthy} healthy twins. All were "
        "judged with the shipped rules. Made by `benchmarks/gallery.py`; no threshold was chosen on these runs. A test "
        "trains some of them again and compares them with the golden verdicts in `benchmarks/gallery.json`.",
        "",
        "## What is missed",
        "",
        *[f"- **{c.name}**: {c.what}. {_why_missed(c, seen)}" for c in missed],
        *[f"- {c.name}, in some seeds only: {c.what}. {_why_missed(c, seen)}" for c in partly],
        *([] if missed or partly else ["Nothing."]),
        "",
        f"On {healthy} healthy twins: {', '.join(alarms) if alarms else 'no error'}; a warning on {warned} of them.",
        "",
        "## What was seen",
        "",
        "Seeds in which the run does not pass (exit code 1: a rule fired; 5: it says that something was not "
        "judged), the rules, and the median number of steps from the fault to the first error. Lead: steps before the "
        "loss showed it, median over the runs in which it did. Baseline: seeds in which a baseline learned from the "
        "healthy twins of the other seeds (`check --baseline`) calls it a regression, where there are such twins.",
        "",
        "| fault | not passed | exit | errors | warnings | steps after | lead | baseline | " + " | ".join(names) + " |",
        "|---|---|---|---|---|---:|---:|---|" + "---|" * len(names),
        *[_row(case, seen[case.name], names) for case in CASES if seen[case.name]],
        "",
        *_by_rule(seen),
        "",
        *_about_others(names),
    ]
    return "\n".join(lines) + "\n"


def _why_missed(case: Case, seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Say what is known of a fault that passes."""
    rows = seen[case.name]
    warned = sorted({word for row in rows for word in row["warning"]})
    others = sorted({name for row in rows for name, word in row["others"].items() if word[0]})
    others += ["a baseline"] if any(row.get("baseline") for row in rows) else []
    noted = sorted({word for row in rows for word in row["note"]})
    said = f"Warned of by {', '.join(warned)}." if warned else "No warning either."
    said += f" Noted by {', '.join(noted)}." if noted else ""
    said += f" Seen by {', '.join(others)}." if others else " None of the others sees it."
    return f"{said} {WHY.get(case.name, '')} {_of_the_twin(case, seen)}".replace("  ", " ").rstrip()


def _of_the_twin(case: Case, seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Say in which of its seeds trainproof fails the healthy run, too, so that its alarm says nothing of the fault."""
    twins = seen.get(f"healthy-{case.injection}", [])
    alarms = [[bool(row["others"].get("trainproof", [False])[0]) for row in rows] for rows in (seen[case.name], twins)]
    both = [seed for seed, alarm, of_twin in zip(SEEDS, *alarms, strict=False) if alarm and of_twin]
    if not both:
        return ""
    only = " No other seed of it alarms trainproof." if len(both) == sum(alarms[0]) else ""
    return f"trainproof fails the healthy twin of seed {' and '.join(map(str, both))} alike.{only}"


WHY: dict[str, str] = {
    "rate-x100-5": "The loss comes back; a spike, and a rise that does not stay, are warnings by design.",
    "six-bad-batches": "The loss comes back; a spike is a warning by design.",
    "rate-x10": "The loss rises to that of a model without context, by 9 % in seed 0; LS011 needs 15 %.",
    "hot-parcae": "It never learns to use context, its loop is held at ρ(A̅) = 1; only a baseline can know better.",
    "labels-half": "The loss rises to that of a model without context, by 9 % in seed 0; LS011 needs 15 %, and warns.",
    "labels": "There is nothing before it to compare with; only a baseline can know better.",
    "wrong-target": "The loss falls, faster than before. trainproof calls the noise of a loss near 0 a divergence.",
    "frozen-data": "The loss falls, faster than before. trainproof calls the noise of a loss near 0 a divergence.",
    "frozen-weights": "The loss goes on as it was; no rule asks for progress.",
    "deeper": "The loss does not change; a changed depth is a note by design, training may mean it.",
    "one-loop": "The loss does not change; a changed depth is a note by design, training may mean it.",
    "injection-bf16": "The loss does not change in so short a training.",
    "optimizer-lost": "The loss is back at that of its healthy twin within 60 steps.",
    "wrong-resume": "The loss is back at its best within 60 steps; a spike, a rise that does not stay, are warnings.",
}
"""Why a fault is missed, where it is known."""


def _row(case: Case, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return the row of a case."""
    hit = sum(bool(row["exit"]) for row in rows)
    codes = "/".join(str(row["exit"]) for row in rows)
    after = [row["step"] - case.start for row in rows if row["step"] is not None and row["exit"] == 1]
    leads = [row["lead"] for row in rows if row["lead"] is not None]
    errors = ", ".join(sorted({word.split()[0] for row in rows for word in row["error"]}))
    warnings = ", ".join(sorted({word.split()[0] for row in rows for word in row["warning"]}))
    other = [_of_watcher([row["others"].get(name, [False, None, ""]) for row in rows]) for name in names]
    what = f"{case.name}: {case.what}" if case.what else f"*{case.name}*"
    compared = [row["baseline"] for row in rows if row.get("baseline") is not None]
    baseline = f"{sum(bool(each) for each in compared)}/{len(compared)}" if compared else ""
    cells = [what, f"{hit}/{len(rows)}", codes, errors, warnings, _median(after), _median(leads), baseline, *other]
    return "| " + " | ".join(cells) + " |"


def _of_watcher(words: Sequence[Sequence[Any]]) -> str:
    """Return in how many runs a watcher raised an alarm, and in how many it only warned."""
    warned = sum(not alarm and "WARN" in said for alarm, _, said in words)
    return f"{sum(bool(each[0]) for each in words)}/{len(words)}" + (f", {warned} warned" if warned else "")


def _median(values: Sequence[float]) -> str:
    return f"{np.median(values):.0f}" if len(values) else ""


def _by_rule(seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the table of rules: runs with a fault, and healthy ones, in which each fired."""
    faulty = [row for case in FAULTS for row in seen[case.name]]
    healthy = [row for case in HEALTHY for row in seen[case.name]]
    rules = sorted({word for row in [*faulty, *healthy] for kind in ("error", "warning") for word in row[kind]})
    lines = [
        "## By rule",
        "",
        f"| rule | of {len(faulty)} runs with a fault | of {len(healthy)} healthy ones |",
        "|---|---:|---:|",
    ]
    for rule in rules:
        counts = [sum(rule in [*row["error"], *row["warning"]] for row in group) for group in (faulty, healthy)]
        lines.append(f"| {rule} | {counts[0]} | {counts[1]} |")
    return lines


def _about_others(names: Sequence[str]) -> list[str]:
    """Say what the other watchers are."""
    about = {
        "Lightning": "the rule of `EarlyStopping(check_finite=True)`",
        "llm-foundry": "the rule of `KillLossSpike` with its defaults; it needs 100 losses before it says anything",
        "OLMo": "the rule of `SkipStepOptimizer` with its defaults; that one skips the step and goes on",
        "trainproof": "version 0.22.0, `trainproof epoch`; counted where it says FAIL, WARN is beside it",
    }
    said = (
        "They see loss, gradient norm and rate, and no loop. The first three are written anew from what is published."
    )
    return ["## The other watchers", "", said, "", *[f"- {name}: {about[name]}" for name in names if name in about]]


def main() -> None:
    """Train what is missing, write the golden file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--trainproof", type=Path, help="folder that trainproof was installed to")
    parser.add_argument("--only", nargs="*", help="names of cases; nothing is written then")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    options = parser.parse_args()
    watchers: dict[str, Callable[[Log], Word]] = {"Lightning": lightning, "llm-foundry": llm_foundry, "OLMo": olmo}
    if options.trainproof is not None:
        watchers["trainproof"] = trainproof(options.trainproof)
    cases = [BY_NAME[name] for name in options.only] if options.only else CASES
    rows = gallery(options.out, watchers, cases, options.seeds)
    if not options.only:
        GOLDEN.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
