"""The runs that the risk is calibrated on and reported on: four architectures, over widths, learning rates and seeds.

Each run is our own training of the demo model with a probe on (preset `watch`; on even seeds also the full loop's
Jacobian at 25 % of the run), recorded to one run file. The trainer's observer adds three numbers that no probe takes,
to see what they are worth: the update-to-weight ratio, the cosine of successive gradients, and the curvature along the
update in units in which 2 is the limit of a gradient step. Runs that are there already are kept.

Not covered: what is made of the runs (``risk.py``).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from loopscope.models import standard_library
from loopscope.models.data import ByteText
from loopscope.models.looped import LoopedTransformer
from loopscope.models.run_config import RunConfig
from loopscope.models.train import train
from loopscope.probes.probe import Probe, attach
from loopscope.probes.schedule import PRESETS
from loopscope.runfile.layout import RunFileError
from loopscope.runfile.open import open_run
from numpy.typing import NDArray
from torch import Tensor

STEPS = 160
EARLY, LATE = STEPS // 10, STEPS // 4  # rows known at 10 % and 25 % of a run
ARCHITECTURES = {
    "concatenation": ("concatenation", "pre"),
    "sandwich": ("concatenation", "sandwich"),
    "addition": ("addition", "pre"),
    "parcae": ("parcae", "pre"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    Attributes:
        part: ``calibration`` or ``report``; they share neither widths nor seeds nor learning rates.
        architecture: Key of `ARCHITECTURES`.
        width: Of the model.
        lr: Peak learning rate.
        seed: Of weights, text and depths.
    """

    part: str
    architecture: str
    width: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.part}-{self.architecture}-d{self.width}-lr{self.lr:g}-seed{self.seed}"


GRID = {
    "calibration": ((24, 32, 48), (0.005, 0.015, 0.03, 0.05, 0.1), (0, 1)),
    "report": ((28, 40, 64), (0.007, 0.02, 0.035, 0.06, 0.12), (100, 101)),
}


def cells() -> list[Cell]:
    """Return all cells in an order drawn once, so that the first of them are a fair cut of the whole."""
    found = [
        Cell(part, architecture, width, lr, seed)
        for part, grid in GRID.items()
        for architecture, width, lr, seed in itertools.product(ARCHITECTURES, *grid)
    ]
    random.Random(0).shuffle(found)
    return found


@cache
def text(seed: int) -> ByteText:
    """Return the training text of a seed."""
    return standard_library(sequence_length=32, seed=seed)


@cache
def byte_frequencies() -> NDArray[np.float64]:
    """Return how often each byte is in the text."""
    counts = np.bincount(text(0).batch(0, 20_000).numpy().ravel(), minlength=256)
    return np.asarray(counts / counts.sum(), dtype=np.float64)


@cache
def unigram_entropy() -> float:
    """Return the entropy of single bytes of the text, in nats: what a model that ignores context can reach."""
    p = byte_frequencies()
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


@cache
def unigram_loss(seed: int, last: int) -> float:
    """Return the loss of a model that counts bytes on the last batches of a run: they are harder for some seeds."""
    p, size = byte_frequencies(), RunConfig(preset="demo").train_config().batch_size
    batches = [text(seed).batch(step, size)[:, 1:].numpy() for step in range(STEPS - last, STEPS)]
    return float(-np.log(np.maximum(p[np.concatenate(batches)], 1e-9)).mean())


def at_a_quarter(step: int) -> bool:
    """Whether the full loop is measured after a step."""
    return step + 1 == LATE


def is_done(path: Path) -> bool:
    """Whether a run is there to its end."""
    try:
        with open_run(path) as run:
            return run.state == "finished" and len(run) == STEPS
    except (RunFileError, OSError):
        return False


def config_of(cell: Cell, steps: int) -> RunConfig:
    """Return what a cell is trained with, for some steps."""
    injection, norm = ARCHITECTURES[cell.architecture]
    return RunConfig(
        preset="demo",
        seed=cell.seed,
        model={"injection": injection, "norm": norm, "width": cell.width, "mlp_width": 2 * cell.width},
        train={"lr": cell.lr, "steps": steps},
    )


def train_cell(cell: Cell, path: Path) -> None:
    """Train one run and record it."""
    config = config_of(cell, STEPS)
    torch.set_num_threads(1)
    model = config.build_model()
    preset = PRESETS["watch"] if cell.seed % 2 else replace(PRESETS["watch"], name="risk", full_loop=at_a_quarter)
    unfinished = path.with_suffix(".part.h5")
    with attach(model, unfinished, preset=preset, config=config.describe(), overwrite=True) as probe:
        train(model, text(cell.seed), config.train_config(), observer=Observer(model, probe))
    unfinished.with_name(unfinished.name + ".lease").unlink(missing_ok=True)
    unfinished.replace(path)


class Observer:
    """Hands a step on to the probe, with what the gradients and the update say.

    The gradients are those after clipping, of this step's batch; the curvature along an update compares them with those
    of the next batch and is therefore noisy.
    """

    def __init__(self, model: LoopedTransformer, probe: Probe) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._probe = probe
        self._weights = self._flat()
        self._gradient: Tensor | None = None
        self._update: Tensor | None = None

    def step(self, *, step: int, loss: Tensor, grad_norm: Tensor, lr: float, tokens: int) -> None:
        """Record a step."""
        weights = self._flat()
        given = (torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters)
        gradient = torch.cat([each.detach().flatten() for each in given])
        gradient = gradient * (grad_norm.detach() / gradient.norm().clamp_min(1e-30))  # undo the clipping
        update = weights - self._weights
        ratio = float(update.norm() / self._weights.norm().clamp_min(1e-30))
        cosine: float | None = None
        curvature: float | None = None
        if self._gradient is not None and self._update is not None:
            before = self._gradient
            cosine = float(gradient @ before / (gradient.norm() * before.norm()).clamp_min(1e-30))
            # Along the update u of the step before: (g' − g)·u against −g·u, 2 where g' would be −g.
            curvature = float((gradient - before) @ self._update / -(before @ self._update).clamp_max(-1e-30))
        self._weights, self._gradient, self._update = weights, gradient, update
        self._probe.step(
            step=step, loss=loss, grad_norm=grad_norm, lr=lr, tokens=tokens,
            update_ratio=ratio, gradient_cosine=cosine, step_curvature=curvature,
        )  # fmt: skip

    def flush(self) -> bool:
        """Say that what was told is safe."""
        return self._probe.flush()

    def _flat(self) -> Tensor:
        """Return all weights in one vector."""
        return torch.cat([p.detach().flatten() for p in self._parameters])


def train_missing(folder: Path, count: int | None, say: bool = True) -> list[tuple[Cell, Path]]:
    """Train what is not there yet of the first cells, and return those with their files."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [(cell, folder / f"{cell.name}.h5") for cell in cells()[:count]]
    for number, (cell, path) in enumerate(chosen):
        if not is_done(path):
            train_cell(cell, path)
            if say:
                print(f"{number + 1} of {len(chosen)}: {cell.name}", flush=True)
    return chosen
