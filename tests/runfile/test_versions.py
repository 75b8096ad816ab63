"""Files of format versions 1 and 2, written by the code of that time: they open, diagnose, repair and resume.

``files/README.md`` says how they were made.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from loopscope.rules.diagnosis import diagnose
from loopscope.runfile.arrays import info_bytes
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.export import export
from loopscope.runfile.layout import INFO_LATER
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

FILES = Path(__file__).parent / "files"


@pytest.fixture(params=["version1-killed", "version1-sealed", "version2-killed", "version2-sealed"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.h5"
    path.write_bytes(gzip.decompress((FILES / f"{request.param}.h5.gz").read_bytes()))
    return path


def check_old_rows(path: Path) -> None:
    """The first 90 steps are those that were recorded; 40 to 49 were run twice."""
    with open_run(path) as run:
        steps = run["step"][:90]
        again = steps >= 40
        assert np.array_equal(steps, np.arange(90)) and np.array_equal(run["generation"][:90], again)
        assert np.array_equal(run["loss"][:90], 0.5 * steps + again) and np.array_equal(run["mine"][:90], -steps)
        assert np.array_equal(run["last_state_norm"][:90], steps + 1)
        assert np.array_equal(run["depth"][:90], np.full(90, np.nan), equal_nan=True)
        assert run.probe_steps.tolist() == run.spectra()[0].tolist() == list(range(0, 90, 10))
        assert run.probe("state_norm")[:, 0].tolist() == list(range(1, 91, 10))
        assert [event.step for event in run.events] == list(range(0, 90, 10))
        assert run.info["name"] in ("version 1", "version 2") and run.variables == ()


def version(path: Path) -> int:
    with h5py.File(path, "r", swmr=True, locking=False) as file:
        return int(file.attrs["version"])


def test_it_opens_diagnoses_and_exports_as_it_is(old: Path, tmp_path: Path) -> None:
    before = old.read_bytes()
    check_old_rows(old)
    with open_run(old) as run:
        maps = () if run.info["name"] == "version 1" else ("map",)
        assert run.array_names == maps and run.refresh() is False
        with pytest.raises(KeyError, match="no arrays 'a'; it has"):
            run.arrays("a")
        with pytest.raises(KeyError, match="no variable 'z'; it has none"):
            run.loops("state_norm", variable="z")
        assert diagnose(run).summary
        export(run, tmp_path / "a.json")
    assert version(old) in (1, 2) and old.read_bytes() == before


def test_it_is_repaired_as_it_is(old: Path) -> None:
    report = repair(old, in_place=True)
    assert (report.rows, report.rows_lost) == (100, 0) and report.found in ("whole", "unclosed")
    check_old_rows(old)


@pytest.mark.parametrize("number", [1, 2])
def test_a_cut_off_one_is_salvaged(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.h5"
    whole = gzip.decompress((FILES / f"version{number}-killed.h5.gz").read_bytes())
    path.write_bytes(whole[: len(whole) * 19 // 20])
    report = repair(path, in_place=True)
    assert report.found == "damaged" and version(path) == 3
    with open_run(path) as run:
        assert np.array_equal(run["mine"], -run["step"])


def test_resuming_brings_it_to_version_3_under_a_reader_that_follows(old: Path) -> None:
    with open_run(old) as run:
        run.loops("state_norm")
        writer = RunWriter.resume(old)
        assert writer.generation == 2 and writer.rows == 100
        assert not old.with_name("a.h5.tmp").exists()
        writer.append_step({"step": 90, "loss": 46.0, "mine": -90}, np.full((2, 4), 91))
        writer.append_array(90, "map", np.eye(3))
        writer.append_array(90, INFO_LATER, info_bytes({"variables": ["z_H"]}))
        writer.append_variable(90, 0, np.ones((3, 6)))
        assert writer.flush() and run.refresh()
        assert len(run) == 91 and run.arrays("map")[0].tolist()[-1] == 90 and run.variables == ("z_H",)
        writer.seal()
    assert version(old) == 3
    with open_run(old) as run:
        assert np.array_equal(run.arrays("map")[1][-1], np.eye(3)) and run["mine"][-1] == -90
        assert run.loops("state_norm", variable="z_H")[-2:, 2].tolist()[1] == 1.0 and run.info["name"]
