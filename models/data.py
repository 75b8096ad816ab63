"""Text as batches of tokens, addressed by number: batch ``i`` is always the same batch.

A batch is a pure function of the seed and its number, so the position of a run in its data is one integer: resuming,
gradient accumulation and data-parallel ranks need no iterator state.

Not covered: mixing several sources with weights.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

HELD_OUT_EVERY = 20  # one file (or document) in twenty is held out


class Data(Protocol):
    """What a trainer needs of its data."""

    sequence_length: int
    vocab_size: int

    def batch(self, index: int, batch_size: int) -> Tensor:
        """Training batch number ``index``: ``(B, S + 1)`` int64; inputs are ``[:, :-1]``, targets ``[:, 1:]``."""
        ...

    def held_out(self, batch_size: int) -> Iterator[Tensor]:
        """Yield held-out batches in a fixed order, at least one; the last may have fewer sequences."""
        ...

    def describe(self) -> dict[str, object]:
        """Return where the text comes from, as plain values for the run file."""
        ...


def stream_seed(*parts: object) -> int:
    """Return a 63-bit seed that differs for every combination of parts, on every machine.

    >>> stream_seed(0, "batch", 1) == stream_seed(0, "batch", 1) != stream_seed(0, "batch", 2)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class ByteText:
    """Text read as bytes: 256 tokens, no tokenizer; windows start anywhere.

    Args:
        documents: Texts in a fixed order; every twentieth is held out.
        sequence_length: Positions S of a training sequence.
        seed: Which windows are drawn.
        source: Said by `describe`.

    Raises:
        ValueError: One of the two splits is shorter than one sequence.

    >>> text = ByteText([b"looped models" * 9] * 20, sequence_length=8)
    >>> text.batch(0, 2).shape
    torch.Size([2, 9])
    >>> torch.equal(text.batch(3, 2), text.batch(3, 2))
    True
    """

    vocab_size = 256

    def __init__(
        self, documents: Iterable[bytes], *, sequence_length: int, seed: int = 0, source: str = "bytes"
    ) -> None:
        self.sequence_length = sequence_length
        self.seed = seed
        self.source = source
        texts = list(documents)
        held_out = b"".join(texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
        training = b"".join(text for i, text in enumerate(texts, start=1) if i % HELD_OUT_EVERY)
        self.sha256 = hashlib.sha256(training).hexdigest()
        self._training = self._windows("training", training)
        self._held_out = self._windows("held-out", held_out)

    def _windows(self, split: str, text: bytes) -> Tensor:
        """Return all windows of S + 1 bytes as a view, ``(N, S + 1)`` uint8."""
        if len(text) <= self.sequence_length:
            raise ValueError(
                f"{self.source}: the {split} split has {len(text)} bytes, expected more than sequence_length = "
                f"{self.sequence_length}; give more text (every {HELD_OUT_EVERY}th document is held out)"
            )
        return torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, self.sequence_length + 1, 1)

    def batch(self, index: int, batch_size: int) -> Tensor:
        """Return windows at random places, drawn from a generator seeded by the batch number."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "batch", index))
        return self._training[torch.randint(len(self._training), (batch_size,), generator=generator)].long()

    def held_out(self, batch_size: int) -> Iterator[Tensor]:
        """Yield windows that follow each other, each target once; the last batch may be smaller."""
        starts = torch.arange(0, len(self._held_out), self.sequence_length)
        for chosen in torch.split(starts, batch_size):
            yield self._held_out[chosen].long()

    def describe(self) -> dict[str, object]:
        """Return source, sizes in bytes and a digest of the training text."""
        sizes = {
            "training_tokens": len(self._training) + self.sequence_length,
            "held_out_tokens": len(self._held_out) + self.sequence_length,
        }
        return {
            "source": self.source,
            **sizes,
            "sha256": self.sha256,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
        }


def standard_library(*, sequence_length: int, seed: int = 0) -> ByteText:
    """Return the source of Python's standard library: real text that is on every machine.

    Takes the modules at the top level (about 5 MB) in the order of their names, whichever Python is running.

    Args:
        sequence_length: Positions of a training sequence.
        seed: Which windows are drawn.

    >>> standard_library(sequence_length=32).batch(0, 8).shape
    torch.Size([8, 33])
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"), key=lambda path: path.name)
    version = sysconfig.get_python_version()
    documents = (path.read_bytes() for path in files)
    return ByteText(documents, sequence_length=sequence_length, seed=seed, source=f"Python {version} standard library")
