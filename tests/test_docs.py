"""Everything the documentation shows runs: doctests of every module, and the commands of the README."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
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
        words = words[: words.index("--")] if "--" in words else words  # behind it stands somebody else's command
        command = commands[words[1]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words[2:] if word.startswith("--")} <= known, words


def test_the_version_is_said_once() -> None:
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == loopscope.__version__


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w./-]+/[\w.-]*)`", text) if name.split("/")[0] in FOLDERS - {"runs"}}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    assert {link for link in links if not (page.parent / link).exists()} == set()


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(pages) == sorted(re.findall(r"\]\(([\w-]+\.md)\)", index))  # each once


def test_the_file_tree_of_the_readme_is_the_tree() -> None:
    """Every file at the top and every folder is named; for a folder of the house, a file that is read first."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"## Where things are\n.*?```\n(.*?)```", text, re.S)
    assert tree
    lines = [line for line in tree[1].splitlines() if line.strip() and not line.startswith(" ")]
    named = {line.split()[0].rstrip("/"): line for line in lines}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    there = {name.split("/")[0] for name in tracked} - {".gitignore", ".ci", "LICENSE", "README.md", "py.typed"}
    assert set(named) == there
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for package in packages:
        first = re.search(r"read (?:`)?([\w./]+\.py)(?:`)? first", named[package])
        assert first and (ROOT / package / first[1]).exists(), f"{package}: which file is read first?"
