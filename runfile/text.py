r"""Shows text that came from a file or a name as one line without control characters.

A terminal obeys control characters, a CI log obeys lines such as ``::error::``, and marks of writing direction make a
reader see another order of letters than the bytes have. Text from a run file, from a path or from a rule file goes
through `plain` before anybody prints it.

Not covered: markup. HTML and rich have escapes of their own; text for them goes through `plain` first, then through
theirs.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories that are shown as escapes: controls, format and direction marks, lone surrogates, private and
unassigned characters, line and paragraph separators."""
_COMMAND: Final = re.compile(r"(?<![\w:])::(?=\w)|##(?=\[|vso\[|teamcity\[)")
"""What makes a CI log read a line as a command: GitHub's ``::name::``, ``##[name]``, Azure's, TeamCity's."""


def plain(text: object) -> str:
    r"""Return text as one line that neither a terminal nor a CI log can obey.

    Characters that do not show themselves become escapes as Python writes them. Of what a CI log would take for a
    command, the first character does. Anything else stays: letters of all scripts, spaces, emoji without joiners.

    Args:
        text: What to show, by its ``str``: a message, a name, a path.

    >>> print(plain("loss rose\n::error file=a.py::forged"))
    loss rose\n::error file=a.py::forged
    >>> print(plain("::stop-commands::x"), plain("\x1b]0;owned\x07"), plain("a\u202eb"), plain("ρ(A̅) = 1.2"))
    \x3a:stop-commands::x \x1b]0;owned\x07 a\u202eb ρ(A̅) = 1.2
    """
    shown = str(text)
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(_escape(letter) for letter in shown)
    return _COMMAND.sub(lambda match: f"\\x{ord(match[0][0]):02x}{match[0][1:]}", shown)


def _escape(letter: str) -> str:
    """Return a letter, or its escape where it would not show itself."""
    if unicodedata.category(letter) not in _HIDDEN:
        return letter
    return letter.encode("unicode_escape").decode("ascii")
