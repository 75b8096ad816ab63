"""A loop without a run: from a few settings to the numbers that say whether it is stable, and why.

The loop is h[t+1] = A̅ h[t] + B̅ e + R̅(h[t]); the blocks are stood for by R̅(h) = g·Q tanh(h) with an orthogonal Q, whose
Lipschitz constant is the gain g. All that is random is drawn once per width, so the same settings are the same loop.

Not covered: how it is drawn (`explorer_figures`), what a regime is (`dynamics.regime`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from ..dynamics.linear.discretize import Discretized, bilinear, discretization_error, euler, mixture, zoh
from ..dynamics.linear.lti import LTISystem
from ..dynamics.linear.pseudospectrum import pseudospectrum_on_grid
from ..dynamics.linear.transient import PeakGrowth, numerical_radius, peak_growth
from ..dynamics.regime import Regime, Views
from ..dynamics.trajectory.trajectory import classify, late_window

Floats = NDArray[np.float64]

KINDS: Final = ("addition", "concatenation", "parcae", "matrix", "run")
SCHEMES: Final = {"mixture": mixture, "zoh": zoh, "euler": euler, "bilinear": bilinear}
WIDEST: Final = 32
GRID: Final = 21
"""Points along a side of the square of pseudospectra; odd, so that the real axis is among them."""
LARGEST: Final = 1e6  # of an entry of a matrix typed in
LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "delta": (0.05, 4.0),
    "rate": (0.05, 4.0),
    "norm": (0.05, 8.0),
    "skew": (0.0, 10.0),
    "width": (2, WIDEST),
    "loops": (4, 96),
    "gain": (0.0, 3.0),
}
SPREAD: Final = 2.0  # Parcae's channels decay at rates from rate/SPREAD to rate·SPREAD


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The settings of the explorer; as text, they are the address of its page.

    Attributes:
        kind: One of `KINDS`.
        delta: Step size Δ of Parcae.
        rate: Decay rate −A of Parcae's middle channel.
        norm: σ_max of the part W[:, :d] of the concatenation that multiplies the state.
        skew: Non-normality of that part: norm of what is above its diagonal, in Schur form, over the radius of
            what is on it; 0 is a normal matrix.
        width: Width d of the state.
        loops: Loops that are run.
        gain: Gain g of the block.
        scheme: Discretisation rule of Parcae; the paper's is the mixture.
        matrix: A̅ as text, rows behind semicolons.
        run: Id of the run whose A̅ is taken.
        at: Step from whose A̅ on, as text; empty for the newest.
        contours: ``on`` to draw pseudospectra.
    """

    kind: str = "parcae"
    delta: float = 0.8
    rate: float = 1.0
    norm: float = 0.9
    skew: float = 0.0
    width: int = 16
    loops: int = 32
    gain: float = 0.0
    scheme: str = "mixture"
    matrix: str = "0.9 4; 0 0.8"
    run: str = ""
    at: str = ""
    contours: str = ""


PRESETS: Final[Mapping[str, tuple[Sandbox, str]]] = {
    "Addition": (Sandbox(kind="addition"), "A̅ is the identity: nothing is forgotten, the state drifts. Marginal."),
    "Concatenation at rest": (
        Sandbox(kind="concatenation", norm=1.2, skew=1.6),
        "W as at the start of a training: the loop forgets. But nothing keeps W small while it learns.",
    ),
    "Concatenation, hot": (
        Sandbox(kind="concatenation", norm=3.0, skew=1.6),
        "A high learning rate has let W grow: every loop multiplies the state. Unstable.",
    ),
    "Grows before it decays": (
        Sandbox(kind="concatenation", norm=2.6, skew=10.0, loops=64, contours="on"),
        "ρ(A̅) < 1, yet W is far from normal: the state grows for several loops before it decays. Contours: "
        "where eigenvalues go when A̅ changes by 10⁻³ to 0.3; some leave the circle.",
    ),
    "Parcae": (
        Sandbox(kind="parcae"),
        "A̅ = exp(ΔA) with A < 0: below one whatever Δ and A are. Move both sliders and try.",
    ),
}


def sandbox_of(asked: Mapping[str, Any]) -> Sandbox:
    """Read settings out of an address or of a page's controls; what cannot be read stays at its default.

    >>> sandbox_of({"kind": "addition", "width": "8", "gain": "9e9", "delta": "nan", "loops": None})
    Sandbox(kind='addition', delta=0.8, rate=1.0, norm=0.9, skew=0.0, width=8, loops=32, gain=3.0, scheme='mixture', \
matrix='0.9 4; 0 0.8', run='', at='', contours='')
    """
    plain = Sandbox()
    chosen: dict[str, Any] = {}
    for field in fields(Sandbox):
        default, given = getattr(plain, field.name), asked.get(field.name)
        if field.name == "kind":
            chosen[field.name] = given if given in KINDS else default
        elif field.name == "scheme":
            chosen[field.name] = given if given in SCHEMES else default
        elif field.name == "contours":
            chosen[field.name] = "on" if given in ("on", ["on"]) else default
        elif isinstance(default, str):
            chosen[field.name] = given[:8000] if isinstance(given, str) else default
        else:
            value = _number(given, default, LIMITS[field.name])
            chosen[field.name] = round(value) if isinstance(default, int) else value
    return Sandbox(**chosen)


def _number(given: Any, default: float, limits: tuple[float, float]) -> float:
    """Read a number and keep it within its limits."""
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        return default
    return default if math.isnan(value) else min(max(value, limits[0]), limits[1])


def query(sandbox: Sandbox) -> str:
    """Return the part of the address that stands for some settings, without those at their default.

    >>> query(Sandbox(kind="addition", width=8))
    '?kind=addition&width=8'
    """
    plain = Sandbox()
    given = {field.name: getattr(sandbox, field.name) for field in fields(Sandbox)}
    changed = {name: value for name, value in given.items() if value != getattr(plain, name) or name == "kind"}
    return "?" + urlencode({name: f"{v:g}" if isinstance(v, float) else v for name, v in changed.items()})


def parse_matrix(text: str) -> Floats:
    """Read a square matrix: rows behind semicolons or line ends, numbers behind blanks or commas.

    Raises:
        ValueError: It is no such matrix, is too wide, or holds numbers that are too large; one line says which.

    >>> parse_matrix("0.9 4; 0 0.8").tolist()
    [[0.9, 4.0], [0.0, 0.8]]
    """
    rows = [row.replace(",", " ").split() for row in text.replace("\n", ";").split(";") if row.strip()]
    if not rows:
        raise ValueError("There is no matrix: write rows behind semicolons, as in 0.9 4; 0 0.8.")
    wrong = next((row for row in rows if len(row) != len(rows)), None)
    if wrong is not None:
        raise ValueError(f"The matrix must be square: {len(rows)} rows, but one has {len(wrong)} numbers.")
    if len(rows) > WIDEST:
        raise ValueError(f"The matrix may have at most {WIDEST} rows; found {len(rows)}.")
    try:
        matrix = np.array([[float(entry) for entry in row] for row in rows])
    except ValueError:
        raise ValueError("The matrix may hold numbers only.") from None
    if not (np.abs(matrix) <= LARGEST).all():
        raise ValueError(f"The entries of the matrix must be finite and at most {LARGEST:g}.")
    return matrix


@lru_cache(maxsize=WIDEST + 1)
def _drawn(width: int) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return what is random at a width: a Schur basis, a normal part of radius 1 in it, an upper part of norm 1, an
    orthogonal matrix for the block, and two unit vectors (start, input) as rows.
    """
    from scipy.linalg import schur

    rng = np.random.default_rng(width)
    triangle, basis = schur(rng.normal(size=(width, width)), output="real")
    normal = np.diag(np.diag(triangle))
    for i in range(width - 1):
        if triangle[i + 1, i] != 0:  # a 2×2 block: LAPACK's has equal diagonal entries; as a rotation it is normal
            turn = math.sqrt(abs(triangle[i, i + 1] * triangle[i + 1, i]))
            normal[i, i + 1], normal[i + 1, i] = turn, -turn
    upper = np.triu(triangle - normal, 1)
    normal /= np.abs(np.linalg.eigvals(normal)).max()
    size = float(np.linalg.norm(upper, 2))
    block = np.linalg.qr(rng.normal(size=(width, width)))[0]
    vectors = rng.normal(size=(2, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return basis, normal, upper / size if size > 0 else upper, block, vectors


def linear_part(sandbox: Sandbox, recorded: Floats | None = None) -> LTISystem:
    """Return A̅ and B̅ of some settings.

    Args:
        sandbox: The settings.
        recorded: A̅ of the run that they name.

    Raises:
        ValueError: A matrix was typed in that is none, or the settings name no run that has an A̅.
    """
    width = sandbox.width
    if sandbox.kind == "run":
        if recorded is None:
            raise ValueError("Choose a run above whose A̅ or whose spectrum was recorded.")
        return LTISystem(recorded)
    if sandbox.kind == "addition":
        return LTISystem(1.0, width=width)
    if sandbox.kind == "matrix":
        return LTISystem(parse_matrix(sandbox.matrix))
    if sandbox.kind == "parcae":
        return LTISystem(*SCHEMES[sandbox.scheme](rates(sandbox), sandbox.delta))
    basis, normal, upper, _, _ = _drawn(width)
    shape = normal + sandbox.skew * upper
    return LTISystem(basis @ (shape * (sandbox.norm / np.linalg.norm(shape, 2))) @ basis.T)


def rates(sandbox: Sandbox) -> Floats:
    """Return A of Parcae's channels: negative, spread around the middle one by the factor `SPREAD` either way."""
    return -sandbox.rate * np.geomspace(1 / SPREAD, SPREAD, sandbox.width)


@dataclass(frozen=True, slots=True)
class Explored:
    """What some settings give; T loops, width d.

    Attributes:
        eigenvalues: Of A̅, ``(d,)``, largest modulus first.
        full: Of the Jacobian of the full loop at the last state, ``(d,)``; empty without a block.
        powers: ‖A̅^t‖₂ for t = 0 … T.
        lower: ρ(A̅)^t, which no power falls below.
        upper: The smallest of σ_max^t, 2w^t (w: numerical radius) and the peak's upper bound: no power exceeds it.
        peak: The largest power of all.
        radius: ρ(A̅).
        norm: σ_max(A̅).
        alone: ‖h_t‖ without the block, ``(T + 1,)``.
        blocked: ‖h_t‖ with it; empty without a block.
        regimes: ``lti``, ``loop``, ``trajectory``.
        verdict: The one verdict made of them.
        reason: Why, in sentences.
        system: The linear part.
    """

    eigenvalues: NDArray[np.complex128]
    full: NDArray[np.complex128]
    powers: Floats
    lower: Floats
    upper: Floats
    peak: PeakGrowth
    radius: float
    norm: float
    alone: Floats
    blocked: Floats
    regimes: dict[str, Regime]
    verdict: Regime
    reason: str
    system: LTISystem


def explore(sandbox: Sandbox, recorded: Floats | None = None) -> Explored:
    """Compute everything that the page shows of some settings but the discretisation rules.

    Args:
        sandbox: The settings.
        recorded: A̅ of the run that they name.

    Raises:
        ValueError: A matrix was typed in that is none, or the settings name no run that has an A̅.
    """
    system = linear_part(sandbox, recorded)
    loops, radius, norm = sandbox.loops, system.spectral_radius().value, system.spectral_norm().value
    with np.errstate(over="ignore", invalid="ignore"):
        t = np.arange(loops + 1.0)
        peak = peak_growth(system)
        bounds = norm**t, 2 * numerical_radius(system).upper ** t, np.full(loops + 1, peak.growth.upper)
        upper = np.minimum.reduce(bounds)
        alone = _states(system, 0.0, loops)
        states = _states(system, sandbox.gain, loops) if sandbox.gain > 0 else alone
        full, log_radius, exponent = _full_loop(system, sandbox.gain, states)
        seen = _views(radius, log_radius, exponent, states, steady=sandbox.gain == 0)
        sizes = [np.linalg.norm(one, axis=1) for one in (alone, states)]
        lower, powers = radius**t, power_norms(system, loops)
    linear = _linear_words(sandbox, radius, norm, peak, seen.regimes["lti"])
    return Explored(
        eigenvalues=system.eigenvalues(),
        full=full,
        powers=powers,
        lower=lower,
        upper=np.maximum(upper, powers),  # rounding only
        peak=peak,
        radius=radius,
        norm=norm,
        alone=sizes[0],
        blocked=sizes[1] if sandbox.gain > 0 else sizes[1][:0],
        regimes=seen.regimes,
        verdict=seen.verdict,
        reason=" ".join(filter(None, (linear, seen.sentence))),
        system=system,
    )


def landscape(system: LTISystem, reach: float, far: bool) -> tuple[Floats, Floats]:
    """Return what pseudospectra are contours of, over the square in which the eigenvalues are drawn.

    Args:
        system: The linear part.
        reach: Half the side of the square.
        far: Whether distances outside the unit circle are drawn logarithmically (`loop_figures.drawn_radius`).

    Returns:
        Places along both sides ``(n,)``, and log10 of the smallest change of A̅ that makes a point an eigenvalue
        ``(n, n)``.
    """
    places = np.linspace(-reach, reach, GRID if system.width <= WIDEST else GRID // 2 + 1)
    upper = places[places >= -1e-12]
    if far:
        drawn = places[np.newaxis, :] + 1j * upper[:, np.newaxis]
        size = np.abs(drawn)
        points = drawn * np.where(size > 1, np.exp(size - 1) / np.maximum(size, 1e-300), 1.0)
        heights = np.array([[pseudospectrum_on_grid(system, [z.real], [z.imag])[0, 0] for z in row] for row in points])
    else:
        heights = pseudospectrum_on_grid(system, places, upper)
    logs = np.log10(np.maximum(heights, 1e-16))  # a real matrix looks the same below the axis
    return places, np.concatenate([logs[:0:-1], logs])


def power_norms(system: LTISystem, loops: int) -> Floats:
    """Return ‖A̅^t‖₂ for t = 0 … loops.

    >>> power_norms(LTISystem([[0.5, 10.0], [0.0, 0.5]]), 2).round(2).tolist()
    [1.0, 10.02, 10.01]
    """
    if system.a_bar.ndim < 2:
        powers: Floats = system.spectral_radius().value ** np.arange(loops + 1.0)
        return powers
    power, norms = np.eye(system.width), [1.0]
    for _ in range(loops):
        power = power @ system.a_bar
        norms.append(float(np.linalg.norm(power, 2)) if np.isfinite(power).all() else math.inf)
    return np.array(norms)


def _states(system: LTISystem, gain: float, loops: int) -> Floats:
    """Run the loop: states ``(loops + 1, d)``."""
    a, b, _ = system.dense()
    _, _, _, block, (start, given) = _drawn(system.width)
    injected, states = b @ given, [start]
    for _ in range(loops):
        h = states[-1]
        states.append(a @ h + injected + (gain * (block @ np.tanh(h)) if gain else 0.0))
    return np.array(states)


def _full_loop(system: LTISystem, gain: float, states: Floats) -> tuple[NDArray[np.complex128], float, float]:
    """Return eigenvalues of the full loop's Jacobian at the last state, log of their radius, and λ₁ of the late loops.

    Without a block the full loop is A̅, which the other figures show.
    """
    none = np.empty(0, np.complex128), math.nan, math.nan
    if gain <= 0 or not np.isfinite(states).all():
        return none
    a, _, _ = system.dense()
    block = gain * _drawn(system.width)[3]
    slopes = 1 - np.tanh(states) ** 2
    vector, growth = np.ones(system.width), []
    for slope in slopes[:-1]:
        vector = a @ vector + block @ (slope * vector)
        size = float(np.linalg.norm(vector))
        if not 0 < size < math.inf:
            return none
        growth.append(math.log(size))
        vector /= size
    values = np.linalg.eigvals(a + block * slopes[-1]).astype(np.complex128)
    values = values[np.argsort(-np.abs(values))]
    return values, math.log(max(float(np.abs(values[0])), 1e-300)), float(np.mean(growth[late_window(len(growth)) :]))


def _views(radius: float, log_radius: float, exponent: float, states: Floats, *, steady: bool) -> Views:
    """Return what linear part, full loop and trajectory say together."""
    updates = np.diff(states, axis=0)
    residual = np.linalg.norm(updates, axis=1)
    turned = np.sum(updates[1:] * updates[:-1], axis=1) / (residual[1:] * residual[:-1])
    law = classify(residual, np.append(math.nan, turned), np.linalg.norm(states, axis=1))
    return law.beside(radius, log_radius, exponent, steady=steady)


def _linear_words(sandbox: Sandbox, radius: float, norm: float, peak: PeakGrowth, lti: Regime) -> str:
    """Say what A̅ alone does."""
    does = {
        "stable": f"each loop keeps {radius:.3g} of what the slowest direction carried",
        "marginal": "what the slowest direction carries is kept",
        "unstable": f"each loop multiplies the state by up to {radius:.3g} in the long run",
    }.get(lti, "")
    words = [f"ρ(A̅) = {radius:.4g}: {does}."]
    if sandbox.kind == "parcae" and sandbox.scheme in ("mixture", "zoh") and radius < 1 and lti == "marginal":
        words.append("It is below 1 for any Δ and A, but so close to 1 that it counts as the edge.")
    top = peak.growth.value
    if lti != "unstable" and math.isfinite(top) and top > 1.05:
        words.append(f"Before that, a state can grow {top:.3g}× (at loop {peak.loop}), because σ_max(A̅) = {norm:.3g}.")
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Rule:
    """One discretisation rule at some Δ and A: its matrices, and how far they are from the exact ones."""

    name: str
    stepped: Discretized
    a_error: float
    b_error: float

    @property
    def radius(self) -> float:
        """ρ(A̅)."""
        return float(np.abs(self.stepped.a_bar).max())


def rules(sandbox: Sandbox) -> list[Rule]:
    """Return the rules side by side, for Parcae's channels; ``zoh`` is the exact one."""
    a = rates(sandbox)
    errors = discretization_error(a, sandbox.delta) | {"zoh": (0.0, 0.0)}
    return [Rule(name, rule(a, sandbox.delta), *errors[name]) for name, rule in SCHEMES.items()]
