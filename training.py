"""One recorded training run: the model, its data, the trainer and the probe put together.

Not covered: models of the user's own; those keep their own trainer and call `loopscope.attach`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .models.checkpoint import exists
from .models.data import standard_library
from .models.presets import build, recipe
from .models.train import Progress, TrainResult, train
from .probes.probe import Probe, attach


def train_run(
    out: Path,
    *,
    preset: str,
    overrides: Mapping[str, Any],
    lr: float,
    steps: int,
    seed: int,
    device: str = "auto",
    checkpoint_every: int = 50,
    resume: bool = False,
    overwrite: bool = False,
    probes: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Trains a preset on the standard library's source and records its loop to ``out``.

    Args:
        out: The run file; checkpoints go to the folder ``<out without ending>.checkpoint`` beside it.
        preset: Name of the model.
        overrides: Fields of its configuration that differ from the preset.
        lr: Learning rate after warm-up.
        steps: Optimizer steps in all, over resumes.
        seed: Of weights, data and depths.
        device: As torch names it, or ``auto``.
        checkpoint_every: Steps between checkpoints.
        resume: Go on from the checkpoint, and in the run file, where there are any.
        overwrite: Replace the run file where there is one.
        probes: Record the loop.
        on_progress: Told how far the run is.

    Returns:
        How the run ended.

    Raises:
        FileExistsError: ``out`` exists and neither ``resume`` nor ``overwrite`` was given.
        ValueError: A setting is not valid, or the checkpoint is of another run.
    """
    checkpoints = out.with_suffix(".checkpoint")
    if not resume and not overwrite and (out.exists() or exists(checkpoints)):
        raise FileExistsError(f"{out}: this run exists; continue it with --resume or replace it with --overwrite")
    torch.manual_seed(seed)
    with torch.device(_device(device)):
        model = build(preset, **overrides)
    config = recipe(preset, lr=lr, steps=steps, seed=seed, checkpoint_every=checkpoint_every)
    data = standard_library(sequence_length=model.config.max_length, seed=seed)
    settings = {"preset": preset, "model": asdict(model.config), "train": asdict(config), "data": data.describe()}
    probe: Probe | None = None
    if probes:
        probe = attach(model, out, config=settings, resume=resume, overwrite=overwrite)
    try:
        return train(
            model,
            data,
            config,
            observer=probe,
            checkpoint_path=checkpoints,
            resume=resume,
            on_progress=on_progress,
        )
    finally:
        if probe is not None:
            probe.close()


def _device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the first GPU where there is one.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no CUDA device; use --device cpu or auto")
    return device
