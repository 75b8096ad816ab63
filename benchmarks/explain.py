"""Does ``loopscope explain`` find causes that were planted, and no others?

    python benchmarks/explain.py                 # 20 causes and 6 controls, about a quarter of an hour on one core
    python benchmarks/explain.py --only batch    # cases whose name holds that word
    python benchmarks/explain.py --seed 100      # cases with other random numbers

Every case is a small training with one fault in it, recorded by a probe and explained from its recording: the fault is
replayed as part of the run, and the explanation does not know it. Right is the planted cause, or *not found*; wrong is
any other cause. The last cases have no single cause among the changes: there *not found* is right.

Not covered: faults that act together, runs that started from a checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loopscope.causes.experiment import ReplayError, chosen_alert, explain
from loopscope.causes.trained import ChangedBatches, ChangedTraining, Intervention, TrainedRun
from loopscope.models.looped import LoopedTransformer
from loopscope.models.run_config import RunConfig
from loopscope.probes import attach, open_run
from loopscope.rules.rule_files import load_rules

STEPS = 100


@dataclass(frozen=True)
class Case:
    """A fault, the run it is planted in, and the change that should be found."""

    name: str
    expected: str
    fault: Callable[[], Intervention]
    model: dict[str, Any]
    lr: float = 0.01
    seed: int = 0
    precision: str = "fp32"

    def config(self) -> RunConfig:
        """Return the run."""
        train = {"lr": self.lr, "steps": STEPS, "precision": self.precision}
        return RunConfig(preset="demo", seed=self.seed, model=self.model, train=train)


def hot_injection(factor: float) -> Intervention:
    """Let the injection's weights move some times as far as the optimizer says."""
    kept: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def update(model: LoopedTransformer, step: int) -> None:
        weight = model.injection.adapter.weight
        before = kept.get(id(model))
        if before is not None:
            weight += (factor - 1) * (weight - before)
        kept[id(model)] = weight.clone()

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


def rate_burst(step: int) -> Intervention:
    """Move all weights for five steps thirty times as far: no change on the list undoes that."""
    kept: dict[int, list[torch.Tensor]] = {}

    @torch.no_grad()
    def update(model: LoopedTransformer, now: int) -> None:
        if id(model) in kept and step <= now < step + 5:
            for parameter, before in zip(model.parameters(), kept[id(model)], strict=True):
                parameter += 29 * (parameter - before)
        kept[id(model)] = [parameter.clone() for parameter in model.parameters()]

    return Intervention(update=update)


def cases(base: int = 0) -> Iterator[Case]:
    """Twenty planted causes, then six faults that no change on the list undoes; their seeds count from ``base``."""
    concatenation = {"injection": "concatenation", "norm": "pre"}
    for seed in range(8):
        factor = 20 if seed < 4 else 10
        yield Case(
            f"hot-injection-{seed}", "a_bar_radius", partial(hot_injection, factor), concatenation, seed=base + seed
        )
    for seed, injection in enumerate(["parcae", "concatenation", "addition", "parcae"] * 2):
        yield Case(
            f"batch-{injection}-{seed}",
            "batch",
            partial(corrupted_batch, 60),
            {"injection": injection},
            seed=base + seed,
        )
    for seed in range(4):
        yield Case(
            f"rounded-{seed}", "a_bar_precision", rounded_a_bar, {"injection": "parcae"}, 0.003, base + seed, "bf16"
        )
    for seed in range(6):
        yield Case(f"burst-{seed}", "", partial(rate_burst, 60), {"injection": "parcae"}, 0.01, base + seed)


def record(case: Case, out: Path) -> None:
    """Train the faulty run and record it, as ``loopscope train`` would."""
    config, fault = case.config(), case.fault()
    data = config.open_data()
    model = config.build_model()
    fault.model(model)
    settings = {**config.describe(), "text": data.describe()}
    with attach(model, out, preset="inspect", config=settings, overwrite=True) as probe:
        training = ChangedTraining(model, ChangedBatches(data, [fault.batch]), config, probe, [fault.update])
        for _ in range(STEPS):
            training.advance()


def explained(case: Case, folder: Path) -> tuple[str, str]:
    """Return the cause, or the empty text, and the verdict."""
    path = folder / "run.h5"
    record(case, path)
    with open_run(path) as run:
        try:
            alert = chosen_alert(run, load_rules(), None).step
            again = TrainedRun(run, alert, always=[case.fault()])
            found = explain(run, again, folder / "replays", at=alert, after=20)
        except (ReplayError, ValueError) as error:
            return "", str(error)
    return found.cause, f"{found.rule} at {found.step}: {found.verdict}"


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
