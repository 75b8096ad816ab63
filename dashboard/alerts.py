"""What was found in all runs: findings of the rules and events of the probes, and which of them somebody has seen.

What was seen is kept in a file of its own beside the runs: a run file is written by its training alone.

Not covered: how a run is judged (`rules`), how alerts are shown (`pages.alerts`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .opened import OpenRun
from .recorded_live import recorded_live
from .story import Story
from .text import shown

KEPT_EVENTS: Final = 100
"""Events of one run that are listed, the worst and earliest first; the rest is counted."""
SEEN_FILE: Final = "loopscope-acknowledged.json"
SEEN_BYTES: Final = 4 << 20
ORDER: Final = ("error", "warning", "note")
_LOCK = threading.Lock()


def alerts_of(held: OpenRun, story: Story) -> list[dict[str, Any]]:
    """Return the alerts of a run, JSON-ready: findings of the rules, then what was recorded live and no rule says."""
    alerts = [
        _alert(finding.rule, finding.name, finding.severity, finding.step, story.lead(finding), finding.message)
        for finding in story.findings
    ]
    live = [each for each in recorded_live(held.run.events, story.findings, story.judgements) if each.finding is None]
    live.sort(key=lambda each: (_place(each.severity), each.event.step))
    for each in live[:KEPT_EVENTS]:
        event = each.event
        lead = None if story.loss_step is None else story.loss_step - event.step
        alerts.append(_alert(each.rule or "event", each.name, each.severity, event.step, lead, each.message))
    if len(live) > KEPT_EVENTS:
        more = f"{len(live) - KEPT_EVENTS:,} more events of this run are not listed"
        alerts.append(_alert("event", "more_events", "note", live[-1].event.step, None, more))
    return alerts


def _alert(rule: str, name: str, severity: str, step: int, lead: int | None, message: str) -> dict[str, Any]:
    """Return one alert; text of the file is cut and cleaned."""
    severity = severity if severity in ORDER else "note"
    return {
        "rule": shown(rule, 40),
        "name": shown(name, 60),
        "severity": severity,
        "step": int(step),
        "lead": lead if severity != "note" else None,
        "message": shown(message, 400),
    }


def _place(severity: str) -> int:
    """Return the place of a severity, the worst first."""
    return ORDER.index(severity) if severity in ORDER else len(ORDER)


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing found in one run.

    ``key`` names it within its run; ``lead`` is by how many steps it came before the loss showed the problem.
    """

    run_id: str
    run: str
    href: str
    key: str
    rule: str
    name: str
    severity: str
    step: int
    lead: int | None
    message: str


def listed(rows: Iterable[Mapping[str, Any]], details: Mapping[str, list[dict[str, Any]]]) -> list[Alert]:
    """Return the alerts of all runs: errors first, then by run and step."""
    alerts = []
    for row in rows:
        for one in details.get(row["id"], ()):
            key = f"{one['rule']} {one['name']} {one['step']}"
            href = f"{row['href']}?step={one['step']}"
            alerts.append(Alert(run_id=row["id"], run=row["name"], href=href, key=key, **one))
    return sorted(alerts, key=lambda alert: (_place(alert.severity), alert.run, alert.step, alert.key))


def lead_words(lead: int | None) -> str:
    """Say how an alert lies to the moment at which the loss showed the problem.

    >>> lead_words(147), lead_words(-3), lead_words(0), lead_words(None)
    ('147 steps before', '3 steps after', 'with the loss', '–')
    """
    if lead is None:
        return "–"
    if not lead:
        return "with the loss"
    return f"{abs(lead):,} step{'s' if abs(lead) != 1 else ''} {'before' if lead > 0 else 'after'}"


# -- what somebody has seen -----------------------------------------------------------------------------------------


def acknowledged(run: Path) -> dict[str, float]:
    """Return the keys of a run's alerts that somebody acknowledged, and when; none without a readable file."""
    return all_acknowledged([run])[run]


def all_acknowledged(runs: Iterable[Path]) -> dict[Path, dict[str, float]]:
    """Return what `acknowledged` does for many runs; the file of a folder is read once."""
    runs = list(runs)
    kept = {folder: _load(folder / SEEN_FILE) or {} for folder in {run.parent for run in runs}}
    return {run: _keys(kept[run.parent].get(run.name)) for run in runs}


def _keys(mine: Any) -> dict[str, float]:
    """Return the part of the file that belongs to one run, without what is malformed in it."""
    if not isinstance(mine, dict):
        return {}
    return {
        str(key): float(moment)
        for key, moment in mine.items()
        if isinstance(moment, int | float) and math.isfinite(moment)
    }


def acknowledge(run: Path, key: str, *, seen: bool) -> None:
    """Write down that an alert was seen, or was not after all, into the file beside the run.

    Args:
        run: The run file.
        key: Key of the alert.
        seen: Whether it was seen.

    Raises:
        OSError: The file cannot be written, or is not of our making; the message says what to do.
    """
    path = run.parent / SEEN_FILE
    with _LOCK:
        kept = _load(path)
        if kept is None:
            raise OSError(f"{shown(path)} is not a file of acknowledged alerts: move it away")
        mine = kept.get(run.name)
        mine = dict(mine) if isinstance(mine, dict) else {}
        if seen:
            mine[key] = round(time.time(), 3)
        else:
            mine.pop(key, None)
        kept[run.name] = mine
        _save(path, {"version": 1, "acknowledged": {name: keys for name, keys in kept.items() if keys}})


def _load(path: Path) -> dict[str, Any] | None:
    """Return what the file holds by the name of the run, nothing without a file, None where it is something else."""
    try:
        if not path.is_file():
            return None if os.path.lexists(path) else {}
        with path.open("rb") as stream:
            text = stream.read(SEEN_BYTES + 1)
        kept = json.loads(text) if len(text) <= SEEN_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    inner = kept.get("acknowledged") if isinstance(kept, dict) and kept.get("version") == 1 else None
    return dict(inner) if isinstance(inner, dict) else None


def _save(path: Path, kept: dict[str, Any]) -> None:
    """Write the file aside and put it in its place, so that no reader sees half of it.

    Raises:
        OSError: The folder cannot be written.
    """
    handle, aside = tempfile.mkstemp(prefix=f".{SEEN_FILE}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(kept, stream, indent=1, sort_keys=True)
        Path(aside).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(aside).unlink()
        raise
