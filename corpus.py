"""Text made ready for training: a tokenizer of its own and a folder of tokens.

Not covered: cleaning, filtering and deduplication of text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .models.documents import HUB, read_documents, stream_documents
from .models.packed import write_corpus
from .models.tokenizer import TextTokenizer, train_tokenizer

DOCUMENTS_FOR_TOKENIZER = 100_000


def tokenize(
    source: str, out: Path, *, vocab_size: int, tokenizer: Path | None = None, max_tokens: int | None = None
) -> str:
    """Trains a tokenizer on a source of text, unless one is given, and writes the tokens.

    Args:
        source: A file or folder of text, JSONL or parquet files, or the name of a data set of the hub.
        out: Folder to write.
        vocab_size: Of the tokenizer that is trained.
        tokenizer: A tokenizer file to use instead.
        max_tokens: Stop after the document that reaches so many tokens.

    Returns:
        What was written, in a sentence.

    Raises:
        ValueError: Nothing readable at the source.
        ModuleNotFoundError: An optional package is missing; the message names it.
    """

    def documents() -> Iterable[str]:
        return stream_documents(source) if source in HUB else read_documents(source)

    out.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        sample = (text for text, _ in zip(documents(), range(DOCUMENTS_FOR_TOKENIZER), strict=False))
        trained = train_tokenizer(sample, out / "tokenizer.json", vocab_size=vocab_size)
    else:
        trained = TextTokenizer(tokenizer)
    folder = write_corpus(documents(), trained, out, source=source, max_tokens=max_tokens)
    said = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return f"{folder}: {said['documents']} documents, {said['tokens']} tokens, vocabulary {said['vocab_size']}"
