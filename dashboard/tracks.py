"""The numbers of one run as its pictures need them: long ones as pyramids, taken in as the run grows.

A *track* is one number per step; a *sheet* one per step and loop. Both are built on first use and then only grow, so
that a look at a live run of 10⁶ steps costs what its new rows cost.

Not covered: colours and axes (`figures`, `heatmaps`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runfile.file_source import FileSource
from ..runfile.growing import Growing
from ..runfile.reader import Run
from .downsample import COLUMNS, POINTS, Columns, View, columns, thin, visible
from .pyramid import BUCKET, Line, Sheet

Floats = NDArray[np.float64]
EXACT_ROWS: Final = 4 * POINTS
"""A line of up to so many rows is drawn from the rows themselves."""
EXACT_SHEET: Final = COLUMNS * BUCKET // 2
KEPT_BYTES: Final = 100 << 20
"""Of columns that the reader keeps of one run: a dozen of 10⁶ rows, more than any tab shows."""
_BLOCK: Final = 16_384  # rows of loops read at a time
LOOP_NUMBERS: Final = ("state_norm", "residual_norm", "step_cosine")


class Picture(NamedTuple):
    """What is drawn of a track: ``steps`` and ``values`` (n,) finite, and the steps ``broken`` where one was not."""

    steps: Floats
    values: Floats
    broken: Floats

    @property
    def empty(self) -> bool:
        """Whether nothing at all was recorded."""
        return self.steps.size == 0 and self.broken.size == 0


NOTHING: Final = Picture(np.empty(0), np.empty(0), np.empty(0))


class Tracks:
    """The pyramids of one run.

    Args:
        run: The reader; whoever holds it refreshes it, then calls `follow`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._mark: tuple[int, int, float] = (0, 0, 0.0)
        self._forget()

    def _forget(self) -> None:
        """Start anew."""
        self._lines: dict[str, Line] = {}
        self._sheets = {name: Sheet() for name in LOOP_NUMBERS}
        self._last = {name: Growing(np.float32) for name in ("last_state_norm", "last_residual_norm")}

    def follow(self) -> None:
        """Take note that the run was refreshed: where rows went away, all is built anew."""
        length, generation, last = self._mark
        steps = self.run["step"]
        if generation != self.run.generation or len(steps) < length or (length and steps[length - 1] != last):
            self._forget()
        self._mark = (len(steps), self.run.generation, float(steps[-1]) if len(steps) else 0.0)

    @property
    def kept_bytes(self) -> int:
        """Bytes kept here and in the reader's columns, about."""
        own: int = sum(line.kept_bytes for line in self._lines.values())
        own += sum(sheet.kept_bytes for sheet in self._sheets.values())
        own += sum(len(last) * 4 for last in self._last.values())
        sources = [run.source for run in self.run.ranks.values()]
        return own + sum(source.kept_bytes for source in sources if isinstance(source, FileSource))

    def trim(self) -> None:
        """Keep no more of the reader's columns than a long run needs for the pages that are looked at."""
        for run in self.run.ranks.values():
            if isinstance(run.source, FileSource):
                run.source.trim(KEPT_BYTES // len(self.run.ranks))

    # -- one number per step --------------------------------------------------------------------------------------

    def track(self, name: str, view: View = None, points: int = POINTS) -> Picture:
        """Return what is drawn of a number in a range of steps; nothing where the run does not know the name."""
        if name not in self.run.names:
            return NOTHING
        steps, values = self._rows_of(name)
        if not len(steps):
            return NOTHING
        where = visible(steps, view)
        broken = self._broken(name, values)
        if where.stop - where.start > EXACT_ROWS:
            line = self._lines.setdefault(name, Line())
            if line.seen != len(values):
                line.take_in(values, broken)
            rows = line.rows(values, where, points)
        else:
            rows = np.arange(where.start, where.stop)
        shown, lost = values[rows].astype(np.float64), broken[rows]
        finite = np.isfinite(shown)
        picture = Picture(steps[rows[finite]], shown[finite], steps[rows[lost]])
        return _fewer(picture, points) if len(picture.steps) > 2 * points else picture

    def _rows_of(self, name: str) -> tuple[Floats, Floats | NDArray[np.float32]]:
        """Return steps and values of a number, the rows where it was not recorded among them."""
        if name in self._last:
            self._read_loops()
            return self.run["step"], self._last[name].values()
        if name in ("residual_ratio", "growth_ratio"):  # rare: of the passes of the fixed batch only
            steps, values = self.run.series(name)
            return steps.astype(np.float64), values
        return self.run["step"], self.run[name]

    def _broken(self, name: str, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Say which rows hold a number that was given and is not finite.

        NaN alone means "not recorded" as well; of the loss and the gradient norm, `nonfinite` tells the two apart.
        """
        infinite: NDArray[np.bool_] = np.isinf(values)
        if name in ("loss", "grad_norm"):
            infinite = infinite | (np.isnan(values) & (self.run["nonfinite"] > 0))
        return infinite

    # -- one number per step and loop -----------------------------------------------------------------------------

    def sheet(self, name: str, view: View = None, limit: int = COLUMNS) -> Columns:
        """Return what is drawn of a number per loop: NaN where a loop did not run, infinite where it was lost."""
        steps = self.run["step"]
        where = visible(steps, view)
        count = where.stop - where.start
        if count <= EXACT_SHEET:
            loops = self.run.loops(name, where) if count else np.empty((0, 0))
            return columns(steps[where], loops, None, limit)
        self._read_loops()
        rows, values, per_column = self._sheets[name].columns(where, limit)
        return Columns(steps[rows], values.astype(np.float64), per_column)

    def _read_loops(self) -> None:
        """Take in the loops of the rows that are new, a block at a time, so that memory stays small."""
        count = len(self.run)
        seen = self._sheets["state_norm"].seen
        if seen == count:
            return
        for start in range(seen // BUCKET * BUCKET, count, _BLOCK):
            rows = slice(start, min(start + _BLOCK, count))
            tokens = self.run.loops("tokens", rows)
            for name in LOOP_NUMBERS:
                loops = self.run.loops(name, rows)
                self._sheets[name].take_in(start, loops)
                if name != "step_cosine":
                    self._take_last(f"last_{name}", start, loops, tokens, back=int(name == "residual_norm"))

    def _take_last(self, name: str, start: int, loops: Floats, tokens: Floats, back: int) -> None:
        """Keep the number of the last loop of every row, NaN where it did not run as deep."""
        ran = np.sum(~np.isnan(tokens), axis=1)
        at = ran - 1 - back
        deep = at >= 0
        last = np.full(len(loops), np.nan, np.float32)
        last[deep] = loops[np.flatnonzero(deep), at[deep]]
        kept = self._last[name]
        kept.truncate(start)
        kept.append(last)


def _fewer(picture: Picture, points: int) -> Picture:
    """Return a picture of few buckets that still has too many points, thinned once more."""
    steps, values = thin(picture.steps, picture.values, None, 2 * points)
    return Picture(steps, values, picture.broken)
