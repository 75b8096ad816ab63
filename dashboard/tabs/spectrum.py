"""Spectrum: eigenvalues with the unit circle, the numbers of the full loop beside them, radii and norms on bands."""

import math
from typing import Any

import numpy as np
from dash import dcc, html

from ...runfile.layout import A_BAR
from .. import components
from ..panel import Ask
from ..text import number
from . import Tab

_NUMBERS = (
    ("a_bar_radius", "ρ(A̅)", "what many loops of the injection alone do; 1 is the edge"),
    ("a_bar_norm", "σ_max(A̅)", "the worst one loop of the injection can do"),
    ("b_bar_norm", "σ_max(B̅)", "how strongly the input enters"),
    ("c_out_norm", "σ_max(C_out)", "the worst the read-out can do"),
    ("c_out_gain", "‖C_out h‖/‖h‖", "what the read-out did, measured"),
    ("jacobian_radius", "ρ(J)", "what the full loop does to a small difference, at the visited state"),
    ("jacobian_norm", "σ_max(J)", "the worst one full loop can do to it"),
    ("lyapunov_max", "λ₁", "nats per loop over the late loops; above 0 a difference grows"),
)


def words(ask: Ask) -> list[Any]:
    """Return the numbers at the cursor: of the linear part and of the full loop."""
    rows = []
    for name, symbol, meaning in _NUMBERS:
        step, value = at_or_before(ask, name)
        if math.isnan(value):
            continue
        error = at_or_before(ask, f"{name}_error" if name != "lyapunov_max" else "lyapunov_error")[1]
        shown = number(value) + (f" ± {number(error, 2)}" if name == "lyapunov_max" and not math.isnan(error) else "")
        rows.append((symbol, shown, f"{step:,}", meaning))
    if not rows:
        return [html.P("No number of the linear part or of the full loop was recorded.", className="ls-dim")]
    head: list[Any] = [html.H2("At the cursor")]
    if ask.revision and ask.at is not None and (ask.held.array_steps(A_BAR).size or ask.held.spectra()[0].size):
        address = f"/explorer?kind=run&run={ask.revision}&at={ask.at:.0f}&contours=on"
        head.append(dcc.Link("open A̅ in the explorer, with its pseudospectra", href=address))
    table = components.rows_table(("number", "value", "step", "meaning"), rows)
    return [html.Section([html.Header(head), table], className="ls-card")]


def head(ask: Ask) -> list[Any]:
    """Return the button that goes through training; it stays while what it plays is drawn anew."""
    if not ask.held.spectra()[0].size:
        return []
    return [html.Div(html.Button("▶ play through training", id="play", className="ls-link"), className="ls-choices")]


def at_or_before(ask: Ask, name: str) -> tuple[int, float]:
    """Return the last value of a number recorded at or before the cursor, and its step; NaN where there is none."""
    run, at = ask.held.run, ask.at
    if at is None or name not in run.names:
        return 0, math.nan
    end = int(np.searchsorted(run["step"], at, side="right"))
    values = run[name][:end]
    for start in range(end, 0, -4096):  # looked for backwards: some are rare
        block = values[max(start - 4096, 0) : start]
        if len(there := np.flatnonzero(~np.isnan(block))):
            row = max(start - 4096, 0) + int(there[-1])
            return int(run["step"][row]), float(values[row])
    return 0, math.nan


TAB = Tab("spectrum", "Spectrum", 30, ("spectrum", "norms", "exponent"), words, head=head)
