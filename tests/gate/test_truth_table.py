"""Every way of being blind, in every format, while the run is live and afterwards: none of them is a pass."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from loopscope.commands.check import check
from loopscope.gate.formats import FORMATS
from loopscope.gate.watch import Watch
from loopscope.rules.rule_files import load_rules
from loopscope.runfile.layout import Event
from loopscope.runfile.rank_names import rank_path
from loopscope.runfile.writer import RunWriter

STEPS = 60
INFO = {"a_bar_learned": True}


def row(step: int, **values: float) -> dict[str, float]:
    """A row of a healthy run."""
    healthy = {"loss": 2 + 0.01 * np.sin(step), "lr": 1e-3, "grad_norm": 1.0, "depth": 8.0, "a_bar_radius": 0.8}
    return {"step": float(step), "time": 1e9 + step, "nonfinite": 0.0} | healthy | values


def healthy(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step))


def evaluation_mode(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, depth=np.nan, a_bar_radius=np.nan))


def evaluation_mode_from_half_way(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, depth=8.0 if step < 30 else np.nan))


def loops_now_and_then(writer: RunWriter) -> None:
    for step in range(200):
        writer.append_step(row(step, depth=8.0 if step % 30 == 29 else np.nan))


def probe_died(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, depth=8.0 if step < 30 else np.nan))
        if step == 30:
            writer.append_event(Event(30, 0.0, "probe_lost", "error", message="RuntimeError: shapes differ"))


def most_rows_dropped(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(10 * step, rows_dropped=9.0 * step))


def radius_lost_half_way(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, a_bar_radius=0.8 if step < 30 else np.nan))


def radius_never_there(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, a_bar_radius=np.nan))


def loss_never_given(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, loss=np.nan))


def loss_not_given_any_more(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, loss=2.0 + 0.01 * np.sin(step) if step < 30 else np.nan))


def nothing_but_nan(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, loss=np.nan, nonfinite=1.0, depth=np.nan, a_bar_radius=np.nan))


def neither_loss_nor_loops(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step({"step": float(step), "lr": 1e-3})


def empty(writer: RunWriter) -> None:
    pass


def one_step(writer: RunWriter) -> None:
    writer.append_step(row(0))


def too_short(writer: RunWriter) -> None:
    for step in range(12):
        writer.append_step(row(step))


def fixed_batch_failed(writer: RunWriter) -> None:
    healthy(writer)
    writer.append_event(Event(0, 0.0, "fixed_batch", "warning", message="the call of training was not seen"))


def unstable_at_the_end(writer: RunWriter) -> None:
    for step in range(STEPS):
        writer.append_step(row(step, a_bar_radius=0.8 if step < STEPS - 2 else 3.0))


def loop_never_found(writer: RunWriter) -> None:
    writer.append_event(Event(0, 0.0, "loop_awaited", "note", message="no loop is recorded yet"))
    for step in range(STEPS):
        writer.append_step(row(step, depth=np.nan, a_bar_radius=np.nan))


def states_never_readable(writer: RunWriter) -> None:
    writer.append_event(Event(0, 0.0, "state_missing", "warning", message="the state of a loop could not be read"))
    loops = np.full((5, 4), np.nan, dtype=np.float32)
    loops[:, 3] = 0
    for step in range(STEPS):
        writer.append_step(row(step, a_bar_radius=np.nan, depth=0.0), loops)


def a_bar_acts_otherwise_from_the_first_comparison_on(writer: RunWriter) -> None:
    writer.append_event(Event(10, 0.0, "a_bar_differs", "warning", message="'mix' does not act like the recorded A̅"))
    for step in range(STEPS):
        writer.append_step(row(step, a_bar_radius=0.8 if step < 11 else np.nan))


def training_went_on_without_the_recorder(writer: RunWriter) -> None:
    """Resumed from a checkpoint that is far behind the end of the file."""
    for step in range(STEPS // 2):
        writer.append_step(row(step))
    writer.append_event(Event(1000, 0.0, "steps_missing", "warning", 970.0, message="steps 30 to 999 are not here"))
    for step in range(1000, 1000 + STEPS // 2):
        writer.append_step(row(step))


def resumed_without_the_file(writer: RunWriter) -> None:
    writer.append_event(Event(1000, 0.0, "steps_missing", "warning", 1000.0, message="steps 0 to 999 are not here"))
    for step in range(1000, 1000 + STEPS):
        writer.append_step(row(step))


BLIND: list[Callable[[RunWriter], None]] = [
    evaluation_mode,
    evaluation_mode_from_half_way,
    loops_now_and_then,
    probe_died,
    most_rows_dropped,
    radius_lost_half_way,
    radius_never_there,
    loss_never_given,
    loss_not_given_any_more,
    nothing_but_nan,
    neither_loss_nor_loops,
    empty,
    one_step,
    too_short,
    fixed_batch_failed,
    unstable_at_the_end,
    loop_never_found,
    states_never_readable,
    a_bar_acts_otherwise_from_the_first_comparison_on,
    training_went_on_without_the_recorder,
    resumed_without_the_file,
]
ONE_IS_RIGHT = {nothing_but_nan, unstable_at_the_end}  # a finding, not missing evidence

RULE_FILES = {
    "two brackets too many words": '[[rules]]\nid = "A"\nexpr = "loss > 1"\n',
    "one bracket": '[rule]\nid = "A"\nexpr = "loss > 1"\n',
    "misspelt series": '[[rule]]\nid = "A"\nexpr = "a_bar_radus >= 1"\n',
    "series of nobody": '[[rule]]\nid = "A"\nexpr = "temperature > 3"\n',
    "duplicate ids": '[[rule]]\nid = "A"\nexpr = "loss > 0"\n[[rule]]\nid = "A"\nexpr = "loss > 9"\n',
    "misspelt shipped id": '[[rule]]\nid = "LS02O"\nexpr = "loss > 1"\n',
    "switched off by a word": '[[rule]]\nid = "LS020"\nenabled = "no"\n',
    "built in": '[[rule]]\nid = "LS004"\nenabled = false\n',
    "true for a number": '[[rule]]\nid = "LS020"\nfor = true\n',
    "a misspelt field": '[[rule]]\nid = "LS020"\nseverty = "error"\n',
    "no TOML": "[[rule\n",
}


def written(path: Path, make: Callable[[RunWriter], None]) -> RunWriter:
    writer = RunWriter.create(path, info=INFO)
    make(writer)
    writer.flush()
    return writer


SERIOUS = {
    "junit": re.compile(r"<(failure|error)\b"),
    "sarif": re.compile(r'"level": "error",\s*"message"'),
    "gitlab": re.compile('"(critical|blocker)"'),
}


def codes(path: Path, capsys: pytest.CaptureFixture[str], **options: object) -> dict[str, int]:
    """The exit code in each format, where that format names the run's outcome too."""
    given = {"rules": None, "fail_on": "error", "min_steps": None, "debug": False} | options
    result = {}
    for output in FORMATS:
        result[output] = check([path], output=output, **given)  # type: ignore[arg-type]
        said = capsys.readouterr().out
        word = {0: "pass", 1: "fail"}.get(result[output], "error")
        serious = SERIOUS.get(output)
        if serious is None:
            assert word in said.lower()
        elif "fail_on" not in options:  # a format for machines: it holds something serious, or it does not
            assert bool(serious.search(said)) == (word != "pass")
        if output == "json":
            assert (json.loads(said)["verdict"], json.loads(said)["runs"][0]["outcome"]) == (word, word)
    return result


@pytest.mark.parametrize("blind", BLIND, ids=lambda make: make.__name__)
def test_no_blind_run_passes(blind, tmp_path, capsys):
    expected = dict.fromkeys(FORMATS, 1 if blind in ONE_IS_RIGHT else 5)
    writer = written(tmp_path / "run.h5", blind)
    assert codes(tmp_path / "run.h5", capsys) == expected, "live"
    writer.seal()
    writer.close()
    assert codes(tmp_path / "run.h5", capsys) == expected, "finished"
    writer = written(tmp_path / "killed.h5", blind)
    writer.close()
    assert codes(tmp_path / "killed.h5", capsys) == expected, "killed"


def watched(path: Path) -> int:
    """The exit code of somebody who watches a run until now."""
    watch = Watch([path], load_rules())
    watch.look()
    watch.close()
    return watch.result.exit_code


@pytest.mark.parametrize("blind", BLIND, ids=lambda make: make.__name__)
def test_no_blind_run_passes_in_the_eyes_of_watch(blind, tmp_path):
    expected = 1 if blind in ONE_IS_RIGHT else 5
    writer = written(tmp_path / "run.h5", blind)
    assert watched(tmp_path / "run.h5") == expected, "live"
    writer.seal()
    writer.close()
    assert watched(tmp_path / "run.h5") == expected, "finished"
    written(tmp_path / "killed.h5", blind).close()
    assert watched(tmp_path / "killed.h5") == expected, "killed"


def other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["commit"] = "9f3c1ab"


def cut(path: Path) -> None:
    writer = written(path, healthy)
    writer.seal()
    writer.close()
    os.truncate(path, path.stat().st_size // 2)


NO_RUN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder without runs": Path.mkdir,
    "empty": Path.touch,
    "text": lambda path: path.write_text("PASS"),
    "another program's HDF5": other_hdf5,
    "cut off": cut,
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere.h5"),
}


@pytest.mark.parametrize("make", NO_RUN.values(), ids=NO_RUN.keys())
def test_what_is_no_run_is_4_in_every_format_and_costs_no_other_its_verdict(make, tmp_path, capsys):
    make(tmp_path / "run.h5")
    assert set(codes(tmp_path / "run.h5", capsys).values()) == {4}
    writer = written(tmp_path / "good.h5", healthy)
    writer.seal()
    writer.close()
    both = [tmp_path / "good.h5", tmp_path / "run.h5"]
    assert check(both, rules=None, fail_on="error", output="json", min_steps=None, debug=False) == 4
    assert [run["outcome"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["pass", "error"]


def of_ranks(folder: Path, steps: dict[int, int], *, killed: tuple[int, ...] = ()) -> Path:
    """A run of two ranks of which these left a file, with so many steps."""
    for rank, count in steps.items():
        writer = RunWriter.create(rank_path(folder / "a.h5", rank), info=INFO | {"rank": rank, "world_size": 2})
        for step in range(count):
            writer.append_step(row(step))
        writer.flush()
        if rank not in killed:
            writer.seal()
        writer.close()
    return folder / "a.h5"


def test_a_rank_that_nobody_watched_is_said_and_one_that_died_is_no_pass(tmp_path, capsys):
    """A probe on rank 0 only is a way to attach; a rank whose process died is an interrupted run."""
    ways = {
        "both": ({0: STEPS, 1: STEPS}, (), 0, 0),
        "one": ({0: STEPS}, (), 0, 0),
        "one ended early": ({0: STEPS, 1: 20}, (), 0, 1),
        "one died": ({0: STEPS, 1: 20}, (1,), 5, 1),
        "both died": ({0: STEPS, 1: 20}, (0, 1), 5, 5),
    }
    for name, (steps, killed, expected, warned) in ways.items():
        (tmp_path / name).mkdir()
        path = of_ranks(tmp_path / name, steps, killed=killed)
        assert set(codes(path, capsys).values()) == {expected}, name
        assert set(codes(path, capsys, fail_on="warning").values()) == {warned}, name
        check([path], rules=None, fail_on="error", output="text", min_steps=None, debug=False)
        assert ("LS002" in capsys.readouterr().out) == (name != "both"), name


def test_a_healthy_run_passes_live_and_finished_and_not_when_it_was_broken_off(tmp_path, capsys):
    """Without this, the table would hold for a gate that refuses everything."""
    path = tmp_path / "run.h5"
    writer = written(path, healthy)
    assert set(codes(path, capsys).values()) == {0}
    assert set(codes(path, capsys, fail_on="warning").values()) == {1}, "a live run is warned of"
    writer.seal()
    writer.close()
    assert set(codes(path, capsys, fail_on="warning").values()) == {0}
    for said in ("", "KeyboardInterrupt"):
        path = tmp_path / f"broken{said}.h5"
        writer = written(path, healthy)
        if said:
            writer.append_event(Event(STEPS, 0.0, "run_interrupted", "warning", message=said))
        writer.close()
        assert set(codes(path, capsys).values()) == {5}
        assert set(codes(path, capsys, min_steps=STEPS).values()) == {0}, "the user says that so many are enough"
        assert set(codes(path, capsys, min_steps=STEPS + 1).values()) == {5}
        check([path], rules=None, fail_on="error", output="text", min_steps=None, debug=False)
        assert "interrupted" in (shown := capsys.readouterr().out) and said in shown


def loop_of(residual: list[float], tokens: list[int] | None = None) -> np.typing.NDArray[np.float32]:
    """The loops of one step: norms of 4, these steps, these tokens."""
    loops = np.full((len(residual) + 1, 4), np.nan, dtype=np.float32)
    loops[:, 0], loops[:-1, 1], loops[1:-1, 2] = 4, residual, 0.5
    loops[:, 3] = 64 if tokens is None else [*tokens, 64]
    return loops


NOBODY_LOOKED: dict[str, np.typing.NDArray[np.float32] | None] = {
    "only that it ran": None,
    "two variables in one row": loop_of([1.0, 0.2, 1.1, 0.3, 0.9, 0.25, 1.05, 0.2]),
    "sequences that stop": loop_of([1.0, 0.5, 0.25, 0.3, 0.4, 0.2, 0.1, 0.2], [64, 64, 48, 48, 32, 32, 16, 16]),
    "two loops": loop_of([1.0, 0.9]),
}


@pytest.mark.parametrize("loops", NOBODY_LOOKED.values(), ids=NOBODY_LOOKED.keys())
def test_a_loop_that_no_rule_looked_at_is_no_pass_however_few_steps_are_enough(loops, tmp_path, capsys):
    """Depth and loss alone say nothing about the loop: neither A̅, nor a fixed batch, nor a law of its steps."""
    path = tmp_path / "run.h5"
    writer = RunWriter.create(path, info={"a_bar_learned": None})
    for step in range(STEPS):
        writer.append_step(row(step, a_bar_radius=np.nan, depth=8.0), loops)
    writer.flush()
    assert set(codes(path, capsys, min_steps=10).values()) == {5}, "live"
    writer.seal()
    writer.close()
    assert set(codes(path, capsys, min_steps=10).values()) == {5}, "finished"
    check([path], rules=None, fail_on="error", output="json", min_steps=None, debug=False)
    found = json.loads(capsys.readouterr().out)["runs"][0]["findings"]
    assert "loop-not-judged" in [each["name"] for each in found]


def test_a_loop_that_is_seen_in_any_way_is_judged(tmp_path, capsys):
    """By its steps, by a fixed batch, by a rule of the user's: each is enough without a known A̅."""
    settles = loop_of([0.6**k for k in range(10)])
    rules = tmp_path / "loopscope.toml"
    rules.write_text('[[rule]]\nid = "MINE"\nexpr = "last_state_norm > 100"\n')
    for name, loops, passes, given in (
        ("steps", settles, None, None),
        ("pass", None, settles, None),
        ("rule", NOBODY_LOOKED["two variables in one row"], None, rules),
    ):
        path = tmp_path / f"{name}.h5"
        writer = RunWriter.create(path, info={"a_bar_learned": None})
        for step in range(STEPS):
            writer.append_step(row(step, a_bar_radius=np.nan), loops)
            if passes is not None and step % 10 == 0:
                writer.append_probe(step, passes)
        writer.seal()
        writer.close()
        assert set(codes(path, capsys, rules=given).values()) == {0}, name


@pytest.mark.parametrize("text", RULE_FILES.values(), ids=RULE_FILES.keys())
def test_no_mistake_in_a_rule_file_makes_the_gate_weaker(text, tmp_path):
    from loopscope.rules.rule_files import RuleError

    path, rules = tmp_path / "run.h5", tmp_path / "loopscope.toml"
    rules.write_text(text)
    for make in (healthy, unstable_at_the_end):
        writer = written(path, make)
        with pytest.raises(RuleError, match=r"loopscope.toml:\d+:\d+: ") as refused:
            check([path], rules=rules, fail_on="error", output="text", min_steps=None, debug=False)
        assert "\n" not in str(refused.value)
        writer.close()
        path.unlink()


def test_a_rule_over_a_number_of_another_run_is_not_judged_here(tmp_path, capsys):
    for name, more in (("a", {"temperature": 1.0}), ("b", {})):
        writer = RunWriter.create(tmp_path / f"{name}.h5", info=INFO, scalars=tuple(more))
        for step in range(STEPS):
            writer.append_step(row(step, **more))
        writer.seal()
        writer.close()
    rules = tmp_path / "loopscope.toml"
    rules.write_text('[[rule]]\nid = "A"\nexpr = "temperature > 3"\n')
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    assert check(paths, rules=rules, fail_on="error", output="json", min_steps=None, debug=False) == 5
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert (first["exit_code"], second["exit_code"]) == (0, 5)
    assert "temperature was never recorded" in second["findings"][0]["message"]
    assert [j["state"] for j in first["judgements"] if j["rule"] == "A"] == ["judged"]


def test_every_rule_switched_off_is_no_verdict(tmp_path):
    writer = written(tmp_path / "run.h5", healthy)
    writer.seal()
    writer.close()
    rules = tmp_path / "loopscope.toml"
    rules.write_text("".join(f'[[rule]]\nid = "{rule.id}"\nenabled = false\n' for rule in load_rules()))
    options = {"rules": rules, "fail_on": "error", "output": "text", "min_steps": None, "debug": False}
    assert check([tmp_path / "run.h5"], **options) == 5
