"""The depth curve while a model trains: does a quarter of the training tell what more loops will do at its end?

    python examples/studies/depth_in_training.py runs/evidence      # reads the checkpoints of test_depth.toml

Written down beforehand. The curve is the held-out loss at 1 to 32 loops, four times the training depth. With a
tolerance of 0.02 nats its class is

    falls      the loss at 32 loops is lower than at 16 by more than the tolerance
    V          it falls to a smallest value and rises from there by more than the tolerance
    rises      it is smallest at one loop, within the tolerance, and rises from there
    plateau    anything else
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from study import ARCHITECTURES, COLOURS, SHORT, Result, alone, chosen, panels, share, table
from test_depth import DEPTHS, curves

TOLERANCE = 0.02  # nats
CLASSES = ("falls", "plateau", "V", "rises")
EARLY = 0.25  # of the training


def kind(losses: Sequence[float]) -> str:
    """Return the class of a depth curve.

    >>> kind([3, 2.8, 2.7, 2.6, 2.6, 2.6, 2.6, 2.6, 2.6, 2.6]), kind([3, 2.8, 2.7, 2.6, 2.6, 2.6, 2.7, 2.9, 3.3, 4])
    ('plateau', 'V')
    """
    values = np.where(np.isfinite(losses), losses, np.inf)
    if values[-1] > values.min() + TOLERANCE:
        return "V" if values[0] > values.min() + TOLERANCE else "rises"
    return "falls" if values[DEPTHS.index(16)] > values[-1] + TOLERANCE else "plateau"


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs, by_run = curves(folder, jobs)
    result, rows = Result(), []
    steps = sorted(map(int, by_run[runs[0].checkpoint.stem]))
    early = min(steps, key=lambda step: abs(step - EARLY * steps[-1]))
    chart = panels([SHORT[name] for name in ARCHITECTURES], ["step"] * 4, legend=4)
    for column, name in enumerate(ARCHITECTURES, start=1):
        of_kind = [by_run[each.checkpoint.stem] for each in chosen(runs, name)]
        classes = {step: [kind(each[str(step)]) for each in of_kind] for step in steps}
        for each, colour in zip(CLASSES, COLOURS, strict=True):
            parts = [classes[step].count(each) for step in steps]
            chart.add_bar(x=steps, y=parts, name=each, marker_color=colour, showlegend=column == 1, row=1, col=column)
        same = sum(a == b for a, b in zip(classes[early], classes[steps[-1]], strict=True))
        part = result.numbers[f"{name}: class at a quarter is the last one"] = share(same, len(of_kind))
        said = [", ".join(f"{count} {each}" for each, count in Counter(classes[step]).most_common())
                for step in (early, steps[-1])]  # fmt: skip
        rows.append([name, *said, f"{same} of {len(of_kind)}", part.text()])
    chart.update_layout(barmode="stack", bargap=0.1)
    chart.update_yaxes(title_text="runs", col=1)
    result.figures["depth_in_training"] = chart
    head = ["architecture", f"step {early}", f"step {steps[-1]}", "the same", "share"]
    result.tables["depth_in_training"] = table(head, rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
