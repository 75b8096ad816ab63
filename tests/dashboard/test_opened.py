"""How long drawing took, which sets how often a page that follows a run looks for news."""

import itertools

import pytest
from loopscope.dashboard import opened
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.pages import run as run_page


@pytest.mark.parametrize(
    ("looks", "pace"),
    [
        ([0.40], 1000),  # the plots are drawn for the first time, whole
        ([0.40, 0.03], 1000),
        ([0.40, 0.03, 0.40], 1000),  # one look at which a plot had to be drawn whole: the next comes as soon as ever
        ([0.40, 0.40], 4000),  # every look takes long: the training may need the processor
        ([0.40, 0.03, 0.40, 0.20], 2000),
        ([0.03, 0.9, 0.9], 5000),
    ],
)
def test_a_page_rests_after_looks_that_take_long_again_and_again(tmp_path, training, monkeypatch, looks, pace):
    run = training(tmp_path / "live.h5", steps=50)
    for step in range(30):
        run.step(step)
    run.writer.flush()
    held = OpenRun(tmp_path / "live.h5")
    held.story()
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in looks)
    monkeypatch.setattr(opened.time, "thread_time", lambda: next(clock))
    for _ in looks:
        held.time_anew()
        with held.drawing("loss"):
            pass
    monkeypatch.setattr(OpenRun, "judged", property(lambda self: True))
    assert run_page._pace(held) == pace
    held.close()
