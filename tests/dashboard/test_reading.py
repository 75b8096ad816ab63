"""Helpers that read rows: the same rows, whatever becomes of the helper."""

import time

import pytest
from loopscope.dashboard import reading, summary
from loopscope.dashboard.index import RunIndex
from loopscope.dashboard.reading import Helper
from loopscope.dashboard.row_cells import cells_of, read_once
from loopscope.dashboard.summary import RunTable


@pytest.fixture
def helper():
    one = Helper()
    yield one
    one.close()


def test_a_helper_says_what_this_process_would_say(helper, tmp_path, write_run):
    path = write_run(tmp_path / "<a> \udcff.h5", steps=40)
    assert helper.cells(path) == read_once(path, cells_of)
    assert helper.cells(tmp_path / "none.h5") is None
    assert helper.cells(path) is not None  # it goes on after a run that cannot be read


def test_a_helper_that_died_is_nobody(helper, tmp_path, write_run):
    helper._process.kill()
    helper._process.wait()
    assert helper.cells(write_run(tmp_path / "a.h5", steps=5)) is None


def test_many_runs_are_read_with_helpers_and_each_once(tmp_path, write_run, monkeypatch):
    for i in range(6):
        write_run(tmp_path / f"{i}.h5", steps=5)
    (tmp_path / "foreign.h5").write_bytes(b"nothing")
    monkeypatch.setattr(summary, "helpers_for", lambda waiting: int(waiting > 3))
    asked = []
    cells = Helper.cells
    monkeypatch.setattr(Helper, "cells", lambda self, path: asked.append(path) or cells(self, path))
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
