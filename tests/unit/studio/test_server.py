"""Who may see the studio's page, and addresses that can't be listened at."""

import socket
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from customized_grpo.studio.server import COOKIE, Admission, serve

TOKEN = "a-token-of-letters"


def client(token: str | None, base_url: str) -> TestClient:
    app = FastAPI()
    app.add_api_route("/", lambda: "the page")
    app.add_middleware(Admission, token=token)
    return TestClient(app, base_url=base_url, follow_redirects=False)


@pytest.mark.parametrize("name", ["127.0.0.1:7860", "localhost:80", "[::1]:7860"])
def test_this_machine_sees_its_page(name: str) -> None:
    assert client(None, f"http://{name}").get("/").text == '"the page"'


def test_a_foreign_name_that_points_here_is_refused() -> None:
    """As a page of another site would ask, whose name was made to mean this machine."""
    answer = client(None, "http://evil.example:7860").get("/")
    assert answer.status_code == 421
    assert "127.0.0.1" in answer.text


def test_other_machines_need_the_token_once() -> None:
    asking = client(TOKEN, "http://192.0.2.1:7860")
    assert asking.get("/").status_code == 401
    assert asking.get("/", params={"token": TOKEN[:-1]}).status_code == 401
    assert "?token=" in asking.get("/").text
    assert TOKEN not in asking.get("/").text
    opened = asking.get("/", params={"token": TOKEN})
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert asking.get("/").text == '"the page"', "the cookie opens it from now on"
    other = client(TOKEN, "http://192.0.2.1:7860")
    other.cookies.set(COOKIE, "another")
    assert other.get("/").status_code == 401


def test_an_address_that_cant_be_listened_at_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: it can't be listened at .*another port"):
            serve(lambda app, uploads: app, "127.0.0.1", port, print)
    with pytest.raises(ValueError, match=r"--host 192\.0\.2\.1"):
        serve(lambda app, uploads: app, "192.0.2.1", 0, print)
