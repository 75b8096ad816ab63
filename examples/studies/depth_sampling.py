"""The paper's Figures 10 and 11 at CPU size: does one depth for each sequence, not each batch, remove spikes?

    python examples/studies/depth_sampling.py runs/evidence      # 20 runs beside those of learning_rates.toml

Written down before the runs with a depth for each sequence were made. A *spike* is an event ``loss_spike`` of the run
file. The residual of a step is the norm of the last update of its loop; a *jump* of it is a residual of more than ten
times the median of the 20 steps before, which shallow steps alone do not reach. A spike comes *with* a jump where one
is at most two steps away.
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
    chosen,
    learning_rate_runs,
    mean,
    panels,
    rates,
    share,
    smooth,
    sweep,
    table,
)

SAMPLINGS = ("per-batch", "per-sequence")
BEFORE, NEAR = 20, 2  # steps
TIMES = 10


def spikes(each: Recording) -> np.ndarray:
    """Return the steps at which a spike of the loss began."""
    return np.array([event.step for event in each.run.events if event.kind == "loss_spike"], dtype=int)


def jumps(each: Recording) -> np.ndarray:
    """Return the steps whose residual is more than `TIMES` the median of those before."""
    residual = each.run["last_residual_norm"]
    level = [np.nanmedian(residual[at - BEFORE : at]) for at in range(BEFORE, len(residual))]
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(residual[BEFORE:] > TIMES * np.array(level)) + BEFORE


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    drawn = sweep("depth_sampling", folder, jobs)
    hot = rates(drawn)
    by_sampling = {"per-batch": learning_rate_runs(folder, jobs), "per-sequence": drawn}
    result = Result()
    shown = [(name, sampling) for name in ("concatenation, pre-norm", "Parcae, pre-norm") for sampling in SAMPLINGS]
    titles = [f"{name.split(',')[0]}, {sampling.removeprefix('per-')}" for name, sampling in shown]
    chart = panels(titles, ["step"] * 4, legend=2)
    rows, together, alone_jumps, steps = [], [0, 0], 0, 0
    for column, (name, sampling) in enumerate(shown, start=1):
        for lr, colour in zip(hot, COLOURS[2:], strict=True):
            runs = chosen(by_sampling[sampling], name, lr)
            lines = [smooth(each.run["last_residual_norm"], 1) for each in runs]
            add_band(chart, column, runs[0].run["step"], lines, f"lr {lr:g}", colour, legend=column == 1)
            counts, bursts = mean([len(spikes(each)) for each in runs]), mean([len(jumps(each)) for each in runs])
            spread = mean([float(np.log10(np.nanmax(line) / np.nanmedian(line))) for line in lines])
            lost = share(sum(bool(each.lost()) for each in runs), len(runs))
            words = f"{name}, lr {lr:g}, {sampling}"
            result.numbers |= {f"{words}: spikes a run": counts, f"{words}: jumps of the residual": bursts,
                               f"{words}: lost": lost}  # fmt: skip
            rows.append([name, f"{lr:g}", sampling, counts.text(".1f"), bursts.text(".1f"), spread.text(), lost.text()])
            for each in runs:
                spiked, jumped = spikes(each), jumps(each)
                near = [bool((np.abs(jumped - at) <= NEAR).any()) for at in spiked]
                together[0], together[1] = together[0] + sum(near), together[1] + len(near)
                reached = {at for jump in jumped for at in range(jump - NEAR, jump + NEAR + 1)}
                alone_jumps, steps = alone_jumps + len(reached), steps + len(lines[0]) - BEFORE
    chart.update_yaxes(type="log", tickfont_size=LOG_TICKS, exponentformat="power", range=[-1, 10])
    chart.update_yaxes(title_text="‖h_T − h_{T−1}‖", col=1)
    result.figures["depth_sampling"] = chart
    head = [
        "architecture",
        "lr",
        "depth drawn",
        "spikes a run",
        "jumps of the residual",
        "log₁₀ largest / median",
        "lost",
    ]
    result.tables["depth_sampling"] = table(head, rows)
    if together[1]:
        result.numbers["spikes that come with a jump"] = share(*together)
    result.numbers["steps that are near a jump"] = share(min(alone_jumps, steps), steps)
    lines = [[what, value.text()] for what, value in list(result.numbers.items())[-2:]]
    result.tables["spikes_and_jumps"] = table(["what", "share"], lines)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
