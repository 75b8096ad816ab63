"""Who is answered: host names, the token of the link, the cookie after it, and how much may be sent."""

import pytest
from loopscope.dashboard.access import BODY_BYTES, COOKIE, YEAR, access_at, link
from loopscope.dashboard.app import create_app


@pytest.fixture
def opened():
    """The server as it is on every address of the machine, behind Flask's test client, and its token."""
    access = access_at("0.0.0.0")
    return create_app([], access=access).server.test_client(), access.token


HERE = {"Host": "192.0.2.7:8050"}
ADDRESSES = ["/", "/_dash-layout", "/_dash-dependencies", "/alive", "/assets/loopscope.js", "/run/x"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_answered_without_the_token(opened, address):
    client, token = opened
    for query in ("", "?token=", "?token=wrong", f"?token={token}x", f"?token={token[:-1]}", "?token=%C3%A9"):
        assert client.get(address + query, headers=HERE).status_code == 401
    client.set_cookie(COOKIE, "wrong", domain="192.0.2.7")
    assert client.get(address, headers=HERE).status_code == 401
    assert client.post("/_dash-update-component", json={}, headers=HERE).status_code == 401


def test_the_link_lets_in_and_the_token_leaves_the_address(opened):
    client, token = opened
    answer = client.get(f"/?token={token}", headers=HERE)
    cookie = answer.headers["Set-Cookie"]
    assert answer.status_code == 302 and answer.headers["Location"] == "/" and token not in answer.headers["Location"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    client.set_cookie(COOKIE, token, domain="192.0.2.7")
    assert client.get("/", headers=HERE).status_code == 200


def test_foreign_names_are_refused_even_with_the_token(opened):
    client, token = opened
    assert client.get(f"/?token={token}", headers={"Host": "evil.example"}).status_code == 403


def test_a_loopback_address_needs_no_token():
    assert [access_at(host).token for host in ("127.0.0.1", "localhost", "::1", "127.0.0.5")] == [""] * 4
    assert access_at("0.0.0.0").token != access_at("0.0.0.0").token and len(access_at("::").token) >= 32


def test_the_printed_link_works_where_the_server_listens_everywhere():
    for host in ("0.0.0.0", "::"):
        name = link(host, 8050, "t").split("/")[2].rsplit(":", 1)[0].strip("[]")
        assert name not in (host, "") and access_at(host).knows(name)


def test_a_body_beyond_the_limit_is_refused():
    client = create_app([]).server.test_client()
    big = b'{"output": "' + b"x" * BODY_BYTES + b'"}'
    headers = {"Host": "localhost", "Content-Type": "application/json"}
    answer = client.post("/_dash-update-component", data=big, headers=headers)
    assert answer.status_code == 413


def test_what_names_its_version_is_kept_by_the_browser():
    client = create_app([]).server.test_client()
    page = client.get("/", headers={"Host": "localhost"}).text
    addresses = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(addresses) > 5
    kept = [client.get(address, headers={"Host": "localhost"}).headers["Cache-Control"] for address in addresses]
    assert set(kept) == {YEAR}, dict(zip(addresses, kept, strict=True))
