"""A log of another tool in the dashboard: its loss is shown, and nothing breaks for want of a loop."""

from __future__ import annotations

import numpy as np
from loopscope.dashboard.index import RunIndex
from loopscope.dashboard.report import report_html


def log(path):
    loss = 2 + 2 * np.exp(-np.arange(120) / 30)
    path.write_text("step,loss,lr\n" + "".join(f"{step},{float(v)!r},0.001\n" for step, v in enumerate(loss)))
    return path


def test_a_log_that_is_named_is_a_run_with_a_story(tmp_path):
    index = RunIndex([log(tmp_path / "a.csv")])
    (entry,) = index.entries()
    held = index.open(entry)
    story = held.story()
    assert story is not None and story.verdict == "unknown" and "loss only" in story.sentence.lower()
    assert held.last("loss") < 2.2 and held.probe("state_norm").values.size == 0
    index.close()


def test_a_report_of_a_log_is_written(tmp_path):
    html = report_html([log(tmp_path / "a.csv")])
    assert "a.csv" in html or ">a<" in html
