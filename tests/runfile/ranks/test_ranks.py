"""Names of rank files, and two real processes that attach with one path, and may part."""

from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.runfile.rank_names import rank_files, rank_of, rank_path, run_path, whole_runs
from loopscope.runfile.reader import Run
from torch.distributed.fsdp import FSDPModule

WORKER = Path(__file__).with_name("rank_worker.py")
APART_WORKER = Path(__file__).with_name("apart_worker.py")


@pytest.mark.parametrize("name", ["a.h5", "a.b.h5", "a", "a.rank.h5", "rank1.h5", "a.rank0.h5", "a.rank01.h5"])
@pytest.mark.parametrize("rank", [1, 2, 15])
def test_a_name_says_run_and_rank(tmp_path, name, rank):
    run = tmp_path / name
    beside = rank_path(run, rank)
    assert beside != run and beside.parent == run.parent and beside.suffix == (run.suffix or f".rank{rank}")
    assert (rank_of(run), run_path(run), rank_path(run, 0)) == (0, run, run)
    assert (rank_of(beside), run_path(beside)) == (rank, run)
    assert rank_path(beside, rank) == beside


def test_files_are_found_as_far_as_expected_and_on_to_the_first_gap(tmp_path):
    for name in ("a.h5", "a.rank2.h5", "a.rank3.h5", "a.rank5.h5", "b.rank1.h5"):
        (tmp_path / name).touch()
    assert rank_files(tmp_path / "a.h5") == {}
    assert list(rank_files(tmp_path / "a.h5", 2)) == [2, 3]
    assert list(rank_files(tmp_path / "a.h5", 6)) == [2, 3, 5]


def test_rank_files_given_with_their_run_are_no_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [Path("b.rank1.h5"), Path("a.rank1.h5"), tmp_path / "a.h5", Path("a.rank2.h5"), Path("x/a.rank1.h5")]
    assert whole_runs(given) == [Path("b.rank1.h5"), tmp_path / "a.h5", Path("x/a.rank1.h5")]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, torchrun):
    out = tmp_path_factory.mktemp("ranks")
    torchrun(WORKER, out)
    return out


@pytest.mark.slow
def test_two_processes_with_one_path_are_one_run(two_processes):
    """Also resumed from an older checkpoint: each rank goes on in its own file."""
    losses = [torch.load(two_processes / f"told-{rank}.pt") for rank in (0, 1)]
    with loopscope.open_run(two_processes / "a.h5") as run:
        one, other = run.ranks[0], run.ranks[1]
        assert [one.info["rank"], other.info["rank"], one.info["world_size"], other.info["world_size"]] == [0, 1, 2, 2]
        assert run.state == "finished" and run.generation == 1 and not run.events
        assert run["step"].tolist() == list(range(8))
        np.testing.assert_array_equal(run["loss"], (np.array(losses[0]) + np.array(losses[1])) / 2)
        assert run["depth_min"].tolist() == [2, 3] * 4 and run["depth_max"].tolist() == [3, 4] * 4
        # 2 and 3 sequences of 16 tokens, and one rank runs one loop more than the other.
        assert run.loops("tokens")[0, :4].tolist() == [80, 80, 80, 48]
        state = (32 * one.loops("state_norm")[:, :3] + 48 * other.loops("state_norm")[:, :3]) / 80
        np.testing.assert_allclose(run.loops("state_norm")[:, :3], state, rtol=1e-14)
        np.testing.assert_allclose(one["a_bar_radius"], other["a_bar_radius"], rtol=1e-12)  # DDP keeps replicas equal
        assert loopscope.diagnose(run).verdict == "stable"


@pytest.mark.slow
def test_only_the_first_rank_feeds_mirrors_and_another_ranks_file_is_that_rank_alone(two_processes):
    assert [path.name for path in two_processes.glob("mirror-*")] == ["mirror-0"]
    with loopscope.open_run(two_processes / "a.rank1.h5") as run:
        assert type(run) is Run and list(run.ranks) == [1]
        assert run["loss"].tolist() == torch.load(two_processes / "told-1.pt")


@pytest.mark.slow
@pytest.mark.parametrize("attach_first", [True, False])
def test_sharded_parameters_are_read_whole(two_processes, attach_first):
    with loopscope.open_run(two_processes / f"sharded-{attach_first}.h5") as run:
        assert not run.events and len(run) == 4
        for rank, alone in run.ranks.items():
            told = torch.load(two_processes / f"sharded-{attach_first}-{rank}.pt")
            # Sums over 32 tokens in float32 against float64.
            np.testing.assert_allclose(alone.loops("state_norm")[:, :3], told["norms"], rtol=2e-6)
            # Of the first step it is not yet known whether every rank carries a probe, which gathering takes.
            np.testing.assert_allclose(alone["a_bar_radius"][1:], told["radii"][1:], rtol=1e-5)
            assert alone["nonfinite"].sum() == 0


@pytest.mark.slow
def test_a_probe_on_one_rank_of_a_sharded_training_gathers_nothing(two_processes):
    with loopscope.open_run(two_processes / "one.h5") as run:
        assert run["step"].tolist() == list(range(12)) and (run["depth"] == 3).all()
        assert np.isfinite(run["loss"]).all() and np.isnan(run["grad_norm"]).all()
        # In the first forward FSDP itself has gathered A̅.
        assert np.isnan(run["a_bar_radius"][1:]).all() and not len(run.probe_steps)
        assert "Rank 1 of 2 left no file" in loopscope.diagnose(run).summary


@pytest.fixture(scope="module")
def apart(tmp_path_factory, torchrun):
    """Sharded trainings in which the probe of rank 1 goes its own way; each was compared with one without probes."""
    out = tmp_path_factory.mktemp("apart")
    torchrun(APART_WORKER, out)
    return out


def check_training(out, case):
    """Training has to have been the one without probes, on both ranks."""
    assert [torch.load(out / f"{case}-{rank}.pt") for rank in (0, 1)] == [True, True]


@pytest.mark.slow
def test_ranks_that_stay_together_measure_everything(apart):
    check_training(apart, "nothing")
    with loopscope.open_run(apart / "nothing.h5") as run:
        for alone in run.ranks.values():
            assert alone["step"].tolist() == list(range(12)) and alone.probe_steps.tolist() == [0, 10, 11]
            assert np.isfinite(alone["a_bar_radius"]).all() and np.isfinite(alone["grad_norm"]).all()
        np.testing.assert_array_equal(run.ranks[0]["grad_norm"], run.ranks[1]["grad_norm"])
        assert not run.events


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("fail_in_step", "rank 1 lost its probe in step 4: Failure"),
        ("fail_in_rows", "rank 1 lost its probe in step 4: Failure"),
        ("close", "rank 1 waited 1 s for others to run the fixed batch (step 3, forward 5)"),
        ("leave_by_exception", "rank 1 closed its probe after step 3"),
        ("stay_away", "rank 0 waited 1 s for others to read grad_norm (step 4, forward 6)"),
    ],
)
def test_a_probe_that_goes_leaves_the_training_and_the_other_rank_alone(apart, case, reason):
    """It goes before the step 4, of which rank 0 has read A̅ already; nothing sharded is read from then on."""
    check_training(apart, case)
    with loopscope.open_run(apart / f"{case}.h5") as run:
        stayed = run.ranks[0]
        assert stayed["step"].tolist() == list(range(12)) and (stayed["depth"] == 3).all()
        assert np.isfinite(stayed["loss"]).all() and stayed.probe_steps.tolist() == [0]
        assert np.isfinite(stayed["a_bar_radius"]).tolist() == [True] * 5 + [False] * 7
        (event,) = stayed.events
        assert (event.kind, event.severity) == ("ranks_apart", "warning") and reason in event.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "first", "steps"), [("numbers", 0, "step 0|step 3"), ("resume", 12, "step 12|step 4")]
)
def test_ranks_that_count_otherwise_gather_nothing(apart, case, first, steps):
    """Told so from the start, or resumed where one file has fewer rows than the other."""
    check_training(apart, case)
    with loopscope.open_run(apart / f"{case}.h5") as run:
        began, event = run.ranks[0], run.ranks[0].events[-1]
        assert began["step"].tolist() == list(range(first + 12)) and event.step == first
        # In the first forward FSDP itself has gathered A̅.
        assert np.isnan(began["a_bar_radius"][first + 1 :]).all() and (began.probe_steps < first).all()
        assert event.kind == "ranks_apart" and all(step in event.message for step in steps.split("|"))


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(FSDPModule, "reset_iter_state"), reason="this torch cannot forget a forward that was cut off"
)
def test_a_model_that_fails_in_a_pass_on_one_rank_ends_passes_only(apart):
    check_training(apart, "fail_in_pass")
    with loopscope.open_run(apart / "fail_in_pass.h5") as run:
        assert run.ranks[0].probe_steps.tolist() == [0, 10] and run.ranks[1].probe_steps.tolist() == [0]
        assert "rank 1 cannot run the fixed batch: " in run.ranks[0].events[-1].message
        assert run.ranks[1]["step"].tolist() == list(range(12)) and run.ranks[1].events[-1].kind == "fixed_batch"
