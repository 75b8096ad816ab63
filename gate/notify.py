"""Tells people: an alert goes out once, again only after a while, and once more when it is over.

Services are those of apprise (Slack, Discord, e-mail, webhooks and a hundred others), given as URLs. URLs hold secrets:
they come from the environment variable ``LOOPSCOPE_NOTIFY`` and are never printed; a service is named by its kind
alone. Sending happens in a thread of its own with a bounded queue, so that a service that is down, slow or lying costs
whoever watches nothing.

Not covered: delivery. A message that a service refuses is logged and dropped.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..runfile.text import plain

log = logging.getLogger("loopscope")

VARIABLE: Final = "LOOPSCOPE_NOTIFY"
COOLDOWN: Final = 3600.0  # seconds before the same alert of the same run is sent again
WAITING: Final = 64  # messages; more are dropped
PATIENCE: Final = 10.0  # seconds for what is on its way when the watch ends

Send = Callable[[str, str, str], bool]
"""Sends a title, a text and a kind (``failure``, ``warning``, ``success``); returns whether all services took it."""


@dataclass(frozen=True, slots=True)
class Alert:
    """What a notification is about.

    Attributes:
        run: Name of the run.
        rule: Id of the rule.
        severity: ``warning`` or ``error``.
        text: What is the matter and what to try.
    """

    run: str
    rule: str
    severity: str
    text: str


class Notifier:
    """Decides what is worth a message, and sends it in a thread.

    Args:
        send: Sends one message.
        cooldown: Seconds before the same alert is sent again.
        clock: Seconds that only grow.
    """

    def __init__(self, send: Send, *, cooldown: float = COOLDOWN, clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._cooldown, self._clock = send, cooldown, clock
        self._told: dict[tuple[str, str], float] = {}
        self._open: dict[tuple[str, str], bool] = {}  # alerts that hold, and whether a message went out
        self._queue: queue.Queue[tuple[str, str, str] | None] = queue.Queue(WAITING)
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="loopscope-notify", daemon=True)
        self._thread.start()

    def update(self, run: str, alerts: Sequence[Alert]) -> None:
        """Take the alerts that a run has now: tell new ones, and that earlier ones are over."""
        now = {(alert.run, alert.rule): alert for alert in alerts}
        for key, alert in now.items():
            if key in self._open:
                continue
            self._open[key] = self._clock() - self._told.get(key, -float("inf")) >= self._cooldown
            if self._open[key]:
                self._told[key] = self._clock()
                kind = "failure" if alert.severity == "error" else "warning"
                self._put(f"{alert.run}: {alert.rule} {alert.severity}", alert.text, kind)
        for key in [key for key in self._open if key[0] == run and key not in now]:
            if self._open.pop(key):
                self._put(f"{key[0]}: {key[1]} resolved", "The condition does not hold any more.", "success")

    def close(self, seconds: float = PATIENCE) -> None:
        """Wait for what is on its way, but not for ever."""
        self._put("", "", "", end=True)
        self._thread.join(seconds)

    def _put(self, title: str, text: str, kind: str, *, end: bool = False) -> None:
        """Queue a message, or drop it where the services do not keep up."""
        try:
            self._queue.put_nowait(None if end else (plain(title), plain(text), kind))
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        """Send what is queued, one after another."""
        while (message := self._queue.get()) is not None:
            try:
                taken = self._send(*message)
            except Exception as error:  # whatever a service does, watching goes on
                log.warning("loopscope: a notification could not be sent: %s", type(error).__name__)
                continue
            if not taken:
                log.warning("loopscope: a notification service refused a message")


def services(environment: Mapping[str, str]) -> Send | None:
    """Return what sends to the services that the environment names; None where it names none.

    Args:
        environment: ``os.environ``; ``LOOPSCOPE_NOTIFY`` holds URLs of apprise, separated by white space.

    Raises:
        ValueError: A URL is not one of apprise; the message names its kind and not the URL.
        ModuleNotFoundError: The package apprise is missing.
    """
    urls = environment.get(VARIABLE, "").split()
    if not urls:
        return None
    try:
        import apprise
    except ImportError:
        raise ModuleNotFoundError(f"{VARIABLE} needs the package apprise: pip install 'loopscope[notify]'") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its log shows URLs
    asset: Any = apprise.AppriseAsset()
    asset.http_redirects = False  # a message that is sent on has not arrived, and may arrive anywhere
    target: Any = apprise.Apprise(asset=asset)
    for number, url in enumerate(urls, 1):
        if not target.add(url):
            kind = url.partition("://")[0] if "://" in url else "no scheme"
            raise ValueError(f"{VARIABLE}: service {number} ({plain(kind)[:20]}) is no URL that apprise knows")
    return lambda title, text, kind: bool(target.notify(body=text, title=title, notify_type=kind))
