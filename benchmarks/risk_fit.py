"""Fits limits, weights and constants of the risk on the calibration runs, none of the others.

A signal counts from its lower quartile over the rows of healthy runs on, up to the 90 % quantile over those of lost
ones. Weights are those of a logistic regression with a small ridge, kept at 0 or above; what gets next to none is left
out and the rest fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from loopscope.rules.risk import Calibration, RunRisk, Term
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]
COUNTS: Final = (16, 24, 40, 64, 96, 128)  # rows known when a run is judged, 10 % to 80 % of it
RIDGE: Final = 0.02
LEAST: Final = 0.15  # logits of a part worth keeping
FLOORS: Final = {"loop": 4.5}
"""Least weights set by hand: no calibration run lost nothing but its state, and such a run is lost by definition."""
TERMS: Final = {
    "loop": {
        "loop": ("growth",),
        "injection": ("radius", "descent"),
        "weights": ("readout", "descent"),
        "plateau": ("descent",),
        "rise": ("rise",),
        "gradient": ("gradient",),
    },
    "loss": {
        "plateau": ("descent",),
        "stall": ("stall", "descent"),
        "rise": ("rise",),
        "gradient": ("gradient",),
    },
}
"""Candidates of each basis."""


def rows_of(runs: Sequence[Any], counts: Sequence[int] = COUNTS) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
    """Return the signals of all runs when so many rows are known, one run after the other, and which run is lost."""
    drawn = [RunRisk().all_signals(run.columns) for run in runs]
    at = np.array(counts) - 1
    signals = {name: np.concatenate([each[name][at] for each in drawn]) for name in drawn[0]}
    return signals, np.repeat([run.lost for run in runs], len(at))


def limits(values: Floats, lost: NDArray[np.bool_]) -> tuple[float, float]:
    """Return where a signal begins to count and where it counts in full."""
    known = ~np.isnan(values)
    low, high = float(np.quantile(values[known & ~lost], 0.25)), float(np.quantile(values[known & lost], 0.9))
    return round(low, 3), round(max(high, low + 0.05), 3)


FIXED: Final = {
    "growth": (0.0, 0.4),
    "radius": (0.0, 0.4),
    "rise": (0.05, 0.3),
    "gradient": (0.2, 1.4),
    "stall": (-0.05, 0.0),
}
"""Limits that are not quantiles but what the numbers mean: a loop multiplies from 1 on, and so does ρ(A̅); a loss has
risen for good at the limit of LS012."""


def fit_basis(runs: Sequence[Any], candidates: dict[str, tuple[str, ...]]) -> Calibration:
    """Return the calibration of one basis."""
    signals, lost = rows_of(runs)
    terms = []
    for name, names in candidates.items():
        pairs = [FIXED.get(each) or limits(signals[each], lost) for each in names]
        terms.append(Term(name, names, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), 1.0))
    while True:
        extents = np.stack([term.extent(signals) for term in terms], axis=1)
        constant, weights = regress(extents, lost, [FLOORS.get(term.name, 0.0) for term in terms])
        kept = [(t, w) for t, w in zip(terms, weights, strict=True) if w >= LEAST]
        if len(kept) == len(terms):
            made = (Term(t.name, t.signals, t.lower, t.upper, round(w, 2)) for t, w in kept)
            return Calibration(round(constant, 2), tuple(made))
        terms = [t for t, _ in kept]


def regress(extents: Floats, lost: NDArray[np.bool_], floors: Sequence[float]) -> tuple[float, list[float]]:
    """Return constant and weights of the logistic regression, no weight below its floor."""

    def cost(parameters: Floats) -> tuple[float, Floats]:
        logit = parameters[0] + extents @ parameters[1:]
        p = 1 / (1 + np.exp(-logit))
        loss = np.logaddexp(0, np.where(lost, -logit, logit)).mean() + RIDGE / len(lost) * (parameters[1:] ** 2).sum()
        slope = np.concatenate([[np.mean(p - lost)], extents.T @ (p - lost) / len(lost)])
        slope[1:] += 2 * RIDGE / len(lost) * parameters[1:]
        return float(loss), slope

    bounds = [(None, None), *((floor, None) for floor in floors)]
    found = minimize(cost, np.zeros(1 + extents.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(found[0]), [float(w) for w in found[1:]]


def left_out(runs: Sequence[Any], basis: str = "loop") -> list[Floats]:
    """Return the risk of every row of each run, from a calibration on the runs of other widths and other seeds."""
    found = []
    made: dict[tuple[int, int], Calibration] = {}
    for run in runs:
        key = (run.cell.width, run.cell.seed)
        if key not in made:
            others = [each for each in runs if each.cell.width != key[0] and each.cell.seed != key[1]]
            made[key] = fit_basis(others, TERMS[basis])
        logits = made[key].logits(RunRisk().all_signals(run.columns))
        found.append(np.nan_to_num(1 / (1 + np.exp(-logits))))
    return found


def fit(runs: Sequence[Any]) -> str:
    """Return the text of risk.toml."""
    head = f"# Written by benchmarks/risk.py --calibrate from {len(runs)} runs; what it means: docs/risk.md.\n"
    return head + "".join(as_toml(basis, fit_basis(runs, terms)) for basis, terms in TERMS.items())


def as_toml(basis: str, made: Calibration) -> str:
    """Return a calibration as TOML."""
    lines = [f"\n[{basis}]", f"constant = {made.constant}"]
    for term in made.terms:
        lines += [
            "", f"[[{basis}.part]]", f'name = "{term.name}"',
            f"signals = [{', '.join(f'{chr(34)}{n}{chr(34)}' for n in term.signals)}]",
            f"lower = {list(term.lower)}", f"upper = {list(term.upper)}", f"weight = {term.weight}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"
