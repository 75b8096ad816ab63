"""The near-unit spectral mass of RKSP, of the runs of ``risk_runs.py``: at initialisation and later in training.

Residual Koopman spectral profiling (Kim et al., arXiv 2602.22988) fits, for each layer, the linear map that best
carries the states of many tokens to those behind the layer, in coordinates in which the states before it are white.
It takes the share of the eigenvalues of this map with a modulus of 0.90 to 1.05. The mean over layers, before any
training, is its score; more is said to be worse. Here a layer is one loop, since the loop is the residual stream of
these models. As published: 2048 tokens, all eigenvalues, a ridge of 1e-5, no filter. The paper advises to repeat it
in training, so that it is also taken after 10 % and 25 % of a run. The run files hold no states: the first quarter of
each run is trained again, which must give the losses that are in the file.

Not covered: its regulariser (KSS), and the prelude and coda, which are one block each.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from loopscope.models.looped import LoopedTransformer
from loopscope.models.train import train
from loopscope.runfile.open import open_run
from numpy.typing import NDArray
from risk_runs import EARLY, LATE, STEPS, Cell, config_of, text
from torch import Tensor

Floats = NDArray[np.float64]
BAND = (0.90, 1.05)
RIDGE = 1e-5
SEQUENCES = 64  # of 32 tokens: 2048 snapshots
UNSEEN = 100_000  # a batch of the text that no run trains on


def near_unit_mass(before: Floats, after: Floats) -> float:
    """Return the share of near-unit eigenvalues of one layer, from its states ``(N, D)``.

    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> near_unit_mass(x, x * [1.0, 0.5]), near_unit_mass(x, x * [1.2, 0.5])
    (0.5, 0.0)
    """
    x, y = before - before.mean(0), after - after.mean(0)
    size, basis = np.linalg.eigh(x.T @ x / (len(x) - 1) + RIDGE * np.eye(x.shape[1]))
    white = basis / np.sqrt(np.maximum(size, RIDGE)) @ basis.T  # of states of 1e20, rounding is more than the ridge
    fitted = np.linalg.lstsq(x @ white, y @ white, rcond=None)[0]
    modulus = np.abs(np.linalg.eigvals(fitted))
    return float(np.mean((modulus >= BAND[0]) & (modulus <= BAND[1])))


@torch.no_grad()
def score(model: LoopedTransformer, tokens: Tensor) -> float:
    """Return the mean near-unit mass over the loops of a model; the first starts from zero and has no spread."""
    states: list[Tensor] = []
    hooks = [
        model.injection.register_forward_pre_hook(lambda _, given: states.append(given[0])),
        model.read_out.register_forward_pre_hook(lambda _, given: states.append(given[0])),
    ]
    was_training = model.training
    model.eval()(tokens, num_loops=model.config.mean_depth)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    rows = [h.flatten(0, -2).double().numpy() for h in states[1:]]
    if not all(np.isfinite(h).all() for h in rows):
        return float("nan")
    return float(np.mean([near_unit_mass(h, after) for h, after in pairwise(rows)]))


class Scores:
    """Takes the score of a model in training after the steps at which runs are judged, and keeps the losses."""

    def __init__(self, model: LoopedTransformer, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.at = {0: score(model, tokens)}
        self.losses: list[float] = []

    def step(self, *, step: int, loss: Tensor, grad_norm: Tensor, lr: float, tokens: int) -> None:
        """Look at the model after a step."""
        self.losses.append(float(loss))
        if step + 1 in (EARLY, LATE):
            self.at[step + 1] = score(self.model, self.tokens)

    def flush(self) -> bool:
        """Nothing is kept that could be lost."""
        return True


def scores_of(cell: Cell, path: Path) -> tuple[Floats, Floats]:
    """Return the score at the start and the one last taken, at every row of a run; kept beside its file."""
    kept = path.with_suffix(".rksp.json")
    if not kept.exists():
        kept.write_text(json.dumps(measure(cell, path)), encoding="utf-8")
    at = json.loads(kept.read_text(encoding="utf-8"))
    latest = np.full(STEPS, np.nan)
    for count in (EARLY, LATE):
        latest[count - 1] = at[str(count)]
    return np.full(STEPS, at["0"]), latest


def measure(cell: Cell, path: Path) -> dict[str, float]:
    """Train the first quarter of a run again and take its scores.

    Raises:
        RuntimeError: The losses are not those of the file: another model would be scored.
    """
    config = config_of(cell, LATE)
    torch.set_num_threads(1)
    model = config.build_model()
    seen = Scores(model, text(cell.seed).batch(UNSEEN, SEQUENCES)[:, :-1])
    train(model, text(cell.seed), config.train_config(), observer=seen)
    with open_run(path) as run:
        recorded = np.asarray(run["loss"])[:LATE]
    if not np.allclose(seen.losses, recorded, rtol=1e-3, equal_nan=True):
        raise RuntimeError(f"{cell.name}: trained again, its losses are not those of {path}")
    return {str(count): value for count, value in seen.at.items()}
