"""The package's names: lazy, complete, and nothing of ours from outside."""

import ast
import subprocess
import sys
from pathlib import Path

import loopscope.models as models

FOLDER = Path(models.__file__).parent


def test_every_name_resolves():
    for name in models.__all__:
        assert getattr(models, name) is not None


def test_importing_the_package_does_not_import_torch():
    code = "import sys, loopscope.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_networks_import_nothing_of_ours():
    for file in set(FOLDER.glob("*.py")) - {FOLDER / "__init__.py"}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, file.name
                assert not (node.module or "").startswith("loopscope"), file.name


def test_the_file_list_in_the_docstring_is_the_folder():
    said = {line.split()[0] for line in (models.__doc__ or "").splitlines() if line.startswith("    ")}
    assert said == {file.name for file in FOLDER.glob("*.py")} - {"__init__.py"}
    assert all(len(file.read_text().splitlines()) < 500 for file in FOLDER.glob("*.py"))
