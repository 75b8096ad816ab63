"""From an open run to its figures: which recorded names go into which plot.

What is not covered: how a figure looks (`figures`), and when it is drawn again (`pages.run`).
"""

from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..dynamics.regime import LTI_TOLERANCE
from ..runfile.layout import BLOCK_NORM, GRADIENT_NORM, TOKEN_MAP
from ..runfile.reader import Run
from . import figures, heatmaps
from .downsample import View
from .figures import Mark, Profile
from .opened import OpenRun
from .text import plain

STEP_PLOTS: Final = ("loss", "radius", "heatmap", "state", "blocks", "gradients")
"""Plots over training steps: they share zoom and cursor."""

DETAIL_PLOTS: Final = ("profile", "spectrum", "tokens")
"""Plots of the selected step."""

STUDY_PLOTS: Final = {"blocks": BLOCK_NORM, "gradients": GRADIENT_NORM, "tokens": TOKEN_MAP}
"""Plots of what only the preset ``study`` records, with the arrays they show: not on the page of a run without them."""


def nonfinite_losses(run: Run) -> NDArray[np.float64]:
    """Return the steps whose loss was given and was NaN or infinite (a loss never given is NaN as well)."""
    loss = run["loss"]
    return run["step"][np.isinf(loss) | (np.isnan(loss) & (run["nonfinite"] > 0))]


def marks(held: OpenRun) -> list[Mark]:
    """Return the events found while training, in order of their steps."""
    found = [Mark(float(event.step), plain(event.message), event.severity) for event in held.run.events]
    return sorted(found, key=lambda mark: mark.step)


def step_figures(held: OpenRun, view: View, selected: float | None, revision: str) -> list[go.Figure]:
    """Return the figures of `STEP_PLOTS` in order, thinned for the visible range."""
    run = held.run
    shared: dict[str, Any] = {"view": view, "selected": selected, "revision": revision}
    return [
        figures.loss(held.series("loss"), marks=marks(held), nonfinite=nonfinite_losses(run), **shared),
        figures.radius(
            held.series("a_bar_radius"),
            held.series("a_bar_norm"),
            held.series("residual_ratio"),
            tolerance=LTI_TOLERANCE,
            full=held.series("jacobian_radius"),
            **shared,
        ),
        heatmaps.residual_heatmap(run["step"], held.residual(), **shared),
        figures.state_norm(held.series("last_state_norm"), held.series("last_residual_norm"), **shared),
        heatmaps.block_heatmap(*held.table(BLOCK_NORM), block_names(held), **shared),
        heatmaps.gradient_heatmap(*held.table(GRADIENT_NORM), **shared),
    ]


def block_names(held: OpenRun) -> list[str]:
    """Return what the entries of ``block_state_norm`` are called; numbers where the run does not say."""
    site = held.run.info.get("site")
    parts = [site.get(part) for part in ("prelude", "sublayers")] if isinstance(site, dict) else []
    names = [plain(name, 60) for part in parts if isinstance(part, list) for name in part]
    count = held.table(BLOCK_NORM).values.shape[1]
    return names if len(names) == count else [f"block {i}" for i in range(count)]


def detail_figures(held: OpenRun, selected: float | None, revision: str) -> list[go.Figure]:
    """Return the figures of `DETAIL_PLOTS` in order, for the selected step or the newest one."""
    run = held.run
    at = resolve(run, selected)
    spectrum_step, eigenvalues = spectrum_at(held, at)
    return [
        figures.loop_profile(profile_at(held, at), probe_at(held, at), revision=revision),
        figures.spectrum(spectrum_step, eigenvalues, tolerance=LTI_TOLERANCE, revision=revision),
        heatmaps.token_map(*token_map_at(held, at), revision=revision),
    ]


def recorded(held: OpenRun) -> dict[str, bool]:
    """Return which of `STUDY_PLOTS` the run has something for."""
    return {plot: len(held.array_steps(name)) > 0 for plot, name in STUDY_PLOTS.items()}


def resolve(run: Run, selected: float | None) -> float | None:
    """Return the recorded step nearest to the selected one, the newest when none is selected, None without rows."""
    steps = run["step"]
    if len(steps) == 0:
        return None
    if selected is None:
        return float(steps[-1])
    return float(steps[int(np.argmin(np.abs(steps - selected)))])


def profile_at(held: OpenRun, step: float | None) -> Profile | None:
    """Return the loops of one training step, cut to the loops that ran."""
    if step is None:
        return None
    row = int(np.searchsorted(held.run["step"], step))
    rows = slice(row, row + 1)
    state, residual = held.run.loops("state_norm", rows)[0], held.run.loops("residual_norm", rows)[0]
    return Profile(step, state, residual[:-1]) if len(state) else None


def probe_at(held: OpenRun, step: float | None) -> Profile | None:
    """Return the last pass of the fixed probe batch at or before a step."""
    if step is None:
        return None
    steps = held.run.probe_steps
    row = int(np.searchsorted(steps, step, side="right")) - 1
    if row < 0:
        return None
    ran = int(np.sum(~np.isnan(held.probe("tokens")[row])))
    state, residual = held.probe("state_norm")[row, :ran], held.probe("residual_norm")[row, : max(ran - 1, 0)]
    return Profile(float(steps[row]), state, residual)


def spectrum_at(held: OpenRun, step: float | None) -> tuple[float | None, NDArray[np.complex128]]:
    """Return the last spectrum of A̅ recorded at or before a step, and its step; None and nothing before the first."""
    steps, eigenvalues = held.spectra()
    if step is None or len(steps) == 0:
        return None, np.empty(0, dtype=np.complex128)
    row = int(np.searchsorted(steps, step, side="right")) - 1
    return (float(steps[row]), eigenvalues[row]) if row >= 0 else (None, np.empty(0, dtype=np.complex128))


def token_map_at(held: OpenRun, step: float | None) -> tuple[float | None, NDArray[np.float64]]:
    """Return the last map over tokens recorded at or before a step, and its step; None and nothing before the first."""
    steps = held.array_steps(TOKEN_MAP)
    row = -1 if step is None else int(np.searchsorted(steps, step, side="right")) - 1
    if row < 0:
        return None, np.empty((0, 0, 0))
    _, (found,) = held.run.arrays(TOKEN_MAP, slice(row, row + 1))
    return float(steps[row]), found.astype(np.float64)
