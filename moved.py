"""Where modules lived before: old import paths keep working.

``loopscope.probes`` once held four ideas in one folder. Notebooks and training scripts that import
``loopscope.probes.reader`` or ``loopscope.dynamics.lti`` find the same names there: an old path gives a module that
looks each name up where it lives now. New code imports from the new place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

_BY_FOLDER: Final = {
    ("probes", "loops"): "adapters analysis bound call description discovery least_squares linear_part neutral periods "
    "site trace",
    ("probes", "runfile"): "arrays export growing layout reader staging writer",
    ("probes", "runfile.disk"): "handle heaps integrity lease proven repair rewrite superblock",
    ("probes", "runfile.ranks"): "companions merge merged_run",
    ("probes", "rules"): "detectors expression live_rules spikes",
    ("probes", "probes.measure"): "fixed_batch full_loop fused group hashing inside sums transfer",
    ("dynamics", "dynamics.linear"): "arnoldi certificate circle discretize golub_kahan gramian hinfinity "
    "norm_bound pseudospectrum response spectrum tracker transient",
    ("dynamics", "dynamics.loop"): "attribution jacobian krylov linearization linearize per_token",
    ("dynamics", "dynamics.trajectory"): "dependence dmd fixed_point lyapunov orbits safe_depth scaling",
    ("", "commands"): "checkpoints demo progress training",
}
_SPLIT: Final = {
    "dynamics.lti": ("dynamics.linear.lti", "dynamics.linear.spectrum"),
    "probes.diagnosis": ("rules.diagnosis", "rules.regimes"),
    "probes.flight": ("runfile.flights", "probes.flight_recorder", "probes.random_states"),
    "probes.ranks": ("runfile.rank_names",),
    "probes.reader": ("runfile.reader", "runfile.open"),
    "probes.rules": ("rules.rule_files", "rules.findings", "rules.judging", "rules.series"),
    "probes.reduction": ("probes.measure.reduction", "probes.measure.fastest"),
    "probes.site": ("loops.site", "loops.find"),
    "probes.tap": ("probes.measure.tap", "loops.hooks"),
}
MOVED: Final[dict[str, tuple[str, ...]]] = {
    f"{old}.{name}".strip("."): (f"{new}.{name}",) for (old, new), names in _BY_FOLDER.items() for name in names.split()
} | _SPLIT
"""Old module, relative to ``loopscope``: the modules that hold its names now."""


class OldPaths:
    """Finds the modules of ``MOVED`` under their old paths. Asked after all other finders."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of an old path, None for any other module."""
        package, _, inner = name.partition(".")
        return ModuleSpec(name, OldPaths) if package == __package__ and inner in MOVED else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        """Make a module that hands on the names of its successors."""
        homes = MOVED[spec.name.partition(".")[2]]
        module = ModuleType(spec.name, f"Moved to {', '.join(f'loopscope.{home}' for home in homes)}.")

        def get(name: str) -> Any:
            for home in homes:
                successor = import_module(f".{home}", __package__)
                if hasattr(successor, name):
                    return getattr(successor, name)
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")

        module.__getattr__ = get  # type: ignore[method-assign]
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Do nothing: names are looked up when they are asked for."""


def install() -> None:
    """Make the old paths importable; installing twice changes nothing."""
    if OldPaths not in sys.meta_path:
        sys.meta_path.append(OldPaths)
