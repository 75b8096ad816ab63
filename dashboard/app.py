"""The application: pages, headers, and a server on this machine.

What is not covered: several users, authentication, TLS. The server binds to the loopback address, answers only to
loopback names there (a web page elsewhere cannot reach it by rebinding its own name), and tells the browser to load
nothing from anywhere else.
"""

import logging
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import dash
import dash_mantine_components as dmc
import waitress
from dash import Dash, dcc, html
from dash._callback_context import context_value
from flask import Flask, Response, abort, request

from .colours import css_variables
from .index import CONFIG_KEY, RunIndex
from .pages import run as run_page
from .pages import runs as runs_page

DEFAULT_PORT: Final = 8050
PORTS_TRIED: Final = 50
THREADS: Final = 8
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})

# Dash writes its start-up call inline and compiles clientside code, hence the two 'unsafe' words; what matters here is
# that no address other than this server is allowed for anything.
CONTENT_POLICY: Final = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'none'"
)

INDEX_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}<title>{%title%}</title>
<link rel="icon" type="image/svg+xml" href="/assets/icon.svg">
{%css%}<style>COLOURS</style>
<script>
(() => {
  const kept = localStorage.getItem("mantine-color-scheme-value");
  const dark = kept === "dark" || (kept !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.setAttribute("data-mantine-color-scheme", dark ? "dark" : "light");
})();
</script>
</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def create_app(paths: Iterable[str | Path], *, hosts: frozenset[str] | None = LOOPBACK) -> Dash:
    """Build the dashboard over some runs.

    Args:
        paths: Run files, and folders whose ``*.h5`` files at any depth are runs; runs that appear later show up.
        hosts: Host names (without port) the application answers to; None answers to any.

    Returns:
        The Dash application; ``app.server`` is the WSGI application.
    """
    app = Dash(
        __name__,
        title="loopscope",
        update_title="",
        use_pages=True,
        pages_folder="",
        include_pages_meta=False,
        assets_folder=str(Path(__file__).parent / "assets"),
        suppress_callback_exceptions=True,  # the pages' components come and go
        compress=True,
        enable_mcp=False,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        index_string=INDEX_PAGE.replace("COLOURS", css_variables()),
    )
    server: Flask = app.server
    server.config[CONFIG_KEY] = RunIndex(paths)
    _guard(server, hosts)
    if context_value.get(None) is None:  # set by Dash in the thread that imported it only; registering a page reads it
        context_value.set({})
    dash.register_page("loopscope.runs", path="/", title="Runs · loopscope", layout=runs_page.layout)
    dash.register_page("loopscope.run", path_template="/run/<run_id>", title=run_page.title, layout=run_page.layout)
    dash.register_page("not_found_404", path="/404", title="Not found · loopscope", layout=run_page.not_found)
    app.layout = shell
    runs_page.register(app)
    run_page.register(app)
    return app


def shell() -> dmc.MantineProvider:
    """Return what every page sits in: the header with the remembered dark/light switch, and the page."""
    header = html.Header(
        [
            dcc.Link(["loop", html.Span("scope")], href="/", className="ls-brand"),
            html.Span("stability of looped language models", className="ls-tagline"),
            dmc.ColorSchemeToggle(lightIcon="☀", darkIcon="☾", variant="subtle", color="gray", size="lg", id="scheme"),
        ],
        className="ls-header",
    )
    main = html.Main(dash.page_container, className="ls-main")
    return dmc.MantineProvider(
        [dcc.Location(id="address", refresh="callback-nav"), header, main], defaultColorScheme="auto"
    )


def _guard(server: Flask, hosts: frozenset[str] | None) -> None:
    """Refuse foreign host names, and forbid the browser to load or send anything elsewhere."""

    @server.before_request
    def known_host() -> None:
        if hosts is not None and request.host.rsplit(":", 1)[0] not in hosts and request.host not in hosts:
            abort(403, "loopscope answers only to the address it was started on")

    @server.after_request
    def secure(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def serve(
    paths: Iterable[str | Path],
    host: str = "127.0.0.1",
    port: int | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the dashboard until interrupted; prints nothing.

    Args:
        paths: See `create_app`.
        host: Address to bind; anything but a loopback address opens the runs to the network.
        port: Port to bind; default is `DEFAULT_PORT`, or the next free one after it.
        on_ready: Called once with the address, e.g. ``http://127.0.0.1:8050``, when connections are accepted.

    Raises:
        OSError: The port asked for is taken, or none of the default ones is free.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a page asks for a dozen things at once: no news
    listener = _bind(host, port)
    loopback = host in LOOPBACK or host == "::1"
    app = create_app(paths, hosts=LOOPBACK if loopback else None)
    index: RunIndex = app.server.config[CONFIG_KEY]
    # One process: HDF5 allows one reader per file in each. Threads, because a page asks for several things at once.
    server = waitress.create_server(app.server, sockets=[listener], threads=THREADS, ident="loopscope")
    try:
        if on_ready is not None:
            shown = f"[{host}]" if ":" in host else host
            on_ready(f"http://{shown}:{listener.getsockname()[1]}")
        server.run()
    finally:
        server.close()
        index.close()


def _bind(host: str, port: int | None) -> socket.socket:
    """Bind the port asked for, or the first free one from the default on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tried = [port] if port is not None else list(range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED))
    for number in tried:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
        except OSError as error:
            listener.close()
            if number == tried[-1]:
                wanted = str(port) if port is not None else f"{tried[0]} to {tried[-1]}"
                raise OSError(
                    f"cannot listen on {host} port {wanted}: {error.strerror}; choose another with --port"
                ) from error
        else:
            return listener
    raise AssertionError("the loop returns or raises")
