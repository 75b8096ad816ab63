"""The application: the bar above all pages, the pages, and a server on this machine.

Not covered: who may ask (`access`), what a page holds (`pages`).
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import dash
import dash_mantine_components as dmc
import waitress
from dash import ClientsideFunction, Dash, Input, Output, dcc, html
from dash._callback_context import context_value
from flask import Flask, Response, jsonify, request

from ..runfile.layout import RunFileError
from .access import BODY_BYTES, LOOPBACK, Access, access_at, guard, link
from .colours import css_variables
from .downloads import register as register_downloads
from .index import CONFIG_KEY, RunIndex, current_index
from .pages import Page, all_pages

DEFAULT_PORT: Final = 8050
PORTS_TRIED: Final = 50
THREADS: Final = 8
LOCAL: Final = Access(LOOPBACK.__contains__)

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


def create_app(paths: Iterable[str | Path], *, access: Access = LOCAL) -> Dash:
    """Build the dashboard over some runs.

    Args:
        paths: Run files, and folders whose ``*.h5`` files at any depth are runs; runs that appear later show up.
        access: Who may ask; by default, this machine.

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
    guard(server, access)
    _answer_alive(server)
    register_downloads(server)
    pages = all_pages()
    if context_value.get(None) is None:  # set by Dash in the thread that imported it only; registering a page reads it
        context_value.set({})
    for page in pages:
        place = {"path_template": page.path} if "<" in page.path else {"path": page.path}
        name = "not_found_404" if page.name == "missing" else f"loopscope.{page.name}"
        dash.register_page(name, title=page.title, layout=page.layout, **place)
        page.register(app)
    app.layout = lambda: shell(pages)
    app.clientside_callback(
        ClientsideFunction("loopscope", "bar"),
        Output("bar-shown", "data"),
        Input("_pages_location", "pathname"),
        *[Input(page.counts, "data") for page in pages if page.counts],
    )
    return app


def shell(pages: list[Page]) -> dmc.MantineProvider:
    """Return what every page sits in: the bar with links, connection light and dark/light switch, and the page."""
    counted = list(dict.fromkeys(["ticked", *(page.counts for page in pages if page.counts)]))
    header = html.Header(
        [
            dcc.Link(
                [html.Img(src="/assets/icon.svg", alt="loopscope"), html.Span(["loop", html.B("scope")])],
                href="/",
                className="ls-brand",
            ),
            html.Nav([_link(page) for page in pages if page.link], className="ls-nav"),
            html.Span(id="light", role="status", className="ls-light"),
            dmc.ColorSchemeToggle(
                lightIcon="☀",
                darkIcon="☾",
                variant="subtle",
                color="gray",
                size="lg",
                id="scheme",
                **{"aria-label": "dark or light"},
            ),
        ],
        className="ls-header",
    )
    main = html.Main(dash.page_container, className="ls-main", id="main")
    kept = [dcc.Store(id=name, data=[], storage_type="session") for name in counted]
    skip = html.A("Skip to the page", href="#main", className="ls-skip")
    return dmc.MantineProvider(
        [*kept, dcc.Store(id="bar-shown"), skip, header, main],
        defaultColorScheme="auto",
    )


def _link(page: Page) -> dcc.Link:
    """Return the word of a page in the bar, with room for its count."""
    said: list[Any] = [page.link]
    if page.counts:
        counted: Any = {"data-counts": page.counts}
        said.append(html.Span(className="ls-count", **counted))
    return dcc.Link(said, href=page.path, className="ls-nav-link")


def _answer_alive(server: Flask) -> None:
    """Answer the connection light: that the server is there, and how long ago a live run was written."""

    @server.get("/alive")
    def alive() -> Response:
        """Say how a run is and how long ago it was written; nothing of an unknown one."""
        entry = current_index().find(request.args.get("run", ""))
        if entry is None:
            return jsonify({})
        try:
            run = current_index().open(entry).run
        except RunFileError:
            return jsonify({})
        return jsonify({"state": run.state, "age": max(time.time() - run.committed_at, 0.0)})


def serve(
    paths: Iterable[str | Path],
    host: str = "127.0.0.1",
    port: int | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the dashboard until interrupted; prints nothing.

    Args:
        paths: See `create_app`.
        host: Address to bind; anything but a loopback address opens the runs to the network, to those with the token.
        port: Port to bind; default is `DEFAULT_PORT`, or the next free one after it.
        on_ready: Called once with the link, e.g. ``http://127.0.0.1:8050``, when connections are accepted. It holds
            the token where one is needed.

    Raises:
        OSError: The port asked for is taken, or none of the default ones is free.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a page asks for a dozen things at once: no news
    listener = _bind(host, port)
    access = access_at(host)
    app = create_app(paths, access=access)
    index: RunIndex = app.server.config[CONFIG_KEY]
    # One process: HDF5 allows one reader per file in each. Threads, because a page asks for several things at once.
    server = waitress.create_server(
        app.server, sockets=[listener], threads=THREADS, ident="loopscope", max_request_body_size=2 * BODY_BYTES
    )
    try:
        if on_ready is not None:
            on_ready(link(host, listener.getsockname()[1], access.token))
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
