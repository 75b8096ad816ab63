"""The page of a rule: Markdown of this package, made into parts of a page, in which text stays text.

Not covered: the rules that somebody wrote in a file of their own: they have no page; what they say is in the finding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from dash import dcc, html
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
RULE_ID: Final = re.compile(r"LS\d{3}")
PICTURE: Final = re.compile(r"figures/([A-Za-z0-9_-]+\.(?:svg|png))")
_TAGS: Final[dict[str, Any]] = {
    "paragraph": html.P, "bullet_list": html.Ul, "ordered_list": html.Ol, "list_item": html.Li, "em": html.Em,
    "strong": html.Strong, "blockquote": html.Blockquote, "thead": html.Thead, "tbody": html.Tbody, "tr": html.Tr,
    "th": html.Th, "td": html.Td,
}  # fmt: skip


def known(rule: str) -> bool:
    """Say whether a rule of this name may have a page; any text is allowed.

    >>> known("LS020"), known("../LS020"), known("mine")
    (True, False, False)
    """
    return RULE_ID.fullmatch(rule) is not None


def href(rule: str) -> str:
    """Return the address of a rule's page.

    >>> href("LS020")
    '/rules/LS020'
    """
    return f"/rules/{rule}"


@cache
def text_of(rule: str, docs: Path = DOCS) -> str:
    """Return the Markdown about a rule: its own file, or its part of the page about all; empty where there is none."""
    if not known(rule):
        return ""
    for path in (docs / "rules" / f"{rule}.md", docs / "rules.md"):
        try:
            whole = path.read_text(encoding="utf-8")
        except OSError:
            continue
        return whole if path.stem == rule else _section(whole, rule)
    return ""


def _section(whole: str, rule: str) -> str:
    r"""Return the part of a page whose heading names a rule, as a page of its own.

    >>> _section("# All\n## LS001 one\na\n### more\nb\n## LS002 two\nc", "LS001")
    '# LS001 one\na\n## more\nb'
    """
    kept: list[str] = []
    depth = 0
    for line in whole.splitlines():
        heading = re.match(r"(#+) ", line)
        if heading and depth and len(heading[1]) <= depth:
            break
        if heading and not depth and rule in line:
            depth = len(heading[1])
        if depth:
            kept.append(line[depth - 1 :] if heading else line)
    return "\n".join(kept)


def remedy_first(markdown: str) -> str:
    r"""Return a page with what to do above its calibration: who comes here from an alert wants that first.

    >>> remedy_first("# A\n## Calibration\nc\n## What to do\nw\n## Firing\nf")
    '# A\n## What to do\nw\n## Calibration\nc\n## Firing\nf'
    """
    sections = re.split(r"^(?=## )", markdown, flags=re.MULTILINE)
    names = [one.partition("\n")[0].strip() for one in sections]
    if not {"## Calibration", "## What to do"} <= set(names):
        return markdown
    calibration, remedy = names.index("## Calibration"), names.index("## What to do")
    if remedy > calibration:
        sections.insert(calibration, sections.pop(remedy).rstrip("\n") + "\n")
    return "".join(sections)


def parts(markdown: str) -> list[Any]:
    r"""Return Markdown as parts of a page; markup in it is shown as text, and only links to the web and here are links.

    >>> parts("# A\n<b>x</b> `y`")[1].children
    ['<b>x</b> ', Code('y')]
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return _children(SyntaxTreeNode(parser.parse(markdown)).children)


def _children(nodes: Sequence[SyntaxTreeNode]) -> list[Any]:
    """Return the parts of some nodes, neighbouring texts as one."""
    made: list[Any] = []
    for node in nodes:
        one = _part(node)
        if isinstance(one, str) and made and isinstance(made[-1], str):
            made[-1] += one
        else:
            made += one if isinstance(one, list) else [one]
    return made


def _part(node: SyntaxTreeNode) -> Any:
    """Return the part of one node."""
    kind = node.type
    if kind in ("text", "html_inline", "html_block"):
        return node.content
    if kind in ("softbreak", "hardbreak"):
        return " "
    if kind == "code_inline":
        return html.Code(node.content)
    if kind in ("fence", "code_block"):
        return html.Pre(html.Code(node.content))
    if kind == "hr":
        return html.Hr()
    if kind == "heading":
        return (html.H1, html.H2, html.H3)[min(int(node.tag[1:]), 3) - 1](_children(node.children))
    if kind == "image":
        return _picture(str(node.attrs.get("src", "")), node.content)
    if kind == "link":
        return _link(str(node.attrs.get("href", "")), _children(node.children))
    if kind == "table":
        return html.Div(html.Table(_children(node.children), className="ls-rows"), className="ls-scroll")
    if kind in _TAGS:
        return _TAGS[kind](_children(node.children))
    return _children(node.children)


def _picture(source: str, words: str) -> Any:
    """Return a picture of these pages; its words where it is elsewhere."""
    named = PICTURE.fullmatch(source)
    if not named:
        return words
    picture = html.Img(src=f"/rule-pictures/{named[1]}", alt=words, className="ls-rule-picture")
    return html.Span(picture, className="ls-scroll ls-rule-figure")  # on a phone its words would be too small


def _link(target: str, words: list[Any]) -> Any:
    """Return a link to the page of another rule or to the web; words alone for any other target."""
    rule = re.fullmatch(r"(?:.*/)?(LS\d{3})\.md", target)
    if rule:
        return dcc.Link(words, href=href(rule[1]))
    return html.A(words, href=target, rel="noreferrer") if target.startswith("https://") else html.Span(words)
