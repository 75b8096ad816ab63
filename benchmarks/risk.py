"""Calibrates the risk that a run is lost, and reports what it is worth on runs that had no part in it.

Trains what is missing of the runs (``risk_runs.py``), sorts them by what became of them (docs/risk.md says what lost
means), and prints the tables of docs/risk.md. With ``--calibrate`` the weights are fitted on the calibration cells and
written to rules/risk.toml; without it the shipped ones are reported. A cut of the cells gives the same tables of fewer
runs.

    python benchmarks/risk.py --out runs/risk --cells 60
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loopscope.rules import risk
from loopscope.runfile.open import open_run
from numpy.typing import NDArray
from risk_fit import fit
from risk_report import report
from risk_rksp import scores_of
from risk_runs import STEPS, Cell, train_missing, unigram_entropy, unigram_loss

Floats = NDArray[np.float64]
LAST = 20  # losses at the end
LOOKED_AT = 53  # cells trained when the signals were chosen: what of them is of the report is left out of it


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run and what became of it.

    Attributes:
        cell: Which run.
        kind: As docs/risk.md defines it.
        columns: What the risk is made of, ``(STEPS,)`` each, the three numbers of our own, and the scores of RKSP of
            report runs.
        fired: First step at which each shipped rule fired.
        seen: Whether it was looked at when the signals were chosen.
    """

    cell: Cell
    kind: str
    columns: dict[str, Floats]
    fired: dict[str, int]
    seen: bool

    @property
    def lost(self) -> bool:
        """Whether it is not healthy."""
        return self.kind != "healthy"


def kind_of(loss: Floats, states: Floats, entropy: float) -> str:
    """Return what became of a run.

    Args:
        loss: ``(STEPS,)``.
        states: State norms of the last three passes of the fixed batch, ``(3, 17)``.
        entropy: Of single bytes of the text, nats.
    """
    end = float(loss[-LAST:].mean())
    best = float(np.nanmin(np.convolve(loss, np.ones(LAST) / LAST, mode="valid")))
    if not np.isfinite(end) or (end > entropy + 0.35 and end > best + 0.35):
        return "diverged"
    if end >= 0.97 * entropy:
        return "stuck"
    if end >= best + 0.5:
        return "worse"
    grown = float(np.median(states[:, 16] / states[:, 8]))
    return "state" if not np.isfinite(grown) or grown >= 4 else "healthy"


def outcomes(runs: list[tuple[Cell, Path]]) -> list[Outcome]:
    """Read runs that are there."""
    from loopscope import diagnose

    found = []
    for number, (cell, path) in enumerate(runs):
        with open_run(path) as run:
            own = {n: np.asarray(run[n]) for n in ("update_ratio", "gradient_cosine", "step_curvature", "lr")}
            columns = {**own, **risk.columns_of(run)}
            if cell.part == "report":
                columns["rksp_start"], columns["rksp"] = scores_of(cell, path)
            kind = kind_of(run["loss"], run.probe("state_norm")[-3:], unigram_loss(cell.seed, LAST))
            fired = {each.rule: each.step for each in diagnose(run).findings if each.state == "fired"}
        found.append(Outcome(cell, kind, columns, fired, number < LOOKED_AT))
    return found


def main() -> None:
    """Train, calibrate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/risk"))
    parser.add_argument("--cells", type=int, default=None, help="only the first so many runs; default: all 240")
    parser.add_argument("--calibrate", action="store_true", help="fit the weights and write rules/risk.toml")
    options = parser.parse_args()
    known = outcomes(train_missing(options.out, options.cells))
    calibrating = [each for each in known if each.cell.part == "calibration"]
    reported = [each for each in known if each.cell.part == "report" and not each.seen]
    print(f"{len(known)} runs of {STEPS} steps; unigram entropy {unigram_entropy():.2f} nats")
    for name, group in (("calibration", calibrating), ("report", reported)):
        print(f"{name}: {len(group)} runs, {dict(Counter(each.kind for each in group))}")
    if options.calibrate:
        text = fit(calibrating)
        (Path(risk.__file__).parent / "risk.toml").write_text(text, encoding="utf-8")
        risk.calibrations.cache_clear()
    report(calibrating, reported)


if __name__ == "__main__":
    main()
