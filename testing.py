"""For tests of looped models: a probe as a fixture, and an assertion about its recording.

pytest loads this file by itself where loopscope is installed; it imports neither torch nor anything else of ours before
a test asks for it.

    from loopscope.testing import assert_stable

    def test_the_loop_stays_stable(loop_probe, tmp_path):
        with loop_probe(model) as probe:
            for batch in batches:
                probe.step(loss=train_step(model, batch))
        assert_stable(probe.path)

Not covered: how long a training must be; the rules need some twenty steps, and a run that is too short is no pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from .probes.probe import Probe
    from .rules.diagnosis import Diagnosis

Severity = Literal["note", "warning", "error"]


def assert_stable(
    path: str | os.PathLike[str],
    *,
    fail_on: Severity = "error",
    rules: Path | None = None,
    min_steps: int | None = None,
) -> Diagnosis:
    """Fail the test where ``loopscope check`` would fail the run.

    Args:
        path: The run file.
        fail_on: Least severity that fails.
        rules: TOML file that changes or adds rules.
        min_steps: Steps that are enough for a verdict.

    Returns:
        The diagnosis, for further assertions about its numbers.

    Raises:
        AssertionError: A rule fired, or something that should have been judged was not; the message is check's.
    """
    from .gate.check import check_runs
    from .gate.text import as_text

    result = check_runs([Path(path)], rules_file=rules, fail_on=fail_on, min_steps=min_steps)
    said = result.runs[0].diagnosis
    if result.exit_code or said is None:
        raise AssertionError(f"loopscope check would exit with {result.exit_code}:\n{as_text(result)}")
    return said


@pytest.fixture
def loop_probe(tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Callable[..., Probe]]:
    """Return ``attach`` with a file of the test's own; closes the probes and reports their numbers as properties."""
    from .gate.check import check_runs
    from .probes.probe import attach

    probes: list[Probe] = []

    def make(model: Any, path: Path | None = None, **options: Any) -> Probe:
        probe = attach(model, path or tmp_path / f"loop-{len(probes)}.h5", **options)
        probes.append(probe)
        return probe

    yield make
    for number, probe in enumerate(probes):
        probe.close()
        said = check_runs([probe.path]).runs[0].diagnosis
        if said is not None:
            mark = f"loopscope.{number}" if len(probes) > 1 else "loopscope"
            record_property(f"{mark}.verdict", said.verdict)
            record_property(f"{mark}.a_bar_radius", said.radius)
            record_property(f"{mark}.steps", said.steps)
