"""One HTML file about runs, with everything in it: for one run an autopsy, for several a comparison.

The file needs no network: plotly's code is in it once, and a policy forbids the browser to load
anything. It prints well. Figures and words are those of the dashboard.

Not covered: following a live run; a report is what the run says at this moment.
"""

import html
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import plotly
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ..rules.variable_verdicts import sentence_of
from . import figures, map_figures
from .colours import REGIME_GLYPHS, css_variables
from .compare_figures import DASHES, PALETTE
from .components import REGIME_LABELS, SEVERITY_GLYPHS, sentence
from .figures import of
from .frame import graph_config
from .glossary import WORDS, said_in
from .opened import OpenRun
from .panel import Ask, drawn
from .panels import PANELS
from .row_cells import cells_of
from .run_map import FIRST, Cell, edges, in_words, label, places, survival
from .settings import command, table
from .story import Story
from .text import number, shown

CHAPTERS: Final = (
    ("When", ("loss", "gain", "events", "state")),
    (
        "Where in the loop",
        ("heat-state", "heat-residual", "heat-cosine", "heat-gradient", "profile", "blocks", "tokens"),
    ),
    ("Spectrum", ("spectrum", "norms", "exponent")),
    ("Depth", ("test-time", "depths")),
    ("Health", ("probe-seconds", "dropped")),
)
OVERLAID: Final = 20  # runs beyond so many are in the table only
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"

STYLE: Final = Path(__file__).with_name("report.css")
SCRIPT: Final = """
for (const node of document.querySelectorAll("script[type='application/json']")) {
  const { figure, config } = JSON.parse(node.textContent), place = document.getElementById(node.dataset.place);
  Plotly.newPlot(place, figure.data, figure.layout, { ...config, responsive: true });
}
"""


def report_html(paths: Sequence[Path]) -> str:
    """Return a report about runs as one HTML document.

    Args:
        paths: Run files; one gives an autopsy, several a comparison.

    Raises:
        RunFileError: A run cannot be read.
    """
    opened: list[OpenRun] = []
    try:
        opened += [OpenRun(Path(path)) for path in paths]
        page = _Page()
        if len(opened) == 1:
            _autopsy(page, opened[0])
            title = opened[0].run.path.stem
        else:
            _comparison(page, opened)
            title = f"{len(opened)} runs"
        return page.document(title)
    finally:
        for held in opened:
            held.close()


class _Page:
    """An HTML document that is being written. Whatever is not a figure is escaped on its way in."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._figures = 0

    def add(self, tag: str, text: str, kind: str = "") -> None:
        """Add an element with text."""
        self._parts.append(f'<{tag} class="{kind}">{html.escape(text)}</{tag}>')

    def raw(self, markup: str) -> None:
        """Add markup of our own."""
        self._parts.append(markup)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> None:
        """Add a table; ``kinds`` gives each row the class of its colour."""
        cells = "".join(f"<th>{html.escape(word)}</th>" for word in head)
        body = []
        for i, row in enumerate(rows):
            kind = kinds[i] if kinds else ""
            glyph = f"<i>{REGIME_GLYPHS[kind]}</i> " if kind in REGIME_GLYPHS else ""
            body.append(
                f'<tr class="{kind}"><td>{glyph}' + "</td><td>".join(html.escape(c) for c in row) + "</td></tr>"
            )
        self._parts.append(f'<div class="wide"><table><tr>{cells}</tr>{"".join(body)}</table></div>')

    def figure(self, title: str, meaning: str, chart: go.Figure, height: int) -> None:
        """Add a figure with its title and what it means; one that has nothing to draw is left out."""
        if (chart.layout.meta or {}).get("empty"):
            return
        self._figures += 1
        place = f"figure-{self._figures}"
        data = {"figure": json.loads(str(chart.to_json())), "config": graph_config()}
        text = json.dumps(data).replace("<", "\\u003c")  # no text of a file can end the script
        summary = html.escape(str((chart.layout.meta or {}).get("summary", title)), quote=True)
        self._parts.append(
            f'<section><h3>{html.escape(title)}</h3><div class="dim">{html.escape(meaning)}</div>'
            f'<div id="{place}" role="img" aria-label="{summary}" style="height:{height}px"></div>'
            f'<script type="application/json" data-place="{place}">{text}</script></section>'
        )

    def document(self, title: str) -> str:
        """Return the whole document."""
        made = time.strftime("%Y-%m-%d %H:%M")
        style = css_variables() + STYLE.read_text(encoding="utf-8")
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(title)} · loopscope</title>"
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{style}</style></head><body>{''.join(self._parts)}"
            f"<p class='dim'>Made by loopscope on {made}, with plotly "
            f"{html.escape(plotly.__version__)}.</p><script>{get_plotlyjs()}</script><script>{SCRIPT}</script>"
            "</body></html>\n"
        )


def _verdict(page: _Page, story: Story) -> None:
    """Add the sentence of a verdict, with its regimes."""
    text = f"<i>{REGIME_GLYPHS[story.verdict]}</i> <b>{html.escape(story.sentence)}</b> {html.escape(story.advice)}"
    page.raw(f'<p class="strip {story.verdict}">{text}</p>')
    if story.variables:
        page.add("p", sentence_of(story.variables), "gate")
    page.add("p", f"{story.gate_sentence} {story.rules[0].upper()}{story.rules[1:]}.", "gate")
    regimes = " · ".join(f"{REGIME_LABELS[key]}: {regime}" for key, regime in story.regimes.items())
    detail = story.detail.removeprefix(sentence_of(story.variables)).lstrip()
    page.add("p", f"{regimes}. {detail}", "dim")
    words = (story.verdict, *said_in(" ".join(one.does for one in story.variables)))
    page.add("p", " ".join(f"{word}: {WORDS[word]}" for word in words), "dim")


def _judged(held: OpenRun) -> Story:
    """Return the story of a run, made now."""
    story = held.story()
    assert story is not None
    return story


def _autopsy(page: _Page, held: OpenRun) -> None:
    """Write everything that explains the verdict on one run."""
    story, run, end = _judged(held), held.run, held.ending()
    page.add("h1", shown(run.path.stem))
    _verdict(page, story)
    facts = [
        *held.settings().chips(),
        f"{len(run):,} steps",
        f"{end.state}{f': {shown(end.reason)}' if end.reason else ''}",
    ]
    page.add("p", " · ".join(facts), "dim")
    page.add("h2", "What happened, in the order in which it began")
    if not story.findings:
        page.add("p", "No rule fired.")
    for finding in story.findings:
        lead = story.lead(finding)
        before = (
            "" if lead is None else f", {abs(lead):,} steps {'before' if lead >= 0 else 'after'} the loss showed it"
        )
        head = f"{finding.rule} {shown(finding.name)}: began at step {finding.since:,}, alarm at step {finding.step:,}"
        head += f", {finding.episodes} times" if finding.episodes > 1 else ""
        page.raw(f'<div class="finding {finding.severity}"><i>{SEVERITY_GLYPHS[finding.severity]}</i> ')
        page.add("b", head + before)
        page.add("div", sentence(finding.message))
        page.add("div", f"Try: {shown(finding.remedy)}" if finding.remedy else "", "dim")
        page.raw("</div>")
    if story.risk.parts:
        page.add("h2", "What the risk is made of")
        page.add("p", f"The risk that this run is lost is {story.risk.value:.2f} at step {story.risk.step:,}.", "dim")
        rows = [(one.name, f"{one.share:.0%}", shown(one.said)) for one in story.risk.parts]
        page.table(("part", "share", "what was seen"), rows)
    ask = Ask(held, revision="report")
    for chapter, names in CHAPTERS:
        page.add("h2", chapter)
        for name in names:
            panel = PANELS[name]
            page.figure(panel.title, f"{panel.meaning} Worrying: {panel.worry}", drawn(panel, ask), panel.height)
    _loop_of_the_first_breach(page, held, story)
    _events(page, held)
    page.add("h2", "Configuration")
    if again := command(run.info, resume=False):
        page.add("p", f"Started with: {again}", "dim")
    page.table(("setting", "value"), list(table(run.info).items()))


def _loop_of_the_first_breach(page: _Page, held: OpenRun, story: Story) -> None:
    """Add profile and eigenvalues at the step since which the run is as it is."""
    if story.since is None:
        return
    page.add("h2", f"At step {story.since:,}, where it began")
    ask = Ask(held, None, story.since, "fixed", "report")
    for name in ("profile", "spectrum"):
        page.figure(PANELS[name].title, "", drawn(PANELS[name], ask), PANELS[name].height)


def _events(page: _Page, held: OpenRun) -> None:
    """Add the events as a table."""
    said = held.run.events[:200]
    if said:
        page.add("h2", "Events recorded live")
        page.table(
            ("step", "severity", "what"), [(f"{e.step:,}", e.severity, shown(f"{e.kind}: {e.message}")) for e in said]
        )


def _comparison(page: _Page, opened: Sequence[OpenRun]) -> None:
    """Write what tells several runs apart, worst first."""
    order = ("unstable", "marginal", "unknown", "stable")
    runs = sorted(opened, key=lambda held: order.index(_judged(held).verdict))
    page.add("h1", f"{len(runs)} runs compared")
    counts = {word: sum(_judged(held).verdict == word for held in runs) for word in order}
    page.add("p", " · ".join(f"{count} {word}" for word, count in counts.items() if count), "dim")
    rows = [_row(held) for held in runs]
    page.table(("run", "injection", "norm", "lr", "seed", "last loss", "ρ(A̅)", "verdict"), rows,
               [_judged(held).verdict for held in runs])  # fmt: skip
    _map(page, runs)
    drawn_runs = runs[:OVERLAID]
    if len(runs) > OVERLAID:
        page.add("p", f"The {OVERLAID} worst are drawn.", "dim")
    for title, name, y, log in (
        ("Training loss", "loss", "loss (nats per token)", False),
        ("Injection ρ(A̅)", "a_bar_radius", "factor per loop", False),
        ("Gain on the fixed batch", "residual_ratio", "factor per loop", False),
        ("State after the last loop", "last_state_norm", "mean norm over tokens", True),
    ):
        lines = [
            of(
                held.tracks.track(name),
                shown(held.run.path.stem, 40).replace("<", "‹"),
                PALETTE[i % len(PALETTE)],
                dash=DASHES[i % len(DASHES)],
            )
            for i, held in enumerate(drawn_runs)
        ]
        chart = figures.lines(lines, y=y, nothing="Not recorded.", log=log)
        chart.update_layout(legend={"y": -0.25, "yanchor": "top"}, margin={"b": 90})
        page.figure(title, "", chart, 380)
    _differences(page, runs)


def _map(page: _Page, runs: Sequence[OpenRun]) -> None:
    """Add the map of a sweep: ρ(A̅) over the learning rate, where architectures begin to fail, and what survived."""
    rows: list[dict[str, Any]] = [
        cells_of(held) | {"id": str(at), "name": shown(held.run.path.stem), "href": ""} for at, held in enumerate(runs)
    ]
    numbers = {row["id"]: row["numbers"] for row in rows}
    x, y = FIRST[0], FIRST[1][0]
    placed = places(rows, numbers, x, y)
    if len({one.x for one in placed}) < 2:
        return
    page.add("h2", "Learning rate × architecture")
    boundaries = edges(placed)
    chart = map_figures.plane(placed, label(x), label(y), boundaries, radius=True)
    page.figure("Map", " ".join(in_words(one, x) for one in boundaries), chart, 460)
    told = survival(rows, numbers)
    lines = [
        (name, *[_survived(cell) for cell in cells]) for name, cells in zip(told.architectures, told.cells, strict=True)
    ]
    page.table(("runs whose loss converged", *[f"lr {rate:g}" for rate in told.rates]), lines)


def _survived(cell: Cell) -> str:
    """Return one cell of the table of what survived."""
    if not cell.count:
        return "–"
    return f"{cell.converged} of {cell.count}" + (f", {cell.unstable} unstable" if cell.unstable else "")


def _row(held: OpenRun) -> tuple[str, ...]:
    """Return a run as a row of the comparison."""
    settings, story = held.settings(), _judged(held)
    lr = "–" if settings.lr is None else f"{settings.lr:g}"
    seed = "–" if settings.seed is None else f"{settings.seed:g}"
    numbers = (number(held.last("loss")), number(held.last("a_bar_radius")))
    names = (shown(held.run.path.stem, 60), settings.injection or "–", settings.norm or "–")
    return *names, lr, seed, *numbers, f"{story.sentence} {story.advice}"


def _differences(page: _Page, runs: Sequence[OpenRun]) -> None:
    """Add the settings that are not the same everywhere."""
    configurations: list[Any] = [held.run.info.get("config") for held in runs]
    tables = [table(one) if isinstance(one, dict) else {} for one in configurations]
    names = dict.fromkeys(name for one in tables for name in one)
    differing = [name for name in names if len({one.get(name) for one in tables}) > 1]
    if differing:
        page.add("h2", "Configuration that differs")
        head = ["setting", *[shown(held.run.path.stem, 30) for held in runs[:OVERLAID]]]
        page.table(head, [[name, *[one.get(name, "–") for one in tables[:OVERLAID]]] for name in differing[:60]])
