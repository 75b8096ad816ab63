"""Everything the documentation shows runs: doctests of every module, and the commands of the README."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import loopscope
import pytest

ROOT = Path(__file__).resolve().parent.parent


def module_names() -> list[str]:
    packages = pkgutil.walk_packages(loopscope.__path__, "loopscope.")
    skipped = ("loopscope.tests", "loopscope.benchmarks", "loopscope.docs", "loopscope.examples")
    return ["loopscope", *(m.name for m in packages if not m.name.startswith(skipped))]


@pytest.mark.parametrize("name", module_names())
def test_the_examples_of_a_module_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name.endswith(".pages"):
        pytest.skip("pages register themselves with a running app")
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_command_of_the_readme_exists() -> None:
    from loopscope.cli import app
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    used = [shlex.split(line, comments=True) for line in lines if line.startswith("loopscope ")]
    assert used, "the README shows no command"
    for words in used:
        command = commands[words[1]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words[2:] if word.startswith("--")} <= known, words


def test_the_version_is_said_once() -> None:
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == loopscope.__version__
