"""Figures of a run: arrays in, `plotly.graph_objects.Figure` out, no callback and no file inside.

Shapes: N steps of a series (every series may have its own steps), T loops, E eigenvalues. NaN is "not recorded".
Figures are thinned for the screen (`downsample`), so their traces are not data to compute with. Those whose colour is a
norm are in `heatmaps`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from . import colours
from .downsample import View, thin
from .frame import empty, figure, legend_room, note, over_steps

Array = NDArray[np.float64]

EVENTS_SHOWN = 200
_NOTHING: Array = np.empty(0)


class Series(NamedTuple):
    """One recorded quantity: ``steps`` (N,) increasing and ``values`` (N,), NaN where not recorded."""

    steps: Array = _NOTHING
    values: Array = _NOTHING

    @property
    def empty(self) -> bool:
        """Whether nothing at all was recorded."""
        return not bool(np.any(~np.isnan(self.values)))


NOT_RECORDED = Series()


class Mark(NamedTuple):
    """Something that happened at a step: an event of the run, or the first breach of a rule."""

    step: float
    text: str
    severity: str


def _line(series: Series, view: View, name: str, colour: str, hover: str = "%{y:.4g}", **style: Any) -> go.Scatter:
    """Draw one thinned series, in single precision where that is exact enough for a screen."""
    steps, values = thin(series.steps, series.values, view)
    return go.Scatter(
        x=steps.astype(np.float32) if len(steps) and steps[-1] < 2**24 else steps,
        y=values.astype(np.float32) if _fits_float32(values) else values,
        name=name,
        mode="lines+markers" if len(steps) < 3 else "lines",
        line={"color": colour, "width": 1.8, **style},
        marker={"color": colour, "size": 6},
        hovertemplate=hover,
    )


def _fits_float32(values: Array) -> bool:
    """Say whether single precision, half the bytes, holds the values without overflow or underflow."""
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    return bool(size.size == 0 or (size.max() < 1e38 and size.min() > 1e-37))


def _log_axis(chart: go.Figure, *series: Series) -> go.Figure:
    """Use a logarithmic vertical axis, at least one decade high so that a flat line is not drawn as noise."""
    chart.update_yaxes(type="log")
    seen = np.concatenate([s.values[np.isfinite(s.values) & (s.values > 0)] for s in series])
    if seen.size == 0:
        return chart
    low, high = np.log10(seen.min()), np.log10(seen.max())
    if high - low < 1:
        middle = (low + high) / 2
        chart.update_yaxes(range=[middle - 0.5, middle + 0.5])
    elif 2 <= high - low <= 8:
        chart.update_yaxes(dtick=1)  # whole powers of ten; plotly's own choice adds 2s and 5s
    if high - low >= 2:
        chart.update_yaxes(tickfont={"size": 9})  # plotly draws powers a quarter larger
    return chart


def loss(
    loss: Series, *, marks: Sequence[Mark] = (), nonfinite: Array = _NOTHING, view: View = None,
    selected: float | None = None, revision: str = "",
) -> go.Figure:  # fmt: skip
    """Training loss over steps with the run's events on it.

    Args:
        loss: Training loss, nats per token.
        marks: Events; drawn at the loss of their step, the latest `EVENTS_SHOWN` in view at most.
        nonfinite: Steps whose loss was NaN or infinite; drawn along the top.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        revision: See `frame.figure`.

    Returns:
        The figure; `frame.empty` when no loss was recorded.
    """
    title = "Training loss"
    if loss.empty and nonfinite.size == 0:
        return empty(title, "No loss was recorded.", remedy="Give it to the probe: probe.step(loss=loss).")
    chart = figure(title, x="step", y="loss (nats per token)", revision=revision)
    chart.add_trace(_line(loss, view, "loss", colours.LOSS))
    finite = np.isfinite(loss.values)
    known = Series(loss.steps[finite], loss.values[finite])
    top = float(known.values.max()) if known.values.size else 1.0
    if nonfinite.size:
        shown, _ = thin(nonfinite, np.zeros_like(nonfinite), view, points=400)
        chart.add_trace(
            go.Scatter(
                x=shown,
                y=np.full(shown.size, top),
                name="loss not finite",
                mode="markers",
                marker={"color": colours.REGIME_COLOURS["unstable"], "symbol": "x", "size": 7},
                hovertemplate="NaN or infinite",
            )
        )
    _add_marks(chart, marks, known, view)
    chart.update_layout(hovermode="x unified")
    return over_steps(chart, view, selected)


def _add_marks(chart: go.Figure, marks: Sequence[Mark], known: Series, view: View) -> None:
    """Draw events on the loss curve, one trace per severity so that the legend explains the colours."""
    low, high = view or (-np.inf, np.inf)
    inside = [mark for mark in marks if low <= mark.step <= high]
    shown = inside[-EVENTS_SHOWN:]
    for severity in dict.fromkeys(mark.severity for mark in shown):
        chosen = [mark for mark in shown if mark.severity == severity]
        x = [mark.step for mark in chosen]
        y = np.interp(x, known.steps, known.values) if known.values.size else np.ones(len(x))
        chart.add_trace(
            go.Scatter(
                x=x,
                y=y,
                name=f"{severity} event",
                mode="markers",
                text=[mark.text for mark in chosen],
                hovertemplate="%{text}<extra></extra>",
                marker={
                    "color": colours.SEVERITY_COLOURS.get(severity, colours.INK),
                    "symbol": "triangle-down",
                    "size": 10,
                    "line": {"width": 1, "color": "rgba(255,255,255,0.7)"},
                },
            )
        )
    if len(inside) > len(shown):
        note(chart, f"latest {len(shown)} of {len(inside)} events; zoom in for the others")


def radius(
    radius: Series, norm: Series, ratio: Series, *, tolerance: float, full: Series = NOT_RECORDED, view: View = None,
    selected: float | None = None, revision: str = "",
) -> go.Figure:  # fmt: skip
    """ρ(A̅) and σ_max(A̅) over steps, on the bands in which the LTI part is stable, marginal or unstable.

    Args:
        radius: Spectral radius of A̅.
        norm: Largest singular value of A̅; bounds one loop's growth, not the regime.
        ratio: ‖h[t+1]−h[t]‖ / ‖h[t]−h[t−1]‖ late in the loop, on the fixed probe batch: what the full loop did.
        tolerance: Half-width of the marginal band around 1.
        full: Spectral radius of the full loop's Jacobian, at the few steps where it was measured.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        revision: See `frame.figure`.

    Returns:
        The figure; `frame.empty` when none of the four was recorded.
    """
    title = "Gain per loop"
    if radius.empty and norm.empty and ratio.empty and full.empty:
        return empty(
            title, "Neither A̅ nor a probe batch was recorded.", remedy="The loop site of this run did not name its A̅."
        )
    chart = figure(title, x="step", y="gain per loop (1)", revision=revision)
    if not norm.empty:
        chart.add_trace(_line(norm, view, "σ<sub>max</sub>(A̅)", colours.NORM, dash="dash", width=1.4))
    if not ratio.empty:
        chart.add_trace(_line(ratio, view, "residual ratio", colours.RATIO, dash="dot"))
    if not full.empty:
        measured = _line(full, view, "ρ(J), full loop", colours.FULL_LOOP)
        chart.add_trace(measured.update(mode="lines+markers"))
    if not radius.empty:
        chart.add_trace(_line(radius, view, "ρ(A̅)", colours.RADIUS, width=2.4))
    _add_bands(chart, (radius, norm, ratio, full), tolerance, view)
    chart.update_layout(hovermode="x unified", legend={"traceorder": "reversed"})
    return over_steps(chart, view, selected)


def _add_bands(chart: go.Figure, shown: Sequence[Series], tolerance: float, view: View) -> None:
    """Colour the three regimes behind the lines and name them at the right edge."""
    values = np.concatenate([thin(series.steps, series.values, view)[1] for series in shown])
    values = values[np.isfinite(values)]
    bottom = min(0.8, float(values.min(initial=1.0)) - 0.05)
    top = max(1.2, float(values.max(initial=1.0)) * 1.05)
    edges = (
        ("stable", bottom, 1 - tolerance),
        ("marginal", 1 - tolerance, 1 + tolerance),
        ("unstable", 1 + tolerance, top),
    )
    for regime, low, high in edges:
        colour = colours.REGIME_COLOURS[regime]
        chart.add_shape(
            type="rect",
            xref="x domain",
            x0=0,
            x1=1,
            yref="y",
            y0=low,
            y1=high,
            layer="below",
            line={"width": 0},
            fillcolor=colours.tint(colour, 0.5 if regime == "marginal" else 0.13),
        )
    for regime, at, anchor, room in (
        ("stable", 1 - tolerance, "top", 1 - tolerance - bottom),
        ("unstable", 1 + tolerance, "bottom", top - 1 - tolerance),
    ):
        if room < 0.1 * (top - bottom):
            continue  # too thin a band for its name
        chart.add_annotation(
            text=f"{colours.REGIME_GLYPHS[regime]} {regime}",
            xref="x domain",
            x=0.995,
            xanchor="right",
            y=at,
            yanchor=anchor,
            showarrow=False,
            font={"size": 11},
        )
    chart.update_yaxes(range=[bottom, top])


class Profile(NamedTuple):
    """One pass through the loop: ``state`` (T+1,) is ‖h[t]‖, ``residual`` (T,) or (T+1,) is ‖h[t+1]−h[t]‖."""

    step: float
    state: Array
    residual: Array


def loop_profile(train: Profile | None, probe: Profile | None = None, *, revision: str = "") -> go.Figure:
    """State norm and residual norm against the loop index, at one training step.

    Args:
        train: The loops of the selected training step; None when that step has none.
        probe: The loops of the fixed probe batch at the nearest earlier step, run deeper than training does; or None.
        revision: See `frame.figure`.
    """
    title = "Loop profile"
    passes = [(one, kind) for one, kind in ((train, "training"), (probe, "probe batch")) if one is not None]
    passes = [(one, kind) for one, kind in passes if np.any(~np.isnan(one.state))]
    if not passes:
        return empty(title, "No loops were recorded at this step.", remedy="Select another step.")
    named = " · ".join(f"{_PASS_WORDS[kind]} step {one.step:,.0f}" for one, kind in passes)
    chart = figure(title, x="loop t", y="mean norm over tokens (1)", subtitle=named, revision=revision)
    for one, kind in passes:
        _add_pass(chart, one, kind)
    _log_axis(chart, *(Series(_NOTHING, values) for one, _ in passes for values in (one.state, one.residual)))
    broken = [int(np.argmax(~np.isfinite(one.state))) for one, _ in passes if _stops_being_finite(one.state)]
    if broken:
        note(chart, f"▲ the state is not finite from loop {min(broken)} on")
    return legend_room(chart.update_layout(hovermode="x unified", xaxis={"rangemode": "tozero", "tickformat": "d"}))


_PASS_WORDS = {"training": "training", "probe batch": "dotted: probe batch,"}


def _stops_being_finite(state: Array) -> bool:
    """Say whether a state that began finite stopped being so."""
    return bool(np.isfinite(state[0]) and not np.isfinite(state).all())


def _add_pass(chart: go.Figure, one: Profile, kind: str) -> None:
    """Draw one pass: state with circles, residual with squares; the probe batch dotted, outside the legend."""
    dash = "solid" if kind == "training" else "dot"
    for values, name, colour, symbol in (
        (one.state, "‖h<sub>t</sub>‖", colours.STATE, "circle"),
        (one.residual, "‖h<sub>t+1</sub> − h<sub>t</sub>‖", colours.RESIDUAL, "square"),
    ):
        recorded = np.isfinite(values)
        chart.add_trace(
            go.Scatter(
                x=np.flatnonzero(recorded),
                y=values[recorded],
                name=name if kind == "training" else f"{name} (probe)",
                legendgroup=name,
                showlegend=kind == "training",
                mode="lines+markers",
                line={"color": colour, "width": 1.8, "dash": dash},
                marker={"color": colour, "symbol": symbol if dash == "solid" else f"{symbol}-open", "size": 6},
                hovertemplate="%{y:.4g}",
            )
        )


def spectrum(
    step: float | None, eigenvalues: NDArray[np.complex128], *, tolerance: float, revision: str = ""
) -> go.Figure:
    """Eigenvalues of A̅ in the complex plane with the unit circle, equal axes, coloured by regime.

    Args:
        step: Step at which the spectrum was recorded; None when there is none up to the selected step.
        eigenvalues: Shape ``(E,)``, NaN padded, largest modulus first.
        tolerance: Half-width of the marginal ring around modulus 1.
        revision: See `frame.figure`.
    """
    title = "Eigenvalues of A̅"
    eigenvalues = eigenvalues[np.isfinite(eigenvalues)]
    if step is None or eigenvalues.size == 0:
        return empty(
            title, "No spectrum of A̅ was recorded up to this step.", remedy="Spectra are taken at an interval."
        )
    modulus = np.abs(eigenvalues)
    subtitle = f"step {step:,.0f}, " + ("one value" if eigenvalues.size == 1 else f"the {eigenvalues.size} leading")
    chart = figure(title, x="real part", y="imaginary part", subtitle=subtitle, revision=revision)
    angle = np.linspace(0, 2 * np.pi, 181)
    chart.add_trace(
        go.Scatter(
            x=np.cos(angle),
            y=np.sin(angle),
            name="unit circle",
            mode="lines",
            line={"color": colours.INK, "width": 1.4},
            hoverinfo="skip",
        )
    )
    rings = (
        ("stable", modulus < 1 - tolerance),
        ("marginal", np.abs(modulus - 1) <= tolerance),
        ("unstable", modulus > 1 + tolerance),
    )
    for (regime, inside), symbol in zip(rings, ("circle", "diamond", "triangle-up"), strict=True):
        if np.any(inside):
            chart.add_trace(_eigenvalue_trace(eigenvalues[inside], regime, symbol))
    reach = 1.12 * max(1.0, float(modulus.max()))
    for update in (chart.update_xaxes, chart.update_yaxes):
        update(range=[-reach, reach], constrain="domain", zeroline=True, zerolinecolor=colours.GRID)
    return legend_room(chart.update_layout(yaxis={"scaleanchor": "x"}))


def _eigenvalue_trace(values: NDArray[np.complex128], regime: str, symbol: str) -> go.Scatter:
    """Draw the eigenvalues of one regime, hover giving value, modulus and angle."""
    polar = np.stack([np.abs(values), np.angle(values)], axis=1)
    return go.Scatter(
        x=values.real,
        y=values.imag,
        customdata=polar.tolist(),
        name=regime,
        mode="markers",
        marker={
            "color": colours.tint(colours.REGIME_COLOURS[regime], 0.75),
            "symbol": symbol,
            "size": 9,
            "line": {"width": 1, "color": colours.REGIME_COLOURS[regime]},
        },
        hovertemplate="λ = %{x:.4f} %{y:+.4f}i<br>|λ| = %{customdata[0]:.4f}, angle %{customdata[1]:.3f} rad",
    )


def state_norm(
    state: Series, residual: Series, *, view: View = None, selected: float | None = None, revision: str = ""
) -> go.Figure:
    """State norm and residual norm at the last loop of every step, on a logarithmic axis.

    Args:
        state: ‖h[T]‖, mean over tokens.
        residual: ‖h[T]−h[T−1]‖, mean over tokens.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        revision: See `frame.figure`.
    """
    title = "State and residual at the last loop"
    if state.empty and residual.empty:
        return empty(title, "No loops were recorded.", remedy="The probe did not see the loop body run.")
    chart = figure(title, x="step", y="mean norm over tokens (1)", revision=revision)
    for series, name, colour in (
        (residual, "‖h<sub>T</sub> − h<sub>T−1</sub>‖", colours.RESIDUAL),
        (state, "‖h<sub>T</sub>‖", colours.STATE),
    ):
        if not series.empty:
            chart.add_trace(_line(series, view, name, colour))
    _log_axis(chart, state, residual)
    chart.update_layout(hovermode="x unified", legend={"traceorder": "reversed"})
    return over_steps(chart, view, selected)
