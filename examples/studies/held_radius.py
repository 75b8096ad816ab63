"""The causal test: is ρ(A̅) the cause of the divergence, or its companion?

    python examples/studies/held_radius.py runs/evidence      # 15 runs beside those of learning_rates.toml

Pre-norm concatenation. Beside each run stands its twin, equal in every draw, in which ρ(A̅) is scaled back to 0.95 after
every step of the optimizer. Nothing else differs.
"""

from __future__ import annotations

import math
from pathlib import Path

import loopscope
from loopscope.causes.trained import ChangedTraining, Intervention, hold_radius
from loopscope.models.run_config import RunConfig
from loopscope.runfile.layout import RunFileError
from study import (
    COLOURS,
    LOG_TICKS,
    Result,
    add_dots,
    alone,
    chosen,
    learning_rate_runs,
    mean,
    panels,
    pieces,
    rates,
    recording,
    share,
    table,
)

NAME = "concatenation, pre-norm"
COOLEST = 0.01  # the rates below it harm nothing


def train_held(config: dict, out: str) -> bool:
    """Train a run with ρ(A̅) held, unless its file is there and whole."""
    path = Path(out)
    run = RunConfig(**{name: config[name] for name in ("preset", "seed", "model", "data", "train")})
    steps = run.train_config().steps
    try:
        if len(loopscope.open_run(path)) == steps:
            return True
    except (RunFileError, OSError):
        pass
    model, data = run.build_model(), run.open_data()
    with loopscope.attach(model, path, preset="watch", config=run.describe(), overwrite=True) as probe:
        training = ChangedTraining(model, data, run, probe, [Intervention(update=hold_radius)])
        for _ in range(steps):
            training.advance()
    return True


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = [each for each in chosen(learning_rate_runs(folder, jobs), NAME) if each.lr >= COOLEST]
    place = folder / "held_radius"
    twins = {Path(each.run.path).stem: place / Path(each.run.path).name for each in runs}
    items = {Path(each.run.path).stem: (each.config, str(twins[Path(each.run.path).stem])) for each in runs}
    pieces(place, train_held, items, jobs, "runs with ρ(A̅) held")
    result, rows = Result(), []
    chart = panels(["state after 16 loops", "loss of the last ten steps, nats"], ["free", "free"], legend=3)
    for lr, colour in zip(rates(runs), COLOURS[1:], strict=True):
        free = chosen(runs, NAME, lr)
        held = [recording(twins[Path(each.run.path).stem]) for each in free]
        for column, number in ((1, "state"), (2, "loss")):
            x, y = ([getattr(each, number)() for each in side] for side in (free, held))
            add_dots(chart, column, x, y, f"lr {lr:g}", colour, size=7)
        for words, side in (("free", free), ("held", held)):
            numbers = {
                "ρ(A̅)": mean([float(each.run["a_bar_radius"][-1]) for each in side]),
                "log₁₀ ‖h‖ after 16 loops": mean([math.log10(each.state()) for each in side]),
                "last loss, nats": mean([each.loss() for each in side]),
                "lost by its state": share(sum(each.lost() == "state" for each in side), len(side)),
                "lost": share(sum(bool(each.lost()) for each in side), len(side)),
            }
            result.numbers |= {f"lr {lr:g}, {words}: {what}": number for what, number in numbers.items()}
            rows.append([f"{lr:g}", words, *(number.text() for number in numbers.values())])
        gained = mean([a.loss() - b.loss() for a, b in zip(free, held, strict=True)])
        result.numbers[f"lr {lr:g}: loss of a run less that of its twin, nats"] = gained
        rows.append([f"{lr:g}", "difference", "", "", gained.text(".3f"), "", ""])
    chart.update_xaxes(type="log", tickfont_size=LOG_TICKS, exponentformat="power", col=1)
    chart.update_yaxes(type="log", tickfont_size=LOG_TICKS, exponentformat="power", col=1)
    chart.update_yaxes(title_text="ρ(A̅) held", col=1)
    result.figures["held_radius"] = chart
    result.tables["held_radius"] = table(["lr", "ρ(A̅)", *numbers], rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
