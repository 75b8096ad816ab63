"""Does ``loopscope explain`` find causes that were planted, and no others?

    python benchmarks/explain.py                 # 20 causes and 8 controls, about a quarter of an hour on one core
    python benchmarks/explain.py --only batch    # cases whose name holds that word
    python benchmarks/explain.py --seed 100      # cases with other random numbers

Every case is a small training with one fault in it, recorded by a probe and explained from its recording: the fault is
replayed as part of the run, and the explanation does not know it. Explained is the alert that a user would ask about:
the first error, or the first warning, of those that came after the fault. Right is the planted cause, or *not found*;
wrong is any other cause. The controls have no single cause among the changes: there *not found* is right.

A missing prelude norm is planted in two ways: in a run with a hot prelude, in which nothing but the norm is missing,
and in one whose embeddings grow without end from some step on, which the norm would hold. Two of the bad batches come
late in runs that keep their checkpoints, and are replayed from the one that is old enough.

Not covered: faults that act together.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loopscope.causes.experiment import alerts, explain
from loopscope.causes.trained import ChangedBatches, ChangedTraining, Intervention, TrainedRun
from loopscope.models.looped import LoopedTransformer
from loopscope.models.run_config import RunConfig
from loopscope.probes import attach, open_run
from loopscope.rules.rule_files import load_rules
from loopscope.runfile.run import Run

AFTER = 20  # steps that are run again after the alert
LATE = 270  # the step of a batch that comes late: 200 steps before it there is a checkpoint, at step 50


@dataclass(frozen=True)
class Case:
    """A fault, the run it is planted in, and the change that should be found.

    Attributes:
        name: What is printed.
        expected: The change; empty for a control.
        fault: Makes what is done to the run.
        model: Fields of the model that differ from the preset's.
        train: Fields of the training that differ from the preset's recipe.
        seed: Of everything random.
        steps: Of the run.
        since: Step at which the fault begins; alerts before it are not asked about.
        checkpoint_every: Steps between the checkpoints that are kept; 0 for none.
    """

    name: str
    expected: str
    fault: Callable[[], Intervention]
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    seed: int
    steps: int
    since: int = 0
    checkpoint_every: int = 0

    def config(self) -> RunConfig:
        """Return the run."""
        train = {"lr": 0.01, "steps": self.steps, "keep_checkpoints": 0, **self.train}
        return RunConfig(preset="demo", seed=self.seed, model=self.model, train=train)


def hotter(
    parameters: Callable[[LoopedTransformer], Iterable[torch.Tensor]], factor: float, steps: Container[int]
) -> Intervention:
    """Let some weights move some times as far as the optimizer says, in some steps."""
    kept: list[torch.Tensor] = []

    def before(model: LoopedTransformer, step: int) -> None:
        kept[:] = [weight.detach().clone() for weight in parameters(model)] if step in steps else []

    @torch.no_grad()
    def update(model: LoopedTransformer, step: int) -> None:
        if step in steps:
            for weight, old in zip(parameters(model), kept, strict=True):
                weight += (factor - 1) * (weight - old)

    return Intervention(before=before, update=update)


def hot_injection(factor: float) -> Intervention:
    """Raise the rate of the injection's weights."""
    return hotter(lambda model: model.injection.parameters(), factor, range(10**6))


def rate_burst(step: int) -> Intervention:
    """Raise the rate of all weights thirtyfold for five steps: no change on the list undoes that."""
    return hotter(lambda model: model.parameters(), 30, range(step, step + 5))


def growing_embeddings(step: int) -> Intervention:
    """Let the embeddings grow by a quarter in every step from one on, as a decay of the wrong sign would."""

    @torch.no_grad()
    def update(model: LoopedTransformer, now: int) -> None:
        if now >= step:
            model.embedding.weight *= 1.25

    return Intervention(update=update)


def corrupted_batch(step: int) -> Intervention:
    """Make one batch random bytes."""

    def batch(data: Any, index: int, tokens: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(256, tokens.shape, generator=generator) if index == step else tokens

    return Intervention(batch=batch)


def rounded_a_bar() -> Intervention:
    """Start A̅ at 0.9985 and compute it in bfloat16, whose nearest number is 1."""

    def model(looped: LoopedTransformer) -> None:
        injection: Any = looped.injection
        with torch.no_grad():
            injection.dt_bias.fill_(math.log(math.expm1(-math.log(0.9985))))
        exact = type(injection).a_bar
        injection.a_bar = lambda: exact(injection).bfloat16().float()

    return Intervention(model=model)


def cases(base: int = 0) -> Iterator[Case]:
    """Twenty planted causes, then eight faults that no change on the list undoes; their seeds count from ``base``."""
    open_loop = {"injection": "concatenation", "norm": "pre"}
    no_norm = {"injection": "parcae", "prelude_norm": False}
    for i in range(6):
        fault = partial(hot_injection, 20 if i < 3 else 10)
        yield Case(f"hot-injection-{i}", "a_bar_radius", fault, open_loop, {}, base + i, 60)
    for i, injection in enumerate(["parcae", "concatenation", "addition", "parcae"]):
        model = {"injection": injection}
        yield Case(f"batch-{injection}-{i}", "batch", partial(corrupted_batch, 60), model, {}, base + i, 90, 60)
    for i, injection in enumerate(["parcae", "addition"]):
        model = {"injection": injection}
        late = partial(corrupted_batch, LATE)
        yield Case(f"late-batch-{injection}-{i}", "batch", late, model, {}, base + i, LATE + 30, LATE, 50)
    for i in range(4):
        train = {"lr": 0.003, "precision": "bf16"}
        yield Case(f"rounded-{i}", "a_bar_precision", rounded_a_bar, {"injection": "parcae"}, train, base + i, 100)
    for i in range(2):
        model = {**no_norm, "prelude_layers": 3}
        train = {"optimizer": "muon", "muon_lr": 0.05, "muon_weight_decay": 0.0}
        yield Case(f"no-prelude-norm-{i}", "prelude_norm", Intervention, model, train, base + i, 140)
    for i in range(2):
        model = {**no_norm, "prelude_layers": 0, "core_layers": 2, "tie_embeddings": False}
        fault = partial(growing_embeddings, 100)
        yield Case(f"growing-input-{i}", "prelude_norm", fault, model, {}, base + i, 160, 100)
    for i in range(6):
        yield Case(f"burst-parcae-{i}", "", partial(rate_burst, 60), {"injection": "parcae"}, {}, base + i, 90, 60)
    for i in range(2):
        model = {**open_loop, "prelude_norm": False}
        yield Case(f"burst-open-{i}", "", partial(rate_burst, 60), model, {}, base + i, 90, 60)


def record(case: Case, out: Path) -> None:
    """Train the faulty run and record it, as ``loopscope train`` would."""
    config, fault = case.config(), case.fault()
    data = config.open_data()
    model = config.build_model()
    fault.model(model)
    settings = {**config.describe(), "text": data.describe()}
    with attach(model, out, preset="inspect", config=settings, overwrite=True) as probe:
        training = ChangedTraining(model, ChangedBatches(data, [fault.batch]), config, probe, [fault])
        for _ in range(case.steps):
            training.advance()
            if case.checkpoint_every and training.step % case.checkpoint_every == 0:
                probe.flush()
                training.save(out.with_suffix(".checkpoint"))


def alert_after(run: Run, since: int) -> int:
    """Return the step of the alert that a user would ask about: the first error, or warning, from a step on.

    Raises:
        ValueError: No rule fired there.
    """
    fired = [each for each in alerts(run, load_rules()) if each.step >= since]
    if not fired:
        raise ValueError(f"no rule fired from step {since} on")
    return next((each for each in fired if each.severity == "error"), fired[0]).step


def explained(case: Case, folder: Path) -> tuple[str, str]:
    """Return the cause, or the empty text, and the verdict."""
    path = folder / "run.h5"
    record(case, path)
    with open_run(path) as run:
        try:
            step = alert_after(run, case.since)
            again = TrainedRun(run, step, always=[case.fault()])
            result = explain(run, again, folder / "replays", at=step, after=AFTER)
        except ValueError as error:
            return "", str(error)
    return result.cause, f"{result.rule} at {result.step}, from step {result.start}: {result.verdict}"


def main() -> None:
    """Plant, explain, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind")
    options = parser.parse_args()
    logging.getLogger("loopscope").setLevel(logging.ERROR)  # the alerts of replays are what is counted here
    counts = {"right": 0, "not found": 0, "wrong": 0}
    for case in cases(options.seed):
        if options.only not in case.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            cause, verdict = explained(case, Path(folder))
        said = "right" if cause == case.expected else "wrong" if cause else "not found"
        counts[said] += 1
        print(f"{case.name:<22} planted {case.expected or 'none':<16} {said:<10} {verdict}", flush=True)
    print(f"{datetime.now(UTC):%Y-%m-%d}: {', '.join(f'{n} {name}' for name, n in counts.items())}")


if __name__ == "__main__":
    main()
