"""The tables of docs/risk.md: how well the risk and others foretell which runs are lost, and how early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from loopscope.rules.risk import RunRisk, carry
from loopscope.rules.rule_files import load_rules
from numpy.typing import NDArray
from risk_baselines import auroc, gradient_norm, interval, lightning_finite, lightning_spike, llm_foundry, olmo
from risk_fit import left_out
from risk_runs import ARCHITECTURES, EARLY, LATE, STEPS

Floats = NDArray[np.float64]
Score = Callable[[Any], Floats]
HOLD: Final = 8  # steps for which a risk must hold: two drawings
ALARM: Final = 1.0  # score of a published rule from which on it has spoken
LOSS_RULES: Final = ("LS010", "LS011", "LS012")
BINS: Final = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.0)


def risk_from(names: Sequence[str] | None = None) -> Score:
    """Return the risk of every row, from some columns only."""

    def score(run: Any) -> Floats:
        columns = {n: v for n, v in run.columns.items() if names is None or n in names}
        return np.nan_to_num(RunRisk().replay(columns))

    return score


def published(rule: Callable[..., Floats], **settings: float) -> Score:
    """Return the score of a published rule."""
    return lambda run: rule(run.columns["loss"], run.columns["grad_norm"], **settings)


def recorded(name: str, sign: float = 1.0) -> Score:
    """Return one recorded number."""
    return lambda run: sign * np.nan_to_num(carry(run.columns[name]), nan=-math.inf if sign > 0 else math.inf)


SCORES: Final[dict[str, Score]] = {
    "**risk**": risk_from(),
    "risk, loss alone": risk_from(("loss", "nonfinite")),
    "gradient norm": published(gradient_norm),
    "gradient norm, small is bad": lambda run: -published(gradient_norm)(run),
    "Lightning, not finite": published(lightning_finite),
    "Lightning, SpikeDetection": published(lightning_spike),
    "llm-foundry, as published": published(llm_foundry),
    "llm-foundry, window 16": published(llm_foundry, window=16),
    "OLMo, as published": published(olmo),
    "OLMo, window 24": published(olmo, window=24),
    "RKSP near-unit mass, at initialisation": recorded("rksp_start"),
    "RKSP near-unit mass, now": recorded("rksp"),
    "ρ(A̅)": recorded("a_bar_radius"),
    "residual_ratio": recorded("residual_ratio"),
    "learning rate": recorded("lr"),
    "update-to-weight ratio": recorded("update_ratio"),
    "cosine of gradients": recorded("gradient_cosine"),
    "curvature along the update": recorded("step_curvature"),
}


def report(calibrating: Sequence[Any], reported: Sequence[Any]) -> None:
    """Print everything."""
    for count, share in ((EARLY, "10 %"), (LATE, "25 %")):
        discrimination(reported, count, f"AUROC at {share} ({count} of {STEPS} rows), report runs")
    reliability(reported)
    thresholds(calibrating)
    alarms(reported)
    signals_table(calibrating)


def discrimination(runs: Sequence[Any], count: int, title: str) -> None:
    """Print the AUROC of every score."""
    lost = np.array([run.lost for run in runs])
    print(f"\n{title}: {int(lost.sum())} of {len(lost)} lost\n")
    print(f"| score | {' | '.join(ARCHITECTURES)} | all | 95 % |\n|---|{'---|' * (len(ARCHITECTURES) + 2)}")
    for name, score in SCORES.items():
        at = np.array([score(run)[count - 1] for run in runs])
        cells = []
        for architecture in ARCHITECTURES:
            here = np.array([run.cell.architecture == architecture for run in runs])
            cells.append(shown(auroc(at[here], lost[here])))
        low, high = interval(at, lost)
        print(f"| {name} | {' | '.join(cells)} | {shown(auroc(at, lost))} | {shown(low)} … {shown(high)} |")


def shown(value: float) -> str:
    """Return an AUROC with three digits."""
    return "" if math.isnan(value) else f"{value:.3f}"


def reliability(runs: Sequence[Any]) -> None:
    """Print what became of runs with a risk in each range."""
    lost = np.array([run.lost for run in runs], dtype=float)
    for count in (EARLY, LATE, STEPS // 2):
        risk = np.array([risk_from()(run)[count - 1] for run in runs])
        place = np.clip(np.digitize(risk, BINS) - 1, 0, len(BINS) - 2)
        brier, base = float(np.mean((risk - lost) ** 2)), float(np.mean((lost.mean() - lost) ** 2))
        print(f"\nreliability after {count} rows: Brier {brier:.3f} (always the share of lost runs: {base:.3f})\n")
        print("| risk | runs | mean risk | lost |\n|---|---|---|---|")
        for number in range(len(BINS) - 1):
            here = place == number
            if here.any():
                span = f"{BINS[number]:g} to {BINS[number + 1]:g}"
                print(f"| {span} | {int(here.sum())} | {risk[here].mean():.2f} | {lost[here].mean():.2f} |")


def held(risk: Floats, hold: int = HOLD) -> float:
    """Return the largest risk that was held for so many steps."""
    if len(risk) <= hold:
        return 0.0
    return float(np.lib.stride_tricks.sliding_window_view(risk, hold + 1).min(axis=1).max())


def thresholds(runs: Sequence[Any]) -> None:
    """Print how high the risk of calibration runs went and stayed, each judged by a calibration without its like."""
    peaks = [(held(risk), run.lost) for risk, run in zip(left_out(runs), runs, strict=True)]
    healthy = sorted((peak for peak, lost in peaks if not lost), reverse=True)
    lost = sorted(peak for peak, lost in peaks if lost)
    print(f"\ncalibration runs, left out, largest risk held for {HOLD} steps: "
          f"healthy {[round(p, 2) for p in healthy[:5]]}, lost {[round(p, 2) for p in lost[:5]]} …")  # fmt: skip


def alarms(runs: Sequence[Any]) -> None:
    """Print hits, false alarms and how many steps were left when each rule spoke."""
    ours = {rule.id: f"{rule.id} {rule.name}" for rule in load_rules() if rule.id in ("LS070", "LS071", *LOSS_RULES)}
    found: dict[str, list[int | None]] = {
        name: [run.fired.get(identifier) for run in runs] for identifier, name in ours.items()
    }
    others = {name: score for name, score in SCORES.items() if name.startswith(("Lightning", "llm", "OLMo"))}
    for name, score in others.items():
        found[name] = [first(score(run) >= ALARM) for run in runs]
    lost = [run.lost for run in runs]
    print(f"\nalarms within {STEPS} steps: steps left when it spoke, 0 where it did not, median over lost runs\n")
    print("| rule | lost runs found | alarms on healthy runs | steps left |\n|---|---|---|---|")
    for name, steps in found.items():
        hits = sum(step is not None for step, bad in zip(steps, lost, strict=True) if bad)
        false = sum(step is not None for step, bad in zip(steps, lost, strict=True) if not bad)
        left = [0 if step is None else STEPS - step for step, bad in zip(steps, lost, strict=True) if bad]
        print(f"| {name} | {hits} of {sum(lost)} | {false} of {len(lost) - sum(lost)} | {np.median(left):.0f} |")


def first(holds: NDArray[np.bool_]) -> int | None:
    """Return the first row at which something holds."""
    return int(np.argmax(holds)) if holds.any() else None


def signals_table(runs: Sequence[Any]) -> None:
    """Print what each signal alone is worth on the calibration runs, by which the parts were chosen."""
    lost = np.array([run.lost for run in runs])
    drawn = [RunRisk().all_signals(run.columns) for run in runs]
    print(f"\nsignals alone after {LATE} rows, calibration runs: AUROC\n")
    print(f"| signal | {' | '.join(ARCHITECTURES)} | all |\n|---|{'---|' * (len(ARCHITECTURES) + 1)}")
    for name in [n for n in drawn[0] if n not in ("loop", "lost", "broken")]:
        at = np.array([each[name][LATE - 1] for each in drawn])
        cells = []
        for architecture in (*ARCHITECTURES, None):
            here = np.array([architecture in (None, run.cell.architecture) for run in runs]) & ~np.isnan(at)
            cells.append(shown(auroc(at[here], lost[here])))
        print(f"| `{name}` | {' | '.join(cells)} |")
