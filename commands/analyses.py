"""The ``linearize``, ``depth`` and ``tokenize`` commands: what they print."""

from __future__ import annotations

import json
from pathlib import Path

from ..models.packed import tokenize as write_tokens
from ..runfile.text import plain
from .checkpoints import depth_curve, linearize_checkpoint, said_by_its_run
from .output import say
from .progress import part_progress


def linearize(
    checkpoint: Path,
    *,
    loops: int,
    text: Path | None,
    shape: tuple[int, int],
    budget: float,
    device: str,
    as_json: bool,
) -> None:
    """Print what kind of dynamical system a checkpoint's loop is.

    Args:
        checkpoint: A checkpoint folder, or its run.
        loops: Loops run before the loop is linearised.
        text: File whose first bytes are the input.
        shape: Sequences and positions of the input.
        budget: Seconds after which no further part is begun.
        device: As torch names it, or ``auto``.
        as_json: Print every number as one JSON object.
    """
    with part_progress() as report:
        result = linearize_checkpoint(
            checkpoint, num_loops=loops, text=text, shape=shape, budget=budget, device=device, progress=report
        )
    if as_json:
        say(result.to_json())
        return
    for line in str(result).splitlines():
        say(plain(line))
    if differs := said_by_its_run(checkpoint, result):
        say(differs)


def depth(checkpoint: Path, depths: str, *, batches: int, device: str, as_json: bool) -> None:
    """Print held-out loss against test-time depth.

    Raises:
        ValueError: ``depths`` is not whole numbers with commas.
    """
    try:
        chosen = [int(word) for word in depths.split(",") if word.strip()]
    except ValueError:
        raise ValueError(f"--depths {depths}: expected whole numbers with commas, as 1,2,4,8") from None
    curve = depth_curve(checkpoint, chosen, batches=batches, device=device)
    say(json.dumps(curve.as_dict(), indent=2) if as_json else curve.text())


def tokenize(source: str, out: Path, *, vocab_size: int, tokenizer: Path | None, max_tokens: int | None) -> None:
    """Turn text into tokens for training, and print how many."""
    folder = write_tokens(source, out, vocab_size=vocab_size, tokenizer=tokenizer, max_tokens=max_tokens)
    about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    say(f"{folder}: {about['documents']} documents, {about['tokens']} tokens, vocabulary {about['vocab_size']}")
