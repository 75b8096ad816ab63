"""Draws for each shipped rule a picture of it firing: a small run is made up, recorded, judged, and drawn.

    python docs/make_rule_figures.py

What fires, and at which step, is what the rule says of the recorded run; a run on which its rule does not fire is an
error. The pictures are `docs/rules/figures/LS020.svg` and its siblings.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from loopscope.dashboard.colours import SEVERITY_COLOURS
from loopscope.rules.findings import Finding
from loopscope.rules.judging import judge
from loopscope.rules.rule_files import Rule, load_rules
from loopscope.rules.series import series_of
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

FOLDER = Path(__file__).parent / "rules" / "figures"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 200, 60, 16, 28, 30
STEPS = 200

Array = np.ndarray


@dataclass
class Case:
    """A run on which a rule fires.

    Args:
        shows: The series that is drawn.
        columns: Numbers of each step.
        passes: Ratio of the steps of the loop in each pass of the fixed batch, one every 10 steps.
        loops: Gives the loops of a training step, ``(T + 1, 4)``.
        limit: Drawn as a line; None: nothing is.
        learned: Whether A̅ is trained.
    """

    shows: str
    columns: dict[str, Array] = field(default_factory=dict)
    passes: Array | None = None
    loops: Callable[[int], Array] | None = None
    limit: float | None = None
    learned: bool = True


def loop(ratio: float, size: float = 1.0, loops: int = 12, tokens: Array | None = None) -> Array:
    """Return loops whose steps change by a ratio."""
    steps = size * ratio ** np.arange(loops)
    state = size + np.concatenate([[0.0], np.cumsum(steps)])
    cosine = np.concatenate([[math.nan], np.ones(loops - 1), [math.nan]])
    active = np.full(loops + 1, 256.0) if tokens is None else tokens
    return np.stack([state, np.append(steps, math.nan), cosine, active], axis=1).astype(np.float32)


def at(steps: int = STEPS) -> Array:
    """Return the steps of a run."""
    return np.arange(float(steps))


def loss(steps: int = STEPS, noise: float = 0.02) -> Array:
    """Return a loss that falls."""
    draw = np.random.default_rng(0)
    return (2.2 + 1.5 * np.exp(-at(steps) / 40)) * (1 + noise * draw.standard_normal(steps))


def ramp(low: float, high: float, steps: int = STEPS) -> Array:
    """Return a straight line."""
    return np.linspace(low, high, steps)


def cases() -> dict[str, Case]:
    """Return a run for each rule."""
    late = at() >= 120
    radius = ramp(0.8, 1.25)
    return {
        "LS001": Case("loss", {"loss": np.where(late & (at() < 130), math.nan, loss())}),
        "LS006": Case("grad_norm", {"loss": loss(60), "grad_norm": np.where(at(60) < 5, math.inf, 1.0)}),
        "LS010": Case("loss", {"loss": np.where(at() == 120, 1.8 * loss(), loss())}),
        "LS011": Case("loss", {"loss": np.where(late, 1.3 * loss(), loss())}),
        "LS012": Case("loss", {"loss": np.where(at(260) >= 120, 1.6 * loss(260), loss(260))}),
        "LS013": Case("loss", {"loss": np.where(late, loss()[120], loss())}),
        "LS014": Case("lr", {"loss": loss(), "lr": np.where(late, 0.0, 0.01)}),
        "LS015": Case("seconds", {"loss": loss(), "time": 1e9 + at() + 900 * late}, limit=300),
        "LS016": Case("depth", {"loss": loss(), "depth": np.where(late, 16.0, 8.0)}),
        "LS017": Case("loss", {"loss": np.where(late, 1.16 * loss(), loss())}),
        "LS018": Case("loss", {"loss": np.where(late, 1.16 * loss(), loss())}),
        "LS019": Case("loss", {"loss": loss(1200)}),
        "LS020": Case("a_bar_radius", {"loss": loss(), "a_bar_radius": radius}, radius + 0.02, limit=1),
        "LS021": Case("a_bar_radius", {"loss": loss(), "a_bar_radius": radius}, 0.7 * radius, limit=1),
        "LS022": Case("a_bar_radius", {"loss": loss(), "a_bar_radius": np.ones(STEPS)}, limit=1, learned=False),
        "LS023": Case("a_bar_radius", {"loss": loss(), "a_bar_radius": radius}, np.ones(STEPS), limit=1),
        "LS030": Case("residual_ratio", {"loss": loss()}, ramp(0.7, 1.4), limit=1.1),
        "LS031": Case(
            "residual_ratio", {"loss": loss(), "a_bar_radius": np.full(STEPS, 0.9)}, ramp(0.6, 1.05), limit=0.97
        ),
        "LS032": Case("last_state_norm", {"loss": loss()}, loops=lambda step: loop(0.7, grown(step - 80, 15))),
        "LS033": Case("residual_norm[-1]", {"loss": loss()}, loops=lambda step: loop(0.8 + step / 300)),
        "LS034": Case("tokens[1]", {"loss": loss()}, loops=halting),
        "LS035": Case("tokens[-2]", {"loss": loss(320)}, loops=unused),
        "LS036": Case("halt_logit", {"loss": loss(), "halt_logit": ramp(0, -12), "halt_target": 0 * at()}, limit=-6),
        "LS037": Case("halt_logit", {"loss": loss(), "halt_logit": ramp(0, -20)}, limit=-12),
        "LS040": Case(
            "lyapunov_max",
            {
                "loss": loss(),
                "lyapunov_max": ramp(-0.2, 0.15),
                "jacobian_radius": ramp(0.8, 1.2),
                "full_loop_seconds": np.ones(STEPS),
            },
            limit=0.05,
        ),
        "LS050": Case(
            "c_out_gain", {"loss": loss(1500), "c_out_gain": ramp(1.0, 0.2, 1500), "full_loop_seconds": np.ones(1500)}
        ),
        "LS051": Case(
            "last_state_norm", {"loss": loss(400)[200:]}, loops=lambda step: loop(0.7, grown(step - 100, 25))
        ),
        "LS070": Case("run_risk", stuck(0.1), limit=0.5),
        "LS071": Case("run_risk", stuck(0.1) | {"a_bar_radius": ramp(0.7, 3.0)}, limit=0.98),
    }


def stuck(growth: float) -> dict[str, Array]:
    """Return a run that learns nothing but frequencies while its read-out grows by so much a step."""
    draw = np.random.default_rng(0)
    level = 3.2 + 2.3 * np.exp(-at() / 6) + 0.05 * draw.standard_normal(STEPS)
    return {"loss": level, "c_out_norm": 1 + growth * np.minimum(at(), 120.0)}


def grown(steps: int, time: float) -> float:
    """Return how much something has grown since it began to."""
    return math.exp(max(0, steps) / time)


def unused(step: int) -> Array:
    """Return loops in which half of the tokens leave before the end, until none does any more."""
    last = 128.0 if step < 220 else 256.0
    return loop(0.7, tokens=np.array([256.0] * 11 + [last, 256.0]))


def halting(step: int) -> Array:
    """Return the loops of a model that halts earlier and earlier."""
    going = max(0.0, 1 - step / 110)
    return loop(0.8, tokens=256 * np.concatenate([[1.0], going ** np.arange(1, 13)]))


def record(case: Case, path: Path) -> None:
    """Write the run of a case."""
    writer = RunWriter.create(path, info={"a_bar_learned": case.learned}, overwrite=True)
    columns = {"depth": np.full(len(case.columns["loss"]), 12.0), **case.columns}
    for step in range(len(columns["loss"])):
        values = {name: float(values[step]) for name, values in columns.items()}
        odd = sum(not math.isfinite(values[name]) for name in ("loss", "grad_norm") if name in values)
        row = {"step": float(step), "time": 1e9 + step, "nonfinite": float(odd)} | values
        writer.append_step(row, loop(0.7) if case.loops is None else case.loops(step))
        if case.passes is not None and step % 10 == 0:
            writer.append_probe(step, loop(float(case.passes[step]), loops=16))
    writer.seal()
    writer.close()


def drawn(case: Case, rule: Rule, folder: Path) -> str:
    """Return the picture of a rule that fires.

    Raises:
        RuntimeError: It does not fire.
    """
    path = folder / f"{rule.id}.h5"
    record(case, path)
    with open_run(path) as run:
        fired = [each for each in judge(run, [rule]).findings if each.state == "fired"]
        steps = np.asarray(run["step"], dtype=float)
        values = series_of(run, case.shows, steps)
        recorded = case.columns.get(case.shows)
    if not fired or values is None:
        raise RuntimeError(f"{rule.id} does not fire on the run made up for it")
    return svg(rule, case, steps, values if recorded is None else recorded, fired[0])


def svg(rule: Rule, case: Case, steps: Array, values: Array, finding: Finding) -> str:
    """Return a curve with the limit, and the steps at which the condition began and at which the rule fired."""
    finite = values[np.isfinite(values)]
    shown = np.append(finite, [] if case.limit is None else [case.limit])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.08 * (high - low) or 0.5

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / float(steps[-1])

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low + margin) / (high - low + 2 * margin)

    parts: list[Any] = []
    for part in np.split(np.arange(len(values)), np.flatnonzero(np.diff(np.isfinite(values).astype(int))) + 1):
        if len(part) and math.isfinite(values[part[0]]):
            every = part[:: max(1, len(part) // 300)]
            points = " ".join(f"{x(steps[i]):.1f},{y(values[i]):.1f}" for i in every)
            parts.append(f'<polyline points="{points}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>')
    if case.limit is not None:
        parts.append(f'<path d="M{LEFT} {y(case.limit):.1f}H{WIDTH - RIGHT}" stroke="#888" stroke-dasharray="4 3"/>')
    begins, fires = x(finding.since), x(finding.step)
    parts.append(f'<rect x="{begins:.1f}" y="{TOP}" width="{fires - begins:.1f}" height="{HEIGHT - TOP - BOTTOM}" '
                 f'fill="{SEVERITY_COLOURS["warning"]}" opacity="0.25"/>')  # fmt: skip
    parts.append(
        f'<path d="M{fires:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{SEVERITY_COLOURS["error"]}" stroke-width="2"/>'
    )
    parts.append(text(LEFT, 18, f"{rule.id} {rule.name}: {case.shows}, fires at step {finding.step}"))
    parts.append(text(LEFT - 6, y(high) + 4, f"{high:.3g}", "end") + text(LEFT - 6, y(low) + 4, f"{low:.3g}", "end"))
    parts.append(text(LEFT, HEIGHT - 10, "0") + text(WIDTH - RIGHT, HEIGHT - 10, f"step {steps[-1]:.0f}", "end"))
    frame = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, f"<title>{escape(rule.id)} firing</title>", frame, *parts, "</svg>", ""])


def text(left: float, top: float, said: str, anchor: str = "start") -> str:
    """Return a line of text."""
    return (
        f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" font-size="12" fill="#24292f">{escape(said)}</text>'
    )


def main() -> None:
    """Draw all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rules = {rule.id: rule for rule in load_rules()}
    with tempfile.TemporaryDirectory() as folder:
        for identifier, case in cases().items():
            (FOLDER / f"{identifier}.svg").write_text(drawn(case, rules[identifier], Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
