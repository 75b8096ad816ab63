"""Small pieces of page shared by all pages: badges, the verdict strip, findings, error boxes, panels.

Not covered: which words a verdict has (`story`), which plots there are (`panels`).
"""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from dash import dcc, html

from ..rules.findings import Finding, capitalised
from ..rules.risk import Risk
from ..rules.variable_verdicts import VariableVerdict
from . import glossary, rule_page
from .colours import REGIME_GLYPHS
from .frame import graph_config
from .panel import VARIABLE, Panel, summary
from .story import Story
from .text import shown

REGIME_LABELS = {"lti": "injection", "loop": "full loop", "trajectory": "fixed batch"}
SEVERITY_GLYPHS = {"error": "▲", "warning": "◆", "note": "●"}


def badge(kind: str, glyph: str, text: str, label: str = "", tip: str = "") -> html.Span:
    """Return a pill with a coloured glyph; the words carry the meaning, the colour only repeats it.

    Args:
        kind: What the style sheet knows it by.
        glyph: A sign, besides the colour.
        text: What it says.
        label: The name of the thing it describes.
        tip: Explanation that shows on pointing at it.
    """
    words: list[Any] = [html.B(f"{label}:"), " ", text] if label else [text]
    more: Any = {"data-tip": tip} if tip else {}
    return html.Span([html.I(glyph), html.Span(words)], className=f"ls-badge ls-{kind}", **more)


def regime_badge(regime: str, label: str = "") -> html.Span:
    """Return the badge of a regime, with what the word means."""
    tip = glossary.WORDS.get(regime, "")
    return badge(regime, REGIME_GLYPHS.get(regime, "○"), regime, label, f"{regime}: {tip}" if tip else "")


def term(word: str, text: str = "") -> html.Button:
    """Return a word whose explanation shows on pointing at it, on a tap, and when the keyboard reaches it."""
    said: Any = {"data-tip": f"{word}: {glossary.WORDS[word]}", "aria-description": glossary.WORDS[word]}
    return html.Button(text or word, className="ls-term", **said)


def terms(words: Sequence[str], lead: str = "What the words mean") -> html.Span:
    """Return some words with their explanations, as one line of a page."""
    return html.Span([f"{lead}: ", *_listed([term(word) for word in words])], className="ls-terms")


def _listed(parts: Sequence[Any]) -> list[Any]:
    """Return parts with commas between them."""
    return [piece for part in parts for piece in (part, ", ")][:-1]


GATE_BADGES: Final = {"pass": ("stable", "✓"), "fail": ("error", "✕"), "error": ("unknown", "?")}


def gate_badge(word: str, text: str = "") -> html.Span:
    """Return the badge of what the gate says: ``pass``, ``fail`` or ``error``."""
    kind, glyph = GATE_BADGES[word]
    return badge(kind, glyph, text or word, tip=f"gate: {glossary.WORDS['gate']}")


def state_badge(state: str) -> html.Span:
    """Return the badge of a run's state: live, interrupted, finished or unreadable."""
    return badge(state, "✕" if state == "unreadable" else "●", state)


def sentence(text: str) -> str:
    """Write a message as a sentence: a full stop last, and a capital first unless it starts with a symbol or a name.

    >>> sentence("ρ(A̅) = 1.2"), sentence("loss spiked.")
    ('ρ(A̅) = 1.2.', 'Loss spiked.')
    """
    text = shown(text).strip()
    return capitalised(text) + ("" if text.endswith((".", "!", "?")) else ".")


def with_code(text: str) -> list[Any]:
    """Return text in which what stands between backticks is code.

    >>> with_code("run `loopscope check`, then stop")
    ['run ', Code('loopscope check'), ', then stop']
    """
    pieces = shown(text).split("`")
    whole = len(pieces) % 2 == 1  # else one of them has no partner
    return [html.Code(one) if i % 2 else one for i, one in enumerate(pieces) if one] if whole else [shown(text)]


def verdict(story: Story | None, run_id: str = "") -> list[Any]:
    """Return the sentence of the verdict, what each variable does, what the gate says, and regimes that differ.

    Args:
        story: The verdict; None while it is being made.
        run_id: The run, for the links of its variables; empty for none.
    """
    if story is None:
        return [_announced([html.Strong("○ reading…"), " The plots are there; the rules are being applied."])]
    word = story.verdict
    said = _announced(
        [html.I(REGIME_GLYPHS[word], className="ls-glyph"), html.Strong(story.sentence), " ", story.advice]
    )
    said.children = [*said.children, " ", term(word, f"What is “{word}”?")]
    by = html.Span(f" {story.rules[0].upper()}{story.rules[1:]}.", className="ls-dim")
    gate = html.P([gate_badge(story.gate), " ", shown(story.gate_sentence, 300), by], className="ls-gate")
    own = [variables(story, run_id)] if story.variables else []
    if story.agree:
        return [said, *own, gate]
    badges = [regime_badge(story.regimes[key], label) for key, label in REGIME_LABELS.items()]
    return [said, *own, gate, html.Div(["They disagree: ", *badges], className="ls-badges ls-dim")]


def variables(story: Story, run_id: str = "") -> html.P:
    """Return what each variable of a loop does; its name leads to its own loops, those that fail first."""
    said = [_variable(one, run_id) for one in story.variables]
    return html.P(["By variable: ", *_joined(said), "."], className="ls-gate")


def with_terms(text: str) -> list[Any]:
    """Return text in which words about the motion of a state are explained where they stand first."""
    pieces: list[Any] = []
    for word in glossary.said_in(text):
        before, _, text = text.partition(word)
        pieces += [before, term(word)]
    return [piece for piece in (*pieces, text) if piece != ""]


def _joined(parts: Sequence[Any]) -> list[Any]:
    """Return parts with semicolons between them."""
    return [piece for part in parts for piece in (part, "; ")][:-1]


def variable_href(run_id: str, one: VariableVerdict) -> str:
    """Return the address of a variable's own loops, at the step since which it does not settle."""
    at = {} if one.since is None else {"step": one.since}
    return f"/run/{run_id}?" + urlencode({"tab": "where", "batch": f"{VARIABLE}{one.name}", **at}, quote_via=quote)


def variable_link(run_id: str, one: VariableVerdict) -> html.Div:
    """Return what a variable does in a few words, as a link to its own loops."""
    rule = "" if one.finding is None else f" · {one.finding.rule} {one.finding.name}"
    return html.Div(dcc.Link(f"▲ {shown(one.brief, 80)}{rule}", href=variable_href(run_id, one)))


def _variable(one: VariableVerdict, run_id: str) -> html.Span:
    """Return what one variable does."""
    name = shown(one.name, 30)
    linked: Any = dcc.Link(name, href=variable_href(run_id, one), title="its own loops") if run_id else name
    rest = shown(one.said, 300).removeprefix(name)
    if not one.fails:
        return html.Span([linked, *with_terms(rest)])
    said = html.Strong([linked, *with_terms(rest)])
    return html.Span([html.I("▲", className="ls-glyph"), said], className="ls-unstable")


def _announced(words: list[Any]) -> html.P:
    """Return a sentence that a screen reader says again when it changes; what changes every second is not in it."""
    return html.P(words, role="status")


def goto(step: int, of: str, text: str = "") -> html.Button:
    """Return a button that selects a step everywhere."""
    return html.Button(text or f"step {step:,}", id={"type": "goto", "step": step, "rule": of}, className="ls-link")


def rule(identifier: str, name: str) -> list[Any]:
    """Return the name of a rule, with a link to its page where it has one."""
    words = shown(name)
    if not rule_page.known(identifier):
        return [f"{shown(identifier)} {words}"]
    return [
        dcc.Link(identifier, href=rule_page.href(identifier), title="what this rule asks, and what to do"),
        f" {words}",
    ]


def finding_card(finding: Finding, lead: int | None) -> html.Article:
    """Return one fired rule: what, since when, how long before the loss, and what to try."""
    head: list[Any] = [html.I(SEVERITY_GLYPHS.get(finding.severity, "●")), *rule(finding.rule, finding.name)]
    head.append(goto(finding.step, finding.rule, f"alarm at step {finding.step:,}"))
    if finding.episodes > 1:
        head.append(html.Span(f"{finding.episodes} times", className="ls-lead"))
    if finding.since < finding.step:
        head.append(goto(finding.since, f"{finding.rule} since", f"began at step {finding.since:,}"))
    if lead is not None and finding.severity != "note":
        text = (
            f"{lead:,} steps before the loss"
            if lead > 0
            else f"{-lead:,} steps after the loss"
            if lead
            else "with the loss"
        )
        head.append(html.Span(text, className="ls-lead"))
    body: list[Any] = [html.Div(sentence(finding.message))]
    if finding.remedy:
        body.append(html.Div(["Try: ", *with_code(finding.remedy)], className="ls-remedy"))
    return html.Article([html.Header(head), *body], className=f"ls-finding ls-{finding.severity}")


def risk_card(risk: Risk) -> list[Any]:
    """Return what speaks for the loss of a run, by how much it does; nothing where nothing speaks for it."""
    if not risk.parts:
        return []
    rows = [(one.name, f"{one.share:.0%}", shown(one.said)) for one in risk.parts]
    alone = " It is judged from loss and gradient alone: nothing that it reads of the loop is recorded."
    basis = "" if risk.basis == "loop" else alone
    words = f"The risk that this run is lost is {risk.value:.2f} at step {risk.step:,}.{basis}"
    table = rows_table(("part", "share", "what was seen"), rows)
    head = html.H2("What the risk is made of")
    return [html.Section([head, html.P(words, className="ls-dim"), table], className="ls-card ls-risk")]


def report_link(address: str) -> list[Any]:
    """Return the link that makes a report and keeps it as a file; nothing without an address."""
    words = "one HTML file with everything about it, to keep or to send"
    return (
        [html.A("report", href=address, download="report.html", title=words, className="ls-button")] if address else []
    )


def problem(title: str, text: str) -> html.Section:
    """Return a card for a page that cannot be shown, with the way back."""
    body = [html.H1([html.I("✕"), title]), html.P(with_code(text)), dcc.Link("All runs", href="/")]
    return html.Section(body, className="ls-card ls-problem ls-unreadable")


def rows_table(
    head: Sequence[Any], rows: Sequence[Sequence[Any]], *, caption: str = "", wide: bool = False
) -> html.Div:
    """Return a plain table; its first column holds the names of its rows.

    Args:
        head: Names of its columns.
        rows: Its cells.
        caption: What stands above it.
        wide: Whether no cell is broken into lines; either way, what does not fit is scrolled to.
    """
    top = [html.Caption(caption)] if caption else []
    columns = html.Thead(html.Tr([html.Th(word, scope="col") for word in head]))
    body = [html.Tr([html.Th(row[0], scope="row"), *[html.Td(cell) for cell in row[1:]]]) for row in rows]
    table = html.Table([*top, columns, html.Tbody(body)], className="ls-rows")
    return (
        html.Div(table, className="ls-scroll ls-wide", tabIndex=0) if wide else html.Div(table, className="ls-scroll")
    )


def panel(one: Panel, chart: Any, csv: str) -> html.Section:
    """Return a card with one plot, its explanation, and how to take it along.

    Args:
        one: The panel.
        chart: Its figure.
        csv: Address of its numbers.
    """
    kind = "panel-at" if one.at_step else "panel"
    identifier = {"type": kind, "name": one.name}
    graph = dcc.Graph(id=identifier, figure=chart, config=graph_config(), responsive=True, style={"height": one.height})
    actions: list[Any] = [html.A("CSV", href=csv, download=f"{one.name}.csv")]
    for word, kind_taken in (("SVG", "svg"), ("PNG", "png"), ("copy link", "link")):
        take: Any = {"data-panel": one.name, "data-take": kind_taken}
        actions.append(html.Button(word, className="ls-link", **take))
    named: Any = {"aria-label": f"about {one.title}"}
    about = html.Details(
        [
            html.Summary("?", title="what this shows", **named),
            html.Div([html.P(one.meaning), html.P([html.B("Worrying: "), one.worry]), html.P(actions)]),
        ],
        className="ls-about",
    )
    readout: Any = {"data-readout": one.name}
    head = html.Header([html.H2(one.title), html.Span(className="ls-readout", **readout), about])
    # What there is to say where there is nothing to draw; the browser keeps it up while a run grows (plots.js).
    nothing = summary(chart) if (chart.layout.meta or {}).get("empty") else ""
    said = html.P(nothing, className="ls-nothing")
    kinds = f"ls-panel ls-{kind}" + (" ls-empty" if nothing else "")
    return html.Section([head, said, graph], id=f"panel-{one.name}", className=kinds)
