"""What becomes an event while training runs."""

from __future__ import annotations

import math

import pytest
from loopscope.rules.detectors import EventDetector
from loopscope.rules.loss_series import SETTLING

INF, NAN = math.inf, math.nan


def events(rows: list[dict[str, float]]) -> list[tuple[int, str, str]]:
    """Step, kind and severity of what a detector says of rows."""
    detector = EventDetector()
    found = [event for step, row in enumerate(rows) for event in detector.update(step, 0.0, {"loss": 3.0} | row)]
    return [(event.step, event.kind, event.severity) for event in found if event.kind != "depth_changed"]


@pytest.mark.parametrize("skipped", [1, 7, SETTLING])
def test_a_loss_scale_that_settles_is_one_note(skipped: int) -> None:
    rows = [{"grad_norm": INF}] * skipped + [{"grad_norm": 1.0}] * 5
    assert events(rows) == [(0, "grad_overflow", "note")]


@pytest.mark.parametrize(
    ("rows", "step"),
    [
        ([{"grad_norm": INF}] * (SETTLING + 3), SETTLING),  # it never fits
        ([{"grad_norm": INF}, {"grad_norm": 1.0}, {"grad_norm": INF}], 2),  # it had settled
        ([{"grad_norm": INF}, {"grad_norm": INF, "loss": INF}], 1),  # the loss too
        ([{"grad_norm": INF}, {"grad_norm": NAN}], 1),
        ([{"grad_norm": INF}, {"grad_norm": INF, "a_bar_radius": NAN}], 1),
    ],
)
def test_what_is_more_than_that_is_an_error_at_its_step(rows: list[dict[str, float]], step: int) -> None:
    said = [each for each in events(rows) if each[1] == "non_finite"]
    assert said == [(step, "non_finite", "error")]
