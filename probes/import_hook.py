"""Waits for a process to import torch, and then puts `unattended` in its place: how ``loopscope smoke`` gets in.

`site_folder` makes a folder for ``PYTHONPATH`` whose ``sitecustomize`` calls `arm` in every Python process of a
command. A ``sitecustomize`` that the environment had is run as before. A process that never imports torch pays a look
at each import; one that does has the hooks of `unattended` from the first line after its ``import torch`` on.

Not covered: Python started with ``-I``, ``-E`` or ``-S``, which looks at no ``PYTHONPATH`` or at no ``sitecustomize``.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

ORDER: Final = "LOOPSCOPE_SMOKE"
"""Environment variable with what is to be done, as JSON: ``out``, ``steps``, ``report``."""
MODEL: Final = "LOOPSCOPE_MODEL"
"""Environment variable ``module:object`` that names the model, where the first looped one is not meant."""

_SITE: Final = '''"""Written by loopscope smoke: arms loopscope, then runs the sitecustomize that was there before."""
import importlib.machinery
import importlib.util
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
try:
    from loopscope.probes.import_hook import arm
except ImportError as error:
    print(f"loopscope: not found in this Python ({sys.executable}): {error}", file=sys.stderr)
else:
    arm()
elsewhere = [p for p in sys.path if os.path.abspath(p or ".") != here]
spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
if spec is not None and spec.loader is not None:
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)
'''


def site_folder(folder: Path) -> Path:
    """Write what a Python process runs at its start into a folder, and return the folder for ``PYTHONPATH``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
    return folder


def arm() -> None:
    """Install the hooks as soon as this process has imported torch, where the environment orders it."""
    if ORDER not in os.environ:
        return
    tell("armed", python=sys.executable)
    sys.meta_path.insert(0, _TorchFinder())


def order() -> dict[str, Any]:
    """Return what is to be done."""
    said: dict[str, Any] = json.loads(os.environ[ORDER])
    return said


def tell(what: str, **more: Any) -> None:
    """Add a line for the command that waits; a process of a training must not end because it cannot be written."""
    try:
        line = json.dumps({"what": what, "process": os.getpid(), **more}) + "\n"
        with Path(order()["report"]).open("a", encoding="utf-8") as file:
            file.write(line)
    except (OSError, ValueError, KeyError):
        return


class _TorchFinder(importlib.abc.MetaPathFinder):
    """Finds torch as it would be found without, and has the hooks installed when it has been loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the specification of torch with a loader around its own; None for anything else."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module with its own loader, then installs the hooks."""

    def __init__(self, own: importlib.abc.Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then install the hooks; a failure there goes into the report and no further."""
        self._own.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        module.__loader__ = self._own
        try:
            from .unattended import install

            said = order()
            install(Path(said["out"]), int(said["steps"]), os.environ.get(MODEL, ""), tell)
        except Exception as error:
            tell("failed", error=f"{type(error).__name__}: {error}")
