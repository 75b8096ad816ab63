"""The paper's Figures 2 and 9 at CPU size: training loss and state norm by learning rate, four architectures.

python examples/studies/loss_and_state.py runs/evidence      # reads the 80 runs of learning_rates.toml
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from study import (
    ARCHITECTURES,
    COLOURS,
    LARGEST_FLOAT,
    LOG_TICKS,
    SHORT,
    Result,
    add_band,
    alone,
    chosen,
    learning_rate_runs,
    mean,
    panels,
    rates,
    smooth,
    table,
)


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = learning_rate_runs(folder, jobs)
    result = Result()
    loss_chart = panels([SHORT[name] for name in ARCHITECTURES], ["step"] * 4, legend=4)
    state_chart = panels([SHORT[name] for name in ARCHITECTURES], ["step"] * 4, legend=4)
    rows = []
    for column, name in enumerate(ARCHITECTURES, start=1):
        for lr, colour in zip(rates(runs), COLOURS, strict=True):
            of_cell = chosen(runs, name, lr)
            steps = of_cell[0].run["step"]
            label, legend = f"lr {lr:g}", column == 1
            losses = [smooth(each.run["loss"]) for each in of_cell]
            norms = [np.minimum(np.nan_to_num(each.run["last_state_norm"], nan=LARGEST_FLOAT), LARGEST_FLOAT)
                     for each in of_cell]  # fmt: skip
            add_band(loss_chart, column, steps, losses, label, colour, legend=legend)
            add_band(state_chart, column, steps, norms, label, colour, legend=legend)
            loss = mean([each.loss() for each in of_cell])
            state = mean([math.log10(max(each.state(), 1e-30)) for each in of_cell])
            result.numbers[f"{name}, lr {lr:g}: last loss, nats"] = loss
            result.numbers[f"{name}, lr {lr:g}: log10 of the state norm after 16 loops"] = state
            rows.append([name, f"{lr:g}", loss.text(), state.text(".1f")])
    loss_chart.update_yaxes(range=[2.0, 6.0])
    loss_chart.update_yaxes(title_text="loss, nats", col=1)
    state_chart.update_yaxes(type="log", tickfont_size=LOG_TICKS, exponentformat="power", range=[0, 12])
    state_chart.update_yaxes(title_text="‖h_T‖, last loop of the step", col=1)
    result.figures = {"loss": loss_chart, "state": state_chart}
    head = ["architecture", "lr", "loss of the last ten steps", "log₁₀ ‖h‖ after 16 loops"]
    result.tables["loss_and_state"] = table(head, rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
