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
    "TrajectoryLaw": "trajectory",
    "TrajectoryMap": "trajectory",
    "classify": "trajectory",
    "classify_map": "trajectory",
    "LoopJacobian": "jacobian",
    "jacobian_gap": "jacobian",
    "CausalityError": "per_token",
    "TokenJacobian": "per_token",
    "TokenSpectra": "per_token",
    "check_causality": "per_token",
    "token_jacobians": "per_token",
    "token_spectra": "per_token",
    "LeadingEigenvalues": "krylov",
    "leading_eigenvalues": "krylov",
    "SublayerGain": "attribution",
    "sublayer_gains": "attribution",
    "spectral_radius": "spectrum",
    "spectral_norm": "spectrum",
    "certify_radius": "certificate",
    "verdict": "certificate",
    "SpectralTracker": "tracker",
    "LyapunovSpectrum": "lyapunov",
    "lyapunov_exponents": "lyapunov",
    "token_exponents": "lyapunov",
    "smooth_mean": "lyapunov",
    "FixedPoint": "fixed_point",
    "Search": "fixed_point",
    "find_fixed_point": "fixed_point",
    "fixed_points": "fixed_point",
    "classify_multipliers": "fixed_point",
    "TokenMap": "orbits",
    "token_map": "orbits",
    "detect_periods": "orbits",
    "ModeDecomposition": "dmd",
    "decompose": "dmd",
    "StartDependence": "dependence",
    "InputDependence": "dependence",
    "start_dependence": "dependence",
    "input_dependence": "dependence",
    "SafeDepth": "safe_depth",
    "measured_depth": "safe_depth",
    "predicted_depth": "safe_depth",
    "own_token_step": "per_token",
    "Modes": "response",
    "modes": "response",
    "steady_state_gain": "response",
    "simulate": "response",
    "impulse_response": "response",
    "step_response": "response",
    "controllability_gramian": "gramian",
    "observability_gramian": "gramian",
    "hankel_singular_values": "gramian",
    "h2_norm": "gramian",
    "h_infinity_norm": "hinfinity",
    "pseudospectral_radius": "pseudospectrum",
    "pseudospectrum_on_grid": "pseudospectrum",
    "PeakGrowth": "transient",
    "peak_growth": "transient",
    "numerical_radius": "transient",
    "kreiss_constant": "transient",
    "linearize_loop": "linearize",
    "Linearization": "linearization",
    "FullLoop": "linearization",
    "LinearPart": "linearization",
    "FitQuality": "scaling",
    "DepthLaw": "scaling",
    "ScalingLaw": "scaling",
    "depth_law": "scaling",
    "training_law": "scaling",
    "unified_law": "scaling",
    "SublayerError": "attribution",
}

__all__ = [
    "CausalityError",
    "DepthLaw",
    "Discretized",
    "Estimate",
    "FitQuality",
    "FixedPoint",
    "FullLoop",
    "InputDependence",
    "LTISystem",
    "LeadingEigenvalues",
    "LinearPart",
    "Linearization",
    "LoopJacobian",
    "LyapunovSpectrum",
    "ModeDecomposition",
    "Modes",
    "PeakGrowth",
    "Regime",
    "SafeDepth",
    "ScalingLaw",
    "Search",
    "SpectralTracker",
    "StartDependence",
    "SublayerError",
    "SublayerGain",
    "TokenJacobian",
    "TokenMap",
    "TokenSpectra",
    "TrajectoryLaw",
    "TrajectoryMap",
    "bilinear",
    "certify_radius",
    "check_causality",
    "classify",
    "classify_map",
    "classify_multipliers",
    "controllability_gramian",
    "decompose",
    "depth_law",
    "detect_periods",
    "disagreement",
    "discretization_error",
    "euler",
    "find_fixed_point",
    "fixed_points",
    "h2_norm",
    "h_infinity_norm",
    "hankel_singular_values",
    "impulse_response",
    "input_dependence",
    "jacobian_gap",
    "kreiss_constant",
    "leading_eigenvalues",
    "linearize_loop",
    "loop_regime",
    "lti_regime",
    "lyapunov_exponents",
    "measured_depth",
    "mixture",
    "modes",
    "numerical_radius",
    "observability_gramian",
    "own_token_step",
    "peak_growth",
    "predicted_depth",
    "pseudospectral_radius",
    "pseudospectrum_on_grid",
    "simulate",
    "smooth_mean",
    "spectral_norm",
    "spectral_radius",
    "start_dependence",
    "steady_state_gain",
    "step_response",
    "sublayer_gains",
    "token_exponents",
    "token_jacobians",
    "token_map",
    "token_spectra",
    "training_law",
    "unified_law",
    "verdict",
    "worst",
    "zoh",
]

if TYPE_CHECKING:
    from .attribution import SublayerError as SublayerError
    from .attribution import SublayerGain as SublayerGain
    from .attribution import sublayer_gains as sublayer_gains
    from .certificate import certify_radius as certify_radius
    from .certificate import verdict as verdict
    from .dependence import InputDependence as InputDependence
    from .dependence import StartDependence as StartDependence
    from .dependence import input_dependence as input_dependence
    from .dependence import start_dependence as start_dependence
    from .discretize import Discretized as Discretized
    from .discretize import bilinear as bilinear
    from .discretize import discretization_error as discretization_error
    from .discretize import euler as euler
    from .discretize import mixture as mixture
    from .discretize import zoh as zoh
    from .dmd import ModeDecomposition as ModeDecomposition
    from .dmd import decompose as decompose
    from .estimate import Estimate as Estimate
    from .fixed_point import FixedPoint as FixedPoint
    from .fixed_point import Search as Search
    from .fixed_point import classify_multipliers as classify_multipliers
    from .fixed_point import find_fixed_point as find_fixed_point
    from .fixed_point import fixed_points as fixed_points
    from .gramian import controllability_gramian as controllability_gramian
    from .gramian import h2_norm as h2_norm
    from .gramian import hankel_singular_values as hankel_singular_values
    from .gramian import observability_gramian as observability_gramian
    from .hinfinity import h_infinity_norm as h_infinity_norm
    from .jacobian import LoopJacobian as LoopJacobian
    from .jacobian import jacobian_gap as jacobian_gap
    from .krylov import LeadingEigenvalues as LeadingEigenvalues
    from .krylov import leading_eigenvalues as leading_eigenvalues
    from .linearization import FullLoop as FullLoop
    from .linearization import Linearization as Linearization
    from .linearization import LinearPart as LinearPart
    from .linearize import linearize_loop as linearize_loop
    from .lti import LTISystem as LTISystem
    from .lyapunov import LyapunovSpectrum as LyapunovSpectrum
    from .lyapunov import lyapunov_exponents as lyapunov_exponents
    from .lyapunov import smooth_mean as smooth_mean
    from .lyapunov import token_exponents as token_exponents
    from .orbits import TokenMap as TokenMap
    from .orbits import detect_periods as detect_periods
    from .orbits import token_map as token_map
    from .per_token import CausalityError as CausalityError
    from .per_token import TokenJacobian as TokenJacobian
    from .per_token import TokenSpectra as TokenSpectra
    from .per_token import check_causality as check_causality
    from .per_token import own_token_step as own_token_step
    from .per_token import token_jacobians as token_jacobians
    from .per_token import token_spectra as token_spectra
    from .pseudospectrum import pseudospectral_radius as pseudospectral_radius
    from .pseudospectrum import pseudospectrum_on_grid as pseudospectrum_on_grid
    from .regime import Regime as Regime
    from .regime import disagreement as disagreement
    from .regime import loop_regime as loop_regime
    from .regime import lti_regime as lti_regime
    from .regime import worst as worst
    from .response import Modes as Modes
    from .response import impulse_response as impulse_response
    from .response import modes as modes
    from .response import simulate as simulate
    from .response import steady_state_gain as steady_state_gain
    from .response import step_response as step_response
    from .safe_depth import SafeDepth as SafeDepth
    from .safe_depth import measured_depth as measured_depth
    from .safe_depth import predicted_depth as predicted_depth
    from .scaling import DepthLaw as DepthLaw
    from .scaling import FitQuality as FitQuality
    from .scaling import ScalingLaw as ScalingLaw
    from .scaling import depth_law as depth_law
    from .scaling import training_law as training_law
    from .scaling import unified_law as unified_law
    from .spectrum import spectral_norm as spectral_norm
    from .spectrum import spectral_radius as spectral_radius
    from .tracker import SpectralTracker as SpectralTracker
    from .trajectory import TrajectoryLaw as TrajectoryLaw
    from .trajectory import TrajectoryMap as TrajectoryMap
    from .trajectory import classify as classify
    from .trajectory import classify_map as classify_map
    from .transient import PeakGrowth as PeakGrowth
    from .transient import kreiss_constant as kreiss_constant
    from .transient import numerical_radius as numerical_radius
    from .transient import peak_growth as peak_growth


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
