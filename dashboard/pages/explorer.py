"""A sandbox without any run: how an injection and a few numbers decide whether a loop is stable, and why.

Every setting is in the address, so that a link shows the same loop. The presets tell the paper's story from left to
right.

Not covered: the numbers (`explorer`), the plots (`explorer_figures`).
"""

from dataclasses import asdict, fields
from functools import partial
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, ctx, dcc, html, no_update

from ...dynamics.regime import LTI_TOLERANCE, lti_regime
from ...runfile.layout import RunFileError
from .. import components, explorer_figures
from ..colours import REGIME_GLYPHS
from ..explorer import (
    KINDS,
    LIMITS,
    PRESETS,
    SCHEMES,
    WIDEST,
    Explored,
    Sandbox,
    explore,
    landscape,
    query,
    rates,
    rules,
    sandbox_of,
)  # fmt: skip
from ..frame import empty, graph_config
from ..index import current_index
from ..loop_figures import spectrum
from ..panel import summary
from ..recorded_matrix import RecordedMatrix, recorded_matrix
from ..text import number, plain, shown
from . import Page

RUNS_LISTED: Final = 500
NAMES: Final = tuple(field.name for field in fields(Sandbox))
_SLIDERS: Final[tuple[tuple[str, str, float, str], ...]] = (
    ("delta", "step size Δ", 0.05, "parcae"),
    ("rate", "decay rate −A", 0.05, "parcae"),
    ("norm", "σ_max of W on the state", 0.05, "concatenation"),
    ("skew", "non-normality of W", 0.1, "concatenation"),
    ("gain", "gain of the block R̅", 0.05, ""),
    ("width", "width d", 1, "addition concatenation parcae"),
    ("loops", "loops", 1, ""),
)
_RULE_WORDS: Final = {
    "mixture": "the paper's mixture",
    "zoh": "zero-order hold",
    "euler": "Euler",
    "bilinear": "bilinear",
}
_PLOTS: Final = {
    "spectrum": ("Eigenvalues of A̅", 330, "Outside the unit circle a direction grows with every loop."),
    "powers": ("Powers of A̅", 250, "The most that t loops of the linear part can do to a state."),
    "states": ("State norms", 250, "One start, one input: the linear part alone, and with the block."),
}
SIDE_BY_SIDE: Final = (
    "Shaded: where the rule is stable. Marks: ΔA of the channels. The table says how far a rule is from the exact one, "
    "zero-order hold, in the channel where it is worst."
)
_VIEWS: Final = {"lti": "injection", "loop": "full loop", "trajectory": "states"}


def layout(**asked: Any) -> html.Div:
    """Return the page of the settings in the address."""
    sandbox = sandbox_of(asked)
    shown, schemes = _shown(sandbox), _schemes(sandbox)
    presets = [
        html.Button(name, id=_preset_id(name), className=kind, title=PRESETS[name][1])
        for name, kind in zip(PRESETS, _preset_classes(sandbox), strict=True)
    ]
    plots = [_plot(name, shown[name]) for name in _PLOTS]
    side_by_side = html.Section(
        [
            html.H2("Discretisation rules side by side"),
            html.P(SIDE_BY_SIDE, className="ls-dim"),
            html.Div([_scheme_card(name, chart) for name, chart in schemes.items()], className="ls-schemes"),
            html.Div(_rules_table(sandbox), id="explorer-rules"),
        ],
        className="ls-card ls-for ls-for-parcae",
    )
    return html.Div(
        [
            html.Div([html.H1("Explorer")], className="ls-title"),
            html.P("A loop without a run. Five clicks tell the story of the paper:", className="ls-dim"),
            html.Div(presets, className="ls-presets"),
            html.P(id="explorer-story", className="ls-dim", role="status"),
            html.Div(
                [
                    html.Section(_controls(sandbox), className="ls-card ls-controls"),
                    html.Div(
                        [
                            html.Section(
                                shown["verdict"], id="explorer-verdict", className=shown["tone"], role="status"
                            ),
                            html.Div(plots, className="ls-explored"),
                            side_by_side,
                        ],
                        className="ls-explorer-main",
                    ),
                ],
                className="ls-explorer",
            ),
            dcc.Store(id="explorer-query", data=query(sandbox)),
            dcc.Store(id="explorer-mirrored"),
        ],
        id="explorer-page",
        className=_page_class(sandbox),
    )


def _preset_id(name: str) -> str:
    """Return the id of a preset's button."""
    return "explorer-preset-" + name.lower().replace(" ", "-").replace(",", "")


def _preset_classes(sandbox: Sandbox) -> list[str]:
    """Return the classes of the presets' buttons: the one whose settings these are is marked."""
    return ["ls-preset ls-chosen" if chosen == sandbox else "ls-preset" for chosen, _ in PRESETS.values()]


def _page_class(sandbox: Sandbox) -> str:
    """Return the class that shows the controls of the chosen injection only."""
    return f"ls-kind-{sandbox.kind}"


def _controls(sandbox: Sandbox) -> list[Any]:
    """Return the controls; those that another injection needs are there and hidden."""
    options: Any = [{"label": "A̅ of a run" if kind == "run" else kind, "value": kind} for kind in KINDS]
    kinds = dcc.RadioItems(id="explorer-kind", options=options, value=sandbox.kind)
    matrix = dcc.Input(id="explorer-matrix", type="text", value=sandbox.matrix, debounce=0.4, autoComplete="off")
    schemes = dcc.RadioItems(
        id="explorer-scheme",
        options=[{"label": _RULE_WORDS[name], "value": name} for name in SCHEMES],
        value=sandbox.scheme,
    )
    made: list[Any] = [
        html.Div([html.Span("injection", className="ls-control-name"), kinds], className="ls-control"),
        html.Div(
            [html.Label("matrix, rows behind semicolons", htmlFor="explorer-matrix"), matrix],
            className="ls-control ls-for ls-for-matrix",
        ),
        html.Div(_run_choice(sandbox), className="ls-control ls-for ls-for-run"),
    ]
    for name, words, step, needed in _SLIDERS:
        low, high = LIMITS[name]
        slider = dcc.Slider(
            id=f"explorer-{name}",
            min=low,
            max=high,
            step=step,
            value=getattr(sandbox, name),
            marks=None,
            updatemode="drag",
        )
        kinds_of = " ".join(["ls-for", *(f"ls-for-{kind}" for kind in needed.split())]) if needed else ""
        made.append(
            html.Div([html.Span(words, className="ls-control-name"), slider], className=f"ls-control {kinds_of}")
        )
    rule = html.Div(
        [html.Span("discretisation", className="ls-control-name"), schemes],
        className="ls-control ls-for ls-for-parcae",
    )
    contours: Any = ["on"] if sandbox.contours else []
    option: Any = [
        {"label": "pseudospectra: contours of log₁₀ ε, where a change of A̅ of size ε puts an eigenvalue", "value": "on"}
    ]
    return [*made, rule, html.Div(dcc.Checklist(id="explorer-contours", options=option, value=contours))]


def _run_choice(sandbox: Sandbox) -> list[Any]:
    """Return the choice of a run and of a step, whose A̅ is taken."""
    runs: Any = [{"label": entry.name, "value": entry.id} for entry in current_index().entries() if not entry.fault]
    return [
        html.Label("run", htmlFor="explorer-run"),
        dcc.Dropdown(id="explorer-run", options=runs[:RUNS_LISTED], value=sandbox.run or None, clearable=False),
        html.Label("step", htmlFor="explorer-at"),
        dcc.Input(id="explorer-at", type="text", inputMode="numeric", value=sandbox.at, debounce=0.4,
                  placeholder="newest", autoComplete="off"),
    ]  # fmt: skip


def _recorded(sandbox: Sandbox) -> RecordedMatrix | None:
    """Return A̅ of the run that the settings name.

    Raises:
        ValueError: The run cannot be read.
    """
    entry = current_index().find(sandbox.run) if sandbox.kind == "run" and sandbox.run else None
    if entry is None:
        return None
    try:
        return recorded_matrix(current_index().open(entry), sandbox.at, WIDEST)
    except RunFileError as error:
        raise ValueError(shown(error, 200)) from None


def _plot(name: str, chart: go.Figure) -> html.Section:
    """Return the card of a plot."""
    title, height, meaning = _PLOTS[name]
    graph = dcc.Graph(
        id=f"explorer-{name}", figure=chart, config=graph_config(), responsive=True, style={"height": height}
    )
    head = html.Header([html.H2(title), html.Span(meaning, className="ls-readout", title=meaning)])
    return html.Section([head, graph], className=f"ls-panel ls-explored-{name}")


def _scheme_card(name: str, chart: go.Figure) -> html.Div:
    """Return the card of a discretisation rule."""
    graph = dcc.Graph(
        id=f"explorer-{name}", figure=chart, config=graph_config(), responsive=True, style={"height": 220}
    )
    return html.Div([html.H3(_RULE_WORDS[name]), graph])


def _schemes(sandbox: Sandbox) -> dict[str, go.Figure]:
    """Return the figures of the discretisation rules."""
    channels = sandbox.delta * rates(sandbox)
    drawn = {
        rule.name: explorer_figures.scheme(rule.name, channels, np.abs(rule.stepped.a_bar)) for rule in rules(sandbox)
    }
    return {name: _summed_up(_RULE_WORDS[name], chart) for name, chart in drawn.items()}


def _summed_up(title: str, chart: go.Figure) -> go.Figure:
    """Give a figure the line that says what it shows to somebody who does not see it."""
    return chart.update_layout(meta={"summary": f"{title}. {summary(chart)}"})


def _shown(sandbox: Sandbox) -> dict[str, Any]:
    """Return what follows from the settings but for the discretisation rules, by name: figures and words."""
    drawn: dict[str, Any] = {}
    try:
        taken = _recorded(sandbox)
        explored = explore(sandbox, None if taken is None else taken.values)
    except ValueError as error:
        fault = empty(plain(error))
        said: list[Any] = [html.P([html.I("✕", className="ls-glyph"), str(error)])]
        drawn |= dict.fromkeys(_PLOTS, fault) | {"verdict": said, "tone": "ls-strip ls-unreadable"}
    else:
        drawn |= {
            "spectrum": spectrum(
                0,
                explored.eigenvalues,
                tolerance=LTI_TOLERANCE,
                revision="explorer",
                subtitle=f"{len(explored.eigenvalues)} eigenvalues of A̅"
                + (", × full loop" if explored.full.size else ""),
                full=explored.full,
                landscape=partial(landscape, explored.system) if sandbox.contours else None,
            ),
            "powers": explorer_figures.powers(explored.powers, explored.lower, explored.upper),
            "states": explorer_figures.states(explored.alone, explored.blocked),
            "verdict": [*_verdict(explored), *_origin(sandbox, taken)],
            "tone": f"ls-strip ls-{explored.verdict}",
        }
    return drawn | {name: _summed_up(_PLOTS[name][0], drawn[name]) for name in _PLOTS}


def _origin(sandbox: Sandbox, taken: RecordedMatrix | None) -> list[Any]:
    """Say where A̅ is from, with the way back to its run."""
    if taken is None:
        return []
    back = dcc.Link("back to the run at this step", href=f"/run/{sandbox.run}?tab=spectrum&step={taken.step}")
    return [html.P([taken.words, " ", back], className="ls-dim")]


def _verdict(explored: Explored) -> list[Any]:
    """Return the regime and its reason; the views where they disagree."""
    said = html.P(
        [
            html.I(REGIME_GLYPHS[explored.verdict], className="ls-glyph"),
            html.Strong(f"{explored.verdict.capitalize()}. "),
            explored.reason,
        ]
    )
    known = {regime for regime in explored.regimes.values() if regime != "unknown"}
    if len(known) < 2:
        return [said]
    badges = [components.regime_badge(explored.regimes[key], label) for key, label in _VIEWS.items()]
    return [said, html.Div(badges, className="ls-badges ls-dim")]


def _rules_table(sandbox: Sandbox) -> html.Div:
    """Return the numbers of the discretisation rules."""
    rows = [
        (
            _RULE_WORDS[rule.name],
            number(rule.radius),
            components.regime_badge(lti_regime(rule.radius)),
            number(rule.a_error, 2),
            number(rule.b_error, 2),
        )
        for rule in rules(sandbox)
    ]
    return components.rows_table(("rule", "ρ(A̅)", "regime", "A̅ off by", "B̅ off by"), rows)


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    outputs = [Output(f"explorer-{name}", "figure") for name in (*_PLOTS, *SCHEMES)]

    @app.callback(
        *outputs,
        Output("explorer-rules", "children"),
        Output("explorer-verdict", "children"),
        Output("explorer-verdict", "className"),
        Output("explorer-page", "className"),
        Output("explorer-query", "data"),
        *[Output(_preset_id(name), "className") for name in PRESETS],
        *[Input(f"explorer-{name}", "value") for name in NAMES],
        prevent_initial_call=True,
    )
    def change(*values: Any) -> list[Any]:
        """Show what the settings give."""
        sandbox = sandbox_of(dict(zip(NAMES, values, strict=True)))
        shown = _shown(sandbox)
        unseen: list[Any] = [no_update] * (len(SCHEMES) + 1)
        beside = [*_schemes(sandbox).values(), _rules_table(sandbox)] if sandbox.kind == "parcae" else unseen
        verdict = [shown["verdict"], shown["tone"]]
        kept = [_page_class(sandbox), query(sandbox), *_preset_classes(sandbox)]
        return [*[shown[name] for name in _PLOTS], *beside, *verdict, *kept]

    @app.callback(
        *[Output(f"explorer-{name}", "value") for name in NAMES],
        Output("explorer-story", "children"),
        *[Input(_preset_id(name), "n_clicks") for name in PRESETS],
        prevent_initial_call=True,
    )
    def preset(*_: Any) -> list[Any]:
        """Set the controls as a preset has them."""
        name = next(name for name in PRESETS if _preset_id(name) == ctx.triggered_id)
        sandbox, story = PRESETS[name]
        values = asdict(sandbox) | {"contours": ["on"] if sandbox.contours else []}
        return [*values.values(), story]

    app.clientside_callback(
        ClientsideFunction("loopscope", "address"),
        Output("explorer-mirrored", "data"),
        Input("explorer-query", "data"),
        prevent_initial_call=True,
    )


PAGE = Page("explorer", "/explorer", "Explorer · loopscope", layout, register, link="Explorer", place=50)
