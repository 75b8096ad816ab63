"""When ρ(A̅) < 1 does not suffice, and when ρ(A̅) ≥ 1 does no harm: the linear part beside the full loop.

    python examples/studies/beyond_radius.py runs/evidence      # reads the 80 runs of learning_rates.toml

Of every run the last measurement on the fixed batch: ρ(A̅), the spectral radius of the full loop's Jacobian after 16
loops, its largest Lyapunov exponent, and the ratio of late steps of the recorded trajectory. The loop *expands* where
the exponent is above 0.05 nats per loop, the limit of rule LS040.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from loopscope.dashboard.colours import INK
from study import (
    ARCHITECTURES,
    COLOURS,
    LOG_TICKS,
    Recording,
    Result,
    add_dots,
    alone,
    chosen,
    learning_rate_runs,
    panels,
    share,
    table,
)

EXPANDS = 0.05  # nats per loop


def last(each: Recording, name: str) -> float:
    """Return the last known value of a series, NaN where there is none."""
    values = np.asarray(each.run[name], dtype=np.float64)
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else float("nan")


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = learning_rate_runs(folder, jobs)
    result = Result()
    chart = panels(["Jacobian radius of the full loop", "ratio of late steps"], ["ρ(A̅)", "ρ(A̅)"], legend=4)
    rows = []
    for name, colour in zip(ARCHITECTURES, COLOURS, strict=True):
        of_kind = chosen(runs, name)
        radius = np.array([last(each, "a_bar_radius") for each in of_kind])
        jacobian = np.array([last(each, "jacobian_radius") for each in of_kind])
        exponent = np.array([last(each, "lyapunov_max") for each in of_kind])
        ratio = np.array([last(each, "residual_ratio") for each in of_kind])
        add_dots(chart, 1, radius, jacobian, name, colour, size=6)
        add_dots(chart, 2, radius, ratio, name, colour, size=6)
        for below, words in ((True, "ρ(A̅) < 1"), (False, "ρ(A̅) ≥ 1")):
            inside = (radius < 1.0 - 1e-6) == below
            if inside.any():
                count = int((exponent[inside] > EXPANDS).sum())
                part = result.numbers[f"{name}, {words}: the full loop expands"] = share(count, int(inside.sum()))
                large = sum(not each.state() <= 1e4 for each, at in zip(of_kind, inside, strict=True) if at)
                rows.append([name, words, int(inside.sum()), count, part.text(), large])
    for column in (1, 2):
        chart.update_xaxes(type="log", tickfont_size=LOG_TICKS, col=column)
        chart.update_yaxes(type="log", tickfont_size=LOG_TICKS, col=column)
        chart.add_hline(y=1.0, line={"width": 1, "dash": "dot", "color": INK}, col=column)
        chart.add_vline(x=1.0, line={"width": 1, "dash": "dot", "color": INK}, col=column)
    result.figures["beyond_radius"] = chart
    head = ["architecture", "at the end", "runs", "full loop expands", "share", "state above 1e4"]
    result.tables["beyond_radius"] = table(head, rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
