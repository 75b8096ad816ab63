"""What a command prints: a reader that has gone, a full disk or a poor encoding never changes its exit code.

Not covered: text from files; whoever prints it escapes it first (`runfile.text.plain`).
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from contextlib import suppress
from typing import Final

from ..runfile.text import plain

# Of the terminal's 256 colours those nearest to `dashboard.colours`.
REGIME_STYLES: Final = {"stable": "dodger_blue1", "marginal": "orange3", "unstable": "red", "unknown": "dim"}
_COLOURED: Final = {
    r"(?m)^(      )?PASS\b": "stable",
    r"\[warning\] ": "marginal",
    r"(?m)^(      )?(FAIL|ERROR)\b|\[error\] ": "unstable",
}


def say(text: str) -> None:
    """Print text and a line break to standard output, as far as it takes them."""
    try:
        print(text, flush=True)  # noqa: T201 - the one place that prints
    except BrokenPipeError:
        _silence()  # the reader of our output has gone: nothing is left to tell it
    except OSError as error:
        _silence()
        complain(f"the output could not be written: {error.strerror}")


def say_verdicts(text: str) -> None:
    """Print the text of the gate: in a terminal with the verdicts and severities in their colours."""
    if not sys.stdout.isatty():
        say(text)
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    for pattern, regime in _COLOURED.items():
        shown.highlight_regex(pattern, f"bold {REGIME_STYLES[regime]}")
    Console(highlight=False).print(shown, soft_wrap=True)


def complain(message: str) -> None:
    """Print one line about an error to standard error."""
    with suppress(OSError):
        print(f"loopscope: {plain(message)}", file=sys.stderr, flush=True)  # noqa: T201 - the one place for errors


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error to standard error, every line escaped."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    with suppress(OSError):
        print("\n".join(plain(line) for line in lines), file=sys.stderr)  # noqa: T201


def accept_any_text() -> None:
    """Have standard output and error show what their encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence() -> None:
    """Let nothing more go to standard output: what it still holds would fail again when Python ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
