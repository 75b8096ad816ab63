"""The application as a web server: what it answers, to whom, and what it keeps the browser from doing."""

import socket
import threading
import urllib.request

import pytest
import waitress
from loopscope.dashboard import app as app_module
from loopscope.dashboard.app import DEFAULT_PORT, create_app, serve
from loopscope.dashboard.frame import graph_config

from .serving import stop


def test_front_page_loads_and_allows_nothing_from_elsewhere(client, runs):
    answer = client(runs).get("/")
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert "//" not in answer.text.replace("http://www.w3.org", "").replace("// ", "").split("<footer>")[0]


def test_foreign_host_names_are_refused(client, runs):
    served = client(runs)
    assert served.get("/", host="evil.example:8050").status_code == 403
    assert served.get("/_dash-layout", host="evil.example").status_code == 403
    for host in ("127.0.0.1:8050", "localhost:9", "127.0.0.1", "[::1]:8050", "[::1]"):
        assert served.get("/", host=host).status_code == 200


def test_no_debug_no_mcp_no_outside_assets(client, runs):
    app = client(runs).app
    assert not app.server.debug
    assert not any("mcp" in str(rule) for rule in app.server.url_map.iter_rules())
    assert app.scripts.config.serve_locally and app.css.config.serve_locally


def test_no_graph_offers_to_send_data_anywhere():
    config = graph_config()
    assert (config["showSendToCloud"], config["plotlyServerURL"], config["displaylogo"]) == (False, "", False)


@pytest.mark.parametrize(
    "address", ["/assets/../app.py", "/assets/%2e%2e/app.py", "/run/../../etc/passwd", "/etc/passwd"]
)
def test_files_outside_the_assets_are_not_served(client, runs, address):
    answer = client(runs).get(address)
    assert "create_app" not in answer.text and "root:" not in answer.text


@pytest.fixture
def unstarted(monkeypatch):
    """Let `serve` do everything but wait for requests, and give what it would have run."""
    started = []
    real = waitress.create_server

    def create(*args, **kwargs):
        server = real(*args, **kwargs)
        started.append(server)
        monkeypatch.setattr(server, "run", lambda: None)
        return server

    monkeypatch.setattr(app_module.waitress, "create_server", create)
    return started


def test_busy_default_port_moves_to_the_next_one(unstarted, monkeypatch, runs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        monkeypatch.setattr(app_module, "DEFAULT_PORT", busy)
        said = []
        serve([runs], on_ready=said.append)
    assert len(unstarted) == len(said) == 1
    assert busy < int(said[0].rsplit(":", 1)[1]) < busy + app_module.PORTS_TRIED


def test_busy_port_that_was_asked_for_is_one_clear_line(runs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port}: .*in use; choose another"):
            serve([runs], port=port)


def test_serve_prints_nothing_and_answers_at_the_address_it_announces(runs, capfd, monkeypatch):
    ready, addresses, servers = threading.Event(), [], []
    real = waitress.create_server

    def create(*args, **kwargs):
        servers.append(real(*args, **kwargs))
        return servers[-1]

    monkeypatch.setattr(app_module.waitress, "create_server", create)

    def announce(address: str) -> None:
        addresses.append(address)
        ready.set()

    thread = threading.Thread(target=serve, args=([runs],), kwargs={"port": 0, "on_ready": announce}, daemon=True)
    thread.start()
    assert ready.wait(20)
    with urllib.request.urlopen(addresses[0], timeout=20) as answer:
        assert answer.status == 200 and b"loopscope" in answer.read()
    stop(servers[0], thread)
    assert capfd.readouterr() == ("", "")


def test_two_applications_in_one_process_show_their_own_runs(client, runs, tmp_path):
    one, other = client(runs), client(tmp_path / "parcae")
    assert len(one.index.entries()) == 5 and [entry.name for entry in other.index.entries()] == ["seed0"]
    shown = [served.page("/")["_pages_content"]["children"]["props"]["children"][1]["props"] for served in (one, other)]
    assert [len(grid["rowData"]) for grid in shown] == [5, 1]


def test_default_port_is_the_documented_one():
    assert DEFAULT_PORT == 8050 and create_app([]).title == "loopscope"
