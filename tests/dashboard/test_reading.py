"""Helpers that read rows: the same rows, whatever becomes of the helper."""

import os
import time

import pytest
from loopscope.dashboard import reading, summary
from loopscope.dashboard.index import RunIndex
from loopscope.dashboard.reading import Helper
from loopscope.dashboard.row_cells import cells_of, read_once
from loopscope.dashboard.summary import RunTable
from loopscope.runfile.layout import RunFileError


@pytest.fixture
def helper():
    one = Helper()
    yield one
    one.close()


def test_a_helper_says_what_this_process_would_say(helper, tmp_path, write_run):
    path = write_run(tmp_path / "<a> \udcff.h5", steps=40)
    read = helper.read(path)
    assert read is not None and read.cells == read_once(path, cells_of)
    assert read.story == read_once(path, lambda held: held.story())
    assert helper.read(tmp_path / "none.h5") is None
    assert helper.read(path) == read  # it goes on after a run that cannot be read


def test_a_helper_that_died_is_nobody(helper, tmp_path, write_run):
    helper._process.kill()
    helper._process.wait()
    assert helper.read(write_run(tmp_path / "a.h5", steps=5)) is None


def test_many_runs_are_read_with_helpers_and_each_once(tmp_path, write_run, monkeypatch):
    for i in range(6):
        write_run(tmp_path / f"{i}.h5", steps=5)
    (tmp_path / "foreign.h5").write_bytes(b"nothing")
    monkeypatch.setattr(summary, "helpers_for", lambda waiting: int(waiting > 3))
    asked = []
    read = Helper.read
    monkeypatch.setattr(Helper, "read", lambda self, path: asked.append(path) or read(self, path))
    table = RunTable(RunIndex([tmp_path]))
    table.rows()
    for _ in range(600):
        if not table.reading:
            break
        table.rows()  # as a page does
        time.sleep(0.05)
    assert not table.reading and len(asked) == len(set(asked))
    states = {row["name"]: row["state"] for row in table.rows()}
    assert states.pop("foreign") == "unreadable" and set(states.values()) == {"finished"}


def test_few_runs_need_no_helper():
    assert reading.helpers_for(reading.WORTH - 1) == 0


def test_a_long_run_is_read_once_for_its_row_and_its_page(tmp_path, write_run, monkeypatch):
    monkeypatch.setattr(summary, "LONG_BYTES", 0)
    path = write_run(tmp_path / "a.h5", steps=40)
    index = RunIndex([tmp_path])
    asked = []
    read = Helper.read
    monkeypatch.setattr(Helper, "read", lambda self, path: asked.append(path) or read(self, path))
    try:
        (row,) = RunTable(index).read_all()
        known = index.long_runs.read(path, live=False)
        assert len(asked) == 1 and row["verdict"] == known.story.verdict == "stable"
    finally:
        index.close()


def test_a_long_run_that_changed_is_read_again_unless_it_is_being_written(tmp_path, write_run, monkeypatch):
    monkeypatch.setattr(reading, "REST", 1e6)  # a quick machine reads the run in less than it takes to write the next
    path = write_run(tmp_path / "a.h5", steps=40)
    runs = reading.LongRuns()
    try:
        known = runs.read(path, live=False)
        path.unlink()
        write_run(path, steps=60, end=1.4)
        assert runs.read(path, live=True) is known  # a little old will do
        runs._helper._process.kill()  # whatever becomes of the helper
        os.utime(path)
        assert runs.read(path, live=False).story.verdict == "unstable"
    finally:
        runs.close()
    os.utime(path)
    with pytest.raises(RunFileError, match="the dashboard ends"):  # and no helper is started for nobody
        runs.read(path, live=False)
    assert runs._helper is None
