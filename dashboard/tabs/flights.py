"""Flights: the steps around each alert at full detail."""

import math
from typing import Any

import numpy as np
from dash import html

from ...runfile.flights import Flight, FlightStep, read_flight
from .. import components
from ..panel import Ask
from ..settings import command
from ..text import number, shown
from . import Tab

ROWS_SHOWN = 12
_FIRST = ("loss", "grad_norm", "lr", "a_bar_radius", "depth")


def words(ask: Ask) -> list[Any]:
    """Return the flights, and the one at the cursor opened."""
    flights = ask.held.flights()
    if not flights:
        text = "No flight was recorded: the flight recorder keeps the steps around an alert, and none was raised."
        return [html.Section([html.H2("Flight recordings"), html.P(text)], className="ls-card")]
    chosen = _chosen(flights, ask.at)
    rows = [_row(flight, flight.number == chosen.number) for flight in flights]
    listed = components.rows_table(("flight", "alert", "why", "steps kept"), rows)
    opened = next(flight for flight in read_flight(ask.held.run) if flight.number == chosen.number)
    return [
        html.Section([html.H2("Flight recordings"), listed], className="ls-card"),
        html.Section(_opened(opened, ask), className="ls-card"),
    ]


def _chosen(flights: list[Flight], at: float | None) -> Flight:
    """Return the flight nearest to the cursor."""
    return min(flights, key=lambda flight: abs(flight.alert_step - (at or 0)))


def _row(flight: Flight, chosen: bool) -> tuple[Any, ...]:
    """Return what a person needs to choose a flight; its step is a button that opens it."""
    why = "; ".join(shown(event.message or event.kind) for event in flight.alerts) or "this step was run again since"
    kept = f"{len(flight.steps)}: {flight.steps[0].step:,} to {flight.steps[-1].step:,}"
    name = f"{flight.number}{' (open)' if chosen else ''}"
    return name, components.goto(flight.alert_step, f"flight {flight.number}"), why, kept


def _opened(flight: Flight, ask: Ask) -> list[Any]:
    """Return every number around the alert, the row of the alert marked, and how to run it again."""
    at = next((i for i, step in enumerate(flight.steps) if step.step >= flight.alert_step), len(flight.steps) - 1)
    near = flight.steps[max(at - ROWS_SHOWN + 3, 0) : at + 3]
    names = list(dict.fromkeys(name for step in near for name in step.scalars))
    names = [
        *[name for name in _FIRST if name in names],
        *[name for name in names if name not in (*_FIRST, "step", "time")],
    ]
    rows: list[tuple[Any, ...]] = [
        (shown(name), *[_value(step.scalars.get(name, math.nan)) for step in near])
        for name in names
        if not all(math.isnan(step.scalars.get(name, math.nan)) for step in near)
    ]
    rows += [
        (words, *[norms[at] if norms else "–" for norms in map(_loops, near)])
        for at, words in enumerate(("‖h‖ after the first loop", "‖h‖ half way", "‖h‖ after the last loop"))
    ]
    rows.append(("batch", *map(_batch, near)))
    head = [f"{step.step:,}{' ▲ alert' if step.step == flight.alert_step else ''}" for step in near]
    table = components.rows_table(("step", *head), rows, wide=True)
    before = next((step.step for step in reversed(flight.steps) if step.step < flight.alert_step), flight.alert_step)
    again = command(ask.held.run.info, resume=True)
    code = f"loopscope.probes.read_flight(run)[{flight.number}].steps"
    how: list[Any] = ["All of it, with random states and parameter norms: ", html.Code(code), ". "]
    if again:
        how += [f"Step {before:,} again, from the last checkpoint before it: ", html.Code(again)]
    return [
        html.H2(f"Flight {flight.number}, around step {flight.alert_step:,}"),
        table,
        html.P(how, className="ls-dim"),
        *_parameters(flight, at),
    ]


def _value(value: float) -> str:
    """Return a number of a row; counts, as of tokens, with all their digits.

    >>> _value(36864.0), _value(0.16754), _value(1e12)
    ('36,864', '0.1675', '1e+12')
    """
    return f"{value:,.0f}" if abs(value) < 1e9 and float(value).is_integer() else number(value)


def _loops(step: FlightStep) -> list[str]:
    """Return the state norms of a step's first, middle and last loop; nothing where none was recorded."""
    if step.loops is None or not len(step.loops):
        return []
    return [number(float(value), 3) for value in step.loops[[0, len(step.loops) // 2, -1], 0]]


def _batch(step: FlightStep) -> Any:
    """Return the hash of a step's batch, cut: two that begin alike are the same; all of it shows on pointing."""
    if step.batch_hash is None:
        return "–"
    whole = ", ".join(f"{value & (2**64 - 1):016x}" for value in np.ravel(step.batch_hash)[:2].tolist())
    return html.Span(f"{whole[:6]}…", title=whole)


def _parameters(flight: Flight, at: int) -> list[Any]:
    """Return the parameters whose norm changed most up to the alert."""
    first, last = flight.steps[0].parameter_norm, flight.steps[at].parameter_norm
    if first is None or last is None or len(first) != len(last) or len(flight.parameter_names) != len(last):
        return []
    with np.errstate(all="ignore"):
        change = np.asarray(last, np.float64) / np.asarray(first, np.float64)
    order = np.argsort(-np.abs(np.log(np.where(change > 0, change, np.nan))))[:6]
    rows = [
        (shown(flight.parameter_names[i]), number(float(first[i])), number(float(last[i])), f"×{change[i]:.3g}")
        for i in order
    ]
    title = "Parameters that changed most up to the alert"
    return [components.rows_table(("parameter", "norm at first", "norm at the alert", "change"), rows, caption=title)]


TAB = Tab("flights", "Flights", 50, ("events",), words)
