"""Tokenised, packed text."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loopscope.models import TrainConfig, build
from loopscope.models.packed import PackedText, pack, tokenize, write_corpus
from loopscope.models.train import train

pytest.importorskip("tokenizers")
from loopscope.models.tokenizer import BOS, TextTokenizer, train_tokenizer  # after the check

WORDS = ["loop", "state", "norm", "stable", "diverges", "é", "\n", "  ", "x = 1", "日本"]


def texts(count=60, seed=0):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(texts(), tmp_path_factory.mktemp("tokenizer") / "tokenizer.json", vocab_size=300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    return write_corpus(texts(), tokenizer, tmp_path_factory.mktemp("corpus"), source="words")


def test_every_text_comes_back(tokenizer):
    strange = [*texts(5), "\x00\ud7ff🙂 unseen", ""]
    assert [tokenizer.decode(tokens) for tokens in tokenizer.encode(strange)] == strange
    assert tokenizer.vocab_size <= 300 and tokenizer.bos_id == 0
    assert len(tokenizer.encode(["stable stable stable"])[0]) < len("stable stable stable") / 2  # it has learned words


def test_text_that_spells_the_start_token_is_one_with_it(tokenizer):
    """Known limit of the library: special tokens are found in plain text too."""
    assert tokenizer.encode([BOS])[0] == [tokenizer.bos_id]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(2, 20))
def test_packing_fills_rows_and_loses_nothing(lengths, row):
    starts = np.cumsum([0, *lengths]).tolist()
    rows = list(pack(zip(starts, lengths, strict=False), row))
    assert all(sum(count + 1 for _, count in pieces) == row for pieces in rows)
    taken = sorted(i for pieces in rows for first, count in pieces for i in range(first, first + count))
    assert len(set(taken)) == len(taken)  # nothing twice
    assert sum(lengths) - len(taken) < row  # only what does not fill a last row is left over


def test_sequences_start_with_the_start_token_and_hold_documents(corpus, tokenizer):
    data = PackedText(corpus, sequence_length=24, seed=1)
    whole = {tuple(tokens) for tokens in tokenizer.encode(texts())}
    batch = data.batch(0, 16)
    assert batch.shape == (16, 25) and batch.dtype == torch.int64 and torch.all(batch[:, 0] == tokenizer.bos_id)
    pieces = [p for row in batch.tolist() for p in _split(row, tokenizer.bos_id)]
    assert all(any(_inside(piece, document) for document in whole) for piece in pieces)
    assert sum(tuple(piece) in whole for piece in pieces) >= 2  # documents that fit are kept whole where they can be


def _split(row, bos):
    """Pieces between start tokens."""
    pieces = []
    for token in row:
        if token == bos:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces


def _inside(piece, document):
    n = len(piece)
    return any(list(document[i : i + n]) == piece for i in range(len(document) - n + 1))


def test_an_epoch_is_every_sequence_once(corpus):
    data = PackedText(corpus, sequence_length=24)
    count = data.describe()["sequences"]
    first, second = (torch.cat([data.batch(e * count + i, 1) for i in range(count)]) for e in (0, 1))
    assert not torch.equal(first, second)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist()))
    assert torch.equal(data.batch(3, 4), first[12:16])  # batches are cut from one endless order


def test_splits_share_no_document(corpus, tokenizer):
    data = PackedText(corpus, sequence_length=24)
    encoded = tokenizer.encode(texts())
    held_out = {tuple(t) for i, t in enumerate(encoded, start=1) if i % 20 == 0}
    for row in torch.cat(list(data.held_out(1))).tolist():
        assert all(any(_inside(p, d) for d in held_out) for p in _split(row, tokenizer.bos_id))


def test_a_limit_on_tokens_ends_after_a_document(tmp_path, tokenizer):
    folder = write_corpus(iter(texts(1000)), tokenizer, tmp_path, source="words", max_tokens=2000)
    tokens = PackedText(folder, sequence_length=4).describe()["tokens"]
    longest = max(len(t) for t in tokenizer.encode(texts(1000)))
    assert 2000 <= tokens < 2000 + longest


def test_a_model_trains_on_it(corpus, tokenizer):
    data = PackedText(corpus, sequence_length=24)
    model = build("demo", vocab_size=tokenizer.vocab_size)
    assert train(model, data, TrainConfig(steps=30, batch_size=4, lr=0.01, eval_every=30)).loss < 5


def test_from_files_to_batches_in_one_call(tmp_path, tokenizer):
    (tmp_path / "text").mkdir()
    for i, text in enumerate(texts()):
        (tmp_path / "text" / f"{i:03}.txt").write_text(text)
    own = tokenize(str(tmp_path / "text"), tmp_path / "own", vocab_size=290)
    assert PackedText(own, sequence_length=16).vocab_size == 290 and (own / "tokenizer.json").exists()
    given = tokenize(str(tmp_path / "text"), tmp_path / "given", tokenizer=tokenizer.path)
    said = PackedText(given, sequence_length=16).describe()
    assert said["tokenizer_sha256"] == tokenizer.sha256 and said["documents"] == len(texts())
    with pytest.raises(ValueError, match="expected a file or folder with text"):
        tokenize(str(tmp_path / "missing"), tmp_path / "none")


def test_refusals(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="expected a folder written by"):
        PackedText(tmp_path, sequence_length=8)
    with pytest.raises(ValueError, match="words: expected text, found none"):
        write_corpus(["", ""], tokenizer, tmp_path, source="words")
    assert not (tmp_path / "corpus.json").exists() and not list(tmp_path.glob(".tokens*"))
    folder = write_corpus(texts(3), tokenizer, tmp_path / "few", source="words")
    with pytest.raises(ValueError, match="too little text"):
        PackedText(folder, sequence_length=8)
    with pytest.raises(ValueError, match="vocab_size: expected at least 257"):
        train_tokenizer(texts(), tmp_path / "t.json", vocab_size=100)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json: expected a tokenizer file"):
        TextTokenizer(tmp_path / "bad.json")
