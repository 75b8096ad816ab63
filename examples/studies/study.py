"""What the studies share: recorded runs, intervals, figures, and pieces of work that a second start finds done.

A study is a module with a function ``study(folder, jobs)`` that returns its `Result`. Alone it is run by

    python examples/studies/NAME.py runs/evidence

which trains what is missing in that folder, prints the tables and writes the figures beside the runs. All of them are
run by `everything.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import loopscope
import numpy as np
import plotly.graph_objects as go
from loopscope.commands.sweep import sweep as train_sweep
from loopscope.dashboard.colours import FULL_LOOP, LOSS, NORM, RATIO, tint
from loopscope.sweeps.processes import Processes, one_thread
from loopscope.sweeps.sweep import failures
from scipy.stats import t as student

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "docs"))

import drawing  # noqa: E402  (the figures of the documentation are drawn by its own module)

LOG_TICKS, add_dots, panels = drawing.LOG_TICKS, drawing.add_dots, drawing.panels

LARGEST_STATE = 1e4  # norm on the fixed batch after 16 loops, twice the training depth
UNIGRAM = 3.15  # nats: the entropy of single bytes in this text
LARGEST_FLOAT = 3e38  # where float32 ends; what left it is drawn and averaged there
COLOURS = [LOSS, NORM, FULL_LOOP, RATIO]  # of no regime: an architecture or a rate is none
NAMES = {
    ("concatenation", "pre"): "concatenation, pre-norm",
    ("concatenation", "sandwich"): "concatenation, sandwich norm",
    ("addition", "pre"): "addition, pre-norm",
    ("parcae", "pre"): "Parcae, pre-norm",
}
ARCHITECTURES = tuple(NAMES.values())
SHORT = dict(zip(ARCHITECTURES, ("concatenation", "sandwich norm", "addition", "Parcae"), strict=True))  # above a panel


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and where it lies in 95 of 100 cases, if the seeds are a fair sample."""

    value: float
    low: float
    high: float

    def text(self, form: str = ".2f") -> str:
        """Return it for a table.

        >>> Interval(0.5, 0.25, 0.75).text()
        '0.50 (0.25 to 0.75)'
        """
        if math.isnan(self.value):
            return "–"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"

    def agrees(self, other: Interval) -> bool:
        """Return whether two sessions can have measured the same thing: their intervals overlap."""
        slack = 1e-9 * max(abs(self.value), abs(other.value))  # a number without spread equals itself
        return self.low - slack <= other.high and other.low - slack <= self.high


def share(count: int, of: int) -> Interval:
    """Return a share with Wilson's interval.

    >>> share(5, 5).text()
    '1.00 (0.57 to 1.00)'
    """
    z = 1.959964
    middle, scale = (count + z * z / 2) / (of + z * z), z / (of + z * z)
    half = scale * math.sqrt(count * (of - count) / of + z * z / 4)
    return Interval(count / of, max(middle - half, 0.0), min(middle + half, 1.0))


def mean(values: Sequence[float]) -> Interval:
    """Return the mean over seeds with Student's interval, which knows how little five seeds say.

    >>> mean([1.0, 2.0, 3.0]).text()
    '2.00 (-0.48 to 4.48)'
    """
    known = np.asarray([each for each in values if not math.isnan(each)], dtype=np.float64)
    if not len(known):
        return Interval(math.nan, math.nan, math.nan)
    middle = float(known.mean())
    if len(known) == 1:
        return Interval(middle, -math.inf, math.inf)
    half = float(student.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return Interval(middle, middle - half, middle + half)


@dataclass(slots=True)
class Result:
    """What a study comes to.

    Attributes:
        tables: Markdown by name.
        figures: Figures by name.
        numbers: Every number that is compared with the committed one, by what it is.
    """

    tables: dict[str, str] = field(default_factory=dict)
    figures: dict[str, go.Figure] = field(default_factory=dict)
    numbers: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recording:
    """One run of a sweep."""

    run: loopscope.Run
    config: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Return its injection and norm in words."""
        return NAMES[self.config["model"]["injection"], self.config["model"]["norm"]]

    @property
    def lr(self) -> float:
        return float(self.config["train"]["lr"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def checkpoint(self) -> Path:
        return Path(self.run.path).with_suffix(".checkpoint")

    def state(self) -> float:
        """Return the norm of the state after 16 loops on the fixed batch at the end, at most `LARGEST_FLOAT`."""
        norms = self.run.probe("state_norm")[-1]
        seen = norms[~np.isnan(norms)]
        return float(min(seen[-1], LARGEST_FLOAT)) if len(seen) else LARGEST_FLOAT

    def loss(self) -> float:
        """Return the mean loss of the last ten steps, nats."""
        return float(np.mean(self.run["loss"][-10:]))

    def lost(self) -> str:
        """Return why the run is lost, ``state`` or ``loss``, by the rule that learning_rates.py states; or nothing."""
        if not self.state() <= LARGEST_STATE:
            return "state"
        return "" if self.loss() <= UNIGRAM else "loss"


@cache
def sweep(name: str, folder: Path, jobs: int, measure: str = "inspect") -> tuple[Recording, ...]:
    """Train what is missing of the sweep ``NAME.toml`` and return its runs."""
    board = train_sweep(HERE / f"{name}.toml", folder / name, engine=Processes(jobs=jobs), measure=measure)
    if failed := failures(board):
        raise SystemExit(f"{name}: {len(failed)} runs failed, the first is {failed[0][0]}: {failed[0][1]}")
    return tuple(recording(board.path(cell)) for cell in board.cells)


def recording(path: Path) -> Recording:
    """Return a run file."""
    run = loopscope.open_run(path)
    return Recording(run, run.info["config"])


def learning_rate_runs(folder: Path, jobs: int) -> tuple[Recording, ...]:
    """Return the runs that most studies read: four architectures, four learning rates, five seeds."""
    return sweep("learning_rates", folder, jobs)


def chosen(runs: Sequence[Recording], architecture: str, lr: float | None = None) -> list[Recording]:
    """Return the runs of an architecture, at one learning rate or at all."""
    return [each for each in runs if each.architecture == architecture and lr in (None, each.lr)]


def rates(runs: Sequence[Recording]) -> list[float]:
    """Return the learning rates of some runs, the smallest first."""
    return sorted({each.lr for each in runs})


def pieces(
    folder: Path, work: Callable[..., Any], items: Mapping[str, tuple[Any, ...]], jobs: int, what: str
) -> dict[str, Any]:
    """Do pieces of work in processes, each into a JSON file of its name; those that are there are not done again.

    Args:
        folder: Of the files.
        work: A function of a module whose result JSON can hold.
        items: Its arguments by the name of the piece.
        jobs: Processes; 0 for one per processor.
        what: Said with the progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = {name: arguments for name, arguments in items.items() if not (folder / f"{name}.json").exists()}
    context = multiprocessing.get_context("spawn")
    if left:
        with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=context, initializer=one_thread) as pool:
            futures = {pool.submit(work, *arguments): name for name, arguments in left.items()}
            for number, future in enumerate(as_completed(futures), start=1 + len(items) - len(left)):
                temporary = folder / f".{futures[future]}.{os.getpid()}"
                temporary.write_text(json.dumps(future.result()), encoding="utf-8")
                temporary.replace(folder / f"{futures[future]}.json")
                print(f"  {what}: {number} of {len(items)}", file=sys.stderr, flush=True)
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in items}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in markdown.

    >>> print(table(["a", "b"], [[1, "x"]]))
    | a | b |
    |---|---|
    | 1 | x |
    """
    lines = [head, ["---"] * len(head), *rows]
    made = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    made[1] = made[1].replace(" ", "")
    return "\n".join(made)


def smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    """Return the means of the last ``width`` values."""
    known = np.minimum(np.nan_to_num(values, nan=LARGEST_FLOAT, posinf=LARGEST_FLOAT), LARGEST_FLOAT)
    sums = np.cumsum(np.concatenate([[0.0], known]))
    last = np.arange(1, len(known) + 1)
    first = np.maximum(last - width, 0)
    return (sums[last] - sums[first]) / (last - first)


def add_band(
    chart: go.Figure,
    column: int,
    x: Sequence[float],
    lines: Sequence[np.ndarray],
    name: str,
    colour: str,
    *,
    legend: bool = True,
    row: int = 1,
) -> None:
    """Add the median of some lines and the range they fill, in at most 30 points."""
    stack = np.asarray(lines, dtype=np.float64)
    at = np.unique(np.linspace(0, len(x) - 1, min(len(x), 30)).astype(int))
    places = np.asarray(x)[at]
    low, middle, high = (np.quantile(stack[:, at], part, axis=0) for part in (0.0, 0.5, 1.0))
    around = {"x": np.concatenate([places, places[::-1]]), "y": np.concatenate([high, low[::-1]])}
    chart.add_scatter(
        **around, fill="toself", fillcolor=tint(colour, 0.16), line={"width": 0}, mode="lines", showlegend=False,
        row=row, col=column,
    )  # fmt: skip
    drawing.add_line(chart, column, places, middle, name, colour, legend=legend, row=row)


def write(result: Result, folder: Path) -> None:
    """Write a result beside the runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in drawing.as_svg(result.figures).items():
        (folder / f"{name}.svg").write_text(text + "\n", encoding="utf-8")
    for name, text in result.tables.items():
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def alone(study: Callable[[Path, int], Result], about: str | None) -> None:
    """Run one study from the command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/evidence"))
    parser.add_argument("--jobs", type=int, default=0, help="runs trained at the same time; 0: one per processor")
    options = parser.parse_args()
    result = study(options.folder, options.jobs)
    for text in result.tables.values():
        print(text, end="\n\n")
    write(result, options.folder)
