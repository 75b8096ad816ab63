"""loopscope: stability analysis and dynamical-systems diagnostics for looped language models.

    import loopscope

    with loopscope.attach(model, "runs/a.h5") as probe:
        for batch in loader:
            loss = model(batch); loss.backward(); optimizer.step()
            probe.step(loss=loss)

    print(loopscope.diagnose(loopscope.open_run("runs/a.h5")).summary)

Importing the package is light: names are resolved on first use, and reading runs never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .probes.analysis import linearize
    from .probes.description import LoopDescription, describe
    from .probes.diagnosis import Diagnosis, diagnose
    from .probes.probe import Probe, attach
    from .probes.reader import Run, RunFileError, open_run
    from .probes.site import LoopSite

_EXPORTS = {
    "Diagnosis": "probes.diagnosis",
    "LoopDescription": "probes.description",
    "LoopSite": "probes.site",
    "Probe": "probes.probe",
    "Run": "probes.reader",
    "RunFileError": "probes.reader",
    "attach": "probes.probe",
    "describe": "probes.description",
    "diagnose": "probes.diagnosis",
    "linearize": "probes.analysis",
    "open_run": "probes.reader",
}

__all__ = [
    "Diagnosis",
    "LoopDescription",
    "LoopSite",
    "Probe",
    "Run",
    "RunFileError",
    "attach",
    "describe",
    "diagnose",
    "linearize",
    "open_run",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
