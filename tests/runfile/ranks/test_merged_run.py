"""Files of several ranks as one run: every number against a direct computation, and the events about missing ranks."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from loopscope.dashboard.opened import OpenRun
from loopscope.gate.check import check_runs
from loopscope.gate.text import as_text
from loopscope.probes.recorder import Record, Recorder
from loopscope.rules.diagnosis import diagnose
from loopscope.runfile.export import columns
from loopscope.runfile.file_source import FileSource
from loopscope.runfile.layout import STEP_COLUMNS, Event
from loopscope.runfile.open import open_run
from loopscope.runfile.rank_names import rank_path
from loopscope.runfile.ranks.companions import separate_runs
from loopscope.runfile.ranks.merge import REDUCTIONS
from loopscope.runfile.ranks.merged_run import MergedRun
from loopscope.runfile.ranks.merged_source import MergedSource
from loopscope.runfile.reader import Run
from loopscope.runfile.source import Recording, Source
from loopscope.runfile.writer import RunWriter

NAN = np.nan


@pytest.fixture
def create(tmp_path):
    """Creates the file of a rank of ``a.h5`` as `attach` would; what is left open is closed at the end."""
    made, together = [], time.time()

    def make(rank, world_size=2, started=together, **options):
        info = {"rank": rank, "world_size": world_size, "started": started}
        made.append(RunWriter.create(rank_path(tmp_path / "a.h5", rank), info=info, eigenvalues=3, **options))
        return made[-1]

    yield make
    for writer in made:
        writer.close()


def steps(writer, numbers, rank=0, **values):
    for step in numbers:
        writer.append_step({"step": step, "loss": 1.0 + rank + step, "depth": 1, **values}, rows(1, 10.0))


def rows(depth, tokens, seed=0):
    """Loop rows as the probe writes them, all tokens at every loop."""
    loop_rows = np.random.default_rng(seed).uniform(0.5, 2.0, (depth + 1, 4)).astype(np.float32)
    loop_rows[-1, 1:3] = loop_rows[0, 2] = NAN
    loop_rows[:, 3] = tokens
    return loop_rows


def kinds(run):
    return [(event.kind, event.severity) for event in run.events]


def test_every_column_has_a_rule():
    assert set(REDUCTIONS) == set(STEP_COLUMNS) - {"step"}


def test_step_columns_by_hand(create, tmp_path):
    spectral = ("grad_norm", "a_bar_radius", "a_bar_norm", "b_bar_norm", "c_out_norm", "jacobian_radius",
                "jacobian_norm", "lyapunov_max", "lyapunov_error", "a_bar_radius_error")  # fmt: skip
    given = [
        {"loss": 2.0, "lr": 0.1, "tokens": 80, "depth": 4.0, "depth_min": 3, "depth_max": 5, "nonfinite": 1},
        {"loss": 5.0, "lr": 0.1, "tokens": 80, "depth": 6.0, "depth_min": 4, "depth_max": 8, "nonfinite": 2},
    ]
    given[0] |= {"probe_seconds": 0.2, "rows_dropped": 3, "time": 10.0, "input_norm": 1.0, "mine": 1.0, "c_out_gain": 1}
    given[1] |= {"probe_seconds": 0.1, "rows_dropped": 4, "time": 11.0, "input_norm": 3.0, "mine": 2.0, "c_out_gain": 2}
    for rank, writer in enumerate((create(0), create(1))):
        worse = dict.fromkeys(spectral, 0.5 + rank) | {"a_bar_radius": 0.9 - rank / 2}
        writer.append_step({"step": 0, **given[rank], **worse}, rows(2, 10.0 if rank == 0 else 30.0))
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        expected = {"loss": 3.5, "lr": 0.1, "tokens": 80, "depth": 5.0, "depth_min": 3, "depth_max": 8, "nonfinite": 3}
        expected |= {"probe_seconds": 0.2, "rows_dropped": 7, "time": 11.0, "mine": 1.5, "c_out_gain": 1.5}
        expected |= dict.fromkeys(spectral, 1.5) | {"a_bar_radius": 0.9}
        expected["input_norm"] = (10 * 1.0 + 30 * 3.0) / 40
        assert {name: run[name].item() for name in expected} == expected
        assert list(columns(run, "steps"))[: len(STEP_COLUMNS) + 1] == [*STEP_COLUMNS, "mine"]
        assert run.history()["rank"].tolist() == [0, 1] and run.history()["loss"].tolist() == [2.0, 5.0]


def test_a_nan_or_infinity_of_one_rank_stays_visible_and_what_was_not_recorded_does_not_count(create, tmp_path):
    losses = [[1.0, 1.0, 1.0, NAN, -np.inf], [3.0, NAN, np.inf, NAN, np.inf]]
    for rank, writer in enumerate((create(0), create(1))):
        for step, loss in enumerate(losses[rank]):
            writer.append_step({"step": step, "loss": loss, **({"a_bar_radius": 0.5} if rank == 0 else {})})
        writer.append_step({"step": 5} if rank else {"step": 5, "loss": 7.0})
        writer.append_step({"step": 6 + rank, "loss": 8.0 + rank})
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        np.testing.assert_array_equal(run["loss"], [2.0, NAN, np.inf, NAN, NAN, 7.0, 8.0, 9.0])
        assert run["nonfinite"].tolist() == [0, 1, 1, 2, 2, 0, 0, 0]
        assert run["a_bar_radius"][0] == 0.5 and run["step"].tolist() == list(range(8))
        assert "LS001" in [finding.rule for finding in diagnose(run).findings]


def merged_by_hand(name, parts):
    """One step's loop number as one process would have it: sums over ranks, divided once."""
    column = ("state_norm", "residual_norm", "step_cosine").index(name)
    depth = max(len(part) for part in parts)
    total, count = np.zeros(depth), np.zeros(depth)
    for part in parts:
        for t in range(len(part)):
            reached = part[t, 3] if name == "state_norm" else part[t + 1, 3] if t + 1 < len(part) else 0.0
            if reached and not (name == "step_cosine" and np.isnan(part[t, 2])):
                total[t] += float(part[t, column]) * float(reached)
                count[t] += float(reached)
    return np.where(count > 0, total / np.maximum(count, 1), NAN)


@pytest.mark.parametrize("table", ["loops", "probe"])
def test_loops_are_means_over_the_tokens_of_all_ranks(create, tmp_path, table):
    depths = {0: [3, 2, 4, 3], 1: [3, 5, 1, None], 2: [2, 3, None, 6]}
    parts = {step: [] for step in range(4)}
    for rank, per_step in depths.items():
        writer = create(rank, world_size=3)
        for step, depth in enumerate(per_step):
            if depth is None:  # this rank does not have the step
                continue
            written = rows(depth, 8.0 * (rank + 1), seed=10 * step + rank)
            written[1:, 3] -= 1  # a sequence that stopped after its first state
            parts[step].append(written)
            writer.append_step({"step": step, "loss": 1.0}, written if table == "loops" else None)
            if table == "probe":
                writer.append_probe(step, written)
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        ask = run.loops if table == "loops" else run.probe
        for name in ("state_norm", "residual_norm", "step_cosine"):
            merged = ask(name)
            assert merged.shape == (4, 7)
            for step in range(4):
                expected = np.pad(merged_by_hand(name, parts[step]), (0, 7), constant_values=NAN)[:7]
                np.testing.assert_allclose(merged[step], expected, rtol=1e-14)  # sums of three in another order
        assert ask("tokens")[2].tolist()[:2] == [24.0, 22.0]
        if table == "loops":
            assert run.loops("state_norm", rows=slice(1, 3)).shape == (2, 6)
            np.testing.assert_array_equal(run.loops("state_norm", slice(3, 4)), run.loops("state_norm")[3:])
            last = [merged_by_hand("state_norm", parts[step])[-1] for step in range(4)]
            np.testing.assert_allclose(run["last_state_norm"], last, rtol=1e-14)
            before = [merged_by_hand("residual_norm", parts[step])[-2] for step in range(4)]
            np.testing.assert_allclose(run["last_residual_norm"], before, rtol=1e-14)
            for name in ("state_norm", "tokens"):
                first, fifth, late = run.at_loops(name, [0, 5, -2])
                np.testing.assert_array_equal(np.stack([first, fifth], axis=1), run.loops(name)[:, [0, 5]])
                np.testing.assert_array_equal(late, run.source.last(name, 1))
        else:
            assert run.probe_steps.tolist() == [0, 1, 2, 3] and run["residual_ratio"].shape == (4,)


def test_a_state_that_is_nan_on_one_rank_is_nan(create, tmp_path):
    broken = rows(2, 10.0)
    broken[1:, 0] = broken[1, 1] = NAN
    for writer, written in ((create(0), rows(2, 10.0)), (create(1), broken)):
        writer.append_step({"step": 0, "loss": 1.0}, written)
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        assert np.isfinite(run.loops("state_norm")).tolist() == [[True, False, False]]
        assert np.isfinite(run.loops("residual_norm")).tolist() == [[True, False, False]]


def test_a_cosine_that_is_undefined_on_one_rank_is_that_of_the_others(create, tmp_path):
    still, moving = rows(3, 10.0, seed=1), rows(3, 10.0, seed=2)
    still[1, 2] = NAN  # a step of length zero has no direction
    for writer, written in ((create(0), still), (create(1), moving)):
        writer.append_step({"step": 0, "loss": 1.0}, written)
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        expected = [NAN, moving[1, 2], (float(still[2, 2]) + float(moving[2, 2])) / 2, NAN]
        np.testing.assert_allclose(run.loops("step_cosine")[0], expected, rtol=1e-14)


def test_eigenvalues_are_those_of_the_largest_radius(create, tmp_path):
    for writer, spectra in ((create(0), {0: 0.5, 2: 0.9}), (create(1), {0: 0.7, 1: 0.2, 2: 0.9j})):
        steps(writer, range(3))
        for step, first in spectra.items():
            writer.append_spectrum(step, [first, 0.1])
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        at, values = run.spectra()
        assert at.tolist() == [0, 1, 2] and values[:, 0].tolist() == [0.7, 0.2, 0.9]


def test_events_of_all_ranks_are_one_and_say_whose_they_are(create, tmp_path):
    writers = [create(rank, world_size=3) for rank in range(3)]
    for rank, writer in enumerate(writers):
        steps(writer, range(3))
        writer.append_event(Event(2, 10.0 + rank, "loss_spike", "warning", 7.0 + rank % 2, 6.0, f"loss of {rank}"))
        if rank:
            writer.append_event(Event(1, 5.0, "non_finite", "error", NAN, NAN, "not finite: loss"))
        if rank == 2:
            writer.append_event(Event(2, 5.0, "loss_spike", "warning", 9.0, 6.0, "again"))
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        assert [(e.step, e.kind, e.time, e.message) for e in run.events] == [
            (1, "non_finite", 5.0, "not finite: loss (ranks 1, 2)"),
            (2, "loss_spike", 10.0, "loss of 1 (all 3 ranks)"),
            (2, "loss_spike", 5.0, "again (rank 2)"),
        ]
        assert run.events[1].value == 8.0


def test_arrays_are_those_of_rank_0(create, tmp_path):
    for rank, writer in enumerate((create(0), create(1))):
        steps(writer, range(2))
        writer.append_array(1, f"map{rank}", np.full((2, 3), rank))
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        assert run.array_names == ("map0",) and run.arrays("map0")[1][0].tolist() == [[0] * 3] * 2
        assert [array.name for array in run.array_history("map")] == ["map0"]
        assert run.ranks[1].array_names == ("map1",)


def test_a_live_run_is_followed_and_ranks_are_taken_in_as_they_appear(create, tmp_path):
    first = create(0)
    steps(first, range(3))
    first.flush()
    held = OpenRun(tmp_path / "a.h5")
    run = held.run
    assert len(run) == 3 and run.state == "live" and kinds(run) == [("rank_missing", "note")]
    second = create(1)
    steps(second, range(2), rank=1)
    second.flush()
    before = held.version
    held.refresh()
    assert held.version != before and list(run.ranks) == [0, 1] and not run.events
    assert run["loss"].tolist() == [1.5, 2.5, 3.0]
    steps(second, range(2, 5), rank=1)
    second.flush()
    assert run.refresh() and not run.refresh()
    assert (
        run["loss"].tolist() == [1.5, 2.5, 3.5, 5.0, 6.0]
        and run.loops("tokens")[:, 0].tolist() == [20.0] * 3 + [10.0] * 2
    )
    steps(first, range(3, 5))
    first.seal()
    assert run.refresh() and run.state == "live" and run["loss"].tolist() == [1.5, 2.5, 3.5, 4.5, 5.5]
    second.seal()
    before = held.version
    held.refresh()
    assert run.state == "finished" and held.version != before and not run.events
    held.close()


@pytest.mark.parametrize("late", [0, 1])
def test_a_live_rank_that_has_committed_nothing_since_the_other_began_is_of_the_run(create, tmp_path, late):
    create(1 - late)
    writer = create(late, started=time.time() + 60)  # a minute later, or a clock that is ahead
    steps(writer, range(2))
    writer.flush()
    with open_run(tmp_path / "a.h5") as run:
        assert list(run.ranks) == [0, 1] and not run.events and len(run) == 2


def test_rows_of_a_rank_whose_clock_is_behind_are_noticed(create, tmp_path, monkeypatch):
    first, second = create(0), create(1)
    steps(first, range(3))
    steps(second, range(1), rank=1)
    assert second.flush() and first.flush()
    held = OpenRun(tmp_path / "a.h5")
    before, behind = held.version, time.time_ns() - 30 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: behind)
    steps(second, range(1, 3), rank=1)
    assert second.flush()
    held.refresh()
    assert held.version != before and held.tracks.track("loss").values.tolist() == [1.5, 2.5, 3.5]
    held.close()


def test_a_run_that_is_replaced_by_one_of_several_ranks_is_seen_as_that(create, tmp_path):
    writer = create(0, world_size=1)
    steps(writer, range(3))
    writer.seal()
    held = OpenRun(writer.path)
    assert type(held.run) is Run
    for rank in range(2):
        writer = create(rank, overwrite=rank == 0)
        steps(writer, range(2), rank=rank)
        writer.seal()
    held.refresh()
    assert list(held.run.ranks) == [0, 1] and held.tracks.track("loss").values.tolist() == [1.5, 2.5]
    held.close()


KILLED = """
import os, sys, time
from pathlib import Path
from loopscope.runfile.source import Recording, Source
from loopscope.runfile.writer import RunWriter
writer = RunWriter.create(Path(sys.argv[1]), info={"rank": 1, "world_size": 2, "started": time.time()})
for step in range(4):
    writer.append_step({"step": step, "loss": 9.0})
assert writer.flush()
os.kill(os.getpid(), 9)
"""


def test_a_rank_that_was_killed_early_is_said_and_its_steps_count(create, tmp_path):
    first = create(0)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.rank1.h5"], check=False)
    assert done.returncode == -9
    steps(first, range(10))
    first.flush()
    with open_run(tmp_path / "a.h5") as run:
        assert run["loss"].tolist() == [5.0, 5.5, 6.0, 6.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
        assert kinds(run) == [("rank_ended", "warning")] and run.state == "live"
        said = "rank 1 stopped at step 3, the run went on to step 9: later numbers are without it"
        assert run.events[0].message == said and said.capitalize() in diagnose(run).summary
        first.close()
        assert run.refresh() and kinds(run) == [("rank_ended", "note")]  # killed together, for all one can tell


def test_ranks_without_a_file(create, tmp_path):
    for rank in (0, 2):
        writer = create(rank, world_size=5)
        steps(writer, range(3))
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        assert list(run.ranks) == [0, 2] and kinds(run) == [("rank_missing", "warning")]
        (finding,) = [finding for finding in diagnose(run).findings if finding.rule == "LS002"]
        assert finding.message == "Ranks 1, 3, 4 of 5 left no file: the numbers are those of ranks 0, 2."
        assert finding.severity == "warning"
    assert check_runs([tmp_path / "a.h5"], fail_on="warning").exit_code == 1


def test_a_probe_on_the_first_rank_only_is_noted(create, tmp_path):
    writer = create(0, world_size=8)
    steps(writer, range(3))
    writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        (finding,) = [finding for finding in diagnose(run).findings if finding.rule == "LS002"]
    assert finding.severity == "note" and "ranks 1 to 7 of 8 left no file" in finding.message.lower()


def test_a_damaged_rank_is_an_error_and_the_others_are_shown(create, tmp_path):
    for rank in range(2):
        writer = create(rank)
        steps(writer, range(200), rank=rank)
        writer.seal()
    path = tmp_path / "a.rank1.h5"
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    with open_run(tmp_path / "a.h5") as run:
        assert kinds(run) == [("rank_unreadable", "error")] and run["loss"][0] == 1.0
        result = check_runs([tmp_path / "a.h5", path])
        assert result.exit_code == 1 and len(result.runs) == 1 and "loopscope repair" in as_text(result)
        path.write_bytes(whole)
        assert run.refresh() and not run.events and run["loss"][0] == 1.5


@pytest.mark.parametrize(
    ("rank", "world_size", "started", "says"),
    [
        (1, 2, -1000.0, "it ended before this run began"),
        (1, 2, 1000.0, "it began after this run ended"),
        (1, 4, 0.0, "it is one of 4 ranks, and this run has 2"),
        (2, 4, 0.0, "it is one of 4 ranks, and this run has 2"),
        (1, None, -1000.0, "it ended before this run began"),
    ],
)
def test_a_file_left_over_from_another_run_is_not_merged(
    create, tmp_path, monkeypatch, rank, world_size, started, says
):
    began = time.time()

    def write(rank, world_size, moment, loss):
        monkeypatch.setattr(time, "time_ns", lambda: int((moment + 1) * 1e9))  # when rows are committed
        writer = create(rank, world_size=world_size, started=moment)
        writer.append_step({"step": 0, "loss": loss})
        writer.seal()

    write(0, 2, began, 1.0)
    if rank == 2:
        write(1, 2, began, 1.0)
    write(rank, world_size, began + started, 99.0)
    monkeypatch.undo()
    with open_run(tmp_path / "a.h5") as run:
        assert run["loss"].tolist() == [1.0] and rank not in run.ranks
        assert kinds(run) == [("rank_foreign", "warning")] and says in run.events[0].message
        remedy = "delete the file" if rank == 2 else "this run lacks its rank 1"
        assert run.events[0].message.endswith(remedy) and says in diagnose(run).summary


@pytest.mark.parametrize("world_size", [None, 1])
@pytest.mark.parametrize("rank", [1, 8])
def test_a_run_that_is_only_named_like_a_rank_is_a_run_of_its_own(create, tmp_path, monkeypatch, rank, world_size):
    for number, moment in ((0, 1000.0), (rank, 2000.0)):  # of a sweep over LoRA ranks: one after the other
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: int((moment + 1) * 1e9))
        writer = create(number, world_size=world_size, started=moment)
        writer.append_step({"step": 0, "loss": 1.0 + number})
        writer.seal()
    monkeypatch.undo()
    with open_run(tmp_path / "a.h5") as run:
        assert run["loss"].tolist() == [1.0] and not run.events
    with open_run(tmp_path / f"a.rank{rank}.h5") as run:
        assert run["loss"].tolist() == [1.0 + rank] and run.ranks[rank if world_size is None else 0] is run
    both = [tmp_path / "a.h5", tmp_path / f"a.rank{rank}.h5"]
    assert separate_runs(both) == both and len(check_runs(both).runs) == 2


def test_ranks_of_a_run_are_parts_of_it(create, tmp_path):
    for rank in range(2):
        writer = create(rank, world_size=2, started=1.0)
        steps(writer, range(3))
        writer.seal()
    both = [tmp_path / "a.h5", tmp_path / "a.rank1.h5"]
    assert separate_runs(both) == both[:1] and separate_runs(both[1:]) == both[1:]


def test_many_ranks_in_a_description_cost_nothing(create, tmp_path):
    for size in (2**16, 2**20, [2, 3], "many", float("nan"), {}):
        writer = create(0, world_size=size)
        steps(writer, range(2))
        writer.close()
        began = time.process_time()
        with open_run(writer.path) as run:
            assert len(run.events) == (1 if size == 2**16 else 0) and len(run) == 2
        assert time.process_time() - began < 2.0  # a look at the disk for each took 15 s
        writer.path.unlink()


def test_a_copy_of_rank_0_is_not_its_rank_1(create, tmp_path):
    writer = create(0)
    steps(writer, range(3))
    writer.seal()
    (tmp_path / "a.rank1.h5").write_bytes(writer.path.read_bytes())
    with open_run(writer.path) as run:
        assert list(run.ranks) == [0] and "it holds rank 0" in run.events[0].message


def test_files_without_a_recorded_world_size_are_merged_when_they_were_written_together(create, tmp_path):
    for rank in range(2):
        writer = create(rank, world_size=None)
        steps(writer, range(2), rank=rank)
        writer.seal()
    with open_run(tmp_path / "a.h5") as run:
        assert run["loss"].tolist() == [1.5, 2.5] and not run.events


def test_a_run_without_further_ranks_is_a_plain_run(create, tmp_path):
    steps(create(0, world_size=1), range(2))
    with open_run(tmp_path / "a.h5") as run:
        assert type(run) is Run and run.ranks == {0: run}


def resume(path, world_size, first_step, losses):
    """What a resumed rank does, through the recorder: it goes on in its file and notes on how many ranks."""
    info = {"rank": 0 if path.name == "a.h5" else 1, "world_size": world_size, "started": time.time()}
    recorder = Recorder(path, info=info, scalars=(), resume=True, overwrite=False)
    for step, loss in enumerate(losses, first_step):
        recorder.put(Record(step, time.time(), {"loss": loss}))
    recorder.close()


def test_a_run_resumed_on_fewer_ranks_leaves_the_branch_behind_that_they_alone_recorded(create, tmp_path):
    for rank in range(3):
        writer = create(rank, world_size=3)
        steps(writer, range(10), rank=rank)
        if rank == 2:
            writer.append_probe(9, rows(2, 8.0))
        writer.append_event(Event(9, time.time(), "loss_spike", "warning", 7.0))
        writer.close()
    time.sleep(0.05)  # rows before and after are told apart by their times
    for rank in range(2):
        resume(rank_path(tmp_path / "a.h5", rank), 2, 6, [20.0 + rank] * 6)
    with open_run(tmp_path / "a.h5") as run:
        assert list(run.ranks) == [0, 1, 2] and run.generation == 1
        assert run["loss"].tolist() == [2.0 + step for step in range(6)] + [20.5] * 6
        assert kinds(run) == [("world_size", "note")] and "resumed on 2 ranks (ranks 0, 1)" in run.events[0].message
        assert len(run.probe_steps) == 0


def test_a_run_resumed_without_a_process_group_goes_on_alone(create, tmp_path):
    for rank in range(2):
        writer = create(rank)
        steps(writer, range(4), rank=rank)
        writer.close()
    resume(tmp_path / "a.h5", None, 4, [7.0])
    with open_run(tmp_path / "a.h5") as run:
        assert run["loss"].tolist() == [1.5, 2.5, 3.5, 4.5, 7.0]
        assert [event.message for event in run.events] == ["resumed on 1 rank (rank 0)"]


def test_a_run_resumed_on_more_ranks_takes_the_new_ones_in(create, tmp_path):
    first = create(0, world_size=1)
    steps(first, range(4))
    first.close()
    resume(first.path, 2, 4, [3.0, 3.0])
    second = create(1, world_size=2)
    steps(second, range(4, 6), rank=1)
    second.seal()
    with open_run(first.path) as run:
        assert isinstance(run, MergedRun) and list(run.ranks) == [0, 1]
        assert run["loss"].tolist() == [1.0, 2.0, 3.0, 4.0, 4.5, 5.0]
        assert "resumed on 2 ranks" in run.events[0].message and len(run.events) == 1


def test_resuming_rank_0_reads_its_own_file(create, tmp_path):
    for rank, count in enumerate((3, 8)):
        writer = create(rank)
        steps(writer, range(count))
        writer.close()
    recorder = Recorder(tmp_path / "a.h5", info={}, scalars=(), resume=True, overwrite=False)
    assert recorder.next_step == 3
    recorder.close()


@pytest.mark.parametrize("kind", [FileSource, MergedSource])
def test_every_kind_of_source_answers_every_question(kind: type) -> None:
    questions = {name for asked in (Recording, Source) for name in vars(asked) if not name.startswith("_")}
    assert questions - set(vars(kind)) == {"path", "info"} - set(vars(kind))  # attributes of every instance
    assert {"events", "loops", "spectra", "array_table"} <= questions
