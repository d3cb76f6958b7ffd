"""The way to an endpoint: proxies of the environment, addresses as people paste them, TLS at the wrong port."""

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.rewards.judge.vlm import Vlm
from judge_cases import EXAMPLE, KEY, KEY_ENV, judge
from judge_server import JudgeServer, Reply, Request, completion, score

WHITE = Image.new("RGB", (8, 8), "white")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    for kind in ("http", "https", "all", "no"):
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy() -> Iterator[JudgeServer]:
    """A proxy that answers by itself: what arrives here was asked through it."""
    with JudgeServer(lambda request: score(1)) as server:
        yield server


def ask(url: str, **options: Any) -> float:
    reward = judge(url, **{"retries": 0, "timeout_s": 5.0, "deadline_s": 5.0} | options)
    try:
        return asyncio.run(reward(EXAMPLE, WHITE))
    finally:
        reward.close()


def at(url: str) -> str:
    return url.removesuffix("/v1").removeprefix("http://")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_never_asked_through_a_proxy(
    host: str, proxy: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{at(proxy.url)}")
    with JudgeServer(lambda request: score(3)) as server:
        assert ask(server.url.replace("127.0.0.1", host)) == 3.0
    monkeypatch.setenv("ALL_PROXY", "socks://me:s3cret@nowhere:1")
    monkeypatch.setenv("HTTP_PROXY", "what is this")
    with JudgeServer(lambda request: score(3)) as server:
        assert ask(server.url.replace("127.0.0.1", host)) == 3.0, "what isn't used need not be read"
    assert proxy.requests == []


def test_the_internet_is_asked_through_the_proxy_unless_no_proxy_says_otherwise(
    proxy: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f" {at(proxy.url)} ")
    monkeypatch.setenv("ALL_PROXY", "socks://me:s3cret@nowhere:1")
    assert ask("http://judge.example.com/v1") == 1.0
    assert len(proxy.requests) == 1
    monkeypatch.setenv("NO_PROXY", ".example.com")
    monkeypatch.delenv("ALL_PROXY")
    with pytest.raises(Unscorable, match="no connection: "):
        ask("http://judge.example.com/v1")
    assert len(proxy.requests) == 1


def test_a_proxy_that_fails_or_cant_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://me:s3cret@127.0.0.1:{port}")
    with pytest.raises(Unscorable, match=rf"through the proxy http://\*\*\*@127.0.0.1:{port} of HTTP_PROXY"):
        ask("http://judge.example.com/v1")
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setenv("ALL_PROXY", "socks://me:s3cret@127.0.0.1:7890")
    with pytest.raises(ValueError, match=r"^ALL_PROXY: given 'socks://\*\*\*@127.0.0.1:7890'.* written socks5://"):
        ask("http://judge.example.com/v1")
    monkeypatch.setenv("NO_PROXY", "judge.example.com")
    with pytest.raises(Unscorable, match="no connection: "):  # what isn't used need not be read
        ask("http://judge.example.com/v1")


def test_an_address_is_read_as_it_is_pasted() -> None:
    paths: list[str] = []

    def script(request: Request) -> Reply:
        paths.append(request.path)
        return score(3)

    with JudgeServer(script) as server:
        for url in (
            server.url,
            f" {server.url}/ ",
            f"{server.url}/chat/completions",
            f"{server.url}//chat/completions/",
            server.url.replace("http", "HTTP"),
        ):
            assert ask(url) == 3.0
        assert ask(server.url.removesuffix("/v1")) == 3.0
    assert paths == ["/v1/chat/completions"] * 5 + ["/chat/completions"]


def test_a_missing_path_is_said_with_what_was_asked() -> None:
    with (
        JudgeServer(
            lambda request: Reply(404, b'{"detail":"Not Found"}', {"content-type": "application/json"})
        ) as server,
        pytest.raises(RewardFailure, match=rf"HTTP 404: .*Not Found.*asked: http://{at(server.url)}/chat/completions"),
    ):
        ask(server.url.removesuffix("/v1"))


def refuse(listening: socket.socket) -> None:
    """Answer one connection as HTTP servers do that can't read what comes."""
    with listening.accept()[0] as connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_tls_at_the_wrong_port_stops_with_what_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=refuse, args=[plain], daemon=True).start()
        with pytest.raises(RewardFailure, match=r"plain HTTP.*http://"):
            ask(f"https://127.0.0.1:{plain.getsockname()[1]}/v1")
    files = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    with JudgeServer(lambda request: score(3), tls=context) as server:
        with pytest.raises(RewardFailure, match=r"certificate is not trusted here.*SSL_CERT_FILE"):
            ask(server.url.replace("http://", "https://"))
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(files[1]))
        assert ask(server.url.replace("http://127.0.0.1", "https://localhost")) == 3.0


def test_no_draft_and_nothing_unreadable_is_kept(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.sqlite")
    replies = [
        completion('{"score": 1}', finish="length"),
        completion("Score: 1\nScore: 2"),
        completion('<think>{"score": 1}'),
        completion("", reasoning_content="Score: 1"),
        completion('{"analysis": "a", "score": 1', finish=None),
        completion('{"score": 1}', finish="error", error={"code": 400, "message": "broken"}),
        score(3),
    ]
    with JudgeServer(lambda request: replies[request.attempt]) as server:
        for _ in replies[:-1]:
            with pytest.raises((Unscorable, RewardFailure)):
                ask(server.url, cache=cache)
        assert ask(server.url, cache=cache) == 3.0
        assert ask(server.url, cache=cache) == 3.0
        assert len(server.requests) == len(replies)


@pytest.mark.parametrize("expected", [False, True])
def test_a_draft_that_an_earlier_version_kept_is_asked_again(tmp_path: Path, expected: bool) -> None:
    kept: list[tuple[str, float, str]] = [
        ("draft", 1.0, '<think>perhaps {"score": 1}'),
        ("both", 3.0, "Score: 2\nScore: 3"),
    ]
    for name, value, reply in kept:
        with JudgeServer(lambda request: completion("Score: 4")) as server:
            reward: Vlm = judge(server.url, cache=str(tmp_path / f"{name}.sqlite"), expected=expected)
            asked = asyncio.run(_key_of(reward))
            reward._judge._cache.put(asked, value, reply, prompt_tokens=1, answer_tokens=1)
            if expected:  # there are no log-probabilities here
                with pytest.raises(Unscorable, match="log-probabilities"):
                    asyncio.run(reward(EXAMPLE, WHITE))
            else:
                assert asyncio.run(reward(EXAMPLE, WHITE)) == 4.0
            assert len(server.requests) == 1
            reward._judge._cache.put(asked, 2.0, '{"score": 2}', prompt_tokens=1, answer_tokens=1)
            assert asyncio.run(reward(EXAMPLE, WHITE)) == 2.0
            assert len(server.requests) == 1
            reward.close()


async def _key_of(reward: Vlm) -> str:
    """The key under which the cache looks for the answer to this question."""
    found: list[str] = []
    get = reward._judge._cache.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward._judge._cache, "get", lambda key: found.append(key) or (0.0, "Score: 0"))
        await reward(EXAMPLE, WHITE)
    assert get(found[0]) is None
    return found[0]
