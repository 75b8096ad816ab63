"""The runs that a command line means."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopscope.gate.check import check_runs
from loopscope.gate.paths import expand


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "runs/a.h5",
        "runs/deep/b.h5",
        "runs/.hidden.h5",
        "runs/.cache/c.h5",
        "runs/notes.txt",
        "w[1].h5",
        "e/x",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["runs"], ["runs/a.h5", "runs/deep/b.h5"]),
        (["runs/*.h5"], ["runs/a.h5"]),
        (["runs/**/*.h5"], ["runs/a.h5", "runs/deep/b.h5"]),
        (["ru*"], ["runs/a.h5", "runs/deep/b.h5"]),
        (["w[1].h5"], ["w[1].h5"]),  # it is there: not a pattern
        (["runs/a.h5", "runs"], ["runs/a.h5", "runs/deep/b.h5"]),
        (["none*.h5"], ["none*.h5"]),
        (["e"], ["e"]),
    ],
)
def test_files_folders_and_patterns(tree, words, paths):
    assert expand(map(Path, words)) == [Path(path) for path in paths]


@pytest.mark.parametrize("word", ["none*.h5", "e"])
def test_what_stands_for_nothing_never_passes(tree, word):
    assert check_runs([Path(word)]).exit_code == 4
