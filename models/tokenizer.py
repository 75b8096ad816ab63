"""A byte-pair tokenizer trained on your text, in one JSON file of the Hugging Face ``tokenizers`` library.

Every text can be encoded (bytes are the alphabet) and decoded exactly. One special token, ``<|bos|>``, starts a
document.

Not covered: text that spells the start token; it is encoded as that token.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BOS = "<|bos|>"
SMALLEST_VOCABULARY = 257  # all bytes and the start token


class TextTokenizer:
    """Texts to token numbers and back.

    Args:
        path: A file written by `train_tokenizer`, or any ``tokenizer.json`` that has a start token.
        bos: The token that starts a document.

    Raises:
        ValueError: No such file, not a tokenizer, or no such start token.
        ModuleNotFoundError: ``tokenizers`` is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, bos: str = BOS) -> None:
        self.path = Path(path)
        try:
            self._tokenizer = _library().Tokenizer.from_file(str(path))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path}: expected a tokenizer file, as `loopscope tokenize` writes ({error})") from error
        bos_id = self._tokenizer.token_to_id(bos)
        if bos_id is None:
            raise ValueError(f"{path}: expected a tokenizer with the token {bos}, which it does not have")
        self.bos_id = int(bos_id)
        self.vocab_size = int(self._tokenizer.get_vocab_size())
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token numbers of several texts, without a start token; uses all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token numbers; start tokens are left out."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def train_tokenizer(documents: Iterable[str], path: str | os.PathLike[str], *, vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE tokenizer and write it to a file.

    Args:
        documents: Texts to learn from.
        path: The file to write, atomically.
        vocab_size: Tokens wanted, the start token included; fewer when the text does not have that many pairs.

    Returns:
        The tokenizer, read back from the file.

    Raises:
        ValueError: ``vocab_size`` is below 257.
        ModuleNotFoundError: ``tokenizers`` is not installed.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size: expected at least {SMALLEST_VOCABULARY} (all bytes and {BOS}), found {vocab_size}"
        )
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    tokenizer.save(str(partial))
    partial.replace(target)
    return TextTokenizer(target)


def _library() -> Any:
    """Return the ``tokenizers`` package with the parts used here."""
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tokenizers are not installed: pip install loopscope[text]") from error
    return tokenizers
