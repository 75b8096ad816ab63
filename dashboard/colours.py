"""The one table of colours: regimes, run states, severities and plotted quantities.

Every colour has a contrast of at least 3 against the light and the dark page (WCAG 2.2, non-text contrast), and the
regimes stay apart for deuteranopes, protanopes and tritanopes; a glyph says the same thing without colour. The tests
compute both. What is not covered: text is never drawn in these colours, only marks are.
"""

from collections.abc import Mapping
from typing import Final

REGIME_COLOURS: Final[Mapping[str, str]] = {
    "stable": "#2491d3",
    "marginal": "#c98500",
    "unstable": "#d1344b",
    "unknown": "#868e96",
}

REGIME_GLYPHS: Final[Mapping[str, str]] = {"stable": "●", "marginal": "◆", "unstable": "▲", "unknown": "○"}

STATE_COLOURS: Final[Mapping[str, str]] = {
    "live": "#2b9a66",
    "interrupted": REGIME_COLOURS["marginal"],
    "finished": REGIME_COLOURS["unknown"],
    "unreadable": REGIME_COLOURS["unstable"],
}

SEVERITY_COLOURS: Final[Mapping[str, str]] = {
    "error": REGIME_COLOURS["unstable"],
    "warning": REGIME_COLOURS["marginal"],
    "note": REGIME_COLOURS["unknown"],
}

# Plotted quantities keep their colour on every page; none of them is a regime's colour.
LOSS: Final = "#7a6fdc"
RADIUS: Final = "#7a6fdc"
NORM: Final = "#2b9a8a"
RATIO: Final = "#c0579e"
FULL_LOOP: Final = "#7d8b2f"
STATE: Final = "#7a6fdc"
RESIDUAL: Final = "#2b9a8a"

# Sits between the two themes' text colours: readable where the page's style sheet does not set the text colour.
INK: Final = "#767d87"
GRID: Final = "rgba(128,136,148,0.22)"


def tint(colour: str, alpha: float) -> str:
    """Return ``#rrggbb`` as an ``rgba()`` string with the given opacity.

    >>> tint("#2491d3", 0.5)
    'rgba(36,145,211,0.5)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def css_variables() -> str:
    """Return the table as CSS custom properties, so that badges and the table take their colours from here too.

    >>> "--regime-stable:#2491d3" in css_variables()
    True
    """
    pairs = [(f"regime-{name}", colour) for name, colour in REGIME_COLOURS.items()]
    pairs += [(f"state-{name}", colour) for name, colour in STATE_COLOURS.items()]
    pairs += [(f"severity-{name}", colour) for name, colour in SEVERITY_COLOURS.items()]
    return ":root{" + ";".join(f"--{name}:{colour}" for name, colour in pairs) + "}"
