"""The figures of `theory.md`, computed by loopscope itself: ``python docs/make_figures.py`` writes ``docs/figures/``.

Every figure is a function from data to a plotly figure. Most compute small systems in a second; four read demo models
that are trained first, in about 20 s on one core. Numbers that the text quotes from those models go to
``figures/numbers.json``, and a test holds the text to them.

Not covered: figures of a reader's own runs; the dashboard draws those.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from drawing import LOG_TICKS, Floats, add_dots, add_line, as_svg, columns, note, panels, style
from loopscope.commands.checkpoints import depth_curve
from loopscope.commands.training import train_run
from loopscope.dashboard.colours import INK, LOSS, NORM, RATIO, REGIME_COLOURS, tint
from loopscope.dynamics import (
    LTISystem,
    bilinear,
    classify,
    euler,
    fixed_points,
    kreiss_constant,
    lyapunov_exponents,
    pseudospectrum_on_grid,
    token_exponents,
    token_jacobians,
    token_spectra,
    zoh,
)
from loopscope.loops.bound import bound_loop
from loopscope.models import load_model, standard_library
from loopscope.models.run_config import RunConfig
from loopscope.rules.diagnosis import diagnose
from loopscope.runfile.open import open_run
from numpy.typing import NDArray
from plotly.subplots import make_subplots

HERE = Path(__file__).resolve().parent
OUT = HERE / "figures"
STABLE, MARGINAL, UNSTABLE, UNKNOWN = (REGIME_COLOURS[name] for name in ("stable", "marginal", "unstable", "unknown"))

# Couplings of the 2 x 2 examples, all with the eigenvalues 0.9 and 0.8.
COUPLINGS = {0.0: STABLE, 0.5: NORM, 2.0: RATIO}
PERTURBATION = 0.05
HOT, USEFUL = 0.05, 0.01  # learning rates: one that breaks concatenation, one that anybody would use


@dataclass(frozen=True, slots=True)
class Run:
    """One demo run: injection, learning rate, steps, and the colour of its verdict."""

    injection: str
    lr: float
    steps: int
    colour: str


RUNS = {
    "parcae": Run("parcae", HOT, 200, STABLE),
    "addition": Run("addition", HOT, 200, MARGINAL),
    "concatenation": Run("concatenation", HOT, 200, UNSTABLE),
    "useful": Run("parcae", USEFUL, 400, STABLE),
}


# Small systems


def coupled(coupling: float) -> LTISystem:
    """Return the linear part with eigenvalues 0.9 and 0.8 and this coupling from the second channel to the first."""
    return LTISystem([[0.9, coupling], [0.0, 0.8]])


def injections_figure() -> go.Figure:
    """Draw where the three injections put the eigenvalues of A̅, and what the discretisation has to do with it."""
    chart = panels(
        ["Eigenvalues of A̅", "One channel, A̅ against Δ|a|"], ["real part", "Δ|a|, step times decay rate"], legend=4
    )
    chart.update_yaxes(title_text="imaginary part", scaleanchor="x", constrain="domain", col=1, range=[-1.4, 1.4])
    chart.update_xaxes(range=[-1.4, 1.4], constrain="domain", col=1)
    chart.update_yaxes(title_text="A̅", col=2, range=[-2, 1.25])
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 90))
    add_line(chart, 1, circle.real, circle.imag, "unit circle", INK, width=1, legend=False)
    random = np.random.default_rng(0)
    dense = np.linalg.eigvals(0.63 * random.standard_normal((64, 64)) / 8)
    grown = np.linalg.eigvals(1.1 * random.standard_normal((64, 64)) / 8)
    channels = zoh(-np.exp(random.normal(0, 0.5, 24)), 0.8).a_bar
    for values, name, colour in (
        (grown, "concatenation, gain 1.1", UNSTABLE),
        (dense, "concatenation, gain 0.63", NORM),
        (channels, "Parcae", STABLE),
        (np.ones(1), "addition", MARGINAL),
    ):
        size = 11 if len(values) == 1 else 5
        add_dots(chart, 1, np.real(values), np.imag(values), name, colour, size=size)
    steps = np.linspace(0, 3, 61)
    rules = (("zero-order hold", zoh, STABLE, "solid"), ("bilinear", bilinear, NORM, "dash"))
    for name, rule, colour, dash in (*rules, ("Euler", euler, UNSTABLE, "dot")):
        add_line(chart, 2, steps, [float(rule(-1.0, step).a_bar) for step in steps], name, colour, dash=dash)
    for level in (-1, 1):
        chart.add_hline(level, line={"color": INK, "width": 1}, col=2)
    chart.add_annotation(x=0.03, y=1.12, text="beyond these lines: unstable", col=2, row=1, **note("left"))
    return chart


def gains_system() -> LTISystem:
    """Return a 64-channel A̅ whose three numbers lie far apart: chosen eigenvalues and a random strictly upper part."""
    random = np.random.default_rng(0)
    turned, _ = np.linalg.qr(random.standard_normal((64, 64)))
    inner = np.diag(np.linspace(-0.85, 0.95, 64)) + np.triu(random.standard_normal((64, 64)), 1) * 0.09
    return LTISystem(turned @ inner @ turned.T)


def gains_figure() -> go.Figure:
    """Draw one loop's growth of random states: it starts at the RMS gain, stays below σ_max and ends at ρ."""
    system, random = gains_system(), np.random.default_rng(1)
    states = random.standard_normal((64, 24))
    sizes = [np.linalg.norm(states, axis=0)]
    for _ in range(80):
        states = system.a_bar @ states
        sizes.append(np.linalg.norm(states, axis=0))
    growth = np.array(sizes)[1:] / np.array(sizes)[:-1]
    chart = panels(["Growth of 24 random states from one loop to the next"], ["loop t"], legend=3)
    chart.update_yaxes(title_text="‖h[t+1]‖ / ‖h[t]‖", range=[0.5, 1.6])
    for column in growth.T:
        add_line(chart, 1, np.arange(80), column, "", tint(UNKNOWN, 0.55), width=1, legend=False)
    levels = (
        ("σ_max, worst single loop", float(system.spectral_norm()), UNSTABLE),
        ("ρ, the long run", float(system.spectral_radius()), STABLE),
        ("RMS gain, average first loop", system.rms_gain(), MARGINAL),
    )
    for name, level, colour in levels:
        add_line(chart, 1, [0, 79], [level, level], f"{name}: {level:.2f}", colour, dash="dash")
    return chart


def transient_figure() -> go.Figure:
    """Draw growth before decay, and the pseudospectrum that shows it: three matrices with the same eigenvalues."""
    chart = panels(
        ["‖A̅^t‖ with ρ = 0.9 in all three", f"Eigenvalues after a change of size {PERTURBATION}"],
        ["loop t", "real part"],
        legend=4,
    )
    chart.update_yaxes(title_text="‖A̅^t‖₂", type="log", dtick=1, range=[-2, 1], col=1)
    chart.update_yaxes(title_text="imaginary part", scaleanchor="x2", constrain="domain", range=[-0.65, 0.65], col=2)
    chart.update_xaxes(range=[0.3, 1.6], constrain="domain", col=2)
    real, imaginary = np.linspace(0.3, 1.6, 105), np.linspace(-0.65, 0.65, 105)
    for coupling, colour in COUPLINGS.items():
        system = coupled(coupling)
        sizes = [np.linalg.norm(np.linalg.matrix_power(system.a_bar, t), 2) for t in range(41)]
        add_line(chart, 1, np.arange(41), sizes, f"coupling {coupling:g}", colour)
        heights = pseudospectrum_on_grid(system, real, imaginary)
        contour = {"start": PERTURBATION, "end": PERTURBATION, "size": 1, "coloring": "lines"}
        scale, width = [[0, colour], [1, colour]], {"width": 2, "smoothing": 1.0}
        chart.add_contour(x=real, y=imaginary, z=heights, contours=contour, colorscale=scale, line=width,
                          showscale=False, row=1, col=2)  # fmt: skip
    kreiss = float(kreiss_constant(coupled(2.0)))
    add_line(chart, 1, [0, 40], [kreiss, kreiss], f"Kreiss constant, coupling 2: {kreiss:.1f}", RATIO, dash="dot")
    arc = np.exp(1j * np.linspace(-0.72, 0.72, 40))
    add_line(chart, 2, arc.real, arc.imag, "unit circle", INK, width=1)
    add_dots(chart, 2, [0.9, 0.8], [0, 0], "eigenvalues 0.9 and 0.8, before", INK, size=6)
    return chart


def chain(state: torch.Tensor) -> torch.Tensor:
    """Return a causal loop of four channels in which every token takes three times its predecessor's turned state."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    own = turn @ torch.diag(torch.tensor([0.6, 0.5, 0.4, 0.3], dtype=torch.float64)) @ turn.T
    shifted = torch.cat([torch.zeros_like(state[:, :1]), state[:, :-1]], dim=1)
    moved: torch.Tensor = state @ own.T + 3 * shifted @ turn.T
    return moved


def per_token_figure(runs: Mapping[str, Path]) -> go.Figure:
    """Draw why a causal loop has one small spectrum per token, and what a dense solver makes of the whole Jacobian."""
    chart = panels(
        ["Demo model: ‖∂h′_i/∂h_j‖, zero above", "A chain of 32 tokens: eigenvalues of J"],
        ["token j", "real part"],
        legend=2,
    )
    chart.update_yaxes(title_text="token i", autorange="reversed", scaleanchor="x", constrain="domain", col=1)
    chart.update_xaxes(constrain="domain", col=1)
    chart.update_yaxes(title_text="imaginary part", scaleanchor="x2", constrain="domain", col=2)
    sizes = block_sizes(runs["useful"], tokens=16)
    to, of = np.nonzero(sizes)
    shade = np.log10(sizes[to, of])
    shade = 0.12 + 0.88 * (shade - shade.min()) / np.ptp(shade)
    marker = {"symbol": "square", "size": 13, "color": [tint(LOSS, round(float(s), 2)) for s in shade]}
    chart.add_scatter(x=of, y=to, mode="markers", marker=marker, showlegend=False, row=1, col=1)
    dense = dense_eigenvalues(chain)
    own = token_spectra(chain, torch.zeros(1, 32, 4, dtype=torch.float64), count=4).eigenvalues.ravel()
    add_dots(chart, 2, dense.real, dense.imag, "dense solver on the whole J: wrong", UNSTABLE, size=5)
    add_dots(chart, 2, own.real, own.imag, "per token: exact", STABLE, size=9)
    return chart


def dense_eigenvalues(step: Callable[[torch.Tensor], torch.Tensor]) -> NDArray[np.complex128]:
    """Return the eigenvalues of the whole Jacobian of 32 tokens of width 4, as a dense solver finds them."""
    whole = torch.autograd.functional.jacobian(step, torch.zeros(1, 32, 4, dtype=torch.float64))
    return np.linalg.eigvals(whole.reshape(128, 128).numpy()).astype(np.complex128)


def lyapunov_figure(runs: Mapping[str, Path]) -> go.Figure:
    """Draw exponents as running means of three maps, and tokens of a real model before and after they settled."""
    chart = panels(
        ["Running mean of the rates", "Tokens of the Parcae demo model"],
        ["loops averaged over", "log ρ_J, nats"],
        legend=3,
    )
    chart.update_yaxes(title_text="λ₁, nats per loop", col=1, range=[-1.35, 1.05])
    chart.update_yaxes(title_text="λ₁, nats per loop", col=2)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    maps: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[float], str]] = {
        "logistic map, 4h(1 − h): ln 2": (lambda h: 4 * h * (1 - h), [0.3], UNSTABLE),
        "rotation: 0": (lambda h: h @ turn.T, [1.0, 0.0], MARGINAL),
        "tanh(h/2) at rest: ln ½": (lambda h: torch.tanh(h / 2), [2.0], STABLE),
    }
    for name, (step, start, colour) in maps.items():
        rates = lyapunov_exponents(step, torch.tensor(start, dtype=torch.float64), iterations=60, warmup=5).rates[:, 0]
        add_line(chart, 1, np.arange(1, 61), np.cumsum(rates) / np.arange(1, 61), name, colour)
    early, late = token_rates(runs["useful"])
    for (radii, rates), name, colour in ((early, "mean over the first 4 loops", RATIO), (late, "at rest", STABLE)):
        add_dots(chart, 2, np.log(radii), rates, name, colour, size=6)
    ends = [min(np.log(early[0]).min(), late[1].min()), max(np.log(early[0]).max(), early[1].max())]
    add_line(chart, 2, ends, ends, "λ₁ = log ρ_J", INK, width=1)
    return chart


def bifurcation_figure() -> go.Figure:
    """Return what happens where the leading multiplier crosses +1, −1, and the circle between them."""
    chart = panels(
        ["Crossing +1: pitchfork", "Crossing −1: flip", "Crossing as a pair"], ["gain g", "gain g", "h₁"], legend=2
    )
    chart.update_yaxes(title_text="fixed points of g tanh h", col=1, title_standoff=2)
    chart.update_yaxes(title_text="late states of −g tanh h", col=2, title_standoff=2)
    chart.update_yaxes(
        title_text="h₂", range=[-1.05, 1.05], scaleanchor="x3", constrain="domain", col=3, title_standoff=2
    )
    chart.update_xaxes(constrain="domain", range=[-1.05, 1.05], col=3)
    branches: dict[str, list[tuple[float, float]]] = {"stable": [], "unstable": []}
    orbit: list[tuple[float, float]] = []
    for gain in np.linspace(0.5, 2.0, 24):
        starts = [torch.full((1, 1, 1), x, dtype=torch.float64) for x in (-2.0, 0.0, 2.0)]
        for point in fixed_points(partial(saturating, float(gain)), starts):
            branches["stable" if point.radius < 1 else "unstable"].append((gain, float(point.state)))
        h = 1.0
        for t in range(402):
            h = -gain * np.tanh(h)
            orbit += [(gain, h)] if t >= 400 else []
    for kind, points in branches.items():
        add_dots(chart, 1, *columns(points), f"{kind} fixed point", REGIME_COLOURS[kind], size=5)
    add_dots(chart, 2, *columns(orbit), "states visited", NORM, size=5)
    resting = [(gain, h) for gain, h in branches["unstable"]]
    add_dots(chart, 2, *columns(resting), "unstable fixed point", UNSTABLE, size=5)
    for gain, colour in ((0.93, STABLE), (1.3, MARGINAL)):
        add_line(chart, 3, *spiral(gain), f"g = {gain:g}: {'comes to rest' if gain < 1 else 'circles'}", colour)
    return chart


def saturating(gain: float, state: torch.Tensor) -> torch.Tensor:
    """Return a loop that multiplies small states by its gain and holds large ones."""
    return gain * torch.tanh(state)


def spiral(gain: float) -> tuple[Floats, Floats]:
    """Return the states of a loop that turns by 20 degrees, grows by the gain when small and saturates."""
    turn = np.exp(1j * np.pi / 9)
    states = [0.9 + 0j if gain < 1 else 0.1 + 0j]
    for _ in range(60):
        states.append(gain * turn * states[-1] / np.sqrt(1 + abs(states[-1]) ** 2))
    return np.real(states), np.imag(states)


# Demo models


def steps_figure(runs: Mapping[str, Path]) -> go.Figure:
    """Draw how absolute steps tell settling, drifting and exploding apart, and relative steps do not."""
    chart = panels(["Size of the steps", "The same relative to the state"], ["loop t", "loop t"], legend=3)
    chart.update_yaxes(type="log", exponentformat="power", tickfont_size=LOG_TICKS)
    chart.update_yaxes(title_text="‖h[t+1] − h[t]‖", dtick=3, col=1, range=[-3.4, 15])
    chart.update_yaxes(title_text="‖h[t+1] − h[t]‖ / ‖h[t+1]‖", dtick=1, col=2)
    words = {"settling": "settles", "drifting": "drifts", "exploding": "explodes"}
    for name in ("parcae", "addition", "concatenation"):
        steps, norms = loop_norms(runs[name], loops=48)
        kind = classify(steps, state_norm=norms).kind
        shown = np.isfinite(norms[1:]) & (steps < 1e15)
        loops = np.arange(48)[shown]
        add_line(chart, 1, loops, steps[shown], f"{name}: {words.get(kind, kind)}", RUNS[name].colour)
        add_line(chart, 2, loops, (steps / norms[1:])[shown], name, RUNS[name].colour)
    return chart


def depth_figure(runs: Mapping[str, Path]) -> go.Figure:
    """Draw held-out loss against test-time depth, with the law where there is one and the cliff where there is not."""
    titles = [f"Parcae, learning rate {USEFUL}", f"Three injections, learning rate {HOT}"]
    chart = panels(titles, ["test-time depth T, loops"] * 2, legend=3)
    chart.update_xaxes(range=[0, 33])
    chart.update_yaxes(title_text="held-out loss, nats")
    curve = depth_curve(runs["useful"], None, batches=16, device="cpu")
    law = curve.law
    assert law is not None and law.identified
    depths = np.linspace(1, 32, 200)
    text = f"L(T) = {law.limit:.3f} + {law.amplitude:.3f} exp(−{law.rate:.2f} T)"
    add_line(chart, 1, depths, law.loss(depths), text, LOSS)
    add_dots(chart, 1, *columns(curve.losses.items()), "measured", STABLE, size=8)
    chart.add_vline(8, line={"color": INK, "width": 1, "dash": "dot"}, col=1)
    top = max(curve.losses.values())
    chart.add_annotation(x=8.4, y=top, text="μ_rec = 8, mean depth in training", col=1, row=1, **note("left"))
    for name in ("parcae", "addition", "concatenation"):
        losses = depth_curve(runs[name], list(range(1, 33)), batches=4, device="cpu").losses
        add_line(chart, 2, list(losses), list(losses.values()), name, RUNS[name].colour)
    return chart


def hidden_figure(runs: Mapping[str, Path]) -> go.Figure:
    """Return what the loss shows of an explosion, and what the loop shows."""
    chart = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.3, 0.3, 0.4])
    style(chart, height=510, top=56)
    chart.update_layout(legend={"orientation": "h", "x": 0, "y": 1 - 26 / 510, "yref": "container", "yanchor": "top"})
    chart.update_layout(
        title={"text": f"Demo runs at learning rate {HOT}, seed 0", "font_size": 14, "x": 0.08, "y": 0.975}
    )
    chart.update_xaxes(title_text="training step", title_standoff=4, row=3)
    labels = ("loss, nats", "ρ(A̅)", "‖h‖ after 16 loops")
    for row, label in enumerate(labels, start=1):
        chart.update_yaxes(title_text=label, title_standoff=4, row=row)
    chart.update_yaxes(type="log", dtick=4, exponentformat="power", tickfont_size=LOG_TICKS, row=3)
    chart.update_xaxes(range=[0, 200])
    for name in ("parcae", "addition", "concatenation"):
        with open_run(runs[name]) as run:
            rows = ((run["step"], run["loss"]), (run["step"], run["a_bar_radius"]),
                    (run.probe_steps, run.probe("state_norm")[:, -1]))  # fmt: skip
            breach = diagnose(run).first_breach
        for row, (steps, values) in enumerate(rows, start=1):
            add_line(chart, 1, steps, values, name, RUNS[name].colour, row=row, legend=row == 1, width=1.6)
        if breach is not None:
            mark = {"color": RUNS[name].colour, "width": 1, "dash": "dot"}
            chart.add_vline(breach.step, line=mark)
            text = f"step {breach.step}: {breach.rule} {breach.name}"
            chart.add_annotation(x=breach.step + 2, y=9.5, text=text, row=1, col=1, **note("left"))
    return chart


# What is measured on the models


def train_models(folder: Path) -> dict[str, Path]:
    """Train the four demo models of the figures, each with its run file and checkpoint in a folder."""
    for name, run in RUNS.items():
        model = {"injection": run.injection, "norm": "pre"}
        config = RunConfig(preset="demo", seed=0, model=model, train={"lr": run.lr, "steps": run.steps})
        train_run(folder / f"{name}.h5", config, device="cpu")
    return {name: folder / f"{name}.h5" for name in RUNS}


def held_out_tokens() -> torch.Tensor:
    """Return the eight held-out sequences of 32 bytes."""
    return next(standard_library(sequence_length=32).held_out(8))[:, :32]


@torch.no_grad()
def loop_norms(run: Path, *, loops: int) -> tuple[Floats, Floats]:
    """Return the step sizes ``(T,)`` and state norms ``(T + 1,)`` of a model, means over tokens."""
    with bound_loop(load_model(run.with_suffix(".checkpoint")).double(), held_out_tokens()) as loop, torch.no_grad():
        states = [loop.state.double()]
        for _ in range(loops):
            states.append(loop.step(states[-1]))
    stack = torch.stack(states)
    steps = torch.linalg.vector_norm(stack[1:] - stack[:-1], dim=-1).mean((1, 2))
    return steps.numpy(), torch.linalg.vector_norm(stack, dim=-1).mean((1, 2)).numpy()


def block_sizes(run: Path, *, tokens: int) -> Floats:
    """Return the norms of the blocks of the full Jacobian of a model's first loop, ``(S, S)``."""
    with bound_loop(load_model(run.with_suffix(".checkpoint")), held_out_tokens()[:1, :tokens]) as loop:
        with torch.no_grad():
            state = loop.step(loop.state)
        whole = torch.autograd.functional.jacobian(loop.step, state)[0, :, :, 0]
        own = token_jacobians(loop.step, state)[0]
    assert torch.allclose(own[3], whole[3, :, 3], atol=1e-5)  # float32, hundreds of operations
    sizes: Floats = torch.linalg.matrix_norm(whole.transpose(1, 2)).double().numpy()
    return sizes


def token_rates(run: Path) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Return the radius at the end and λ₁ of every token: over the first four loops, and over many loops at rest."""
    with bound_loop(load_model(run.with_suffix(".checkpoint")).double(), held_out_tokens()[:2]) as loop:
        start = loop.state.double()
        early = token_exponents(loop.step, start, iterations=4).exponents[..., 0]
        moved, rest = advanced(loop.step, start, 4), advanced(loop.step, start, 80)
        late = token_exponents(loop.step, rest, iterations=150, warmup=100).asymptotic[..., 0]
        radii = [token_spectra(loop.step, state, count=1).radius.ravel() for state in (moved, rest)]
    return (radii[0], early.ravel()), (radii[1], late.ravel())


@torch.no_grad()
def advanced(step: Callable[[torch.Tensor], torch.Tensor], state: torch.Tensor, loops: int) -> torch.Tensor:
    """Return the state some loops later."""
    for _ in range(loops):
        state = step(state)
    return state


def quoted_numbers(runs: Mapping[str, Path]) -> dict[str, str]:
    """Return the numbers that the text quotes and a doctest cannot compute in a second, as the text writes them."""
    law = depth_curve(runs["useful"], None, batches=16, device="cpu").law
    losses = depth_curve(runs["concatenation"], list(range(1, 33)), batches=4, device="cpu").losses
    flat = max(depth for depth, loss in losses.items() if abs(loss - losses[8]) < 0.1)
    _, (radii, rates) = token_rates(runs["useful"])
    steps, norms = loop_norms(runs["addition"], loops=48)
    with open_run(runs["concatenation"]) as run:
        loss, radius, probed = run["loss"], run["a_bar_radius"], run.probe_steps
        norm = run.probe("state_norm")[:, -1]
        breach = diagnose(run).first_breach
    assert law is not None and breach is not None
    calm = loss[breach.step : 151]
    spike = int(np.flatnonzero(loss[breach.step :] > 2 * np.median(calm))[0]) + breach.step
    return {
        "limit of the depth law": f"{law.limit:.3f}",
        "rate of the depth law": f"{law.rate:.2f} per loop",
        "loss of concatenation at depth 8": f"{losses[8]:.2f} at depth 8",
        "loss of concatenation at depth 32": f"{losses[32]:.2f} at depth 32",
        "depth to which its loss stays the same": f"up to {flat} loops",
        "radius of the chain as a dense solver sees it": f"reaches {np.abs(dense_eigenvalues(chain)).max():.1f}",
        "first step with ρ above 1": f"step {int(np.flatnonzero(radius > 1)[0])}",
        "first breach": f"step {breach.step}",
        "first step whose loss is twice the median after the breach": f"step {spike}",
        "state after 16 loops at the breach": f"10^{int(np.log10(norm[probed <= breach.step][-1]))}",
        "median distance of λ₁ from log ρ_J at rest": f"{float(np.median(np.abs(rates - np.log(radii)))):.0e}",
        "step of addition after 48 loops": f"{steps[-1]:.0f}",
        "relative step of addition after 48 loops": f"{100 * steps[-1] / norms[-1]:.1f} %",
    }


SMALL: dict[str, Callable[[], go.Figure]] = {
    "injections": injections_figure,
    "gains": gains_figure,
    "transient": transient_figure,
    "bifurcations": bifurcation_figure,
}
TRAINED: dict[str, Callable[[Mapping[str, Path]], go.Figure]] = {
    "per-token": per_token_figure,
    "lyapunov": lyapunov_figure,
    "steps": steps_figure,
    "depth": depth_figure,
    "hidden": hidden_figure,
}


def main() -> None:
    """Write all figures and the numbers beside them."""
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = train_models(Path(folder))
        figures = {name: make() for name, make in SMALL.items()} | {name: make(runs) for name, make in TRAINED.items()}
        numbers = quoted_numbers(runs)
    for name, text in as_svg(figures).items():
        path = OUT / f"{name}.svg"
        path.write_text(text + "\n", encoding="utf-8")
        sys.stdout.write(f"{path.name}: {path.stat().st_size / 1000:.0f} KB\n")
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    (OUT / "numbers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
