"""Following runs: each change is reported one time, the end gives the code of check, a lost file is reported."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loopscope.gate.watch import Watch, alerts
from loopscope.rules.rule_files import load_rules
from loopscope.runfile.writer import RunWriter


def rows(writer: RunWriter, first: int, count: int, loops: np.ndarray, **values: float) -> None:
    for step in range(first, first + count):
        row = {"step": float(step), "time": time.time(), "nonfinite": 0.0, "loss": 3.0 - step / 500, "depth": 16.0}
        writer.append_step(row | values, loops)
        if step % 10 == 9:
            writer.append_probe(step, loops)
    writer.flush()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def test_a_run_is_followed_and_what_is_new_is_told_once(tmp_path: Path, loop_rows: Callable[..., np.ndarray]) -> None:
    clock = Clock()
    writer = RunWriter.create(tmp_path / "a.h5", info={"a_bar_learned": True})
    watch = Watch([tmp_path], load_rules(), interval=1.0, clock=clock)
    rows(writer, 0, 40, loop_rows(0.5), a_bar_radius=0.9)
    ((path, first),) = watch.look()
    assert (path.name, first.state, first.steps, first.news) == ("a.h5", "live", 40, ())
    assert watch.look() == []  # not due
    rows(writer, 40, 60, loop_rows(1.3), a_bar_radius=1.3)
    clock.now += 100
    ((_, second),) = watch.look()
    assert {each.rule for each in second.news} >= {"LS020"} and second.steps == 100
    assert any(alert.rule == "LS020" and alert.severity == "error" for alert in alerts(path, second))
    clock.now += 100
    assert watch.look() == [] and not watch.is_over
    writer.seal()
    writer.close()
    clock.now += 100
    ((_, last),) = watch.look()
    assert last.state == "finished" and watch.is_over and watch.result.exit_code == 1
    assert not {each.rule for each in last.news} & {"LS020"}
    (tmp_path / "a.h5").unlink()
    (tmp_path / "b.h5").write_bytes(b"no run")
    clock.now += 100
    looks = {path.name: look for path, look in watch.look()}
    assert looks["b.h5"].state == "unreadable" and watch.result.exit_code == 4
    watch.close()


@pytest.mark.parametrize(("radius", "ratio", "code"), [(0.9, 0.5, 0), (1.3, 1.3, 1)])
def test_the_command_follows_to_the_end_and_exits_as_check_does(
    radius: float, ratio: float, code: int, tmp_path: Path, loop_rows: Callable[..., np.ndarray]
) -> None:
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={"a_bar_learned": True})
    rows(writer, 0, 30, loop_rows(ratio), a_bar_radius=radius)
    command = [sys.executable, "-m", "loopscope", "watch", str(tmp_path), "--until-finished", "--interval", "0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert "live  30 steps" in first
    timer = threading.Timer(60, process.kill)
    timer.start()
    rows(writer, 30, 30, loop_rows(ratio), a_bar_radius=radius)
    writer.seal()
    writer.close()
    out, error = process.communicate()
    timer.cancel()
    check = subprocess.run([*command[:3], "check", str(path)], capture_output=True, text=True)
    assert process.returncode == check.returncode == code, (out, error, check.stdout)
    assert "finished  60 steps" in out and error == ""


@pytest.mark.parametrize(
    ("where", "error"), [("diagnose", IndexError), ("open_run", MemoryError), ("sparkline", KeyError)]
)
def test_a_defect_of_ours_costs_one_run_its_verdict_and_the_others_are_watched(
    where: str,
    error: type[Exception],
    tmp_path: Path,
    loop_rows: Callable[..., np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loopscope.gate import watch as watching

    for name, radius in (("a", 0.9), ("b", 1.3)):
        with RunWriter.create(tmp_path / f"{name}.h5", info={"a_bar_learned": True}) as writer:
            rows(writer, 0, 60, loop_rows(0.5 if name == "a" else 1.3), a_bar_radius=radius)
    right, calls = getattr(watching, where), [0]

    def first_fails(*given: object) -> object:
        calls[0] += 1
        if calls[0] == 1:
            raise error("a defect")
        return right(*given)

    monkeypatch.setattr(watching, where, first_fails)
    watch = Watch([tmp_path], load_rules())
    (_, broken), (_, good) = watch.look()
    assert broken.check.internal and f"internal error: {error.__name__}" in broken.check.error
    assert {each.rule for each in good.news} >= {"LS020"} and watch.result.exit_code == 3
    watch.close()
