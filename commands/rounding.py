"""The ``rounding`` command: which number format of a checkpoint's weights is safe at which depth."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..dynamics.loop.linearization import to_plain
from ..loops.rounding import Rounding
from ..loops.rounding import rounding as measure
from .checkpoints import default_depths, open_checkpoint
from .output import say
from .progress import part_progress


def rounding(
    checkpoint: Path, formats: str, depths: str, *, sequences: int, tolerance: float, device: str, as_json: bool
) -> None:
    """Print the loss gap of every format at every depth, and up to which depth each is safe.

    Args:
        checkpoint: A checkpoint folder, or its run.
        formats: Names with commas.
        depths: Numbers with commas; empty for up to four times the training depth.
        sequences: Held-out sequences the loss is taken on.
        tolerance: Loss gap in nats that counts as safe.
        device: As torch names it, or ``auto``.
        as_json: Print every number as one JSON object.

    Raises:
        ValueError: The checkpoint cannot be read, an unknown format, or depths that are not whole numbers.
    """
    model, data = open_checkpoint(checkpoint, device)
    chosen = _numbers(depths) or default_depths(model.config.mean_depth)
    tokens = next(data.held_out(sequences)).to(next(model.parameters()).device)
    with torch.random.fork_rng(), part_progress() as report:
        result = measure(
            model,
            tokens[:, :-1],
            tokens[:, 1:],
            formats=[name.strip() for name in formats.split(",") if name.strip()],
            depths=chosen,
            tolerance=tolerance,
            progress=report,
        )
    say(json.dumps(as_dict(result), indent=2) if as_json else as_text(result))


def as_text(result: Rounding) -> str:
    """Return the table and one sentence a format.

    A gap that could not be measured, because the state had left the range of its dtype, is a dash.
    """
    names = list(dict.fromkeys(row.format for row in result.rows))
    rows = {(row.format, row.depth): row for row in result.rows}
    head = f"{'depth':>6} {'loss':>8}" + "".join(f" {name + ' predicted':>16} {'measured':>9}" for name in names)
    lines = [head]
    for depth, loss in result.loss.items():
        cells = [rows[name, depth] for name in names]
        gaps = "".join(f" {_gap(row.predicted):>16} {_gap(row.measured):>9}" for row in cells)
        lines.append(f"{depth:6d} {loss:8.4f}{gaps}")
    lines += [_sentence(result, name, max(result.loss)) for name in names]
    return "\n".join(lines)


def as_dict(result: Rounding) -> dict[str, Any]:
    """Return every number for JSON; null for what is not finite."""
    names = dict.fromkeys(row.format for row in result.rows)
    formats = {
        name: {
            "safe_depth": result.safe_depth(name),
            "predicted_safe_depth": result.safe_depth(name, predicted=True),
            "growth_per_loop": result.growth(name),
        }
        for name in names
    }
    loss = {str(depth): value for depth, value in result.loss.items()}
    plain: dict[str, Any] = to_plain(
        {"tolerance": result.tolerance, "loss": loss, "formats": formats, "rows": [asdict(row) for row in result.rows]}
    )
    return plain


def _sentence(result: Rounding, name: str, deepest: int) -> str:
    """Return how deep a format is safe, and how its error grows."""
    safe, predicted = result.safe_depth(name), result.safe_depth(name, predicted=True)
    where = "at no depth" if not safe else f"at every depth up to {safe}" + ("" if safe == deepest else " only")
    guess = "" if predicted == safe else f" (predicted: {predicted or 'none'})"
    growth = result.growth(name)
    grows = "" if growth != growth else f"; its error in the state changes by a factor of {growth:.3f} a loop"
    return f"{name}: within {result.tolerance:g} nats {where}{guess}{grows}"


def _gap(value: float) -> str:
    """Return a loss gap in nats, short enough for its column."""
    return "-" if value != value else f"{value:+.4f}" if abs(value) < 100 else f"{value:+.1e}"


def _numbers(text: str) -> list[int]:
    """Return whole numbers that were given with commas."""
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise ValueError(f"--depths {text}: expected whole numbers with commas, as 1,2,4,8") from None
