"""The studies of docs/evidence.md: sweeps can be read and built, intervals are right, the page shows their tables."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from loopscope.models.looped import LoopedTransformer
from loopscope.sweeps.grid import load_sweep
from scipy.stats import binomtest, ttest_1samp

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "examples" / "studies"
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
COMMITTED = ROOT / "docs" / "evidence"
LARGEST_FIGURE = 120_000  # bytes


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Lets the studies import each other, as they do when one of them is run."""
    sys.path.insert(0, str(STUDIES))
    yield
    sys.path.remove(str(STUDIES))


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return importlib.import_module("study")


@pytest.fixture(scope="module")
def everything() -> ModuleType:
    return importlib.import_module("everything")


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.toml")), ids=lambda path: str(path.relative_to(STUDIES)))
def test_every_sweep_can_be_built_at_its_size_without_its_memory(path: Path) -> None:
    cells = load_sweep(path)
    shapes = {cell.run.looped: cell for cell in cells}
    with torch.device("meta"):
        for config in shapes:
            model = LoopedTransformer(config)
            assert all(parameter.device.type == "meta" for parameter in model.parameters())
    if path.parent.name == "gpu":
        assert {cell.run.preset for cell in cells} <= {"rdm-100m", "rdm-350m", "parcae-140m"}
        assert "Not run by us" in path.read_text(encoding="utf-8")  # until somebody has


def test_intervals_are_those_of_the_books(study: ModuleType) -> None:
    for count, of in ((0, 5), (3, 5), (5, 5), (13, 20)):
        wilson = binomtest(count, of).proportion_ci(method="wilson")
        assert study.share(count, of).low == pytest.approx(wilson.low, abs=1e-6)
        assert study.share(count, of).high == pytest.approx(wilson.high, abs=1e-6)
    values = np.random.default_rng(0).normal(size=5)
    known = ttest_1samp(values, 0).confidence_interval()
    mean = study.mean(values)
    assert (mean.low, mean.high) == (pytest.approx(known.low), pytest.approx(known.high))


def test_a_number_that_moved_is_a_line_and_one_within_its_interval_is_none(
    study: ModuleType, everything: ModuleType, tmp_path: Path
) -> None:
    committed = tmp_path / "rates.json"
    committed.write_text(json.dumps({"kept": ["0.5", "0.2", "0.8"], "gone": ["1", "1", "1"], "none": ["nan"] * 3}))
    nothing = study.Interval(*[float("nan")] * 3)
    numbers = {"kept": study.Interval(0.9, 0.7, 1.0), "none": nothing, "new": study.Interval(1, 1, 1)}
    lines = everything.disagreements(study.Result(numbers=numbers), committed)
    assert lines == ["rates: gone: only committed", "rates: new: not committed"]
    numbers["kept"], numbers["none"] = study.Interval(0.95, 0.9, 1.0), study.Interval(1, 1, 1)
    lines = everything.disagreements(study.Result(numbers=numbers), committed)
    assert "rates: kept is 0.95 (0.9 to 1), committed 0.5 (0.2 to 0.8)" in lines
    assert sum("none" in line for line in lines) == 1


def test_pieces_that_are_done_are_not_done_again(study: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    done = study.pieces(tmp_path, len, {"a": ("never called",), "b": ("four",)}, 1, "words")
    assert done == {"a": [1], "b": 4}
    assert study.pieces(tmp_path, None, {"b": ()}, 1, "words") == {"b": 4}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("losses", "kind"),
    [
        ([3, 2.9, 2.8, 2.7, 2.6, 2.5, 2.45, 2.4, 2.35, 2.3], "falls"),
        ([3, 2.9, 2.8, 2.7, 2.6, 2.6, 2.6, 2.6, 2.6, 2.61], "plateau"),
        ([3, 2.9, 2.8, 2.7, 2.6, 2.6, 2.7, 2.8, 2.9, float("nan")], "V"),
        ([2.5, 2.5, 2.5, 2.6, 2.6, 2.6, 2.7, 2.8, 2.9, 3.0], "rises"),
    ],
)
def test_a_depth_curve_has_one_class(losses: list[float], kind: str) -> None:
    assert importlib.import_module("depth_in_training").kind(losses) == kind


def test_the_page_shows_what_is_committed(everything: ModuleType) -> None:
    """Every table of the page stands between the marks of a study, every figure is there, small, and shown once."""
    shown = re.findall(r"\(evidence/([\w-]+\.svg)\)", PAGE)
    assert sorted(shown) == sorted(path.name for path in COMMITTED.glob("*.svg")) and len(shown) >= 4
    assert all((COMMITTED / name).stat().st_size < LARGEST_FIGURE for name in shown)
    assert len(re.findall(r"<!-- table [\w]+ -->\n\n\|.*?\|\n\n<!-- end -->", PAGE, re.S)) >= 5
    assert {path.stem for path in COMMITTED.glob("*.json")} <= set(everything.STUDIES)
    assert set(everything.STUDIES) <= {path.stem for path in STUDIES.glob("*.py")}


def turned(angle: float, radius: np.ndarray) -> torch.Tensor:
    """States of one token that turn by an angle in each of some passes."""
    t = np.arange(len(radius))
    return torch.tensor(np.stack([radius * np.cos(angle * t), radius * np.sin(angle * t)], -1))[:, None, None]


@pytest.mark.parametrize(
    ("states", "does"),
    [
        (turned(0.0, 1 + 0.9 ** np.arange(201.0)), "settles"),
        (turned(0.0, 1 + 1e-13 * np.cos(np.arange(201.0))), "settles"),  # round-off
        (turned(0.7, np.ones(201)), "orbits"),
        (turned(0.7, 1 + 0.2 * np.sin(1.3 * np.arange(201.0))), "orbits"),
        (turned(0.0, 1 + np.arange(201.0)), "drifts"),
        (turned(0.7, 1.02 ** np.arange(201.0)), "grows"),
        (turned(0.7, 1.3e300 ** (np.arange(201.0) / 199)), "grows"),  # not finite at the end
        (turned(0.0, 1 + np.log1p(np.arange(201.0))), "open"),
    ],
)
def test_the_study_of_trm_says_by_hand_what_a_variable_does(states: torch.Tensor, does: str) -> None:
    assert importlib.import_module("trm_verdicts").by_hand(states) == does


def test_the_studies_of_trm_are_left_out_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trm_verdicts", "trm_jacobians"):
        for more, why in (([], "no checkout of Samsung"), (["--checkout", str(tmp_path)], "is no checkout")):
            monkeypatch.setattr(sys, "argv", [name, *more])
            assert importlib.import_module(name).main() == 0
            assert re.search(f"skipped: .*{why}", capsys.readouterr().out)


def test_the_study_of_trm_counts_a_verdict_as_true_false_or_open() -> None:
    agrees = importlib.import_module("trm_verdicts").agrees
    row = {"kind": "orbiting", "by_hand": "orbits", "later": ""}
    assert agrees(row) is True and agrees(row | {"by_hand": "settles"}) is False
    assert agrees(row | {"by_hand": "open"}) is None and agrees(row | {"by_hand": "open", "later": "orbits"}) is True
    assert agrees(row | {"kind": "undecided"}) is None


def test_the_study_of_jacobians_says_what_is_outside_its_bound() -> None:
    jacobians = importlib.import_module("trm_jacobians")
    assert jacobians.radius_of(np.array([[0.5, 100.0], [0.0, 0.25]])) == (0.5, pytest.approx(400, rel=1e-2))
    rest = {"what": "σ", "dense": 1.0, "allowed": 1e-3, "upper": np.inf, "converged": True}
    assert jacobians.Compared(value=0.9995, lower=0.9995, **rest).within
    assert not jacobians.Compared(value=0.99, lower=0.99, **rest).within
    assert not jacobians.Compared(value=1.0005, lower=1.0005, **rest).within  # a lower bound above the number
