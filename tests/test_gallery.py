"""The gallery's golden verdicts: some of its trainings again, a fault that is seen, one that is not, a healthy twin."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "gallery.py"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gallery"]


@pytest.fixture(scope="module")
def golden(gallery):
    return json.loads(gallery.GOLDEN.read_text())


@pytest.mark.parametrize("name", ["injection-x2", "rate-zero-half", "hangs", "healthy-parcae"])
def test_a_training_of_the_gallery_gives_its_golden_verdict(name, gallery, golden, tmp_path):
    case = gallery.BY_NAME[name]
    path = tmp_path / f"{name}.h5"
    gallery.train(case, 0, path)
    row, known = gallery.judge(case, path), golden[f"{name}-0"]
    assert (row["exit"], row["error"]) == (known["exit"], known["error"])


def test_the_golden_file_has_every_case_and_no_error_on_a_healthy_twin(gallery, golden):
    names = {name.rpartition("-")[0] for name in golden}
    assert names == {case.name for case in gallery.CASES} and len(gallery.FAULTS) >= 24
    healthy = {name: row for name, row in golden.items() if name.startswith("healthy")}
    assert len(healthy) >= 3 and all(row["exit"] == 0 and not row["error"] for row in healthy.values())


def test_the_page_is_that_of_the_golden_file_and_says_first_what_is_missed(gallery, golden):
    page = gallery.page(golden)
    assert gallery.PAGE.read_text() == page
    missed = {
        name.rpartition("-")[0] for name, row in golden.items() if not row["exit"] and not name.startswith("healthy")
    }
    assert missed and all(f"**{name}**" in page or f"- {name}," in page for name in missed)
    assert page.index("What is missed") < page.index("What was seen")


def test_nothing_that_trainproof_finds_is_missed_or_the_page_says_why(gallery, golden):
    faults = {case.name for case in gallery.FAULTS}
    for name, row in golden.items():
        case = name.rpartition("-")[0]
        if case in faults and row["others"].get("trainproof", [False])[0] and not row["exit"]:
            assert gallery.WHY.get(case), name  # what it calls a failure in a healthy twin is in the page's table


def log(loss, norm=None):
    steps = np.arange(len(loss), dtype=float)
    return {"step": steps, "loss": np.asarray(loss, float), "grad_norm": np.ones(len(loss)) if norm is None else norm,
            "lr": np.full(len(loss), 1e-3)}  # fmt: skip


def test_the_rules_of_the_others_do_what_is_published(gallery):
    quiet = 2 + 0.01 * np.sin(np.arange(160))
    assert not any(rule(log(quiet)).alarm for rule in (gallery.lightning, gallery.llm_foundry, gallery.olmo))
    lost = np.where(np.arange(160) == 90, np.nan, quiet)
    assert gallery.lightning(log(lost)).step == 90
    assert gallery.llm_foundry(log(np.where(np.arange(160) >= 120, 5.0, quiet))).step == 124  # the fifth in a row
    assert not gallery.llm_foundry(log(np.where(np.isin(np.arange(160), [120, 122]), 5.0, quiet))).alarm
    assert gallery.olmo(log(np.where(np.arange(160) == 100, 3.0, quiet))).step == 100
    assert gallery.olmo(log(quiet, np.where(np.arange(160) == 80, 9.0, 1 + 0.01 * np.cos(np.arange(160))))).step == 80
    assert not gallery.olmo(log(np.where(np.arange(160) == 20, 9.0, quiet))).alarm  # fewer than 64 before
