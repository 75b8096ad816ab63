"""The loop as a dynamical system: arrays and callables in, numbers with their status out.

Names are resolved when they are first used, so that ``import loopscope.dynamics`` stays light: only the modules that
need a live PyTorch model import torch.

Not covered: reading run files (``loopscope.probes``) and drawing (``loopscope.dashboard``).
"""

from importlib import import_module
from typing import TYPE_CHECKING

_EXPORTS = {
    "Estimate": "estimate",
    "Regime": "regime",
    "lti_regime": "regime",
    "loop_regime": "regime",
    "worst": "regime",
    "disagreement": "regime",
    "LTISystem": "lti",
    "Discretized": "discretize",
    "zoh": "discretize",
    "euler": "discretize",
    "bilinear": "discretize",
    "mixture": "discretize",
    "discretization_error": "discretize",
}

__all__ = [
    "Discretized",
    "Estimate",
    "LTISystem",
    "Regime",
    "bilinear",
    "disagreement",
    "discretization_error",
    "euler",
    "loop_regime",
    "lti_regime",
    "mixture",
    "worst",
    "zoh",
]

if TYPE_CHECKING:
    from .discretize import Discretized as Discretized
    from .discretize import bilinear as bilinear
    from .discretize import discretization_error as discretization_error
    from .discretize import euler as euler
    from .discretize import mixture as mixture
    from .discretize import zoh as zoh
    from .estimate import Estimate as Estimate
    from .lti import LTISystem as LTISystem
    from .regime import Regime as Regime
    from .regime import disagreement as disagreement
    from .regime import loop_regime as loop_regime
    from .regime import lti_regime as lti_regime
    from .regime import worst as worst


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too, for completion."""
    return sorted({*globals(), *__all__})
