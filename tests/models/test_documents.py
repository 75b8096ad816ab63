"""Texts from files."""

import json

import pytest
from loopscope.models.documents import DocumentError, HubText, read_documents, stream_documents


@pytest.fixture
def folder(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("first\ndocument")
    (tmp_path / "b.jsonl").write_text('{"text": "second"}\n\n{"text": "third é"}\n')
    parquet.write_table(
        pyarrow.table({"text": ["fourth", None, "fifth"], "x": [1, 2, 3]}), tmp_path / "sub" / "c.parquet"
    )
    (tmp_path / "ignored.bin").write_bytes(b"\x00")
    return tmp_path


def test_a_folder_is_read_in_order(folder):
    assert list(read_documents(folder)) == ["first\ndocument", "second", "third é", "fourth", "fifth"]


def test_single_files(folder):
    assert list(read_documents(folder / "b.jsonl")) == ["second", "third é"]
    assert list(read_documents(folder / "sub" / "c.parquet")) == ["fourth", "fifth"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text":', r"x\.jsonl, line 2: expected a JSON object"),
        ("x.jsonl", '{"body": "a"}\n', r"x\.jsonl, line 1: expected text under 'text', found body"),
        ("x.jsonl", "[1]\n", r"x\.jsonl, line 1: expected text under 'text', found list"),
        ("x.parquet", "no parquet", r"x\.parquet: expected a parquet file"),
        ("x.bin", "?", r"expected files ending in \.txt"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DocumentError, match=message):
        list(read_documents(tmp_path / name))


def test_nothing_there(tmp_path):
    with pytest.raises(DocumentError, match="found nothing"):
        list(read_documents(tmp_path / "missing"))


def test_missing_column(folder):
    with pytest.raises(DocumentError, match="expected a column 'body', found text, x"):
        list(read_documents(folder / "sub", column="body"))


def test_streaming_reads_through_datasets(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lines = [json.dumps({"content": f"document {i}"}) for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    files = [str(tmp_path / "rows.jsonl")]
    documents = stream_documents(HubText("json", column="content"), data_files=files)
    assert next(documents) == "document 0" and list(documents) == [f"document {i}" for i in range(1, 5)]
    with pytest.raises(DocumentError, match=r"json, row 0: expected text under 'text', found content"):
        next(stream_documents(HubText("json"), data_files=files))
    with pytest.raises(DocumentError, match="nothing: expected one of fineweb-edu, huginn"):
        next(stream_documents("nothing"))
