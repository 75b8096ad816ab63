"""One recorded training run: the model, its data, the trainer and the probe put together.

Not covered: models of the user's own; those keep their own trainer and call `loopscope.attach`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ..gate.check import check_runs
from ..gate.result import FAILED
from ..gate.text import as_text
from ..models import distributed
from ..models.checkpoint import exists
from ..models.run_config import RunConfig, load_run_config
from ..models.train import Progress, TrainResult, train
from ..probes.probe import Probe, attach
from ..probes.schedule import Preset
from ..probes.stopping import LoopUnstable
from ..runfile.text import plain
from .output import say
from .progress import step_progress
from .rules import rule_file

CHECKPOINT_EVERY: Final = 50  # steps, where a run does not say
INTERRUPTED: Final = 130  # the exit code of a command that Ctrl-C ended


@dataclass(frozen=True, slots=True)
class TrainFlags:
    """Settings of a run as given on the command line; None leaves what the configuration says."""

    preset: str | None = None
    seed: int | None = None
    injection: str | None = None
    norm: str | None = None
    lr: float | None = None
    steps: int | None = None
    checkpoint_every: int | None = None

    def over(self, config: RunConfig) -> RunConfig:
        """Return a configuration with these settings."""
        given: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        model = {name: given.pop(name) for name in ("injection", "norm") if name in given}
        train = {name: given.pop(name) for name in ("lr", "steps", "checkpoint_every") if name in given}
        return config.updated(**given, model=model, train=train)


def train_and_report(
    out: Path, flags: TrainFlags, *, config: Path | None, rules: Path | None, probes: bool, **options: Any
) -> int:
    """Train a run, print how it ended and what the gate says of it, and return the exit code.

    Args:
        out: The run file.
        flags: Settings from the command line.
        config: TOML file of the run.
        rules: TOML file that changes or adds rules.
        probes: Record the loop.
        **options: As `train_run` takes them.
    """
    rules = rule_file(rules)
    run = flags.over(with_checkpoints(load_run_config(config) if config else RunConfig()))
    total = run.train_config().steps
    with step_progress(total) as report:
        try:
            result = train_run(out, run, rules=rules, probes=probes, on_progress=report, **options)
        except LoopUnstable as stopped:
            if int(os.environ.get("RANK", "0")) == 0:
                say(f"stopped after step {stopped.step}: {plain(stopped)}")
            return FAILED
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun the first rank speaks for all
        return 0
    if result.interrupted:
        say(f"interrupted after step {result.step} of {total}; go on with the same command and --resume")
        return INTERRUPTED
    say(f"{result.step} steps, loss {result.loss:.3f}, {result.tokens} tokens in {result.seconds:.0f} s")
    if probes:
        say(as_text(check_runs([out], rules_file=rules)))
    return 0


def train_run(
    out: Path,
    config: RunConfig,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    probes: bool = True,
    measure: str | Preset = "watch",
    rules: Path | None = None,
    stop_on: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train a model and record its loop to ``out``; under ``torchrun``, call it on all ranks.

    Args:
        out: The run file; checkpoints go to the folder ``<out without ending>.checkpoint`` beside it. Every rank
            records, as `attach` says.
        config: Model, data and training.
        device: As torch names it, or ``auto``.
        resume: Go on from the checkpoint, and in the run file, where there are any.
        overwrite: Replace the run where there is one.
        probes: Record the loop.
        measure: What the probe measures and when: ``watch``, ``inspect``, ``study``, or a preset of your own.
        rules: TOML file that changes or adds rules.
        stop_on: Rules and severities that stop the training.
        on_progress: Told how far the run is.

    Returns:
        How the run ended.

    Raises:
        FileExistsError: The run exists and neither ``resume`` nor ``overwrite`` was given.
        ValueError: A setting or the rule file is not valid, or the checkpoint is of another run.
    """
    checkpoints = out.with_suffix(".checkpoint")
    if not resume and not overwrite and (out.exists() or exists(checkpoints)):
        raise FileExistsError(f"{out}: this run exists; continue it with --resume or replace it with --overwrite")
    data = config.open_data()
    with distributed.started(checked_device(device)) as here:
        with here:
            model = config.build_model()
        probe: Probe | None = None
        if probes:
            settings = {**config.describe(), "text": data.describe()}
            probe = attach(model, out, preset=measure, config=settings, rules=rules, resume=resume, overwrite=overwrite,
                           stop_on=stop_on)  # fmt: skip
        with probe or nullcontext():  # an exception is the run's end, and the file says which
            result = train(
                model,
                data,
                config.train_config(),
                observer=probe,
                checkpoint_path=checkpoints,
                resume=resume,
                on_progress=on_progress,
            )
            if probe is not None and result.interrupted:
                steps = config.train_config().steps
                reason = f"stopped by {result.stopped_by or 'another rank'} after {result.step} of {steps} steps"
                probe.close(finished=False, reason=reason)
        return result


def with_checkpoints(config: RunConfig) -> RunConfig:
    """Return the run with checkpoints every `CHECKPOINT_EVERY` steps, unless it says how often itself."""
    if "checkpoint_every" in config.train:
        return config
    return config.updated(train={"checkpoint_every": CHECKPOINT_EVERY})


def checked_device(name: str) -> str:
    """Return the name of a device that is there, or ``auto``.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        return name
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no CUDA device; use --device cpu or auto")
    return name


def one_device(name: str) -> torch.device:
    """Return the device of a command that runs in one process; ``auto`` is the first GPU where there is one.

    Raises:
        ValueError: There is no such device here.
    """
    name = checked_device(name)
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
