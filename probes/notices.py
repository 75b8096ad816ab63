"""Messages for whoever reads the run file: each goes to the log and, as an event, into the file.

A cause is reported at its first occurrence only: a training of a million steps does not repeat it a million times.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable

from ..runfile.layout import Event, Severity

log = logging.getLogger("loopscope")

_LEVELS = {"note": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Notices:
    """Hands events to the run file and to the log.

    Args:
        record: What takes an event for the file.

    >>> events = []
    >>> notices = Notices(events.append)
    >>> for step in range(3):
    ...     notices.say(step, "number_refused", "lr is a string", cause="lr", severity="note")
    >>> [(event.step, event.kind, event.message) for event in events]
    [(0, 'number_refused', 'lr is a string')]
    """

    def __init__(self, record: Callable[[Event], None]) -> None:
        self._record = record
        self._causes: set[Hashable] = set()

    def say(
        self,
        step: int,
        kind: str,
        message: str,
        *,
        severity: Severity = "warning",
        cause: Hashable = None,
        trace: BaseException | None = None,
        value: float = math.nan,
    ) -> None:
        """Report something, unless the same cause was reported before.

        Args:
            step: Training step it belongs to.
            kind: Short stable name of the event.
            message: One sentence for a person.
            severity: How bad it is.
            cause: What makes it the same thing again; default: its kind alone.
            trace: The exception behind it, whose traceback goes to the log.
            value: The number that it is about.
        """
        key = (kind, cause)
        if key in self._causes:
            return
        self._causes.add(key)
        log.log(_LEVELS[severity], "loopscope: %s", message, exc_info=trace)
        self._record(Event(step, time.time(), kind, severity, value, message=message))

    def pass_on(self, event: Event | None) -> None:
        """Put an event into the file that the log has already."""
        if event is not None:
            self._record(event)


def one_line(error: BaseException) -> str:
    r"""Return an exception as one line that fits into an event.

    >>> one_line(RuntimeError("CUDA out of memory.\n  Tried to allocate")), one_line(KeyboardInterrupt())
    ('RuntimeError: CUDA out of memory. Tried to allocate', 'KeyboardInterrupt')
    """
    said = " ".join(str(error).split())
    return (f"{type(error).__name__}: {said}" if said else type(error).__name__)[:180]
