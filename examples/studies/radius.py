"""The paper's Figure 3 at CPU size: ρ(A̅) through training by learning rate. Do the runs that diverge learn ρ ≥ 1?

    python examples/studies/radius.py runs/evidence      # reads the 80 runs of learning_rates.toml

A run has *learned* ρ ≥ 1 when ρ(A̅) was at least 1 in 20 steps on end, as rule LS020 asks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from loopscope.dashboard.colours import INK
from study import (
    ARCHITECTURES,
    COLOURS,
    SHORT,
    Result,
    add_band,
    alone,
    chosen,
    learning_rate_runs,
    panels,
    rates,
    share,
    table,
)

HELD_FOR = 20  # steps


def learned(radius: np.ndarray) -> bool:
    """Return whether ρ stayed at 1 or above for `HELD_FOR` steps on end."""
    return bool(np.convolve(radius >= 1.0, np.ones(HELD_FOR), mode="valid").max() >= HELD_FOR)


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = learning_rate_runs(folder, jobs)
    result = Result()
    shown = [name for name in ARCHITECTURES if not name.startswith("addition")]
    chart = panels([SHORT[name] for name in shown], ["step"] * len(shown), legend=4)
    for column, name in enumerate(shown, start=1):
        for lr, colour in zip(rates(runs), COLOURS, strict=True):
            of_cell = chosen(runs, name, lr)
            lines = [each.run["a_bar_radius"] for each in of_cell]
            add_band(chart, column, of_cell[0].run["step"], lines, f"lr {lr:g}", colour, legend=column == 1)
        chart.add_hline(y=1.0, line={"width": 1, "dash": "dot", "color": INK}, col=column)
    chart.update_yaxes(title_text="ρ(A̅)", col=1)
    result.figures["radius"] = chart
    rows = []
    for name in shown:
        for end, words in (("state", "lost by its state"), ("loss", "lost by its loss"), ("", "not lost")):
            of_end = [each for each in chosen(runs, name) if each.lost() == end]
            if of_end:
                count = sum(learned(each.run["a_bar_radius"]) for each in of_end)
                part = result.numbers[f"{name}, {words}: learned ρ(A̅) ≥ 1"] = share(count, len(of_end))
                rows.append([name, words, len(of_end), count, part.text()])
    result.tables["radius"] = table(["architecture", "end", "runs", "learned ρ(A̅) ≥ 1", "share"], rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
