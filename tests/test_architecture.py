"""The shape of the code base: who imports whom, what a light command never loads, how a public name is documented."""

import ast
import doctest
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARROWS: dict[str, set[str]] = {
    "dynamics": set(),
    "models": set(),
    "runfile": set(),
    "loops": {"dynamics"},
    "rules": {"runfile", "dynamics"},
    "probes": {"loops", "rules", "runfile", "dynamics"},
    "gate": {"rules", "runfile", "dynamics"},
    "dashboard": {"rules", "runfile", "dynamics"},
    "sweeps": {"models", "probes", "runfile"},
    "causes": {"models", "probes", "rules", "runfile"},
    "commands": {"dynamics", "models", "runfile", "loops", "rules", "probes", "gate", "dashboard", "sweeps", "causes"},
}
"""What each folder may import, lazy imports and examples in docstrings included. docs/design.md says why."""
EXAMPLES = {"loops": {"models"}, "probes": {"models", "runfile"}}
"""What examples in docstrings may import besides: they are a user's code, which has its looped model from somewhere."""


def front_door() -> dict[str, str]:
    """The names that ``loopscope`` hands on, with the modules they come from."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    nodes = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in nodes for alias in node.names}


FRONT_DOOR = front_door()


def modules(root: Path = ROOT) -> list[Path]:
    return [path for package in ARROWS for path in sorted((root / package).rglob("*.py*")) if path.suffix != ".pyc"]


def imported(tree: ast.AST, here: list[str]) -> set[str]:
    """Dotted names of our own modules that code imports, relative to the top package, by whatever statement."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            if node.level or target.split(".")[0] == "loopscope":
                target = target.removeprefix("loopscope").strip(".")
                names |= {f"{target}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("loopscope.") for a in node.names if a.name.startswith("loopscope.")}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func) and node.args:
            names |= by_name(ast.unparse(node.args[0]), here)
    return names | {FRONT_DOOR[name] for name in names if name in FRONT_DOOR}


def parsed(path: Path, root: Path) -> tuple[ast.AST, list[ast.AST], list[str]]:
    """The code of a file, that of the examples in its docstrings, and the folders it lies in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    texts = [text for n in parts if (text := ast.get_docstring(n))]
    examples: list[ast.AST] = [
        ast.parse(e.source) for text in texts for e in doctest.DocTestParser().get_examples(text)
    ]
    return tree, examples, list(path.relative_to(root).parts[:-1])


def by_name(argument: str, here: list[str]) -> set[str]:
    """The module that ``import_module("...")`` names, as far as its text says it."""
    name = argument.strip("f'\"")
    dots = len(name) - len(name.lstrip("."))
    base = here[: len(here) - dots + 1] if dots else []
    return {".".join([*base, name.lstrip(".")]).removeprefix("loopscope.").strip(".")}


def against_the_arrows(root: Path) -> list[str]:
    """Imports between folders that no arrow allows, as ``file: module``."""
    wrong = []
    for path in modules(root):
        code, examples, here = parsed(path, root)
        allowed = ARROWS[here[0]] | {here[0]}
        shown = allowed | EXAMPLES.get(here[0], set())
        names = [(name, allowed) for name in imported(code, here)]
        names += [(name, shown) for example in examples for name in imported(example, here)]
        wrong += [
            f"{path.relative_to(root)}: {name}"
            for name, may in names
            if name.split(".")[0] in ARROWS and name.split(".")[0] not in may
        ]
    return wrong


def circles(root: Path) -> list[str]:
    """Modules that import each other, directly or round several corners."""
    files = {".".join(p.relative_to(root).with_suffix("").parts): p for p in modules(root) if p.suffix == ".py"}
    arrows = {
        name: {
            target
            for full in imported(parsed(path, root)[0], list(path.relative_to(root).parts[:-1]))
            if (target := owner(full, files)) and target != name
        }
        for name, path in files.items()
    }
    state: dict[str, int] = {}
    trails: list[str] = []

    def walk(name: str, trail: list[str]) -> None:
        state[name] = 1
        for target in sorted(arrows[name]):
            if state.get(target) == 1:
                trails.append(" -> ".join([*trail[trail.index(target) :], target]))
            elif target not in state:
                walk(target, [*trail, target])
        state[name] = 2

    for name in sorted(arrows):
        if name not in state:
            walk(name, [name])
    return trails


def owner(full: str, files: dict[str, Path]) -> str | None:
    """The module that holds ``full``: the module itself, or what its last part is a name of."""
    return next((name for name in (full, full.rpartition(".")[0]) if name in files), None)


def test_imports_follow_the_arrows() -> None:
    assert against_the_arrows(ROOT) == []


def test_no_module_imports_itself_round_a_corner() -> None:
    assert circles(ROOT) == []


def test_every_folder_of_ours_has_its_arrows() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(ARROWS)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dynamics/planted.py", "from ..runfile.reader import Run\n"),
        ("runfile/planted.py", "def f():\n    from ..dynamics.regime import lti_regime\n    return lti_regime\n"),
        ("dashboard/planted.py", "import loopscope.probes.probe\n"),
        ("gate/planted.py", "from importlib import import_module\nimport_module('loopscope.models.looped')\n"),
        ("rules/planted.py", 'def f():\n    """Do.\n\n    >>> from loopscope.loops.site import LoopSite\n    """\n'),
        ("models/deep/planted.py", "from ...probes import attach\n"),
        ("loops/planted.pyi", "from ..rules.diagnosis import diagnose as diagnose\n"),
    ],
)
def test_an_import_against_an_arrow_is_seen(file: str, text: str, tmp_path: Path) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(text)
    assert [line.split(":")[0] for line in against_the_arrows(tmp_path)] == [file]


def test_a_circle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / "rules" / f"{name}.py").write_text(f"def f():\n    from .{other} import f\n    return f\n")
    assert circles(tmp_path) == ["rules.a -> rules.b -> rules.c -> rules.a"]


def test_setup_installs_every_folder() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {p.parent.relative_to(ROOT) for package in ARROWS for p in (ROOT / package).rglob("__init__.py")}
    pages = {"loopscope.docs.rules"}  # no code: what `loopscope rules LS020` shows
    assert set(said) == {"loopscope", *(f"loopscope.{'.'.join(folder.parts)}" for folder in there)} | pages


@pytest.mark.parametrize(
    "statement",
    [
        "import loopscope",
        "import loopscope.cli",
        "import loopscope.runfile.open, loopscope.rules.rule_files, loopscope.rules.diagnosis, loopscope.gate.check",
        "import loopscope.dynamics.linear.lti, loopscope.dynamics.trajectory.trajectory, loopscope.dynamics.regime",
        "import loopscope.dashboard.app",
        "from loopscope import open_run, diagnose",
    ],
)
def test_the_reading_side_never_loads_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def lazy_packages() -> list[str]:
    stubs = [ROOT / "__init__.pyi", *(p for p in modules() if p.name == "__init__.pyi")]
    return [".".join(["loopscope", *stub.parent.relative_to(ROOT).parts]) for stub in stubs]


def test_attaching_loads_neither_the_compiler_nor_what_its_preset_does_not_use() -> None:
    code = """
import sys, tempfile, loopscope
from loopscope.models import build
model = build("demo")
with tempfile.TemporaryDirectory() as folder:
    loopscope.attach(model, folder + "/a.h5").close()
late = {"torch._dynamo", "loopscope.loops.discovery", "loopscope.dynamics.loop.full_loop", "scipy", "rich", "plotly"}
print(*sorted(late & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", lazy_packages())
def test_every_lazy_name_resolves_and_is_shown(package: str) -> None:
    import importlib

    module = importlib.import_module(package)
    assert module.__all__ and dir(module) == module.__all__
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("package", lazy_packages())
def test_no_module_shares_its_name_with_an_export(package: str) -> None:
    """``package.name`` would be the function or the module depending on what was imported first."""
    import importlib

    module = importlib.import_module(package)
    beside = {path.stem for path in Path(str(module.__file__)).parent.iterdir()}
    assert beside.isdisjoint(module.__all__)


def test_the_type_checker_leaves_none_of_our_files_out() -> None:
    """`make types` shows mypy the tree through a link in the virtual environment; its exclusions must not match it."""
    excluded = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["exclude"]
    seen = [f".venv/typed/loopscope/{path.relative_to(ROOT)}" for path in [*ROOT.glob("*.py"), *modules()]]
    assert [path for path in seen if any(re.search(pattern, path) for pattern in excluded)] == []


def test_every_public_function_says_what_it_does() -> None:
    missing = []
    for path in (path for path in modules() if path.suffix == ".py"):
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
        for path in sorted((ROOT / "dynamics").rglob("*.py"))
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


def test_no_module_is_too_long_to_read() -> None:
    every = [*modules(), *ROOT.glob("*.py"), *ROOT.glob("*.pyi")]
    long = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in every}
    assert {name: lines for name, lines in long.items() if lines > 500} == {}


def test_no_function_is_too_long_to_read() -> None:
    """Sixty lines without the docstring; a longer one says in its docstring why."""
    long = []
    for path in (path for path in modules() if path.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                body = node.body[1:] if text else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
                if lines > 60 and "lines" not in text:
                    long.append(f"{path.relative_to(ROOT)}: {node.name}, {lines} lines")
    assert long == []


def test_no_type_is_told_by_hasattr() -> None:
    """A name that a class happens to have is no type: a rename would turn a measurement into an empty result."""
    asked = []
    for path in (path for folder in ("probes", "loops", "runfile") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
                by_name = isinstance(node.args[1], ast.Constant)
                asked += [f"{path.relative_to(ROOT)}:{node.lineno}"] if by_name else []
    assert asked == []
