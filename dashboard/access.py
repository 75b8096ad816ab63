"""Who may ask, and what a browser may do with the answer.

On a loopback address the server answers to loopback names only, so that a web page elsewhere cannot reach it by
pointing its own name here. On any other address it answers to this machine's names and to plain addresses, and to
whoever holds the token: it is in the printed link, and in a cookie from then on.

Not covered: TLS, several users, what somebody with the token may do. All of them see the same runs and change none.
"""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flask import Flask, Response, abort, redirect, request

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
COOKIE: Final = "loopscope"
TOKEN: Final = "token"
BODY_BYTES: Final = 1 << 20
"""Largest request body: a page asks in a few kilobytes."""

YEAR: Final = "public, max-age=31536000, immutable"

# Dash writes its start-up call inline and compiles clientside code, hence the two 'unsafe' words; what matters here is
# that no address other than this server is allowed for anything.
CONTENT_POLICY: Final = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'none'; "
    "base-uri 'none'; object-src 'none'"
)


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must show to be answered.

    Attributes:
        knows: Whether a host name, without port, is one of this server's.
        token: Secret of the link; empty when none is needed.
    """

    knows: Callable[[str], bool]
    token: str = ""


def access_at(host: str) -> Access:
    """Return who may ask a server that is bound to ``host``.

    >>> access_at("127.0.0.1").knows("localhost"), access_at("127.0.0.1").token
    (True, '')
    >>> access_at("0.0.0.0").knows("192.0.2.7"), access_at("0.0.0.0").knows("evil.example")
    (True, False)
    """
    if is_loopback(host):
        return Access(LOOPBACK.__contains__)
    names = {host.lower(), *LOOPBACK, *(name.lower() for name in machine_names())}
    return Access(lambda name: name.lower() in names or _is_address(name), secrets.token_urlsafe(24))


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address.

    >>> is_loopback("localhost"), is_loopback("127.0.0.9"), is_loopback("0.0.0.0"), is_loopback("gpu-box")
    (True, True, False, False)
    """
    return host in LOOPBACK or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def machine_names() -> list[str]:
    """Return what this machine is called, the name that others most likely know first."""
    return list(dict.fromkeys(name for name in (socket.getfqdn(), socket.gethostname()) if name))


def link(host: str, port: int, token: str = "") -> str:
    """Return the address to open: one that works where the server was bound to every address.

    >>> link("127.0.0.1", 8050), link("::1", 8050), link("192.0.2.7", 80, "s3cret")
    ('http://127.0.0.1:8050', 'http://[::1]:8050', 'http://192.0.2.7:80/?token=s3cret')
    """
    if _is_address(host) and ipaddress.ip_address(host).is_unspecified:
        host = machine_names()[0]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}" + (f"/?{TOKEN}={token}" if token else "")


def _is_address(host: str) -> bool:
    """Say whether a host name is a plain address: nobody can point such a name elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets.

    >>> _host_name("localhost:8050"), _host_name("[::1]:8050"), _host_name("[::1]")
    ('localhost', '::1', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def guard(server: Flask, access: Access) -> None:
    """Refuse strangers and oversized requests, and forbid the browser to load or send anything elsewhere."""
    server.config["MAX_CONTENT_LENGTH"] = BODY_BYTES

    @server.before_request
    def check() -> Response | None:
        """Let a request pass (None), refuse it, or turn the link with the token into a cookie."""
        if not access.knows(_host_name(request.host)):
            abort(403, "loopscope answers only to the address it was started on")
        if not access.token:
            return None
        given = request.args.get(TOKEN)
        if given is not None and hmac.compare_digest(given.encode(), access.token.encode()):
            answer = redirect(request.path)  # the secret leaves the address bar, the history and the referrer
            answer.set_cookie(COOKIE, access.token, httponly=True, samesite="Lax")
            return answer  # type: ignore[return-value]
        if not hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), access.token.encode()):
            abort(401, "open the link that loopscope dash printed: it holds the token of this server")
        return None

    @server.after_request
    def secure(response: Response) -> Response:
        """Add the headers that bind the browser."""
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        # What has its version or time of change in its address never changes there.
        if request.path.startswith(("/_dash-component-suites/", "/assets/")) and response.status_code == 200:
            versioned = ".v" in request.path or "m" in request.args
            response.headers["Cache-Control"] = YEAR if versioned else "no-cache"
        return response
