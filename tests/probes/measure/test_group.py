"""Meetings of ranks, which are threads here: whatever each does, all that were there have one answer, and soon."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from loopscope.probes.measure import group
from loopscope.probes.measure.group import Group

WORLD = 3


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture
def attach(monkeypatch, store):
    """Makes the group of a rank as that rank's process would."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: WORLD)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)

    def make(rank, patience=30.0):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        group._ATTACHED.clear()  # each rank is a process of its own
        made = Group(Path("a.h5" if not rank else f"a.rank{rank}.h5"))
        made.patience = patience
        return made

    return make


def at_once(*calls):
    """What calls return that are made at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_ranks_that_are_about_to_do_the_same_do_it_and_leave_little_behind(attach, store):
    groups = [attach(rank) for rank in range(WORLD)]
    for step in range(20):
        assert at_once(*(lambda g=g, step=step: g.agree(f"read a_bar {step}") for g in groups)) == [True] * WORLD
    assert store.num_keys() <= 8  # of the last meeting, and who has attached


def test_nobody_meets_before_all_have_attached(attach):
    early = [attach(rank) for rank in range(WORLD - 1)]
    assert at_once(*(lambda g=g: g.agree("begin") for g in early)) == [False] * (WORLD - 1)
    late = attach(WORLD - 1)
    assert not late.agree("begin") and {g.apart for g in (*early, late)} == {early[0].apart}
    assert "not every rank carries a probe" in late.apart


def test_ranks_that_are_about_to_do_different_things_do_nothing(attach):
    groups = [attach(rank) for rank in range(WORLD)]
    assert at_once(*(lambda g=g: g.agree(f"pass {g is groups[1]}") for g in groups)) == [False] * WORLD
    assert len({g.apart for g in groups}) == 1 and "was about to pass" in groups[0].apart


@pytest.mark.parametrize("before", [True, False])
def test_a_rank_that_leaves_is_not_waited_for(attach, before):
    groups, began = [attach(rank) for rank in range(WORLD)], time.monotonic()

    def leave():
        time.sleep(0 if before else 0.1)
        groups[0].leave("closed its probe")

    if before:
        leave()
    assert at_once(leave, *(lambda g=g: g.agree("read a_bar") for g in groups[1:]))[1:] == [False] * (WORLD - 1)
    assert {g.apart for g in groups[1:]} == {"rank 0 closed its probe"} and time.monotonic() - began < 10
    assert not groups[0].agree("read a_bar")


def test_a_rank_that_stays_away_is_waited_for_once(attach):
    groups = [attach(rank, patience=0.1) for rank in range(WORLD)]
    assert at_once(*(lambda g=g: g.agree("read a_bar") for g in groups[1:])) == [False] * (WORLD - 1)
    groups[0].patience, began = 30.0, time.monotonic()
    assert not groups[0].agree("read a_bar")  # it comes at last
    assert not groups[1].agree("read b_bar") and time.monotonic() - began < 10
    assert len({g.apart for g in groups}) == 1 and "waited 0.1 s" in groups[0].apart


def test_a_store_that_fails_ends_the_meetings(attach, store, monkeypatch):
    alone = attach(0)
    for missing in ("add", "compare_set"):
        monkeypatch.setattr(dist.HashStore, missing, None)
    assert not alone.agree("read a_bar") and "store" in alone.apart
    alone.leave("closed")
    assert "cannot be asked" in attach(1).apart


@pytest.mark.parametrize("seed", range(20))
def test_whatever_ranks_do_a_yes_is_everybodys_yes(attach, seed):
    """They are late, leave and differ at random, with little patience."""
    groups = [attach(rank, patience=0.02) for rank in range(WORLD)]

    def live(rank):
        chance, answers = random.Random(10 * seed + rank), []
        for meeting in range(8):
            time.sleep(chance.choice([0, 0, 0, 0.005, 0.01, 0.025]))
            if chance.random() < 0.04:
                groups[rank].leave("left")
                break
            answers.append(groups[rank].agree(f"{meeting} {chance.random() < 0.02}"))
        return answers

    lives = at_once(*(lambda rank=rank: live(rank) for rank in range(WORLD)))
    agreed = {sum(answers) for answers in lives}
    assert len(agreed) == 1, lives
    assert all(answers == sorted(answers, reverse=True) for answers in lives), lives
