"""Small pieces of page shared by all pages: badges, the verdict, findings, error boxes, plots."""

from typing import Any

from dash import dcc, html

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding
from ..runfile.flights import Flight
from .colours import REGIME_GLYPHS
from .frame import graph_config

REGIME_LABELS = {"lti": "linear part", "loop": "full loop", "trajectory": "trajectory"}


def badge(kind: str, glyph: str, text: str, label: str = "") -> html.Span:
    """Return a pill with a coloured glyph; the words carry the meaning, the colour only repeats it."""
    words: list[Any] = [html.B(f"{label}:"), " ", text] if label else [text]
    return html.Span([html.I(glyph), html.Span(words)], className=f"ls-badge ls-{kind}")


def regime_badge(regime: str, label: str = "") -> html.Span:
    """Return the badge of a regime."""
    return badge(regime, REGIME_GLYPHS[regime], regime, label)


def state_badge(state: str) -> html.Span:
    """Return the badge of a run's state: live, interrupted, finished or unreadable."""
    return badge(state, "✕" if state == "unreadable" else "●", state)


def verdict(diagnosis: Diagnosis) -> html.Section:
    """Return the verdict card: the sentence, the three regimes, the findings with their remedies."""
    word = diagnosis.verdict
    sentence = html.P([html.Strong([html.I(REGIME_GLYPHS[word]), word]), _sentence(diagnosis.summary)])
    badges = [regime_badge(diagnosis.regimes[key], label) for key, label in REGIME_LABELS.items()]
    found = [finding_card(finding) for finding in diagnosis.findings]
    children = [sentence, html.Div(badges, className="ls-badges")]
    if found:
        children.append(html.Div(found, className="ls-findings"))
    return html.Section(children, className=f"ls-card ls-verdict ls-{word}")


def _sentence(text: str) -> str:
    """Write a message as a sentence: a full stop last, and a capital first unless it starts with a symbol such as ρ.

    >>> _sentence("ρ(A̅) = 1.2"), _sentence("loss spiked.")
    ('ρ(A̅) = 1.2.', 'Loss spiked.')
    """
    text = text.strip()
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return first + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def finding_card(finding: Finding) -> html.Article:
    """Return one fired rule: what, when (a button that selects the step), and what to try."""
    when = html.Button(
        f"step {finding.step:,}", id={"type": "goto", "step": finding.step, "rule": finding.rule}, className="ls-link"
    )
    head: list[Any] = [html.I("▲" if finding.severity == "error" else "◆"), f"{finding.rule} {finding.name}", when]
    body = [html.Div(_sentence(finding.message))]
    if finding.remedy:
        body.append(html.Div(["Try: ", finding.remedy], className="ls-remedy"))
    return html.Article([html.Header(head), *body], className=f"ls-finding ls-{finding.severity}")


def flights(found: list[Flight]) -> list[Any]:
    """Return a line that says where flight recordings are, which unfolds to why and how much; nothing without any."""
    if not found:
        return []
    count = "1 flight recording" if len(found) == 1 else f"{len(found)} flight recordings"
    where = ", ".join(f"{flight.alert_step:,}" for flight in found)
    head = html.Tr([html.Th(word) for word in ("alert", "why", "steps kept")])
    table = html.Table([html.Thead(head), html.Tbody([_flight_row(flight) for flight in found])])
    read = html.P(["The steps at full detail: ", html.Code("loopscope.probes.read_flight(run)")], className="ls-dim")
    steps = "step" if len(found) == 1 else "steps"
    return [html.Summary(f"{count}, around {steps} {where}"), table, read]


def _flight_row(flight: Flight) -> html.Tr:
    """Return what a person needs to choose a flight; its step is a button that selects it."""
    goto = {"type": "goto", "step": flight.alert_step, "rule": f"flight {flight.number}"}
    when = html.Button(f"step {flight.alert_step:,}", id=goto, className="ls-link")
    why = "; ".join(event.message or event.kind for event in flight.alerts) or "this step was run again since"
    kept = f"{len(flight.steps)}: {flight.steps[0].step:,} to {flight.steps[-1].step:,}"
    return html.Tr([html.Td(when), html.Td(why), html.Td(kept)])


def problem(title: str, text: str) -> html.Section:
    """Return a card for a page that cannot be shown, with the way back."""
    body = [html.P([html.Strong([html.I("✕"), title]), text]), dcc.Link("All runs", href="/")]
    return html.Section(body, className="ls-card ls-verdict ls-unreadable")


def plot(name: str, chart: Any, *, hidden: bool = False, wide: bool = False) -> html.Div:
    """Return a card with one graph, configured never to talk to a server.

    Args:
        name: The graph is ``plot-name``, its card ``card-name``.
        chart: The figure.
        hidden: Whether the page leaves it out for now.
        wide: Whether it takes a whole row.
    """
    graph = dcc.Graph(id=f"plot-{name}", figure=chart, config=graph_config(), responsive=True, style={"height": "100%"})
    return html.Div(graph, id=f"card-{name}", hidden=hidden, className="ls-plot" + (" ls-wide" if wide else ""))
