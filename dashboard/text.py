"""Words from files and numbers, made fit to be shown.

Text of a run file is somebody else's. In a page it is only ever text, because React escapes it; plotly reads a few tags
in what it draws, so `plain` takes their meaning away. `shown` takes care of names that are not UTF-8.

Not covered: which words are chosen (`story`, `components`).
"""

import math
import unicodedata
from typing import Any

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def plain(text: Any, limit: int = 300) -> str:
    """Return somebody's text for plotly, which would read ``<b>``, ``<a href>`` and entities in it.

    >>> plain("<a href='javascript:x'>&amp;</a>")
    "&lt;a href='javascript:x'&gt;&amp;amp;&lt;/a&gt;"
    """
    clean = shown(text, limit)
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shown(text: Any, limit: int = 1000) -> str:
    """Return somebody's text as something that can be sent and shown: no lone surrogates, no control characters.

    >>> shown("a" + chr(0xDCFF) + chr(27) + "b"), shown("x" * 9, limit=5)
    ('a��b', 'xxxx…')
    """
    cut = str(text)
    cut = cut if len(cut) <= limit else cut[: limit - 1] + "…"
    return "".join("�" if unicodedata.category(c) in ("Cs", "Cc") and c not in "\n\t" else c for c in cut)


def number(value: float, digits: int = 4) -> str:
    """Return a number as people read it, an en dash when it was not recorded.

    >>> number(0.44721), number(1.5e9), number(math.nan), number(math.inf)
    ('0.4472', '1.5e+09', '–', '∞')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}"


def ago(seconds: float) -> str:
    """Return how long something is ago, in the largest unit that fits.

    >>> ago(3.2), ago(240), ago(7300), ago(200_000)
    ('3 s', '4 min', '2 h', '2 d')
    """
    seconds = max(seconds, 0.0)
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def middle_cut(text: str, limit: int) -> str:
    """Return a name with its middle left out: the ends tell names apart.

    >>> middle_cut("concatenation-lr0.05-seed2", 13)
    'concat…-seed2'
    """
    if len(text) <= limit:
        return text
    head = (limit - 1 + 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def size(count: float) -> str:
    """Return a count of parameters in short.

    >>> size(42_240), size(144_323_136), size(1.3e9), size(math.nan)
    ('42.2k', '144M', '1.3B', '–')
    """
    if not math.isfinite(count) or count < 0:
        return "–"
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.0f}"
