"""The paper's Figures 17 to 23 at CPU size: what the norm of the prelude's output holds, and where states grow.

    python examples/studies/prelude_norm.py runs/evidence      # 20 runs that measure everything

Parcae with three blocks in the prelude and two in the loop, with and without the norm of e. Beside the spectral norms
of A̅, B̅ and C_out stands what C_out does to the states it sees; beside the norms by loop, those by block.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from study import (
    COLOURS,
    LOG_TICKS,
    Recording,
    Result,
    add_band,
    alone,
    mean,
    panels,
    rates,
    share,
    sweep,
    table,
)

KINDS = {True: "with prelude norm", False: "without"}
NORMS = {"a_bar_norm": "σ(A̅)", "b_bar_norm": "σ(B̅)", "c_out_norm": "σ(C_out)", "c_out_gain": "gain of C_out"}
BLOCKS = ["prelude 1", "prelude 2", "prelude 3", "injection", "loop 1", "loop 2"]


def known(each: Recording, name: str) -> np.ndarray:
    """Return a series with the values between two measurements filled in from the one before."""
    values = np.asarray(each.run[name], dtype=np.float64)
    at = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[at]


def by_loop(each: Recording) -> np.ndarray:
    """Return the norms of the fixed batch's states after each loop, last pass."""
    return np.asarray(each.run.probe("state_norm")[-1], dtype=np.float64)


def by_block(each: Recording) -> np.ndarray:
    """Return the norms after each block of the prelude, the injection and the blocks of the first loop, at the end."""
    return np.asarray(each.run.array_table("block_state_norm")[1][-1], dtype=np.float64)


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = sweep("prelude_norm", folder, jobs, "study")
    result, rows = Result(), []
    hot = rates(runs)[-1]
    training = panels([f"{words}, lr {hot:g}" for words in KINDS.values()], ["step"] * 2, legend=4)
    inside = panels(["after each loop", "after each block"], ["loop", ""], legend=2)
    for column, (norm, words) in enumerate(KINDS.items(), start=1):
        for lr in rates(runs):
            cell = [each for each in runs if each.config["model"]["prelude_norm"] == norm and each.lr == lr]
            blocks = np.array([by_block(each) for each in cell])
            numbers = {
                "last loss, nats": mean([each.loss() for each in cell]),
                "norm of e": mean([float(each.run["input_norm"][-1]) for each in cell]),
                "largest block of the prelude": mean([float(block[:3].max()) for block in blocks]),
                "state after the injection over e": mean(
                    [float(block[3] / each.run["input_norm"][-1]) for block, each in zip(blocks, cell, strict=True)]
                ),
                "state after 16 loops": mean([each.state() for each in cell]),
                "σ(C_out)": mean([float(known(each, "c_out_norm")[-1]) for each in cell]),
                "gain of C_out": mean([float(known(each, "c_out_gain")[-1]) for each in cell]),
                "lost": share(sum(bool(each.lost()) for each in cell), len(cell)),
            }
            result.numbers |= {f"{words}, lr {lr:g}: {what}": number for what, number in numbers.items()}
            rows.append([words, f"{lr:g}", *(number.text() for number in numbers.values())])
            if lr != hot:
                continue
            for (name, label), colour in zip(NORMS.items(), COLOURS, strict=True):
                lines = [known(each, name) for each in cell]
                add_band(training, column, cell[0].run["step"], lines, label, colour, legend=column == 1)
            loops = [by_loop(each)[1:] for each in cell]
            add_band(inside, 1, range(1, len(loops[0]) + 1), loops, words, COLOURS[2 * column - 1])
            add_band(inside, 2, range(len(BLOCKS)), list(blocks), words, COLOURS[2 * column - 1], legend=False)
    for chart, title in ((training, "norm"), (inside, "norm of the state")):
        chart.update_yaxes(type="log", tickfont_size=LOG_TICKS)
        chart.update_yaxes(title_text=title, col=1)
    inside.update_xaxes(tickvals=list(range(len(BLOCKS))), ticktext=BLOCKS, col=2)
    result.figures = {"norms_in_training": training, "norms_inside": inside}
    head = ["prelude norm", "lr", *(what for what in numbers)]
    result.tables["prelude_norm"] = table(head, rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
