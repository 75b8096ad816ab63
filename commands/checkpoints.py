"""What can be asked of a checkpoint: the dynamics of its loop, and its loss against test-time depth.

A checkpoint is a folder that ``loopscope train`` wrote, or the run file beside it.

Not covered: checkpoints of models that are not ours; call `loopscope.linearize` on the live model instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dynamics.loop.linearization import to_plain
from ..dynamics.trajectory.safe_depth import SafeDepth, judged_from, measured_depth, predicted_depth
from ..dynamics.trajectory.scaling import DepthLaw, depth_law
from ..loops.analysis import linearize
from ..loops.bound import bound_loop
from ..models.checkpoint import load_model
from ..models.data import Data
from ..models.depth import loss_at_depths
from ..models.looped import LoopedTransformer
from ..models.run_config import RunConfig
from ..rules.regimes import read_regimes
from ..runfile.layout import RunFileError
from ..runfile.open import open_run
from .training import one_device

if TYPE_CHECKING:
    from ..dynamics.loop.linearization import Linearization

SEQUENCES = 8  # of the batch whose answers are followed
HORIZON = 64  # loops they are followed for
MIN_DEPTHS = 4  # a law with three coefficients and one point to spare
TOLERATED_RISE = 0.05  # nats above the loss at the training depth that still count as the same loss


@dataclass(frozen=True, slots=True)
class DepthCurve:
    """Held-out loss against test-time depth.

    Args:
        losses: Nats per token by depth; NaN where the logits were not finite.
        law: ``L(T) = L_∞ + Z e^{−zT}`` fitted to the finite ones; ``None`` with fewer than four of them.
        predicted: Safe depth predicted from twice the training depth, for the answers of the training depth.
        measured: Depth up to which 95 % of the answers of the training depth stand, of ``horizon`` loops that were run.
        horizon: Loops run to measure it.
        training_depth: Mean number of loops in training.
    """

    losses: dict[int, float]
    law: DepthLaw | None
    predicted: SafeDepth
    measured: int
    horizon: int
    training_depth: int

    @property
    def kept_until(self) -> int | None:
        """Deepest evaluated depth up to which the loss is as good as at the training depth; None where that depth was
        not evaluated.
        """
        if (reference := self.losses.get(self.training_depth)) is None:
            return None
        kept = self.training_depth
        for depth in sorted(depth for depth in self.losses if depth >= self.training_depth):
            if not self.losses[depth] <= reference + TOLERATED_RISE:
                break
            kept = depth
        return kept

    def as_dict(self) -> dict[str, Any]:
        """Return the curve for JSON; None for what is not finite."""
        law = self.law
        fitted = None if law is None else {
            "limit": law.limit, "amplitude": law.amplitude, "rate": law.rate, "identified": law.identified,
            "doubt": law.doubt, "standard_errors": dict(law.quality.standard_errors), "residuals": list(law.residuals),
        }  # fmt: skip
        losses = {str(depth): loss for depth, loss in self.losses.items()}
        safe = {
            "predicted": self.predicted.depth, "measured": self.measured, "horizon": self.horizon,
            "training_depth": self.training_depth, "loss_kept_until": self.kept_until,
        }  # fmt: skip
        plain: dict[str, Any] = to_plain({"losses": losses, "law": fitted, "safe_depth": safe})
        return plain

    def text(self) -> str:
        """Return the curve for people."""
        shown = {} if self.law is None else dict(zip(self.law.depths, self.law.residuals, strict=True))
        lines = [f"{'depth':>6} {'loss':>8}" + (f" {'law − loss':>11}" if shown else "")]
        for depth, loss in self.losses.items():
            misfit = f" {shown[depth]:+11.4f}" if depth in shown else " " * 12 * bool(shown)
            trained = "  trained at this depth" if depth == self.training_depth else ""
            lines.append(f"{depth:6d} {loss:8.4f}{misfit}{trained}".rstrip())
        if (law := self.law) is not None:
            fit = f"L(T) = {law.limit:.4f} {law.amplitude:+.4f} · exp(−{law.rate:.4f} T)"
            lines.append(fit if law.identified else f"{fit}  ({law.doubt})")
        measured = f"≥ {self.measured}" if self.measured >= self.horizon > self.training_depth else str(self.measured)
        lines.append(
            f"safe depth: predicted {self.predicted.words}, measured {measured} (95 % of the answers of depth "
            f"{self.training_depth}, the training depth, stand)"
        )
        if (kept := self.kept_until) is not None:
            deepest = max(self.losses)
            until = f"at every depth up to {kept}" if kept == deepest else f"up to depth {kept} only"
            lines.append(f"the loss stays within {TOLERATED_RISE} nats of that at the training depth {until}")
        return "\n".join(lines)


def linearize_checkpoint(
    path: Path,
    *,
    num_loops: int,
    text: Path | None,
    shape: tuple[int, int],
    budget: float,
    device: str,
    progress: Callable[[str, float], None] | None = None,
) -> Linearization:
    """Analyse the loop of a checkpoint on text.

    Args:
        path: Checkpoint folder or run file.
        num_loops: Loops run before the loop is linearised.
        text: File whose first bytes are the input of a byte model; default: held-out text of the run's own data.
        shape: Sequences and positions of the input.
        budget: Seconds after which no further part of the analysis is begun.
        device: As torch names it, or ``auto``.
        progress: Told which part is under way.

    Raises:
        ValueError: The checkpoint cannot be read, or the text is too short.
    """
    model, data = open_checkpoint(path, device)
    sequences, positions = shape
    if text is None:
        tokens = next(data.held_out(sequences))[:, :positions]
    else:
        tokens = _bytes(text, sequences, positions)
    if tokens.shape[1] > model.config.max_length:
        raise ValueError(f"--positions {positions}: the model takes at most {model.config.max_length}")
    return linearize(model, tokens, num_loops=num_loops, budget=budget, progress=progress)


def said_by_its_run(path: Path, linearization: Linearization) -> str:
    """Say that the run of a checkpoint is judged otherwise than its linearisation, and why that can be.

    Args:
        path: Checkpoint folder or run file.
        linearization: What `linearize_checkpoint` gave.

    Returns:
        One sentence; empty where there is no readable run beside the checkpoint, or where both agree.
    """
    try:
        with open_run(path.with_suffix(".h5")) as run:
            seen = read_regimes(run) if len(run) else None
    except (RunFileError, OSError):
        return ""
    if seen is None or "unknown" in (seen.verdict, linearization.regime) or seen.verdict == linearization.regime:
        return ""
    views = {"lti": "linear part", "loop": "full loop", "trajectory": "trajectory"}
    differ = [
        f"{words} {seen.regimes[name]} there and {linearization.regimes[name]} here"
        for name, words in views.items()
        if seen.regimes[name] != linearization.regimes[name]
    ]
    return (
        f"its run is judged {seen.verdict}, this is {linearization.regime}: {', '.join(differ)}. The run is judged on "
        "its own fixed batch in its last pass, this on other text: the loop is near the edge of a band, or its weights "
        "have changed since the checkpoint, so judge on more text (--sequences, --positions)"
    )


def depth_curve(path: Path, depths: Sequence[int] | None, *, batches: int, device: str) -> DepthCurve:
    """Evaluate a checkpoint at several test-time depths and fit the law of saturation.

    Args:
        path: Checkpoint folder or run file.
        depths: Numbers of loops; default: from 1 to four times the mean training depth, in steps that grow.
        batches: Held-out batches of 8 sequences.
        device: As torch names it, or ``auto``.

    Raises:
        ValueError: The checkpoint cannot be read, or a depth is below 1.
    """
    model, data = open_checkpoint(path, device)
    losses = loss_at_depths(model, data, depths or default_depths(model.config.mean_depth), batches=batches)
    finite = {depth: loss for depth, loss in losses.items() if np.isfinite(loss)}
    law = depth_law(list(finite), list(finite.values())) if len(finite) >= MIN_DEPTHS else None
    predicted, measured = _safe_depth(model, next(data.held_out(SEQUENCES))[:, :-1])
    return DepthCurve(losses, law, predicted, measured, predicted.horizon, model.config.mean_depth)


def default_depths(mean: int) -> list[int]:
    """Return numbers of loops from 1 to four times a mean training depth, in steps that grow.

    >>> default_depths(8)
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    """
    return sorted({1, 2, 3, *(max(1, round(mean * share)) for share in (0.5, 0.75, 1, 1.5, 2, 3, 4))})


@torch.no_grad()
def _safe_depth(model: LoopedTransformer, tokens: Tensor) -> tuple[SafeDepth, int]:
    """Return the safe depth of the training depth's answers: predicted from twice that depth, and measured."""
    trained = model.config.mean_depth
    seen = 2 * trained
    horizon = max(HORIZON, 2 * seen)
    with bound_loop(model, tokens) as loop, torch.no_grad():
        assert loop.read_out is not None  # our models return logits
        states, logits = [loop.state], []
        answers = [_answers(loop.read_out(loop.state))]
        for depth in range(1, horizon + 1):
            states.append(loop.step(states[-1]))
            output = loop.read_out(states[-1])
            answers.append(_answers(output))
            if depth in (seen - 1, seen):
                logits.append(output.cpu().numpy())
    path = torch.stack(states[: seen + 1]).double()
    steps = (path[1:] - path[:-1]).norm(dim=-1).permute(1, 2, 0).cpu().numpy()
    predicted = predicted_depth(
        steps,
        state_norm=path.norm(dim=-1).permute(1, 2, 0).cpu().numpy(),
        logits=(logits[0], logits[1]),
        horizon=horizon,
    )
    given = np.stack(answers)
    return judged_from(predicted, given[: seen + 1], trained), measured_depth(given, trained)


def _answers(logits: Tensor) -> NDArray[np.int64]:
    """Return the token chosen at every position; -1 where the logits are not finite."""
    finite = logits.isfinite().all(-1)
    return np.asarray(torch.where(finite, logits.argmax(-1), -1).cpu().numpy(), np.int64)


def open_checkpoint(path: Path, device: str) -> tuple[LoopedTransformer, Data]:
    """Return the model of a checkpoint on its device, and the data of its run."""
    folder = path if path.is_dir() else path.with_suffix(".checkpoint")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such checkpoint folder; give the one that `loopscope train` wrote")
    model = load_model(folder)
    run = folder.with_suffix(".h5")
    config = RunConfig()
    if run.exists():
        with open_run(run) as opened:
            recorded = opened.info.get("config", {})
            config = RunConfig(
                preset=recorded.get("preset", "demo"), model=recorded.get("model", {}), data=recorded.get("data", {})
            )
    data = config.open_data()
    if data.vocab_size > model.config.vocab_size:
        raise ValueError(f"{folder}: its vocabulary of {model.config.vocab_size} does not hold the data's tokens")
    return model.to(one_device(device)), data


def _bytes(path: Path, sequences: int, positions: int) -> Tensor:
    """Return the first bytes of a file as ``(sequences, positions)`` tokens."""
    needed = sequences * positions
    content = path.read_bytes()[:needed]
    if len(content) < needed:
        raise ValueError(f"{path}: has {len(content)} bytes, {sequences} x {positions} are needed")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long().view(sequences, positions)
