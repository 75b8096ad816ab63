"""Tokenised documents in one file, packed into sequences that start at a document's beginning.

    corpus/
        tokens.bin      all tokens one after the other, uint16 or uint32
        documents.npy   where each document starts, and the end
        corpus.json     sizes, tokenizer and source; written last

Each sequence starts with the start token, and so does each document and each continuation of a cut one inside it. No
token is dropped. Attention is not masked between the documents of a sequence.
"""

from __future__ import annotations

import itertools
import json
import os
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data import HELD_OUT_EVERY, stream_seed
from .documents import HUB, read_documents, stream_documents
from .tokenizer import TextTokenizer, train_tokenizer

BUFFER = 1000  # documents among which the best fit is looked for
ENCODED_AT_ONCE = 512
TOKENIZER_DOCUMENTS = 100_000
Segment = tuple[int, int]  # first token and number of tokens of a piece of a document


def write_corpus(
    documents: Iterable[str],
    tokenizer: TextTokenizer,
    folder: str | os.PathLike[str],
    *,
    source: str,
    max_tokens: int | None = None,
) -> Path:
    """Tokenise documents into a folder that `PackedText` reads.

    Args:
        documents: Texts; empty ones are left out.
        tokenizer: Its vocabulary decides the width of a stored token.
        folder: Made when missing; what it holds is replaced when everything is written.
        source: Where the text comes from, for people.
        max_tokens: Stop after the document that reaches so many tokens.

    Returns:
        The folder.

    Raises:
        ValueError: No text.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    starts, end = [0], 0
    partial = root / f".tokens.{os.getpid()}"
    texts = iter(documents)
    with partial.open("wb") as file:
        while chunk := list(itertools.islice(texts, ENCODED_AT_ONCE)):
            for tokens in tokenizer.encode(chunk):
                if tokens and (max_tokens is None or end < max_tokens):
                    file.write(np.array(tokens, dtype=dtype).tobytes())
                    end += len(tokens)
                    starts.append(end)
            if max_tokens is not None and end >= max_tokens:
                break
    if end == 0:
        partial.unlink()
        raise ValueError(f"{source}: expected text, found none")
    (root / "corpus.json").unlink(missing_ok=True)
    partial.replace(root / "tokens.bin")
    np.save(root / "documents.npy", np.array(starts, dtype=np.int64))
    said = {"source": source, "tokens": end, "documents": len(starts) - 1, "dtype": dtype.name}
    said |= {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id, "tokenizer_sha256": tokenizer.sha256}
    (root / "corpus.json").write_text(json.dumps(said, indent=2) + "\n")
    return root


def tokenize(
    source: str,
    folder: str | os.PathLike[str],
    *,
    vocab_size: int = 32_768,
    tokenizer: str | os.PathLike[str] | None = None,
    max_tokens: int | None = None,
    column: str = "text",
) -> Path:
    """Turn text into a corpus in one call: train a tokenizer unless one is given, then write the tokens.

    Args:
        source: A file or folder (see `read_documents`), or a name of the hub (`HUB`: ``"fineweb-edu"``, ``"huginn"``).
        folder: For ``tokenizer.json`` and the corpus.
        vocab_size: Of a tokenizer trained here, on at most the first 100 000 documents.
        tokenizer: A tokenizer file to use in its place.
        max_tokens: Stop after the document that reaches so many tokens; needed for sources that do not fit your disk.
        column: Field that holds the text, for JSONL and parquet files.

    Returns:
        The folder, ready for `PackedText`.

    Raises:
        ValueError: Nothing readable at the source, or a vocabulary that is too small.
        ModuleNotFoundError: An optional package is missing (the message says which).
    """
    root = Path(folder)

    def documents() -> Iterator[str]:
        return stream_documents(source) if source in HUB else read_documents(source, column=column)

    if tokenizer is None:
        trained_on = itertools.islice(documents(), TOKENIZER_DOCUMENTS)
        chosen = train_tokenizer(trained_on, root / "tokenizer.json", vocab_size=vocab_size)
    else:
        chosen = TextTokenizer(tokenizer)
    return write_corpus(documents(), chosen, root, source=source, max_tokens=max_tokens)


class PackedText:
    """Batches from a folder written by `write_corpus`; every twentieth document is held out.

    The sequences are packed once, with a cost of some microseconds per document; every epoch shuffles them anew.

    Args:
        folder: What `write_corpus` wrote.
        sequence_length: Positions S of a training sequence.
        seed: Of the packing and the shuffles.

    Raises:
        ValueError: The folder is not a complete corpus, or too small for one sequence in each split.
    """

    def __init__(self, folder: str | os.PathLike[str], *, sequence_length: int, seed: int = 0) -> None:
        root = Path(folder)
        try:
            self._said = json.loads((root / "corpus.json").read_text())
            self._tokens: NDArray[np.unsignedinteger] = np.memmap(root / "tokens.bin", self._said["dtype"], mode="r")
            starts = np.load(root / "documents.npy")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{root}: expected a folder written by `loopscope tokenize` ({error})") from error
        self.sequence_length = sequence_length
        self.vocab_size = int(self._said["vocab_size"])
        self.seed = seed
        self._bos = int(self._said["bos_id"])
        documents = list(zip(starts[:-1].tolist(), np.diff(starts).tolist(), strict=True))
        training = [document for i, document in enumerate(documents, start=1) if i % HELD_OUT_EVERY]
        order = torch.randperm(len(training), generator=self._generator("packing"))
        self._training = list(pack((training[i] for i in order.tolist()), sequence_length + 1))
        self._held_out = list(pack(documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY], sequence_length + 1))
        if not self._training or not self._held_out:
            raise ValueError(f"{root}: too little text for sequence_length = {sequence_length} in both splits")
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, index: int, batch_size: int) -> Tensor:
        """Return training batch number ``index``, ``(B, S + 1)`` int64; each epoch goes over all sequences once."""
        rows = [self._row_of(number) for number in range(index * batch_size, (index + 1) * batch_size)]
        return torch.stack([self._assemble(self._training[row]) for row in rows])

    def held_out(self, batch_size: int) -> Iterator[Tensor]:
        """Yield held-out batches in a fixed order; the last one may be smaller."""
        for first in range(0, len(self._held_out), batch_size):
            yield torch.stack([self._assemble(row) for row in self._held_out[first : first + batch_size]])

    def describe(self) -> dict[str, object]:
        """Return what the corpus says of itself, and how it is packed."""
        packed = {"sequences": len(self._training), "held_out_sequences": len(self._held_out)}
        return {**self._said, **packed, "seed": self.seed, "sequence_length": self.sequence_length}

    def _row_of(self, number: int) -> int:
        """Return the sequence that comes at a place in the endless shuffled order."""
        epoch, place = divmod(number, len(self._training))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, torch.randperm(len(self._training), generator=self._generator("epoch", epoch)))
        return int(self._epoch[1][place])

    def _assemble(self, segments: list[Segment]) -> Tensor:
        """Return the tokens of a sequence: each piece after a start token."""
        pieces: list[NDArray[np.int64]] = []
        for first, count in segments:
            pieces += [np.array([self._bos]), self._tokens[first : first + count].astype(np.int64)]
        return torch.from_numpy(np.concatenate(pieces))

    def _generator(self, *purpose: object) -> torch.Generator:
        """Return a generator for one purpose."""
        return torch.Generator().manual_seed(stream_seed(self.seed, *purpose))


def pack(documents: Iterable[Segment], row: int) -> Iterator[list[Segment]]:
    """Pack documents into rows of exactly ``row`` places; a piece of n tokens takes n + 1, for its start token.

    Takes the longest document that still fits; when none does, the shortest is cut and its rest waits its turn. Only
    what does not fill a last row is left over. A row's last place may be a start token alone.

    Args:
        documents: First token and length of each.
        row: Places in a row, at least 2.

    Returns:
        Rows as lists of pieces.

    >>> list(pack([(0, 5), (5, 2), (7, 9)], row=6))
    [[(0, 5)], [(5, 2), (7, 2)], [(9, 5)]]
    """
    waiting: list[tuple[int, int]] = []  # (length, first token), shortest first
    source = iter(documents)
    while True:
        for first, count in itertools.islice(source, BUFFER - len(waiting)):
            insort(waiting, (count, first))
        pieces: list[Segment] = []
        room = row
        while room > 0 and waiting:
            fitting = bisect_right(waiting, (room - 1, 1 << 62))
            count, first = waiting.pop(fitting - 1 if fitting else 0)
            taken = min(count, room - 1)
            if taken < count:
                insort(waiting, (count - taken, first + taken))
            pieces.append((first, taken))
            room -= taken + 1
        if room > 0:
            return
        yield pieces
