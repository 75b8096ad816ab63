"""How the loss falls with loops, parameters and tokens: fits of the paper's laws, with an honest account of what they
determine.

The depth law is fitted to the losses of one model at several test-time depths, the training law to the final losses
of many models, the unified law to losses of many models at many depths.

Not covered: choosing the law (a good fit of one form is no evidence against another), and extrapolation beyond the
data: standard errors describe the fit, not the form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_float64

Vector = NDArray[np.float64]

# Transition of the Huber loss from square to absolute value, on the logarithm of the loss, as in the paper.
HUBER_DELTA: Final = 1e-3
# A coefficient counts as determined when its standard error is below this share of it.
DETERMINED: Final = 0.5
UNDETERMINED: Final = "these depths do not determine all coefficients"
# Log-likelihood by which the exponential law must beat its rivals: odds of 20 to 1.
RIVAL_EVIDENCE: Final = 3.0
# Below so many depths an F test of a trend has no power: there the deepest loss must not stand above the lowest by more
# than the scatter.
FEW_DEPTHS: Final = 8
# Level of the F test by which a trend in log T must be ruled out.
TREND: Final = 0.98
# A trend against the fall, a loss that turns and rises, counts from less: when there is a hint of it, and
# every doubling of the depth takes back more than this part of what depth has gained.
TURNING: Final = 0.4
TURNS_BACK: Final = 0.0075


@dataclass(frozen=True, slots=True)
class FitQuality:
    """What is known about the coefficients of a fitted law.

    Attributes:
        standard_errors: One standard error per coefficient, in its unit, from the curvature at the optimum and the
            scatter of the residuals; infinite when the data cannot determine it.
        condition: Condition number of the sensitivities (columns scaled to unit length): large when coefficients can
            trade for one another.
        worst_error: Largest relative error of the law on its own data.
        agreeing: Number of random restarts that ended within 1 % of the best objective; 1 of many is a warning.
        restarts: Number of random restarts made.
        converged: Whether the optimiser met its tolerance.
    """

    standard_errors: dict[str, float]
    condition: float
    worst_error: float
    agreeing: int
    restarts: int
    converged: bool


@dataclass(frozen=True, slots=True)
class DepthLaw:
    """L(T) = limit + amplitude · exp(−rate · T).

    Attributes:
        limit: Loss at infinite depth, L_∞, nats.
        amplitude: Z, nats; negative when the loss rises with depth.
        rate: z > 0, per loop.
        quality: Standard errors under ``limit``, ``amplitude``, ``rate``, widened for the few depths they rest on, so
            that ± 2 of them are meant to hold the coefficient in 95 of 100 cases (measured: docs/theory.md, section
            10).
        depths: The depths it was fitted to.
        residuals: Law minus loss at each of them, nats.
        doubt: Why the coefficients are not identified; empty when they are.
    """

    limit: float
    amplitude: float
    rate: float
    quality: FitQuality
    depths: tuple[float, ...]
    residuals: tuple[float, ...]
    doubt: str

    def loss(self, depths: object) -> Vector:
        """Return the predicted loss at these depths, nats."""
        return self.limit + self.amplitude * np.exp(-self.rate * as_float64(depths, "depths"))

    @property
    def identified(self) -> bool:
        """Whether the law fits, no law without this limit fits as well, and all coefficients are known to half their
        size.
        """
        return not self.doubt


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """L = E + X·N^(−x) + Y·D^(−y), and + Z·exp(−z·T/μ) in the unified law.

    Attributes:
        coefficients: ``E``, ``X``, ``x``, ``Y``, ``y`` and, in the unified law, ``Z``, ``z``; all positive.
        quality: Standard errors under the same names.
    """

    coefficients: dict[str, float]
    quality: FitQuality

    def loss(self, parameters: object, tokens: object, relative_depth: object | None = None) -> Vector:
        """Predicted loss in nats for N effective parameters, D tokens and, in the unified law, test depth T/μ."""
        features = [np.log(as_float64(parameters, "parameters")), np.log(as_float64(tokens, "tokens"))]
        if ("Z" in self.coefficients) != (relative_depth is not None):
            raise ValueError("relative_depth belongs to the unified law, and only to it")
        if relative_depth is not None:
            features.append(as_float64(relative_depth, "relative_depth"))
        c = self.coefficients
        terms = [c[big] * np.exp(-c[small] * f) for (big, small), f in zip(_PAIRS, features, strict=False)]
        return np.asarray(c["E"] + sum(terms), dtype=np.float64)

    @property
    def identified(self) -> bool:
        """Whether the data determine all coefficients to within half of their size."""
        return _determined(self.quality, self.coefficients)


_PAIRS: Final = (("X", "x"), ("Y", "y"), ("Z", "z"))


def depth_law(depths: object, losses: object) -> DepthLaw:
    """At which loss does more test-time depth stop helping? Least-squares fit of L(T) = L_∞ + Z e^{−zT}.

    For each rate the other two coefficients follow from linear least squares, so the fit is a search over one number:
    a grid over all rates the depths can resolve, refined around its best. Cost: milliseconds.

    Args:
        depths: Test-time depths T ``(n,)`` in loops, at least four different ones.
        losses: Losses ``(n,)`` in nats.

    Returns:
        DepthLaw; look at ``identified`` before using ``limit``: losses that do not saturate within the depths cannot
        determine it.

    Raises:
        ValueError: Fewer than four different depths, unequal lengths or non-finite entries.

    Source: arXiv 2604.12946 (test-time depth law); variable projection, Golub and Pereyra, SIAM J. Numer. Anal. 10
    (1973) 413-432.

    >>> law = depth_law([1, 2, 4, 8, 16], [2 + 3 * math.exp(-0.5 * t) for t in (1, 2, 4, 8, 16)])
    >>> round(law.limit, 6), round(law.amplitude, 6), round(law.rate, 6), law.identified
    (2.0, 3.0, 0.5, True)
    """
    from scipy.optimize import minimize_scalar
    from scipy.stats import t as student

    times, values = as_float64(depths, "depths"), as_float64(losses, "losses")
    if times.ndim != 1 or times.shape != values.shape or np.unique(times).size < 4:
        raise ValueError(
            f"depths and losses must be vectors of one length with at least 4 different depths; "
            f"found shapes {times.shape} and {values.shape}"
        )

    def solve(log_rate: float) -> tuple[float, Vector]:
        """Return the best limit and amplitude for one rate, and the sum of squares they leave."""
        # Measured from the first depth, so that a fast decay does not underflow before it.
        design = np.stack([np.ones_like(times), np.exp(-math.exp(log_rate) * (times - times.min()))], axis=1)
        coefficients = np.linalg.lstsq(design, values, rcond=None)[0]
        return float(np.sum((design @ coefficients - values) ** 2)), coefficients

    gaps = np.diff(np.unique(times))
    logs = np.linspace(math.log(0.01 / np.ptp(times)), math.log(20 / gaps.min()), 200)
    best = int(np.argmin([solve(log)[0] for log in logs]))
    bounds = (logs[max(best - 1, 0)], logs[min(best + 1, logs.size - 1)])
    refined = minimize_scalar(lambda log: solve(log)[0], bounds=bounds, method="bounded", options={"xatol": 1e-10})
    rate = math.exp(float(refined.x))
    limit, first = (float(v) for v in solve(float(refined.x))[1])
    amplitude = first * math.exp(min(rate * float(times.min()), 700.0))
    decay = np.exp(-rate * times)
    sensitivities = np.stack([np.ones_like(times), decay, -amplitude * times * decay], axis=1)
    residuals = limit + amplitude * decay - values
    errors, condition = _standard_errors(sensitivities, residuals)
    # The scatter of few points is known badly: the quantile of Student's distribution says how badly.
    errors = [error * float(student.ppf(0.975, max(times.size - 3, 1))) / 2 for error in errors]
    quality = FitQuality(
        dict(zip(("limit", "amplitude", "rate"), errors, strict=True)),
        condition,
        float(np.abs(residuals / values).max()),
        1,
        1,
        bool(refined.success) and 0 < best < logs.size - 1,
    )
    determined = _determined(quality, {"limit": limit, "amplitude": amplitude, "rate": rate})
    doubt = _misfit(times, values, residuals, rate) or ("" if determined else UNDETERMINED)
    return DepthLaw(limit, amplitude, rate, quality, tuple(times), tuple(residuals), doubt)


def _misfit(times: Vector, losses: Vector, residuals: Vector, rate: float) -> str:
    """Return why the law is not believed although it was fitted; empty when nothing speaks against it.

    It has rivals with as many coefficients, a power law and a logarithm after a transient, which have other limits or
    none. It must beat each of them clearly, and its misfit must have no trend in log T.
    """
    t, y, rest = times, losses, residuals
    if t.size < 5:
        return "four depths cannot test a law of three coefficients"
    squares = float(rest @ rest)
    noise = 1e-18 * float(y @ y)
    if t.size < FEW_DEPTHS and y[t.argmax()] - y.min() > math.sqrt((squares + noise) / (t.size - 3)):
        return "the loss is lowest before the deepest depth, and so few depths cannot tell whether it rises"
    level, taken_back = _trend(t, y, rate, squares, noise)
    if level > TREND:
        return "what the law leaves has a trend in log T: the loss goes on moving where the law is at its limit"
    if level > TURNING and taken_back > TURNS_BACK:
        return f"the loss may turn: as fitted, each doubling of the depth takes back {taken_back:.1%} of its gain"
    for name, shapes in _RIVALS:
        rival = min(_left_over(np.stack([np.ones_like(t), *columns], axis=1), y) for columns in shapes(t))
        if t.size / 2 * math.log((rival + noise) / (squares + noise)) < RIVAL_EVIDENCE:
            return f"{name} fits these depths as well, with another limit"
    return ""


def _trend(t: Vector, losses: Vector, rate: float, squares: float, noise: float) -> tuple[float, float]:
    """Return what a term in log T, next to the law, is worth.

    First how surely it improves on the law: 1 minus the level of an F test. Second which part of the fall (or rise) of
    the exponential term it takes back at every doubling of T; negative where it goes the same way.
    """
    from scipy.stats import f

    fits = []
    for r in rate * np.geomspace(0.5, 6.0, 60):
        design = np.stack([np.ones_like(t), np.exp(-r * (t - t.min())), np.log(t)], axis=1)
        coefficients = np.linalg.lstsq(design, losses, rcond=None)[0]
        fits.append((float(np.sum((design @ coefficients - losses) ** 2)), coefficients[1], coefficients[2]))
    left, fall, slope = min(fits, key=lambda fit: fit[0])
    ratio = (squares - left) / ((left + noise) / (t.size - 4))
    taken_back = math.log(2) * slope / fall if fall else math.inf
    return float(f.cdf(ratio, 1, t.size - 4)), float(taken_back)


def _left_over(design: Vector, values: Vector) -> float:
    """Return the sum of squares that least squares leaves."""
    return float(np.sum((design @ np.linalg.lstsq(design, values, rcond=None)[0] - values) ** 2))


def _power_laws(t: Vector) -> list[list[Vector]]:
    """Return the columns of ``a + b (t + s)^-p`` for a grid of p and s."""
    return [[(t + s) ** -p] for p in np.geomspace(0.1, 6, 60) for s in (0.0, 1.0)]


def _logarithms(t: Vector) -> list[list[Vector]]:
    """Return the columns of ``a + b log(t + s)``, alone and after a transient that lasts a loop or two."""
    return [[np.log(t + s)] for s in (0.0, 1.0)] + [[np.log(t), np.exp(-z * (t - t.min()))] for z in (1.0, 2.0)]


_RIVALS: Final = (("a power law", _power_laws), ("a logarithm, which has no limit,", _logarithms))


def training_law(
    parameters: object, tokens: object, losses: object, *, restarts: int = 500, seed: int = 0
) -> ScalingLaw:
    """How do final losses follow from size and data? Fit of L = E + X·N^(−x) + Y·D^(−y) as in the paper.

    Huber loss (δ = 1e-3) on the logarithm of the loss, L-BFGS from many random starts, the best of them polished on
    the same objective. Cost: about 10 ms per restart.

    Args:
        parameters: Effective parameters N ``(n,)``, positive.
        tokens: Training tokens D ``(n,)``, positive.
        losses: Final losses ``(n,)`` in nats, positive.
        restarts: Random starts, at least 1.
        seed: Seed of the starts.

    Returns:
        ScalingLaw with E, X, x, Y, y. X and x trade for each other when N spans less than a decade: see ``quality``.

    Raises:
        ValueError: Fewer than six points, unequal lengths, or entries that are not positive and finite.

    Source: arXiv 2604.12946; the procedure of Hoffmann et al., arXiv 2203.15556, approach 3.

    >>> n, d = (m.ravel() for m in np.meshgrid(np.geomspace(1e8, 3e9, 5), np.geomspace(1e9, 1e11, 5)))
    >>> law = training_law(n, d, 2.5 + 5e5 * n**-0.77 + 2e4 * d**-0.5, restarts=10)
    >>> round(law.coefficients["E"], 4), round(law.coefficients["x"], 4), law.identified
    (2.5, 0.77, True)
    """
    logs = [_logarithm(parameters, "parameters"), _logarithm(tokens, "tokens")]
    return _fit(logs, _logarithm(losses, "losses"), restarts, seed)


def unified_law(
    relative_depths: object,
    parameters: object,
    tokens: object,
    losses: object,
    *,
    restarts: int = 500,
    seed: int = 0,
) -> ScalingLaw:
    """Fit one law for training and test-time depth: L = E + X·N^(−x) + Y·D^(−y) + Z·exp(−z·T/μ).

    Fitted like :func:`training_law`, with seven coefficients.

    Args:
        relative_depths: Test depth over mean training depth, T/μ_rec, ``(n,)``, not negative.
        parameters: Effective parameters N(μ_rec) ``(n,)``, positive.
        tokens: Training tokens D ``(n,)``, positive.
        losses: Losses ``(n,)`` in nats, positive.
        restarts: Random starts, at least 1.
        seed: Seed of the starts.

    Returns:
        ScalingLaw with E, X, x, Y, y, Z, z.

    Raises:
        ValueError: Fewer than eight points, unequal lengths, or entries out of range.

    Source: arXiv 2604.12946 (unified law).

    >>> grids = np.meshgrid([0.25, 0.5, 1.0, 2.0], np.geomspace(1e8, 3e9, 4), np.geomspace(1e9, 1e11, 4))
    >>> t, n, d = (m.ravel() for m in grids)
    >>> losses = 2.5 + 5e5 * n**-0.77 + 2e4 * d**-0.5 + 1.2 * np.exp(-4 * t)
    >>> law = unified_law(t, n, d, losses, restarts=10)
    >>> round(law.coefficients["Z"], 3), round(law.coefficients["z"], 3)
    (1.2, 4.0)
    """
    depths = as_float64(relative_depths, "relative_depths")
    if depths.size and depths.min() < 0:
        raise ValueError(f"relative_depths must not be negative; found {depths.min()}")
    logs = [_logarithm(parameters, "parameters"), _logarithm(tokens, "tokens"), depths]
    return _fit(logs, _logarithm(losses, "losses"), restarts, seed)


def _logarithm(values: object, name: str) -> Vector:
    """Return the natural logarithm of positive numbers; raise for others, saying which."""
    array = as_float64(values, name)
    if array.size == 0 or array.min() <= 0:
        raise ValueError(f"{name} must be positive; found {array.min() if array.size else 'no entries'}")
    return np.log(array)


def _fit(features: list[Vector], log_losses: Vector, restarts: int, seed: int) -> ScalingLaw:
    """Fit log L = log(e^{c₀} + Σ_k e^{c_k − s_k f_k}) for features f_k, with slopes s_k kept positive."""
    count, terms = log_losses.size, len(features)
    if any(f.shape != log_losses.shape or f.ndim != 1 for f in features):
        raise ValueError(f"all inputs must be vectors of one length; found {[f.shape for f in features]}")
    needed = 2 * terms + 2
    if count < needed or restarts < 1:
        raise ValueError(f"{needed - 1} coefficients need {needed} points and a restart; found {count} and {restarts}")
    # Centred features make offsets and slopes nearly independent of each other.
    middles = [float(f.mean()) for f in features]
    centred = np.stack([f - m for f, m in zip(features, middles, strict=True)])
    best, ends, success = _best_of(centred, log_losses, restarts, seed)
    slopes = np.exp(best[terms + 1 :])
    offsets = np.append(best[:1], best[1 : terms + 1] + slopes * np.array(middles))
    coefficients = {"E": math.exp(offsets[0])}
    for (big, small), offset, slope in zip(_PAIRS, offsets[1:], slopes, strict=False):
        coefficients |= {big: math.exp(offset), small: float(slope)}
    residuals, jacobian = _residuals(best, centred, log_losses)
    errors, condition = _standard_errors(_in_coefficients(jacobian, slopes, middles, coefficients), residuals)
    # Sensitivities come in the order of the dictionary: E, X, x, Y, y, …
    quality = FitQuality(
        dict(zip(coefficients, errors, strict=True)),
        condition,
        float(np.abs(np.expm1(residuals)).max()),
        int(np.sum(ends <= ends.min() * 1.01 + 1e-9)),
        restarts,
        success,
    )
    return ScalingLaw(coefficients, quality)


def _best_of(centred: Vector, log_losses: Vector, restarts: int, seed: int) -> tuple[Vector, Vector, bool]:
    """Run L-BFGS from random starts, then polish the best by a second-order method on the same Huber objective."""
    from scipy.optimize import least_squares, minimize

    rng, terms = np.random.default_rng(seed), len(centred)
    level = float(log_losses.mean())

    def objective(point: Vector) -> tuple[float, Vector]:
        """Return the mean Huber loss in units of δ², and its gradient."""
        residuals, jacobian = _residuals(point, centred, log_losses)
        scaled = residuals / HUBER_DELTA
        inside = np.abs(scaled) <= 1
        values = np.where(inside, scaled**2 / 2, np.abs(scaled) - 0.5)
        return float(values.mean()), (np.clip(scaled, -1, 1) @ jacobian) / (HUBER_DELTA * scaled.size)

    ends, points = np.empty(restarts), []
    # Offsets anywhere from a hundredth to the whole of the loss, slopes from 0.05 to 5.
    bounds = [(level - 12, level + 3)] * (terms + 1) + [(math.log(1e-3), math.log(20))] * terms
    for i in range(restarts):
        start = np.concatenate(
            [
                level + rng.uniform(math.log(0.01), 0, terms + 1),
                rng.uniform(math.log(0.05), math.log(5), terms),
            ]
        )
        minimum = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000})
        ends[i] = minimum.fun
        points.append(minimum.x)
    polished = least_squares(
        _part(centred, log_losses, 0),
        points[int(ends.argmin())],
        jac=_part(centred, log_losses, 1),
        loss="huber",
        f_scale=HUBER_DELTA,
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
        max_nfev=2000,
    )
    point = np.asarray(polished.x, dtype=np.float64)
    return point, ends, bool(polished.success)


def _part(centred: Vector, log_losses: Vector, which: int) -> Callable[[Vector], Vector]:
    """Return the residuals (0) or their Jacobian (1) as a function of the point alone."""
    return lambda point: _residuals(point, centred, log_losses)[which]


def _residuals(point: Vector, centred: Vector, log_losses: Vector) -> tuple[Vector, Vector]:
    """Return the errors of the predicted log loss, and their derivatives by offsets and by logarithms of slopes."""
    terms = len(centred)
    slopes = np.exp(point[terms + 1 :, None])
    exponents = np.vstack([np.full((1, log_losses.size), point[0]), point[1 : terms + 1, None] - slopes * centred])
    top = exponents.max(0)
    weights = np.exp(exponents - top)
    total = weights.sum(0)
    shares = weights / total
    jacobian = np.vstack([shares, -shares[1:] * slopes * centred]).T
    return top + np.log(total) - log_losses, jacobian


def _in_coefficients(jacobian: Vector, slopes: Vector, middles: list[float], coefficients: dict[str, float]) -> Vector:
    """Turn derivatives by centred offsets and log slopes into derivatives by the coefficients themselves."""
    terms = len(slopes)
    columns = [jacobian[:, 0] / coefficients["E"]]
    for k, (big, _) in enumerate(_PAIRS[:terms]):
        offset = jacobian[:, k + 1]
        columns.append(offset / coefficients[big])
        # At a fixed coefficient, a larger slope also lowers the offset at the middle of the feature.
        columns.append(jacobian[:, terms + 1 + k] / slopes[k] - middles[k] * offset)
    return np.stack(columns, axis=1)


def _standard_errors(sensitivities: Vector, residuals: Vector) -> tuple[list[float], float]:
    """Return standard errors from sensitivities and scatter, and the condition number of columns of unit length."""
    count, unknowns = sensitivities.shape
    lengths = np.linalg.norm(sensitivities, axis=0)
    if not (lengths > 0).all() or count <= unknowns:
        return [math.inf] * unknowns, math.inf
    _, singular, right = np.linalg.svd(sensitivities / lengths, full_matrices=False)
    condition = float(singular[0] / singular[-1]) if singular[-1] > 0 else math.inf
    # Beyond 1e10 half of the digits of the residuals are gone, and nothing can be said about single coefficients.
    if condition > 1e10:
        return [math.inf] * unknowns, condition
    scatter = math.sqrt(float(residuals @ residuals) / (count - unknowns))
    spread = np.sqrt(((right.T / singular) ** 2).sum(1)) / lengths
    return [float(scatter * s) for s in spread], condition


def _determined(quality: FitQuality, coefficients: dict[str, float]) -> bool:
    """Return whether the optimiser converged and every standard error is below half of its coefficient."""
    errors = quality.standard_errors
    return quality.converged and all(errors[name] < DETERMINED * abs(value) for name, value in coefficients.items())
