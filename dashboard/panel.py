"""One plot of a page: what it shows, what that means, and what would be worrying.

Not covered: which panels there are (`panels`).
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..runfile.layout import RunFileError
from . import figures
from .downsample import View, visible
from .figures import of
from .frame import empty
from .opened import OpenRun
from .steps import bounds, resolve
from .text import plain

Columns = Mapping[str, NDArray[Any]]
EVERY_STEP: Final = "training"
FIXED_BATCH: Final = "fixed"
VARIABLE: Final = "variable:"
"""Before the name of one of the tensors that the loop carries: its own loops, of training steps."""


def batch_of(text: str) -> str:
    """Read whose loops are shown out of an address.

    >>> batch_of("training"), batch_of("variable:z_H"), batch_of("<b>")
    ('training', 'variable:z_H', 'fixed')
    """
    return text if text == EVERY_STEP or (text.startswith(VARIABLE) and len(text) < 100) else FIXED_BATCH


@dataclass(frozen=True, slots=True)
class Ask:
    """What a page wants to see of a run.

    Attributes:
        held: The run.
        view: Visible range of steps; None for all.
        selected: Step of the cursor; None for the newest.
        batch: Whose loops the heatmaps show: ``fixed``, ``training``, or ``variable:`` and the name of a variable.
        revision: See `frame.figure`.
        against: Id of another run to compare the configuration with; empty for none.
    """

    held: OpenRun
    view: View = None
    selected: int | None = None
    batch: str = FIXED_BATCH
    revision: str = ""
    against: str = ""

    @property
    def over_steps(self) -> dict[str, Any]:
        """What every figure over steps takes."""
        span = tuple(map(float, bounds(self.held.run)))
        return {"view": self.view, "selected": self.selected, "span": span, "revision": self.revision}

    @property
    def at(self) -> float | None:
        """The recorded step nearest to the selected one."""
        return resolve(self.held.run, self.selected)

    @property
    def variable(self) -> str:
        """The variable whose own loops are shown; empty for the state as a whole, or where the run has no such one."""
        name = self.batch.removeprefix(VARIABLE)
        return name if self.batch.startswith(VARIABLE) and name in self.held.run.variables else ""

    def line(self, name: str, label: str, colour: str, **style: Any) -> figures.Track:
        """Return a recorded number as a line of a plot."""
        return of(self.held.tracks.track(name, self.view), label, colour, **style)


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot of a page.

    Attributes:
        name: Its id, unique.
        title: What is plotted.
        meaning: What it means, for somebody who has not read the paper.
        worry: What would be worrying.
        draw: Makes the figure.
        numbers: Names of recorded numbers that its CSV holds, or a function that gives the columns.
        at_step: Whether it shows the selected step rather than all of them.
        height: Pixels.
        whole: Whether a live run's page gets it whole when it changed, rather than what is new in it.
    """

    name: str
    title: str
    meaning: str
    worry: str
    draw: Callable[[Ask], go.Figure]
    numbers: tuple[str, ...] | Callable[[Ask], Columns] = field(default=())
    at_step: bool = False
    height: int = 230
    whole: bool = False


def drawn(panel: Panel, ask: Ask) -> go.Figure:
    """Return the figure of a panel, or one that says why it cannot be drawn: one bad number costs one panel.

    Its ``meta`` has its summary, the generation of the run that it is of, and, where it is sent whole, its version.
    """
    generation = ask.held.run.generation  # before it is drawn: another thread may take in a resume meanwhile
    try:
        with ask.held.drawing(panel.name):
            chart = panel.draw(ask)
    except RunFileError as error:
        chart = empty(plain(error))
    except Exception as error:  # whatever a hostile file brings about costs its own panel, never the page
        logging.getLogger(__name__).warning("panel %s cannot be drawn", panel.name, exc_info=True)
        chart = empty(f"This cannot be drawn: {type(error).__name__}: {plain(error, 120)}")
    said = {"summary": f"{panel.title}. {summary(chart)}", "generation": generation}
    meta = {**(chart.layout.meta or {}), **said}
    if panel.whole:
        meta["version"] = hashlib.sha256(str(chart.to_plotly_json()["data"]).encode()).hexdigest()[:16]
    return chart.update_layout(meta=meta)


def summary(chart: go.Figure) -> str:
    """Say in one line what a figure shows, for somebody who does not see it."""
    if not chart.data:
        return " ".join(str(note.text).replace("<br>", " ") for note in chart.layout.annotations)
    said = []
    for trace in chart.data:
        if trace.type == "scatter" and trace.yaxis == "y2":  # crosses have a place and no value
            said.append(f"{trace.name}: {len(trace.x)}, first at step {trace.x[0]:,.0f}")
            continue
        values = np.asarray(trace.y if trace.type == "scatter" else trace.z, dtype=object)
        number = [value for value in np.ravel(values) if isinstance(value, float | np.floating) and np.isfinite(value)]
        if number and trace.name:
            said.append(f"{trace.name}: {min(number):.4g} to {max(number):.4g}, last {number[-1]:.4g}")
        elif trace.name and len(np.ravel(values)):
            said.append(f"{trace.name}: {len(np.ravel(values))}")
    return "; ".join(said)


def table(panel: Panel, ask: Ask) -> Columns:
    """Return the columns of a panel's CSV, unthinned: every recorded step of the visible range."""
    if callable(panel.numbers):
        return panel.numbers(ask)
    run = ask.held.run
    rows = visible(run["step"], ask.view)
    return {"step": run["step"][rows]} | {name: run[name][rows] for name in panel.numbers if name in run.names}
