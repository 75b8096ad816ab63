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


def test_a_folder_without_run_files_stands_for_its_logs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logs = {
        "tb/version_0/events.out.tfevents.1.host": "",
        "tb/version_0/events.out.tfevents.2.host": "",
        "tb/version_1/events.out.tfevents.1.host": "",
        "hf/checkpoint-10/trainer_state.json": "{}",
        "wandb/offline-run-1/run-1.wandb": "",
        "t/train.csv": "step,train/loss\n0,1\n",
        "t/train.jsonl": '{"step": 0, "metrics": {"loss": 2.5}}\n',
        "t/two.csv": "step,a/loss,b/loss\n0,1,1\n",  # a log, of which it is not known which is the loss
        "t/prices.csv": "day,price\n0,1\n",
        "t/chat.jsonl": '{"role": "user", "text": "loss"}\n',
        "t/list.jsonl": "[1]\n",
        "t/quote.csv": '"step\n',
        ".git/logs.csv": "step,loss\n0,1\n",
        "config.json": '{"loss": 1}',
    }
    for name, text in logs.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    found = [path.as_posix() for path in expand([Path()])]
    assert found == [
        "hf/checkpoint-10/trainer_state.json",
        "t/train.csv",
        "t/train.jsonl",
        "t/two.csv",
        "tb/version_0",
        "tb/version_1",
        "wandb/offline-run-1/run-1.wandb",
    ]
    Path("t/a.h5").touch()
    assert [path.as_posix() for path in expand([Path()])] == ["t/a.h5"]


def test_a_table_that_changes_is_looked_at_again(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("day,price\n")
    assert expand([tmp_path]) == [tmp_path]
    table.write_text("step,loss\n0,2.5\n")
    assert expand([tmp_path]) == [table]
