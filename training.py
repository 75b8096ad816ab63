"""One recorded training run: the model, its data, the trainer and the probe put together.

Not covered: models of the user's own; those keep their own trainer and call `loopscope.attach`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .models import distributed
from .models.checkpoint import exists, load_model
from .models.data import ByteText, standard_library
from .models.run_config import RunConfig
from .models.train import Progress, TrainResult, train
from .probes.analysis import linearize
from .probes.probe import Probe, attach

if TYPE_CHECKING:
    from .dynamics.linearization import Linearization


def train_run(
    out: Path,
    config: RunConfig,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    probes: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Trains a model and records its loop to ``out``; under ``torchrun``, call it on all ranks.

    Args:
        out: The run file; checkpoints go to the folder ``<out without ending>.checkpoint`` beside it. Ranks other than
            the first record to ``<out>.rankN.h5``.
        config: Model, data and training.
        device: As torch names it, or ``auto``.
        resume: Go on from the checkpoint, and in the run file, where there are any.
        overwrite: Replace the run where there is one.
        probes: Record the loop.
        on_progress: Told how far the run is.

    Returns:
        How the run ended.

    Raises:
        FileExistsError: The run exists and neither ``resume`` nor ``overwrite`` was given.
        ValueError: A setting is not valid, or the checkpoint is of another run.
    """
    checkpoints = out.with_suffix(".checkpoint")
    if not resume and not overwrite and (out.exists() or exists(checkpoints)):
        raise FileExistsError(f"{out}: this run exists; continue it with --resume or replace it with --overwrite")
    data = config.open_data()
    with distributed.started(_device(device)) as here:
        with here:
            model = config.build_model()
        path = out if distributed.rank() == 0 else out.with_suffix(f".rank{distributed.rank()}{out.suffix}")
        probe: Probe | None = None
        if probes:
            settings = {**config.describe(), "text": data.describe()}
            probe = attach(model, path, config=settings, resume=resume, overwrite=overwrite)
        try:
            return train(
                model,
                data,
                config.train_config(),
                observer=probe,
                checkpoint_path=checkpoints,
                resume=resume,
                on_progress=on_progress,
            )
        finally:
            if probe is not None:
                probe.close()


def linearize_checkpoint(
    checkpoint: Path,
    *,
    num_loops: int,
    text: Path | None,
    shape: tuple[int, int],
    budget: float,
    device: str,
    progress: Callable[[str, float], None] | None = None,
) -> Linearization:
    """Analyses the loop of a checkpoint on text.

    Args:
        checkpoint: Folder that a training run wrote.
        num_loops: Loops run before the loop is linearised.
        text: File whose first bytes are the input; default: the held-out part of the standard library's source.
        shape: Sequences and positions of the input.
        budget: Seconds after which no further part of the analysis is begun.
        device: As torch names it, or ``auto``.
        progress: Told which part is under way.

    Raises:
        ValueError: The checkpoint cannot be read, or the text is too short.
    """
    sequences, positions = shape
    model = load_model(checkpoint)
    if text is None:
        tokens = next(standard_library(sequence_length=positions).held_out(sequences))[:, :-1]
    else:
        needed = sequences * positions
        content = text.read_bytes()[:needed]
        if len(content) < needed:
            raise ValueError(f"{text}: has {len(content)} bytes, {sequences} x {positions} are needed")
        tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8).long().view(sequences, positions)
    if model.config.vocab_size < ByteText.vocab_size:
        raise ValueError(f"{checkpoint}: its vocabulary of {model.config.vocab_size} does not hold bytes")
    chosen = torch.device(_device(device) if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
    return linearize(model.to(chosen), tokens.to(chosen), num_loops=num_loops, budget=budget, progress=progress)


def _device(name: str) -> str:
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
