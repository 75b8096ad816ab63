"""From an open run to its figures: which recorded names go into which plot, and what a person should see in it.

Not covered: how a figure looks (`figures`, `heatmaps`, `loop_figures`), where it stands (`tabs`).
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..dynamics.regime import LTI_TOLERANCE, LYAPUNOV_TOLERANCE
from ..runfile.layout import BLOCK_NORM, GRADIENT_NORM, JACOBIAN_EIGENVALUES, TOKEN_MAP
from . import colours, figures, heatmaps, loop_figures
from .depth_curves import depth_curves
from .downsample import columns, visible
from .figures import Mark, Stretch
from .frame import empty
from .loop_figures import Profile
from .opened import OpenRun
from .panel import FIXED_BATCH, Ask, Columns, Panel
from .profiles import fitted_laws, passes_at, probe_at, profile_at
from .recorded_live import recorded_live
from .text import plain

# -- what is drawn -----------------------------------------------------------------------------------------------------


def marks(held: OpenRun) -> list[Mark]:
    """Return findings and events of a run in order of their steps, their text escaped for plotly.

    A finding stands at the step of its alarm, as in the list of findings. An event that says the same is left out.
    """
    story = held.known_story
    findings, judgements = (story.findings, story.judgements) if story else ((), ())
    made = [Mark(float(one.step), plain(f"{one.rule} {one.name}: {one.message}"), one.severity) for one in findings] + [
        Mark(float(one.event.step), plain(f"{f'{one.rule} {one.name}'.strip()}: {one.message}"), one.severity)
        for one in recorded_live(held.run.events, findings, judgements)
        if not one.told
    ]
    return sorted(made, key=lambda mark: mark.step)


def _loss(ask: Ask) -> go.Figure:
    """Draw the training loss."""
    return figures.lines(
        [ask.line("loss", "loss", colours.LOSS)],
        y="loss (nats per token)",
        nothing="No loss was recorded.",
        remedy="Give it to the probe: probe.step(loss=loss).",
        **ask.over_steps,
    )


def _gain(ask: Ask) -> go.Figure:
    """Draw the factors per loop."""
    lines = [
        ask.line("residual_ratio", "fixed batch", colours.RATIO, dash="dot"),
        ask.line("jacobian_radius", "full loop ρ(J)", colours.FULL_LOOP, markers=True),
        ask.line("a_bar_radius", "injection ρ(A̅)", colours.RADIUS),
    ]
    return figures.gain(lines, tolerance=LTI_TOLERANCE, **ask.over_steps)


def _norms(ask: Ask) -> go.Figure:
    """Draw radii and norms of the linear part and of the full loop."""
    lines = [
        ask.line("a_bar_radius", "ρ(A̅)", colours.RADIUS),
        ask.line("a_bar_norm", "σ<sub>max</sub>(A̅)", colours.RADIUS, dash="dash"),
        ask.line("jacobian_radius", "ρ(J)", colours.FULL_LOOP, markers=True),
        ask.line("jacobian_norm", "σ<sub>max</sub>(J)", colours.FULL_LOOP, dash="dash", markers=True),
    ]
    return figures.gain(lines, tolerance=LTI_TOLERANCE, **ask.over_steps)


def _exponent(ask: Ask) -> go.Figure:
    """Draw the largest Lyapunov exponent."""
    return figures.lines(
        [ask.line("lyapunov_max", "λ<sub>1</sub>", colours.FULL_LOOP, markers=True)],
        y="nats per loop",
        edges=(-LYAPUNOV_TOLERANCE, LYAPUNOV_TOLERANCE),
        nothing="No exponent of the full loop was recorded.",
        remedy='The preset "inspect" measures it: attach(…, preset="inspect").',
        **ask.over_steps,
    )


def _events(ask: Ask) -> go.Figure:
    """Draw the lanes of events."""
    flights = [
        Stretch(flight.steps[0].step, flight.steps[-1].step, f"flight {flight.number}: {len(flight.steps)} steps kept")
        for flight in ask.held.flights()
        if flight.steps
    ]
    return figures.events(marks(ask.held), flights, **ask.over_steps)


def _state(ask: Ask) -> go.Figure:
    """Draw state and update after the last loop."""
    lines = [
        ask.line("last_residual_norm", "‖h<sub>T</sub> − h<sub>T−1</sub>‖", colours.RESIDUAL),
        ask.line("last_state_norm", "‖h<sub>T</sub>‖", colours.STATE),
    ]
    return figures.lines(
        lines,
        y="mean norm over tokens",
        nothing="No loops were recorded.",
        remedy="The probe did not see the loop body run.",
        log=True,
        **ask.over_steps,
    )


def _heatmap(name: str, symbol: str) -> Callable[[Ask], go.Figure]:
    """Return what draws a number per loop as a heatmap, of the fixed batch or of the training steps."""

    def draw(ask: Ask) -> go.Figure:
        """Draw the number of the loops that the page asks for."""
        passes = ask.batch == FIXED_BATCH and len(ask.held.run.probe_steps) > 0
        what = "training steps"
        if passes:
            steps, values = ask.held.probe(name)
            cells, what = columns(steps, values, ask.view), "fixed batch"
        elif ask.variable:
            cells = columns(*ask.held.variable(name, ask.variable), ask.view)
            what = f"{plain(ask.variable, 30)}, training steps"
        else:
            cells = ask.held.tracks.sheet(name, ask.view)
        return heatmaps.loop_heatmap(
            cells,
            symbol=symbol,
            what=what,
            nothing="No loops were recorded.",
            remedy="The probe did not see the loop body run.",
            log=name != "step_cosine",
            **ask.over_steps,
        )

    return draw


def _loop_columns(name: str) -> Callable[[Ask], Columns]:
    """Return what gives the rows of a heatmap as columns of a CSV."""

    def columns_of(ask: Ask) -> Columns:
        """Return the visible rows, one column for each loop."""
        if ask.batch == FIXED_BATCH and len(ask.held.run.probe_steps):
            steps, values = ask.held.probe(name)
            rows = visible(steps, ask.view)
            steps, values = steps[rows], values[rows]
        elif ask.variable:
            steps, values = ask.held.variable(name, ask.variable)
            rows = visible(steps, ask.view)
            steps, values = steps[rows], values[rows]
        else:
            rows = visible(ask.held.run["step"], ask.view)
            steps, values = ask.held.run["step"][rows], ask.held.run.loops(name, rows)
        return {"step": steps} | {f"{name}_{loop}": values[:, loop] for loop in range(values.shape[1])}

    return columns_of


def _gradients(ask: Ask) -> go.Figure:
    """Draw the gradient per loop."""
    return heatmaps.gradient_heatmap(*ask.held.table(GRADIENT_NORM), **ask.over_steps)


def _blocks(ask: Ask) -> go.Figure:
    """Draw the norm after every block."""
    return heatmaps.block_heatmap(*ask.held.table(BLOCK_NORM), block_names(ask.held), **ask.over_steps)


def block_names(held: OpenRun) -> list[str]:
    """Return what the entries of ``block_state_norm`` are called; numbers where the run does not say."""
    site = held.run.info.get("site")
    parts = [site.get(part) for part in ("prelude", "sublayers")] if isinstance(site, dict) else []
    names = [plain(name, 60) for part in parts if isinstance(part, list) for name in part]
    count = held.table(BLOCK_NORM).values.shape[1]
    return names if len(names) == count else [f"block {i}" for i in range(count)]


def _profile(ask: Ask) -> go.Figure:
    """Draw the loops of the selected step with the law of their steps."""
    passes = passes_at(ask.held, ask.at, ask.variable)
    train, probe = (None, passes) if passes else (profile_at(ask.held, ask.at), probe_at(ask.held, ask.at))
    laws = fitted_laws(ask.held, ask.at, ask.variable)
    whose = f"{plain(ask.variable, 30)}, passes on the " if passes else ""
    return loop_figures.loop_profile(train, probe, laws, revision=ask.revision, whose=whose)


def _profile_columns(ask: Ask) -> Columns:
    """Return the loops of the selected step as columns."""
    passes = passes_at(ask.held, ask.at, ask.variable)
    train = passes or profile_at(ask.held, ask.at) or Profile(0, np.empty(0), np.empty(0))
    residual = np.append(train.residual, np.full(len(train.state) - len(train.residual), np.nan))
    return {"loop": np.arange(len(train.state)), "state_norm": train.state, "residual_norm": residual}


def spectrum_at(held: OpenRun, step: float | None) -> tuple[float | None, NDArray[np.complex128]]:
    """Return the last spectrum of A̅ recorded at or before a step, and its step; None and nothing before the first."""
    steps, eigenvalues = held.spectra()
    row = -1 if step is None else int(np.searchsorted(steps, step, side="right")) - 1
    return (float(steps[row]), eigenvalues[row]) if row >= 0 else (None, np.empty(0, dtype=np.complex128))


def _spectrum(ask: Ask) -> go.Figure:
    """Draw the eigenvalues of the selected step: of A̅, and as crosses those of the full loop."""
    step, values = spectrum_at(ask.held, ask.at)
    known = ask.held.array_at(JACOBIAN_EIGENVALUES, ask.at)
    full = known[1].astype(np.complex128).ravel() if known is not None else np.empty(0, np.complex128)
    full = full[np.isfinite(full)]
    count = int(np.isfinite(values).sum())
    words = f"step {step:,.0f}: {count} of A̅" if step is not None else ""
    if known is not None and full.size:
        words += f", × {full.size} full loop" + ("" if known[0] == step else f" at step {known[0]:,.0f}")
    return loop_figures.spectrum(
        step, values, tolerance=LTI_TOLERANCE, revision=ask.revision, subtitle=words, full=full
    )


def _spectrum_columns(ask: Ask) -> Columns:
    """Return every recorded spectrum as columns."""
    steps, values = ask.held.spectra()
    count = values.shape[1] if values.ndim == 2 else 0
    names = {f"{part}_{i}": getattr(values[:, i], part) for i in range(count) for part in ("real", "imag")}
    return {"step": steps} | names


def _tokens(ask: Ask) -> go.Figure:
    """Draw the map over tokens of the selected step."""
    known = ask.held.array_at(TOKEN_MAP, ask.at)
    if known is None:
        return empty("No map over tokens was recorded up to this step.", remedy=heatmaps.STUDY)
    step, residuals = known
    if residuals.ndim != 3:
        return empty(f"The map over tokens has the shape {residuals.shape}; expected loops, sequences, tokens.")
    return heatmaps.token_map(step, residuals.astype(np.float64), revision=ask.revision)


def _depths(ask: Ask) -> go.Figure:
    """Draw how deep the loop ran."""
    lines = [
        ask.line("depth_min", "fewest", colours.RESIDUAL, dash="dot"),
        ask.line("depth_max", "most", colours.RATIO, dash="dot"),
        ask.line("depth", "mean", colours.STATE),
        ask.line("eval_depth_max", "evaluation, most", colours.FULL_LOOP, markers=True),
        ask.line("backward_depth", "backward solve", colours.RATIO),
    ]
    return figures.lines(lines, y="loops", nothing="No depth was recorded.", **ask.over_steps)


def _test_time(ask: Ask) -> go.Figure:
    """Draw a user's own numbers that are named after a depth."""
    depths, rows, name = depth_curves(ask.held)
    return figures.curves(
        depths,
        rows,
        x_name="loops at test time",
        y=plain(name) or "loss",
        nothing="This run recorded no loss at other depths.",
        remedy="The command loopscope depth RUN measures it; or give loss_at_4=…, loss_at_8=… to probe.step.",
        revision=ask.revision,
    )


def _probe_seconds(ask: Ask) -> go.Figure:
    """Draw what the probe cost."""
    lines = [
        ask.line("full_loop_seconds", "full loop", colours.FULL_LOOP, markers=True),
        ask.line("probe_seconds", "probe", colours.STATE),
    ]
    return figures.lines(lines, y="seconds", nothing="No time of the probe was recorded.", log=True, **ask.over_steps)


def _dropped(ask: Ask) -> go.Figure:
    """Draw rows that were lost and numbers that were not finite."""
    lines = [
        ask.line("rows_dropped", "rows dropped so far", colours.RATIO),
        ask.line("nonfinite", "numbers not finite", colours.FULL_LOOP),
    ]
    chart = figures.lines(lines, y="count", nothing="No count was recorded.", **ask.over_steps)
    return chart.update_yaxes(rangemode="tozero")


_PANELS: Final = (
    Panel(
        "loss",
        "Training loss",
        "How well the model predicts the next token, as the trainer gives it. A cross on top is a loss that was NaN or "
        "infinite.",
        "A jump, or a slow climb after a fall. A loss that looks fine proves nothing: norms hide an exploding loop.",
        _loss,
        ("loss",),
    ),
    Panel(
        "gain",
        "Gain per loop",
        "By how much one loop multiplies: the injection alone (ρ(A̅)), the steps on the fixed batch, and a small "
        "difference in the full loop (ρ(J)).",
        "Above 1, in the red band, the loop amplifies. Where the lines disagree, the blocks hold or break what the "
        "injection does.",
        _gain,
        ("a_bar_radius", "residual_ratio", "jacobian_radius"),
    ),
    Panel(
        "events",
        "Events",
        "What the rules say of the recording, at the step of each alarm, and what happened besides, by severity; what "
        "only the rules of the time of training raised is a note; "
        "brackets are the steps kept at full detail by the flight recorder. Click an event to see its step everywhere.",
        "An error. Its lead over the loss is in the findings below.",
        _events,
        lambda ask: {
            "step": np.array([mark.step for mark in marks(ask.held)]),
            "severity": np.array([mark.severity for mark in marks(ask.held)]),
            "event": np.array([mark.text for mark in marks(ask.held)]),
        },
        height=150,
        whole=True,
    ),
    Panel(
        "state",
        "State and update after the last loop",
        "Size of the carried state h and of its last update, mean over tokens, of every training step.",
        "A state that climbs by powers of ten, or an update as large as the state.",
        _state,
        ("last_state_norm", "last_residual_norm"),
    ),
    Panel(
        "heat-state",
        "State by step and loop",
        "Size of the state at every loop (upwards) of every step (rightwards).",
        "Colours that run away towards the top: the state grows from loop to loop.",
        _heatmap("state_norm", "‖h<sub>t</sub>‖"),
        _loop_columns("state_norm"),
    ),
    Panel(
        "heat-residual",
        "Update by step and loop",
        "Size of the update that each loop makes.",
        "Updates that do not shrink towards the top: the loop does not settle.",
        _heatmap("residual_norm", heatmaps.STEP_NORM),
        _loop_columns("residual_norm"),
    ),
    Panel(
        "heat-cosine",
        "Direction of successive updates",
        "Cosine of each update with the one before: 1 goes on in the same direction, 0 turns at right angles, −1 turns "
        "back.",
        "1 at every loop with updates that do not shrink: the state slides away. −1: it swings to and fro.",
        _heatmap("step_cosine", "cosine"),
        _loop_columns("step_cosine"),
    ),
    Panel(
        "heat-gradient",
        "Gradient by step and loop",
        "Size of the loss's gradient in the state of each loop: does it grow or die on its way back?",
        "Growing towards the first loops (it explodes) or fading to nothing (the early loops do not learn).",
        _gradients,
        lambda ask: _array_columns(ask, GRADIENT_NORM, "loop"),
    ),
    Panel(
        "profile",
        "Profile at the cursor",
        "State and update against the loop index at the selected step, with the law that the late updates follow. "
        "Where one variable is chosen, its passes on the fixed batch, deeper than training runs: its verdict rests on "
        "them.",
        "Updates that rise, or that keep their size: the loop explodes or drifts.",
        _profile,
        _profile_columns,
        at_step=True,
        height=320,
    ),
    Panel(
        "blocks",
        "State after every block",
        "Where within one loop the state jumps: after the prelude, the injection, and each block of the first loop.",
        "One row far brighter than the row below it.",
        _blocks,
        lambda ask: _array_columns(ask, BLOCK_NORM, "block"),
    ),
    Panel(
        "tokens",
        "Convergence of every token",
        "Size of the update of every token of the fixed batch at every loop.",
        "Columns that stay bright: tokens that do not settle.",
        _tokens,
        at_step=True,
        height=280,
    ),
    Panel(
        "spectrum",
        "Eigenvalues",
        "How the injection multiplies in each direction: outside the unit circle it amplifies, inside it forgets. "
        "Crosses: the same of the full loop, blocks included, at the state it visits.",
        "Anything outside the circle.",
        _spectrum,
        _spectrum_columns,
        at_step=True,
        height=420,
    ),
    Panel(
        "norms",
        "Radii and norms",
        "Spectral radius (what many loops do) and largest singular value (the worst of one loop) of the injection and "
        "of the full loop.",
        "A radius above 1. A norm above 1 with a radius below is growth that passes.",
        _norms,
        ("a_bar_radius", "a_bar_norm", "jacobian_radius", "jacobian_norm"),
    ),
    Panel(
        "exponent",
        "Largest Lyapunov exponent",
        "How fast a small difference grows per loop of the full loop, in nats: below 0 it is forgotten.",
        "Above 0.05: small differences grow, so more loops do not settle.",
        _exponent,
        ("lyapunov_max", "lyapunov_error"),
    ),
    Panel(
        "depths",
        "Loops per step",
        "How many loops the training ran, and forwards in evaluation mode between its steps.",
        "A depth that is not what was asked for; evaluation deeper than training ever ran.",
        _depths,
        ("depth", "depth_min", "depth_max", "eval_depth_max", "backward_depth"),
    ),
    Panel(
        "test-time",
        "Loss against test-time depth",
        "What more or fewer loops would do to the loss, at a few moments of training; the newest is strongest.",
        "A curve that rises with depth: more loops hurt.",
        _test_time,
        height=300,
    ),
    Panel(
        "probe-seconds",
        "Time of the probe",
        "What recording cost in each step.",
        "Times that grow, or that are a noticeable share of a step.",
        _probe_seconds,
        ("probe_seconds", "full_loop_seconds"),
    ),
    Panel(
        "dropped",
        "Rows dropped and numbers not finite",
        "What the recording itself lost.",
        "Anything above 0.",
        _dropped,
        ("rows_dropped", "nonfinite"),
        height=180,
    ),
)
PANELS: Final = {panel.name: panel for panel in _PANELS}


def _array_columns(ask: Ask, name: str, what: str) -> Columns:
    """Return the short arrays of a name as columns."""
    steps, values = ask.held.table(name)
    return {"step": steps} | {f"{what}_{i}": values[:, i] for i in range(values.shape[1])}
