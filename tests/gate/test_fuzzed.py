"""Cases that a fuzzer came up with are read or refused in one line, as they were when it ran."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
CASES = json.loads(Path(__file__).with_name("fuzzed.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", CASES)
def test_every_case_is_read_or_refused_in_one_line(kind: str, fuzz: ModuleType, tmp_path: Path) -> None:
    for content in CASES[kind]:
        fuzz.TARGETS[kind](tmp_path, base64.b64decode(content))


def test_every_kind_of_input_has_cases_of_which_some_are_read(fuzz: ModuleType, tmp_path: Path) -> None:
    assert CASES.keys() == fuzz.TARGETS.keys() and all(len(cases) >= 3 for cases in CASES.values())
    refusals = []
    keep = fuzz._one_line
    fuzz._one_line = lambda error: refusals.append(str(error)) or keep(error)
    try:
        for kind, cases in CASES.items():
            before = len(refusals)
            for content in cases:
                fuzz.TARGETS[kind](tmp_path, base64.b64decode(content))
            assert len(refusals) - before < len(cases), kind
    finally:
        fuzz._one_line = keep
