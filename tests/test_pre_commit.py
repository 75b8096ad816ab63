"""The pre-commit hooks: their entries run as pre-commit would run them, and tell of what is wrong."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from loopscope.cli import app
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}


def run(hook, folder, *files, args=()):
    """Run a hook on those of the files that it is for; None where it is for none of them."""
    chosen = [file for file in files if re.search(hook["files"], file)]
    if not chosen:
        return None
    named = chosen if hook.get("pass_filenames", True) else []
    command = [sys.executable, "-m", *shlex.split(hook["entry"]), *args, *named]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_hooks_are_complete():
    assert set(HOOKS) == {"loopscope-rules", "loopscope-lint"}
    for hook in HOOKS.values():
        assert hook.keys() >= {"id", "name", "description", "entry", "language", "files"}
        assert shlex.split(hook["entry"])[0] == "loopscope"


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_the_command_of_a_hook_exists(name):
    commands = get_command(app).commands
    assert shlex.split(HOOKS[name]["entry"])[1] in commands


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[[rule]]\nid = "A"\nexpr = "slope(loss, 20) > 0"\n', 0),
        ('[[rule]]\nid = "A"\nexpr = "slope(loss) > 0"\n', 2),
        ("[[rule]\n", 2),
        ("", 0),
    ],
)
def test_rule_files_are_checked(tmp_path, text, code):
    (tmp_path / "loopscope.toml").write_text(text)
    (tmp_path / "other.toml").write_text("[[rule]\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    done = run(HOOKS["loopscope-rules"], tmp_path, "loopscope.toml", "other.toml", "pyproject.toml")
    assert done is not None and done.returncode == code, done
    assert ("loopscope.toml:" in done.stderr) is bool(code)
    assert run(HOOKS["loopscope-rules"], tmp_path, "other.toml") is None


def test_rules_in_pyproject_are_checked(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[[tool.loopscope.rule]]\nid = "A"\n')
    done = run(HOOKS["loopscope-rules"], tmp_path, "pyproject.toml")
    assert done is not None and done.returncode == 2 and "pyproject.toml:2:6: rule A: expr is missing" in done.stderr


def test_a_configuration_is_looked_at_before_training(tmp_path):
    (tmp_path / "run.toml").write_text('preset = "demo"\n[model]\ninjection = "parcae"\n')
    done = run(HOOKS["loopscope-lint"], tmp_path, "run.toml", "b.toml", args=["run.toml"])
    assert done is not None and done.returncode in (0, 1), done.stderr
    done = run(HOOKS["loopscope-lint"], tmp_path, "run.toml", args=["missing.toml"])
    assert done is not None and done.returncode == 2
