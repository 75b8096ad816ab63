"""What attaches to a training run and what it leaves behind: taps, run file, detectors, rules, diagnosis.

Names are resolved on first use, so that reading a run never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import linearize
    from .bound import BoundLoop, bound_loop
    from .description import LoopDescription, describe
    from .diagnosis import Diagnosis, diagnose
    from .flight import Flight, FlightStep, read_flight, restore_random
    from .hashing import batch_hash
    from .layout import Event
    from .probe import Probe, attach
    from .reader import Run, RunFileError, open_run
    from .rules import Finding, Rule, load_rules
    from .schedule import Preset, every
    from .site import LoopSite, LoopSiteError, Part

_EXPORTS = {
    "BoundLoop": "bound",
    "Diagnosis": "diagnosis",
    "Event": "layout",
    "Finding": "rules",
    "Flight": "flight",
    "FlightStep": "flight",
    "LoopDescription": "description",
    "LoopSite": "site",
    "LoopSiteError": "site",
    "Part": "site",
    "Preset": "schedule",
    "Probe": "probe",
    "Rule": "rules",
    "Run": "reader",
    "RunFileError": "reader",
    "attach": "probe",
    "bound_loop": "bound",
    "describe": "description",
    "diagnose": "diagnosis",
    "every": "schedule",
    "batch_hash": "hashing",
    "linearize": "analysis",
    "load_rules": "rules",
    "open_run": "reader",
    "read_flight": "flight",
    "restore_random": "flight",
}

__all__ = [
    "BoundLoop",
    "Diagnosis",
    "Event",
    "Finding",
    "Flight",
    "FlightStep",
    "LoopDescription",
    "LoopSite",
    "LoopSiteError",
    "Part",
    "Preset",
    "Probe",
    "Rule",
    "Run",
    "RunFileError",
    "attach",
    "batch_hash",
    "bound_loop",
    "describe",
    "diagnose",
    "every",
    "linearize",
    "load_rules",
    "open_run",
    "read_flight",
    "restore_random",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
