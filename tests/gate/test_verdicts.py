"""Kept verdicts are those that judging gives, and nothing else is believed."""

import json
import os

import numpy as np
import pytest
from loopscope.gate import check as gate
from loopscope.gate import verdicts
from loopscope.gate.check import check_runs


def wavy(steps):
    return 2 + 0.01 * np.sin(np.arange(steps))


@pytest.fixture(autouse=True)
def own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    verdicts._key.cache_clear()
    yield
    verdicts._key.cache_clear()


@pytest.fixture
def judged(monkeypatch):
    """The runs that were judged and not looked up."""
    seen = []
    diagnose = gate.diagnose

    def counted(run, *args, **options):
        seen.append(run.path.name)
        return diagnose(run, *args, **options)

    monkeypatch.setattr(gate, "diagnose", counted)
    return seen


def test_a_finished_run_is_judged_once(write_run, judged):
    path = write_run(loss=wavy(60), a_bar_radius=1.2)
    first, second = check_runs([path]), check_runs([path])
    assert judged == ["run.h5"] and first.exit_code == second.exit_code == 1
    kept, made = second.runs[0].diagnosis, first.runs[0].diagnosis
    assert kept.as_dict() == made.as_dict() and np.array_equal(kept.radius, made.radius, equal_nan=True)


@pytest.mark.parametrize("change", ["touch", "rules", "min_steps", "grow", "replace"])
def test_a_verdict_counts_for_what_was_judged_only(write_run, judged, tmp_path, change):
    path = write_run(loss=wavy(60), a_bar_radius=1.2)
    check_runs([path])
    options = {}
    if change == "touch":
        os.utime(path)
    elif change == "rules":
        options["rules_file"] = tmp_path / "rules.toml"
        options["rules_file"].write_text('[[rule]]\nid = "LS023"\nfor = 59\n')
    elif change == "min_steps":
        options["min_steps"] = 1000
    elif change == "grow":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        before = path.stat()
        other = write_run("other.h5", loss=wavy(60), a_bar_radius=0.8)
        other.replace(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    check_runs([path], **options)
    assert judged == ["run.h5", "run.h5"]


def test_a_forged_verdict_is_not_believed(write_run, judged, monkeypatch, tmp_path):
    path = write_run(loss=wavy(60), a_bar_radius=1.2)
    assert check_runs([path]).exit_code == 1
    beside = path.with_name(".run.h5.verdict.json")
    kept = json.loads(beside.read_text())
    body = json.loads(kept["body"])
    body["diagnosis"]["findings"] = []
    for forged in (
        {"body": json.dumps(body), "signature": kept["signature"]},
        {"body": json.dumps(body), "signature": verdicts._signature(b"guessed", json.dumps(body))},
        {"body": 3, "signature": None},
        [],
        None,
    ):
        beside.write_text(json.dumps(forged))
        assert check_runs([path]).exit_code == 1
    beside.write_bytes(b"[" * 100_000)
    assert check_runs([path]).exit_code == 1
    assert check_runs([path]).exit_code == 1 and len(judged) == 7  # the last was kept again
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "somebody else"))
    verdicts._key.cache_clear()
    check_runs([path])
    assert len(judged) == 8


def test_where_nothing_can_be_written_the_run_is_judged(write_run, judged, monkeypatch, tmp_path):
    path = write_run(loss=wavy(60), a_bar_radius=0.8)
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    verdicts._key.cache_clear()
    assert check_runs([path]).exit_code == check_runs([path]).exit_code == 0
    assert judged == ["run.h5", "run.h5"] and not path.with_name(".run.h5.verdict.json").exists()


def test_live_and_interrupted_runs_are_not_kept(tmp_path, judged):
    from loopscope.runfile.writer import RunWriter

    writer = RunWriter.create(tmp_path / "a.h5", info={})
    for step, loss in enumerate(wavy(60)):
        writer.append_step({"step": float(step), "loss": loss, "depth": 4.0, "nonfinite": 0.0})
    writer.flush()
    check_runs([tmp_path / "a.h5"])
    writer.close()
    check_runs([tmp_path / "a.h5"])
    check_runs([tmp_path / "a.h5"])
    assert len(judged) == 3


def test_a_verdict_on_a_file_that_changed_while_it_was_judged_is_not_kept(write_run, judged, monkeypatch):
    path = write_run(loss=wavy(60), a_bar_radius=1.2)
    other = write_run("other.h5", loss=wavy(60), a_bar_radius=0.5)
    diagnose = gate.diagnose

    def slow(run, *args, **options):
        said = diagnose(run, *args, **options)
        if other.exists():
            other.replace(path)
        return said

    monkeypatch.setattr(gate, "diagnose", slow)
    assert check_runs([path]).exit_code == 1
    assert check_runs([path]).exit_code == 0 and judged == ["run.h5", "run.h5"]
    assert check_runs([path]).exit_code == 0 and judged == ["run.h5", "run.h5"]


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "link to a verdict", "large"])
def test_what_lies_in_the_place_of_a_verdict_is_not_waited_for_or_followed(write_run, judged, tmp_path, kind):
    path = write_run(loss=wavy(60), a_bar_radius=1.2)
    check_runs([path])
    beside = path.with_name(".run.h5.verdict.json")
    elsewhere = tmp_path / "verdict"
    beside.rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(beside)
    elif kind == "large":
        with beside.open("wb") as file:
            file.truncate(verdicts.LARGEST + 1)
    else:
        beside.symlink_to("/dev/zero" if kind == "link to a device" else elsewhere)
    assert check_runs([path]).exit_code == 1 and judged == ["run.h5", "run.h5"]
    assert beside.is_file() and not beside.is_symlink()  # the new verdict took its place


@pytest.mark.parametrize("kind", ["open to others", "link", "short"])
def test_a_key_that_others_may_know_signs_nothing(write_run, judged, tmp_path, kind):
    path = write_run(loss=wavy(60), a_bar_radius=1.2)
    folder = tmp_path / "cache" / "loopscope"
    folder.mkdir(parents=True)
    key = folder / "verdict-key"
    if kind == "link":
        (tmp_path / "known").write_bytes(b"k" * 32)
        (tmp_path / "known").chmod(0o600)
        key.symlink_to(tmp_path / "known")
    else:
        key.write_bytes(b"k" * (32 if kind == "open to others" else 31))
        key.chmod(0o644 if kind == "open to others" else 0o600)
    assert check_runs([path]).exit_code == check_runs([path]).exit_code == 1
    assert judged == ["run.h5", "run.h5"] and not path.with_name(".run.h5.verdict.json").exists()
