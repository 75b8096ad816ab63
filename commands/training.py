"""One recorded training run: the model, its data, the trainer and the probe put together.

Not covered: models of the user's own; those keep their own trainer and call `loopscope.attach`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import torch

from ..models import distributed
from ..models.checkpoint import exists
from ..models.run_config import RunConfig
from ..models.train import Progress, TrainResult, train
from ..probes.probe import Probe, attach
from ..probes.schedule import Preset

CHECKPOINT_EVERY: Final = 50  # steps, where a run does not say


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
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Trains a model and records its loop to ``out``; under ``torchrun``, call it on all ranks.

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
            probe = attach(model, out, preset=measure, config=settings, rules=rules, resume=resume, overwrite=overwrite)
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
    """The name of a device that is there, or ``auto``.

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
