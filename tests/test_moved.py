"""Old import paths keep working: every public name of the state before the move is imported from where it was."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from loopscope.moved import MOVED

PUBLIC: dict[str, str] = tomllib.loads(Path(__file__).with_name("public_names.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module or "loopscope")
def test_every_public_name_is_importable_from_where_it_was(module: str) -> None:
    if module == "probes.fused":
        pytest.importorskip("triton")
    if module.startswith("dashboard.pages"):
        pytest.skip("pages register themselves with a running app")
    old_home = importlib.import_module(f"loopscope.{module}".rstrip("."))
    assert [name for name in PUBLIC[module].split() if not hasattr(old_home, name)] == []


def test_every_old_path_is_of_a_module_that_was_there() -> None:
    assert set(MOVED) <= {*PUBLIC, "probes.layout", "dynamics.arrays"}


def test_an_old_path_knows_nothing_else() -> None:
    with pytest.raises(ImportError, match="no_such_name"):
        from loopscope.probes.reader import no_such_name  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("loopscope.probes.no_such_module")


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_python_dash_m_is_the_same_command(words: list[str]) -> None:
    by_module = subprocess.run([sys.executable, "-m", "loopscope", *words], capture_output=True, text=True)
    by_script = subprocess.run([Path(sys.executable).with_name("loopscope"), *words], capture_output=True, text=True)
    assert by_module.returncode == by_script.returncode
    assert by_module.stdout.replace("python -m loopscope", "loopscope") == by_script.stdout
