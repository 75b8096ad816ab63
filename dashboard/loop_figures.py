"""Figures of the loop at one training step: its profile, and its eigenvalues. Arrays in, figures out.

Not covered: the loop over training (`figures`, `heatmaps`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from . import colours
from .figures import log_axis
from .frame import LINE, empty, figure, headroom, legend_below, note

Array = NDArray[np.float64]
FAR: Final = 1.5
"""From this modulus on, distances outside the unit circle are drawn logarithmically, so that the circle stays large."""


class Profile(NamedTuple):
    """One pass through the loop: ``state`` (T+1,) is ‖h[t]‖, ``residual`` (T,) or (T+1,) is ‖h[t+1]−h[t]‖."""

    step: float
    state: Array
    residual: Array


class Law(NamedTuple):
    """The law fitted to the steps of a pass.

    Attributes:
        words: Its name with its number.
        start: First loop of the late ones it was fitted to.
        values: What it says for the loops from ``start`` on.
        strong: Whether the verdict rests on it; a rival is drawn thin.
    """

    words: str
    start: int
    values: Array
    strong: bool


_PASS_WORDS: Final = {"training": "training", "probe batch": "dotted: fixed batch,"}


def loop_profile(
    train: Profile | None,
    probe: Profile | None = None,
    laws: Sequence[Law] = (),
    *,
    revision: str = "",
    whose: str = "",
) -> go.Figure:
    """Draw state norm and residual norm against the loop index, at one training step, with the law of its steps.

    Args:
        train: The loops of the selected training step; None when that step has none.
        probe: The loops of the fixed batch at the nearest earlier step, run deeper than training does; or None.
        laws: Laws fitted to the late steps of the fixed batch, or of the training step without one.
        revision: See `frame.figure`.
        whose: Whose passes on the fixed batch these are, where they are of one variable, to begin the subtitle with.
    """
    passes = [(one, kind) for one, kind in ((train, "training"), (probe, "probe batch")) if one is not None]
    passes = [(one, kind) for one, kind in passes if np.any(~np.isnan(one.state))]
    if not passes:
        return empty("No loops were recorded at this step.", remedy="Select another step.")
    words = {"probe batch": f"{whose}fixed batch,"} if whose else _PASS_WORDS
    named = " · ".join(f"{words[kind]} step {one.step:,.0f}" for one, kind in passes)
    chart = figure(x="loop t", y="mean norm over tokens", subtitle=named, revision=revision)
    for one, kind in passes:
        _add_pass(chart, one, "training" if whose else kind)
    for law in laws:
        _add_law(chart, law)
    log_axis(chart, np.concatenate([np.ravel(values) for one, _ in passes for values in (one.state, one.residual)]))
    broken = [loop for one, _ in passes if (loop := _first_broken(one.state)) is not None]
    if broken:
        note(chart, f"▲ the state is not finite from loop {min(broken)} on")
    headroom(chart, 8 + (LINE + 8) * bool(laws))  # subscripts make lines taller; laws take a second one
    return chart.update_layout(hovermode="x unified", xaxis={"rangemode": "tozero", "tickformat": "d"})


def _first_broken(state: Array) -> int | None:
    """Return the first loop whose state is not finite; None without one.

    NaN before the first recorded state is "not recorded"; behind it, or infinite, it is "not finite".
    """
    recorded = np.flatnonzero(~np.isnan(state))
    broken = np.flatnonzero(~np.isfinite(state))
    broken = broken[broken >= recorded[0]] if len(recorded) else broken[:0]
    return int(broken[0]) if len(broken) else None


def _add_pass(chart: go.Figure, one: Profile, kind: str) -> None:
    """Draw one pass: state with circles, residual with squares; the fixed batch dotted, outside the legend."""
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
                name=name if kind == "training" else f"{name}, fixed batch",
                legendgroup=name,
                showlegend=kind == "training",
                mode="lines+markers",
                line={"color": colour, "width": 1.8, "dash": dash},
                marker={"color": colour, "symbol": symbol if dash == "solid" else f"{symbol}-open", "size": 6},
                hovertemplate="%{y:.4g}",
            )
        )


def _add_law(chart: go.Figure, law: Law) -> None:
    """Draw a fitted law over the late loops."""
    chart.add_trace(
        go.Scatter(
            x=np.arange(law.start, law.start + len(law.values)),
            y=law.values,
            name=law.words,
            mode="lines",
            line={"color": colours.INK, "width": 3 if law.strong else 1.2, "dash": "solid" if law.strong else "dash"},
            opacity=0.55,
            hovertemplate="%{y:.4g}",
        )
    )


def spectrum(
    step: float | None,
    eigenvalues: NDArray[np.complex128],
    *,
    tolerance: float,
    revision: str = "",
    subtitle: str = "",
    full: NDArray[np.complex128] | None = None,
    landscape: Callable[[float, bool], tuple[Array, Array]] | None = None,
) -> go.Figure:
    """Draw the eigenvalues of A̅ in the complex plane with the unit circle, equal axes, coloured by regime.

    Args:
        step: Step at which the spectrum was recorded; None when there is none up to the selected step.
        eigenvalues: Shape ``(E,)``, NaN padded, largest modulus first.
        tolerance: Half-width of the marginal ring around modulus 1.
        revision: See `frame.figure`.
        subtitle: What stands above it instead of the step.
        full: Eigenvalues of the full loop to draw over them, finite.
        landscape: Gives, for half the side of the square that is drawn and whether it is logarithmic outside the
            circle, places along a side and log10 of the height over them: its contours are drawn.
    """
    eigenvalues = eigenvalues[np.isfinite(eigenvalues)]
    if step is None or eigenvalues.size == 0:
        return empty("No spectrum of A̅ was recorded up to this step.", remedy="Spectra are taken at an interval.")
    modulus = np.abs(eigenvalues)
    beside = np.empty(0, np.complex128) if full is None else full
    largest = float(np.abs(np.concatenate([eigenvalues, beside])).max())
    far = largest > FAR
    subtitle = subtitle or f"step {step:,.0f}, " + (
        "one value" if eigenvalues.size == 1 else f"the {eigenvalues.size} leading"
    )
    subtitle += " · log outside" if far else ""
    chart = figure(x="real part", y="imaginary part", subtitle=subtitle, legend=False, revision=revision)
    legend_below(chart)
    for radius in _rings(largest) if far else (1.0,):
        _add_ring(chart, radius)
    rings = (
        ("stable", modulus < 1 - tolerance),
        ("marginal", np.abs(modulus - 1) <= tolerance),
        ("unstable", modulus > 1 + tolerance),
    )
    for (regime, inside), symbol in zip(rings, ("circle", "diamond", "triangle-up"), strict=True):
        if np.any(inside):
            chart.add_trace(_eigenvalue_trace(eigenvalues[inside], regime, symbol, far))
    if beside.size:
        chart.add_trace(_full_loop_trace(beside, far))
    reach = 1.12 * float(drawn_radius(max(1.0, largest)) if far else max(1.0, largest))
    if landscape is not None:
        _add_contours(chart, *landscape(reach, far))
    for update in (chart.update_xaxes, chart.update_yaxes):
        update(range=[-reach, reach], constrain="domain", zeroline=True, zerolinecolor=colours.GRID)
        if far:
            update(tickvals=[-1, 0, 1])
    return chart.update_layout(yaxis={"scaleanchor": "x"})


def _add_contours(chart: go.Figure, places: Array, heights: Array) -> None:
    """Draw the contours of pseudospectra, below everything else: half a power of ten apart."""
    chart.add_trace(
        go.Contour(
            x=places,
            y=places,
            z=heights.astype(np.float32),
            name="pseudospectra",
            showscale=False,
            colorscale=[[0, colours.NORM], [1, colours.NORM]],
            contours={"start": -3, "end": -0.5, "size": 0.5, "coloring": "lines", "showlabels": True,
                      "labelfont": {"size": 9, "color": colours.INK}, "labelformat": ".1f"},
            line={"width": 1},
            hovertemplate="an eigenvalue where A̅ changes by 10<sup>%{z:.1f}</sup><extra></extra>",
        )
    )  # fmt: skip
    chart.data = (chart.data[-1], *chart.data[:-1])


def drawn_radius(modulus: Any) -> Any:
    """Return how far from the origin a modulus is drawn where some are large: logarithmically outside the circle.

    >>> [round(float(drawn_radius(r)), 3) for r in (0.5, 1.0, 13.0, 1e6)]
    [0.5, 1.0, 3.565, 14.816]
    """
    modulus = np.asarray(modulus, dtype=np.float64)
    return np.where(modulus > 1, 1 + np.log(np.maximum(modulus, 1)), modulus)


def _rings(largest: float) -> list[float]:
    """Return the moduli that have a ring: the unit circle and a few beyond."""
    beyond = [2.0, 5.0, 10.0] if largest < 20 else [10.0 ** (k + 1) for k in range(int(np.log10(largest)))][:6]
    return [1.0, *(radius for radius in beyond if radius < largest * 1.2)]


def _add_ring(chart: go.Figure, radius: float) -> None:
    """Draw a ring of one modulus; the unit circle is the strong one, and the only one in the legend."""
    angle = np.linspace(0, 2 * np.pi, 181)
    at = float(drawn_radius(radius))
    unit = radius == 1.0
    chart.add_trace(
        go.Scatter(
            x=at * np.cos(angle),
            y=at * np.sin(angle),
            name="unit circle" if unit else f"|λ| = {radius:g}",
            showlegend=unit,
            mode="lines",
            line={"color": colours.INK if unit else colours.GRID, "width": 1.8 if unit else 1},
            hoverinfo="skip",
        )
    )
    if not unit:
        text = f"{radius:g}"
        chart.add_annotation(x=0, y=at, text=text, showarrow=False, yanchor="bottom", font={"size": 10})


def _eigenvalue_trace(values: NDArray[np.complex128], regime: str, symbol: str, far: bool) -> go.Scatter:
    """Draw the eigenvalues of one regime, hover giving value, modulus and angle."""
    size, drawn = np.abs(values), _drawn_at(values, far)
    return go.Scatter(
        x=drawn.real,
        y=drawn.imag,
        customdata=np.stack([values.real, values.imag, size, np.angle(values)], axis=1).tolist(),
        name=regime,
        mode="markers",
        marker={
            "color": colours.tint(colours.REGIME_COLOURS[regime], 0.75),
            "symbol": symbol,
            "size": 9,
            "line": {"width": 1, "color": colours.REGIME_COLOURS[regime]},
        },
        hovertemplate="λ = %{customdata[0]:.4f} %{customdata[1]:+.4f}i<br>|λ| = %{customdata[2]:.4f}, "
        "angle %{customdata[3]:.3f} rad",
    )


def _drawn_at(values: NDArray[np.complex128], far: bool) -> NDArray[np.complex128]:
    """Return where eigenvalues are drawn: where they are, or pulled in towards the circle."""
    size = np.abs(values)
    return values * np.where(size > 0, drawn_radius(size) / np.maximum(size, 1e-300), 1.0) if far else values


def _full_loop_trace(values: NDArray[np.complex128], far: bool) -> go.Scatter:
    """Draw the eigenvalues of the full loop as crosses, so that those of A̅ below them are seen."""
    drawn = _drawn_at(values, far)
    return go.Scatter(
        x=drawn.real,
        y=drawn.imag,
        customdata=np.stack([values.real, values.imag, np.abs(values)], axis=1).tolist(),
        name="full loop",
        mode="markers",
        marker={"symbol": "x-thin", "size": 8, "line": {"width": 1.6, "color": colours.FULL_LOOP}},
        hovertemplate="full loop: λ = %{customdata[0]:.4f} %{customdata[1]:+.4f}i<br>|λ| = %{customdata[2]:.4f}",
    )
