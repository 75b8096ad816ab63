"""The paper's Figures 7 and 8 at CPU size: the loss at other depths than the one trained at, and the law it follows.

    python examples/studies/test_depth.py runs/evidence      # 40 runs; every checkpoint is evaluated at ten depths

The law is L(T) = L_∞ + Z exp(−z T), fitted to each run at the end of its training (`loopscope.dynamics`: a law that
does not fit, or whose limit the depths do not tell, is said to be *not identified*).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from loopscope.commands.checkpoints import open_checkpoint
from loopscope.dynamics.trajectory.scaling import depth_law
from loopscope.models import checkpoint
from loopscope.models.depth import loss_at_depths
from study import (
    ARCHITECTURES,
    COLOURS,
    SHORT,
    Recording,
    Result,
    add_band,
    alone,
    chosen,
    mean,
    panels,
    pieces,
    rates,
    share,
    sweep,
    table,
)

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TRAINED = 8  # loops on average
BATCHES = 2  # of eight held-out sequences


def losses(folder: str) -> dict[str, list[float]]:
    """Return the held-out loss at every depth of every checkpoint of a run, by its step."""
    path = Path(folder)
    curves = {}
    for step, file in sorted(checkpoint.steps(path).items()):
        model, data = open_checkpoint(file, "cpu")
        curves[str(step)] = list(loss_at_depths(model, data, DEPTHS, batches=BATCHES).values())
    return curves


def curves(folder: Path, jobs: int) -> tuple[tuple[Recording, ...], dict[str, dict[str, Any]]]:
    """Return the runs, and the losses of each by the name of its file."""
    runs = sweep("test_depth", folder, jobs, "watch")
    items = {each.checkpoint.stem: (str(each.checkpoint),) for each in runs}
    return runs, pieces(folder / "test_depth" / "losses", losses, items, jobs, "loss at all depths")


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs, by_run = curves(folder, jobs)
    result, rows = Result(), []
    chart = panels([SHORT[name] for name in ARCHITECTURES], ["loops at test time"] * 4, legend=2)
    for column, name in enumerate(ARCHITECTURES, start=1):
        for lr, colour in zip(rates(runs), (COLOURS[0], COLOURS[3]), strict=True):
            cell = chosen(runs, name, lr)
            ends = [list(by_run[each.checkpoint.stem].values())[-1] for each in cell]
            add_band(chart, column, DEPTHS, [np.array(end) for end in ends], f"lr {lr:g}", colour, legend=column == 1)
            laws = [depth_law(DEPTHS, end) for end in ends if np.isfinite(end).all()]
            sure = [law for law in laws if law.identified]
            at_mu = {id(law): float(law.loss([TRAINED])[0]) for law in sure}
            numbers = {
                "identified": share(len(sure), len(cell)),
                "z per loop": mean([law.rate for law in sure]),
                "L(8) above L_∞, %": mean([100 * (at_mu[id(law)] / law.limit - 1) for law in sure]),
                "L(32) − L(8), nats": mean([end[-1] - end[DEPTHS.index(TRAINED)] for end in ends]),
            }
            words = f"{name}, lr {lr:g}"
            result.numbers |= {f"{words}: {what}": number for what, number in numbers.items()}
            identified, *others = numbers.values()
            rows.append([name, f"{lr:g}", identified.text(), *(each.text(".3f") for each in others)])
    chart.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16, 32])
    chart.update_yaxes(range=[2.2, 4.5])
    chart.update_yaxes(title_text="held-out loss, nats", col=1)
    result.figures["test_depth"] = chart
    result.tables["test_depth"] = table(["architecture", "lr", *numbers], rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
