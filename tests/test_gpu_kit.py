"""The GPU kit where there is no GPU: what it would run exists, a second call goes on, a slow part is stopped."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_kit", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_kit"] = module
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "KEPT", tmp_path)
    return module


def test_every_part_runs_something_that_exists(kit: ModuleType) -> None:
    for part in kit.parts():
        for cpu in (False, True):
            words = part.command(cpu)
            assert all(Path(word).is_file() for word in words if word.endswith(".py")), words
    assert sum(part.limit for part in kit.parts()) <= 1.3 * kit.BUDGET


def test_what_was_run_is_kept_and_a_slow_part_is_run_again(kit: ModuleType) -> None:
    def run(code: str, limit: float = 60.0) -> object:
        part = kit.Part("tests", "?", [sys.executable, "-c", code], [], limit)
        kit.run_part(part, cpu=False, limit=limit, device="here", commit="abc")
        return kit.kept(part, "here", "abc")

    assert run("print(42)").output == "42"  # type: ignore[attr-defined]
    assert run("raise SystemExit(3)").code == 3  # type: ignore[attr-defined]
    assert run("import time; time.sleep(60)", limit=0.5) is None
    part = kit.Part("tests", "?", [sys.executable, "-c", "0"], [], 60)
    kit.run_part(part, cpu=False, limit=60, device="here", commit="abc")
    assert kit.kept(part, "elsewhere", "abc") is None and kit.kept(part, "here", "later") is None


def test_the_page_says_what_came_out_and_cannot_be_broken_by_it(kit: ModuleType) -> None:
    results = [
        kit.Result("trace", 0, 1.2, "~~~\n# forged", "H", "abc", "2026-01-01"),
        kit.Result("graphs", 124, 90, "", "H", "abc", "d"),
    ]
    text = kit.page(results, "H")
    assert "| trace | Does a watched step wait for the device? | passed | 1 |" in text and "out of time" in text
    assert text.count("~~~") == 4  # two fences: the output's own was taken apart


def test_the_trace_runs_where_there_is_no_device() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--part", "trace"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"calls that wait": {}' in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a device")
def test_without_a_device_nothing_is_run_and_no_number_is_written() -> None:
    before = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu.py")], capture_output=True, text=True)
    assert done.returncode == 0 and "nothing was run" in done.stdout
    assert (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8") == before
