"""Notifications: once, again after a while, over when it is over; a service that misbehaves costs nobody anything."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from loopscope.gate.notify import Alert, Notifier, services

ALERT = Alert("runs/a.h5", "LS020", "error", "ρ(A̅) = 1.2\n::error::forged")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_alert_is_told_once_again_after_a_while_and_when_it_is_over() -> None:
    sent: list[tuple[str, str, str]] = []
    clock = Clock()
    notifier = Notifier(lambda *message: not sent.append(message), cooldown=100.0, clock=clock)
    for _ in range(5):
        notifier.update("runs/a.h5", [ALERT])
    notifier.update("runs/a.h5", [])  # over
    clock.now = 50.0
    notifier.update("runs/a.h5", [ALERT])  # within the cooldown: not told, and its end neither
    notifier.update("runs/a.h5", [])
    clock.now = 150.0
    notifier.update("runs/a.h5", [ALERT])
    notifier.update("runs/b.h5", [])  # another run says nothing of this one
    notifier.close()
    assert [title.split(": ")[1] for title, _, _ in sent] == ["LS020 error", "LS020 resolved", "LS020 error"]
    assert [kind for _, _, kind in sent] == ["failure", "success", "failure"]
    assert all("\n" not in text for _, text, _ in sent)


class Service(http.server.BaseHTTPRequestHandler):
    """A webhook that does what the test wants."""

    behaviour = "ok"
    answered = 0
    bodies: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Service.bodies.append(json.loads(body))
        if Service.behaviour == "slow":
            time.sleep(3)
        if Service.behaviour in ("302", "307"):
            self.send_response(int(Service.behaviour))
            self.send_header("Location", "/elsewhere")
        elif Service.behaviour == "redirect":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
        else:
            self.send_response({"ok": 200, "500": 500, "slow": 200}[Service.behaviour])
        Service.answered += 1
        self.end_headers()

    def do_GET(self) -> None:
        Service.bodies.append({"title": "sent on"})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Service.behaviour, Service.bodies, Service.answered = "ok", [], 0
    yield f"json://user:s3cret@127.0.0.1:{server.server_port}/hook"
    server.shutdown()


@pytest.mark.parametrize("behaviour", ["ok", "500", "redirect", "slow", "down"])
def test_a_service_that_misbehaves_costs_the_watcher_nothing(
    behaviour: str, webhook: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("apprise")
    Service.behaviour = behaviour if behaviour != "down" else "ok"
    url = webhook if behaviour != "down" else "json://user:s3cret@127.0.0.1:9/hook"
    send = services({"LOOPSCOPE_NOTIFY": url})
    assert send is not None
    with caplog.at_level(logging.DEBUG):
        notifier = Notifier(send)
        notifier.update("runs/a.h5", [ALERT])
        assert behaviour != "slow" or Service.answered == 0  # nobody waited for it
        notifier.close(8.0)
    if behaviour != "down":
        assert "LS020" in Service.bodies[0]["title"] and "ρ(A̅) = 1.2" in Service.bodies[0]["message"]
    refused = behaviour in ("500", "redirect", "down")
    assert ("refused" in caplog.text) == refused
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("behaviour", ["302", "307"])
def test_a_redirect_is_a_refusal_and_nothing_is_sent_on(behaviour: str, webhook: str) -> None:
    pytest.importorskip("apprise")
    Service.behaviour = behaviour
    send = services({"LOOPSCOPE_NOTIFY": webhook})
    assert send is not None and not send("title", "text", "failure")
    assert len(Service.bodies) == 1
    send = services({"LOOPSCOPE_NOTIFY": f"{webhook}?redirect=yes"})  # whoever trusts it can say so
    assert send is not None and send("title", "text", "failure") == (behaviour == "302")
    assert len(Service.bodies) > 2


def test_a_queue_that_is_full_drops_and_counts() -> None:
    gate = threading.Event()
    notifier = Notifier(lambda *message: gate.wait(5))
    for number in range(100):
        notifier.update("a", [Alert("a", f"R{n}", "error", "x") for n in range(number + 1)])
    assert notifier.dropped > 0
    gate.set()


def test_a_url_that_is_none_is_named_by_its_kind_alone() -> None:
    pytest.importorskip("apprise")
    assert services({}) is None
    with pytest.raises(ValueError, match=r"service 2 \(nosuch\)") as refused:
        services({"LOOPSCOPE_NOTIFY": "json://localhost nosuch://token@s3cret"})
    assert "s3cret" not in str(refused.value)
