"""Which number format of the weights is safe at which depth: the predicted loss gap beside the measured one.

    python examples/studies/rounding.py runs/evidence      # 24 models of learning_rates.toml, at 1 to 32 loops

Weights are rounded to bf16, int8, int6 and int4 (one scale a row). The predicted gap comes from the unrounded model's
Jacobians alone. Pairs in which a state left the range of float32 are left out and counted.

Not covered: large models, quantisation schemes that are fitted to data.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from loopscope.commands.checkpoints import open_checkpoint
from loopscope.loops.rounding import FORMATS
from loopscope.loops.rounding import rounding as measure
from scipy.stats import spearmanr
from study import COLOURS, LOG_TICKS, Interval, Result, add_dots, alone, learning_rate_runs, panels, pieces, table

DEPTHS = (1, 2, 4, 8, 16, 32)
SEEDS, HOTTEST = (0, 1), 0.02
SEQUENCES, DRAWS = 8, 1000
SHOWN = (("predicted", "measured"), ("predicted_error", "measured_error"))


def gaps(checkpoint: str) -> list[dict[str, Any]]:
    """Return the predicted and the measured gap of every format and depth of a model."""
    model, data = open_checkpoint(Path(checkpoint), "cpu")
    tokens = next(data.held_out(SEQUENCES))
    rows = measure(model, tokens[:, :-1], tokens[:, 1:], formats=list(FORMATS), depths=DEPTHS).rows
    return [asdict(row) for row in rows]


def agreement(models: list[list[dict[str, Any]]], predicted: str, measured: str) -> Interval:
    """Return the rank correlation over all models and depths, and its bootstrap over models."""

    def of(some: list[list[dict[str, Any]]]) -> float:
        pairs = [(row[predicted], row[measured]) for rows in some for row in rows]
        return float(spearmanr(*np.array(pairs).T).statistic)

    draw = np.random.default_rng(0)
    drawn = [of([models[at] for at in draw.integers(len(models), size=len(models))]) for _ in range(DRAWS)]
    return Interval(of(models), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975)))


def usable(row: dict[str, Any]) -> bool:
    """Return whether both gaps are numbers."""
    return math.isfinite(row["measured"]) and math.isfinite(row["predicted"])


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = [each for each in learning_rate_runs(folder, jobs) if each.seed in SEEDS and each.lr <= HOTTEST]
    items = {each.checkpoint.stem: (str(each.checkpoint),) for each in runs}
    models = list(pieces(folder / "rounding", gaps, items, jobs, "models rounded").values())
    result, rows = Result(), []
    chart = panels(["gap of the loss, nats", "error of the state"], ["predicted", "predicted"], legend=4)
    for name, colour in zip([*FORMATS, "all"], [*COLOURS, ""], strict=True):
        of_format = [[row for row in rows if name in ("all", row["format"])] for rows in models]
        good = [[row for row in rows if usable(row)] for rows in of_format]
        flat = [row for rows in good for row in rows]
        left_out = sum(map(len, of_format)) - len(flat)
        gap = result.numbers[f"{name}: rank correlation of the loss gap"] = agreement(good, "predicted", "measured")
        error = agreement(good, "predicted_error", "measured_error")
        result.numbers[f"{name}: rank correlation of the error of the state"] = error
        miss = float(np.median([abs(row["predicted"] - row["measured"]) for row in flat]))
        largest = max(abs(row["measured"]) for row in flat)
        form = [gap.text(".3f"), error.text(".3f"), f"{miss:.1e}", f"{largest:.1e}"]
        rows.append([name, len(flat), left_out, *form])
        if colour:
            for column, (x, y) in enumerate(
                (("predicted", "measured"), ("predicted_error", "measured_error")), start=1
            ):
                place = [[abs(row[side]) for row in flat[::2]] for side in (x, y)]
                add_dots(chart, column, *place, name, colour, size=4)
    for column in (1, 2):
        for update in (chart.update_xaxes, chart.update_yaxes):
            update(type="log", tickfont_size=LOG_TICKS, exponentformat="power", col=column)
    chart.update_yaxes(title_text="measured", col=1)
    result.figures["rounding"] = chart
    columns = ["format", "pairs", "left out", "rank correlation of the loss gap", "of the error of the state"]
    result.tables["rounding"] = table([*columns, "median miss, nats", "largest gap, nats"], rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
