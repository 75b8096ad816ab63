"""The shape of the code base: who imports whom, what a light command never loads, what is said of a public name."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dynamics", "models", "probes", "dashboard")
ALLOWED = {
    "dynamics": set(),
    "models": set(),
    "probes": {"dynamics"},
    "dashboard": {"dynamics", "probes"},
}
# What the dashboard may use of probes: the side that reads, never the side that attaches.
READING_SIDE = {"layout", "reader", "ranks", "companions", "rules", "diagnosis", "spikes", "flight"}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports, relative to the top package."""
    here = list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            target = ".".join([*base, *([node.module] if node.module else [])])
            found |= {target} if node.module else {f"{target}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loopscope"):
            found.add((node.module or "").removeprefix("loopscope").strip("."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("loopscope.") for a in node.names if a.name.startswith("loopscope.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    others = {name.split(".")[0] for name in imported(path)} & set(PACKAGES) - {package}
    assert others <= ALLOWED[package], f"{path.name} imports {others - ALLOWED[package]}"
    if package == "dashboard":
        of_probes = {name.split(".")[1] for name in imported(path) if name.startswith("probes.")}
        assert of_probes <= READING_SIDE, f"{path.name} uses {of_probes - READING_SIDE} of probes"


@pytest.mark.parametrize(
    "statement",
    [
        "import loopscope",
        "import loopscope.cli",
        "import loopscope.probes.reader, loopscope.probes.rules, loopscope.probes.diagnosis",
        "import loopscope.dynamics.lti, loopscope.dynamics.trajectory, loopscope.dynamics.regime",
        "import loopscope.dashboard.app",
        "from loopscope import open_run, diagnose",
    ],
)
def test_the_reading_side_never_loads_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_lazy_name_resolves() -> None:
    import importlib

    checked = 0
    for package in ("loopscope", *(f"loopscope.{name}" for name in PACKAGES)):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name) is not None
            checked += 1
    assert checked > 20


def test_no_module_shares_its_name_with_an_export() -> None:
    """``package.name`` would be the function or the module depending on what was imported first."""
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            text = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
            assert f'"{path.stem}":' not in text, f"{package}/{path.name} and an export of {package} share a name"


def test_the_type_checker_leaves_none_of_our_files_out() -> None:
    """`make types` shows mypy the tree through a link in the virtual environment; its exclusions must not match it."""
    excluded = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["exclude"]
    seen = [f".venv/typed/loopscope/{path.relative_to(ROOT)}" for path in [*ROOT.glob("*.py"), *modules()]]
    assert [path for path in seen if any(re.search(pattern, path) for pattern in excluded)] == []


def test_every_public_function_says_what_it_does() -> None:
    missing = []
    for path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not missing


def test_no_path_of_a_machine_in_the_tree() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    roots = tuple(f"/{name}/" for name in ("work", "root", "home", "Users"))
    text = {name: (ROOT / name).read_bytes() for name in files if (ROOT / name).is_file()}
    assert [name for name, content in text.items() if any(f'"{root}'.encode() in content for root in roots)] == []


def test_every_module_of_the_mathematics_says_what_it_does_not_cover() -> None:
    silent = [
        path.name
        for path in sorted((ROOT / "dynamics").glob("*.py"))
        if "not cover" not in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").lower()
    ]
    assert not silent


def test_every_exported_function_of_the_mathematics_has_an_example_and_a_source() -> None:
    import inspect

    import loopscope.dynamics as dynamics

    functions = [value for name in dynamics.__all__ if inspect.isfunction(value := getattr(dynamics, name))]
    assert len(functions) > 40
    bare = [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "") or "Source" not in (f.__doc__ or "")]
    assert not bare
