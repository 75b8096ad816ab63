"""Checkpoints: a folder with the weights as safetensors, the rest as a torch file, and the configuration as JSON.

    run.checkpoint/
        latest                 name of the newest complete step
        step-00000100/
            model.safetensors  weights
            config.json        the model's configuration
            state.pt           optimizers, position, random state (tensors and plain values only)

A step is written beside its place and renamed, then ``latest`` is replaced: a kill at any moment leaves a complete
checkpoint behind. The newest steps are kept, as many as is asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import LoopedConfig
from .distributed import shard_like, whole
from .looped import LoopedTransformer


class TrainState(TypedDict):
    """What a run needs beside its weights; ``torch.load(weights_only=True)`` reads it."""

    step: int
    tokens: int
    loss: float
    optimizers: list[dict[str, Any]]
    rng: list[Tensor]
    config: dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit; the message says which and what to do."""


def save(
    folder: str | os.PathLike[str],
    weights: dict[str, Tensor],
    config: LoopedConfig,
    state: TrainState,
    *,
    keep: int = 2,
) -> Path:
    """Write one step atomically and remove old ones.

    Args:
        folder: The run's checkpoint folder; made when missing.
        weights: The model's state dict on any device.
        config: Configuration of the model.
        state: Everything else.
        keep: How many steps stay, the one before among them; 0 for all.

    Returns:
        The folder of the step.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step-*"):  # of a process that was killed while writing
        shutil.rmtree(leftover, ignore_errors=True)
    step = _unused(root, f"step-{state['step']:08d}")
    partial = root / f".{step.name}"
    partial.mkdir()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(weights, partial / "model.safetensors")
    (partial / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    torch.save(state, partial / "state.pt")
    for file in (*partial.iterdir(), partial):
        _sync(file)
    partial.replace(step)
    before = (root / "latest").read_text().strip() if exists(root) else step.name
    pointer = root / ".latest"
    pointer.write_text(step.name + "\n")
    _sync(pointer)
    pointer.replace(root / "latest")
    _sync(root)
    others = sorted(old for old in root.glob("step-*") if old.name not in (before, step.name))
    for old in others[: max(len(others) - (keep - 2), 0)] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
    return step


def exists(folder: str | os.PathLike[str]) -> bool:
    """Return whether the folder holds a complete checkpoint."""
    return (Path(folder) / "latest").is_file()


def steps(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """Return the complete checkpoints in a run's folder, by step, oldest first."""
    folders = sorted(Path(folder).glob("step-*"))
    return {int(path.name.removeprefix("step-").split(".")[0]): path for path in folders}


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], LoopedConfig, TrainState]:
    """Return the weights, model configuration and training state of the newest step, on the CPU.

    Args:
        folder: A run's checkpoint folder, or one step inside it.

    Raises:
        CheckpointError: Nothing there, or unreadable.
    """
    step = _step_folder(Path(folder))
    try:
        weights = load_file(step / "model.safetensors")
        config = LoopedConfig(**json.loads((step / "config.json").read_text()))
        state: TrainState = torch.load(step / "state.pt", weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(f"{step}: not a readable checkpoint ({error}); delete it or give another one") from error
    return weights, config, state


def load_model(folder: str | os.PathLike[str]) -> LoopedTransformer:
    """Return the model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        folder: A run's checkpoint folder, or one step inside it.

    Raises:
        CheckpointError: Nothing there, or unreadable.
    """
    weights, config, _ = load(folder)
    model = LoopedTransformer(config)
    model.load_state_dict(weights)
    return model.eval()


def gathered(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state dict with full tensors; a collective when they are sharded."""
    saved = optimizer.state_dict()
    full = {
        key: {k: whole(v) if isinstance(v, Tensor) else v for k, v in s.items()} for key, s in saved["state"].items()
    }
    return {**saved, "state": full}


def scatter(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict of full tensors into an optimizer whose parameters may be sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    placed = {
        key: {
            name: shard_like(value, parameters[key]) if _same_shape(value, parameters[key]) else value
            for name, value in state.items()
        }
        for key, state in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": placed})


def _same_shape(value: object, parameter: Tensor) -> bool:
    """Return whether an entry of an optimizer's state is a tensor like its parameter (moments are, counters not)."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _step_folder(folder: Path) -> Path:
    """Return the step folder meant by a path."""
    if (folder / "model.safetensors").is_file():
        return folder
    if not exists(folder):
        raise CheckpointError(
            f"{folder}: expected a checkpoint folder with a file named latest; give the path of a run's checkpoint"
        )
    return folder / (folder / "latest").read_text().strip()


def _unused(root: Path, name: str) -> Path:
    """Return a folder of that name, or with a number behind it where an earlier one is there and in use."""
    candidates = (root / (f"{name}.{number}" if number else name) for number in itertools.count())
    return next(path for path in candidates if not path.exists())


def _sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never exposes half of it after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
