"""Which runs are served: those under the paths, by id, and nothing else."""

import json
import os
import socket
from pathlib import Path

import pytest
from loopscope.dashboard import index as index_module
from loopscope.dashboard import summary
from loopscope.dashboard.index import RunIndex
from loopscope.runfile.layout import RunFileError


@pytest.fixture(autouse=True)
def scan_every_time(monkeypatch):
    monkeypatch.setattr(index_module, "RESCAN_SECONDS", 0.0)
    monkeypatch.setattr(index_module, "RESCAN_REST", 0.0)


def open_files(folder: Path) -> int:
    """Files of this process under a folder; other tests' servers may have theirs."""
    links = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return sum(link.startswith(str(folder)) for link in links)


def names(index: RunIndex) -> list[str]:
    return [entry.name for entry in index.entries()]


def test_folders_are_searched_at_any_depth_and_files_taken_as_given(runs):
    assert names(RunIndex([runs])) == ["addition", "concatenation", "foreign", "no rows", "parcae/seed0"]
    assert names(RunIndex([runs / "addition.h5", runs / "addition.h5"])) == ["addition.h5"]


def test_new_runs_appear_and_deleted_ones_go(runs, write_run):
    index = RunIndex([runs])
    before = {entry.name: entry for entry in index.entries()}
    index.open(before["addition"])
    write_run(runs / "late.h5", steps=5)
    assert "late" in names(index)
    (runs / "addition.h5").unlink()
    assert "addition" not in names(index) and index.find(before["addition"].id) is None


def test_a_path_that_does_not_exist_yet_is_waited_for(tmp_path, write_run):
    index = RunIndex([tmp_path / "runs", tmp_path / "one.h5"])
    assert names(index) == []
    write_run(tmp_path / "runs" / "a.h5", steps=3)
    write_run(tmp_path / "one.h5", steps=3)
    assert names(index) == ["a", "one.h5"]


def test_links_out_of_the_folder_are_not_followed(tmp_path, write_run):
    secret = write_run(tmp_path / "secret" / "s.h5", steps=3)
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "link.h5").symlink_to(secret)
    (tmp_path / "shown" / "folder").symlink_to(secret.parent, target_is_directory=True)
    (entry,) = RunIndex([tmp_path / "shown"]).entries()
    assert entry.name == "link" and "leads out of this folder" in entry.fault
    with pytest.raises(RunFileError, match="leads out"):
        RunIndex([tmp_path / "shown"]).open(entry)


def strange_file(path: Path, kind: str) -> None:
    """Put something at a path that looks like a run by its name only."""
    if kind == "loop":
        path.symlink_to(path.name)
    elif kind == "two links":
        path.symlink_to(path.with_suffix(".other"))
        path.with_suffix(".other").symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere.h5")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))


STRANGE = {"loop": "itself", "two links": "itself", "dangling": "nothing", "fifo": "a pipe", "socket": "a socket"}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_what_is_no_file_is_one_row_with_its_reason(tmp_path, write_run, kind, given):
    sound = write_run(tmp_path / "sound.h5", steps=3)
    strange_file(tmp_path / "odd.h5", kind)
    paths = [tmp_path] if given == "folder" else [sound, tmp_path / "odd.h5"]
    faults = {row["name"].removesuffix(".h5"): row["fault"] for row in summary.rows(RunIndex(paths))}
    assert faults["sound"] is None and STRANGE[kind] in faults["odd"] and len(faults) == 2


def test_names_that_are_not_utf_8_can_be_shown_and_opened(tmp_path, write_run):
    write_run(tmp_path / "a.h5", steps=3)
    odd = os.fsencode(tmp_path) + b"/b\xff\x1b[31m.h5"
    (tmp_path / "a.h5").rename(os.fsdecode(odd))
    index = RunIndex([tmp_path])
    (row,) = summary.rows(index)
    assert row["name"] == "b��[31m" and row["steps"] == 3
    json.dumps(row, ensure_ascii=False).encode()  # no lone surrogate anywhere
    index.close()


MALFORMED = [
    {"site": ["no", "dict"]}, {"config": 7}, {"config": {"model": [1]}}, {"a_bar_learned": "x"},
    {"site": {"prelude": 3}}, {"parameters": "many"}, {"started": [0]},
]  # fmt: skip


@pytest.mark.parametrize("info", MALFORMED, ids=str)
def test_malformed_info_is_still_a_row(tmp_path, write_run, info):
    write_run(tmp_path / "a.h5", steps=3, **info)
    index = RunIndex([tmp_path])
    (row,) = summary.rows(index)
    assert row.get("steps") == 3 or "cannot be shown" in row["fault"]
    index.close()


@pytest.mark.parametrize("run_id", ["", "..", "../concatenation.h5", "/etc/passwd", "addition", "\x00", "a" * 10_000])
def test_only_ids_from_the_list_name_a_run(runs, run_id):
    assert RunIndex([runs]).find(run_id) is None


def test_same_file_name_in_two_folders_is_two_runs(tmp_path, write_run):
    for folder in ("a", "b"):
        write_run(tmp_path / folder / "run.h5", steps=3)
    entries = RunIndex([tmp_path]).entries()
    assert [entry.name for entry in entries] == ["a/run", "b/run"] and len({entry.id for entry in entries}) == 2


def test_rank_files_belong_to_their_run(tmp_path, write_run):
    for name in ("a.h5", "a.rank1.h5", "a.rank3.h5", "b.rank1.h5", "c/a.rank1.h5"):
        write_run(tmp_path / name, steps=3)
    entries = {entry.name: [path.name for path in entry.others] for entry in RunIndex([tmp_path]).entries()}
    assert {name: sorted(others) for name, others in entries.items()} == {
        "a": ["a.rank1.h5"],
        "a.rank3": [],  # no rank 2 beside it, and no process knew how many there are: a run of its own
        "b.rank1": [],
        "c/a.rank1": [],
    }
    files = [tmp_path / name for name in ("a.h5", "a.rank1.h5", "b.rank1.h5")]
    assert names(RunIndex(files)) == ["a.h5", "b.rank1.h5"]
    assert names(RunIndex(files[1:2])) == ["a.rank1.h5"]  # asked for by itself: that rank alone
    index = RunIndex([tmp_path])
    assert list(index.open(index.entries()[0]).run.ranks) == [0, 1]
    index.close()


def test_the_row_of_a_run_changes_with_any_of_its_files(tmp_path, write_run):
    write_run(tmp_path / "a.h5", steps=3)
    (tmp_path / "a.rank1.h5").write_bytes(b"")
    index = RunIndex([tmp_path])
    assert summary.rows(index)[0]["alert"] == "rank-unreadable at step 0"
    (tmp_path / "a.rank1.h5").unlink()
    write_run(tmp_path / "a.rank1.h5", steps=9)
    row = summary.rows(index)[0]
    assert (row["steps"], row["alert"]) == (9, "rank-ended at step 2")
    index.close()


def test_ids_are_safe_in_an_address(tmp_path, write_run):
    write_run(tmp_path / "a b?#%é&.h5", steps=3)
    (entry,) = RunIndex([tmp_path]).entries()
    assert entry.id.isascii() and not set(entry.id) & set(" ?#%&/")


def test_a_run_is_opened_once_and_many_are_closed_again(tmp_path, write_run, monkeypatch):
    monkeypatch.setattr(index_module, "KEPT_OPEN", 2)
    for number in range(5):
        write_run(tmp_path / f"{number}.h5", steps=3)
    before = open_files(tmp_path)
    index = RunIndex([tmp_path])
    first = index.open(index.entries()[0])
    assert index.open(index.entries()[0]) is first
    for entry in index.entries():
        index.open(entry)
    assert open_files(tmp_path) - before <= 2
    index.close()
    assert open_files(tmp_path) == before


def test_broken_runs_raise_one_line(runs):
    index = RunIndex([runs])
    broken = next(entry for entry in index.entries() if entry.name == "foreign")
    with pytest.raises(RunFileError) as caught:
        index.open(broken)
    assert "\n" not in str(caught.value)


def test_a_folder_without_run_files_shows_its_logs(tmp_path, write_run):
    table = "step,loss\n" + "".join(f"{step},{2.5 - 0.01 * step}\n" for step in range(30))
    for name in ("logs/a/train.csv", "logs/v1.2/events.out.tfevents.1.host", "logs/prices.csv", "secret.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(table if "prices" not in name else "day,price\n0,1\n")
    (tmp_path / "logs" / "out.csv").symlink_to(tmp_path / "secret.csv")
    index = RunIndex([tmp_path / "logs"])
    assert names(index) == ["a/train.csv", "out.csv", "v1.2"]
    csv, out, events = index.entries()
    assert index.open(csv).run.log == "CSV" and len(index.open(csv).run) == 30
    assert "leads out of this folder" in out.fault
    with pytest.raises(RunFileError):  # no event file, for all its name
        index.open(events)
    assert names(RunIndex([tmp_path / "logs" / "v1.2"])) == ["v1.2"]
    write_run(tmp_path / "logs" / "run.h5", steps=3)
    assert names(index) == ["run"]
    index.close()
