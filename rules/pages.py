"""The page of a rule: one Markdown file a rule in ``docs/rules``, which is installed with the package.

Not covered: rules of a user's own; their file says what there is to say of them.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Final

PLACE: Final = "docs/rules"
_IDENTIFIER: Final = re.compile(r"LS\d{3}")


def page_name(rule: str) -> str:
    """Return where the page of a shipped rule is, from the top of the project; empty where it has none.

    >>> page_name("LS020"), page_name("../../secret")
    ('docs/rules/LS020.md', '')
    """
    return f"{PLACE}/{rule}.md" if page(rule) else ""


def page(rule: str) -> str:
    """Return the page of a shipped rule as Markdown; empty where it has none.

    >>> page("LS020").splitlines()[0]
    '# LS020 injection-unstable'
    """
    if not _IDENTIFIER.fullmatch(rule):
        return ""
    file = resources.files("loopscope").joinpath(PLACE, f"{rule}.md")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def by_itself(text: str) -> str:
    r"""Return a page for where its folder is not: without its picture, and links as their words alone.

    >>> by_itself("see [LS010](LS010.md)\n\n## Firing\n\n![x](x.svg)\n")
    'see LS010\n'
    """
    head = text.partition("\n## Firing\n")[0]
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", head).rstrip() + "\n"


def section(text: str, heading: str) -> str:
    r"""Return what stands below a heading of a page, to the next one; empty where it is not there.

    >>> section("# A\n## Default\nx = 1\n## Source\nnone", "Default")
    'x = 1'
    """
    parts = re.search(rf"^## {re.escape(heading)}[ \t]*\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    return parts[1].strip() if parts else ""
