"""The server's admission by plain ASGI calls, and what a server's configuration refuses."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.recipe.loading import RecipeError, load_recipe
from customized_grpo.recipe.server import TOKEN_ENV, ServerConfig
from customized_grpo.serve.admission import Admission
from customized_grpo.serve.server import RewardServer, serve

TOKEN = "0123-secret"


def ask(
    path: str, method: str = "GET", *, ready: bool = True, token: str | None = TOKEN, **headers: str
) -> tuple[int, str]:
    """Status and reason of an answer; 0 where it let the request through."""
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": 0})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a body must not be read before it is let in")

    admission = Admission(inner, token=token, max_bytes=1000, is_ready=lambda path: ready)
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": raw}
    asyncio.run(admission(scope, receive, send))
    detail = json.loads(sent[1]["body"])["detail"] if len(sent) > 1 else ""
    return sent[0]["status"], detail


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 0),
        (f"bearer  {TOKEN} ", 0),
        ("Bearer other", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("", 401),
        ("Bearer ünicode", 401),
    ],
)
def test_the_token(authorization: str, status: int) -> None:
    found, reason = ask("/info", authorization=authorization)
    assert found == status
    assert TOKEN not in reason


def test_without_a_token_all_are_let_in_and_health_is_always_open() -> None:
    assert ask("/info", token=None)[0] == 0
    assert ask("/health")[0] == 0
    assert ask("/")[0] == 401


def test_a_large_body_is_refused_by_its_header() -> None:
    status, reason = ask("/rewards/a", "POST", token=None, content_length="2000")
    assert status == 413
    assert "limits.body_mb" in reason
    assert ask("/rewards/a", "POST", token=None, content_length="1000")[0] == 0


def test_a_reward_that_is_being_loaded_is_503() -> None:
    assert ask("/rewards/a", "POST", token=None, ready=False)[0] == 503
    assert ask("/health", token=None, ready=False)[0] == 0


REWARDS = {"rewards": {"clip": {"type": "clip_t", "model": "mini"}}}


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_take_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    config = ServerConfig.model_validate({**REWARDS, "host": host})
    with pytest.raises(ValueError, match=f"takes a token: set the environment variable {TOKEN_ENV}"):
        serve(config, print)


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ServerConfig.model_validate({**REWARDS, "port": taken.getsockname()[1]})
        with pytest.raises(ValueError, match=r"port: .* can't be used .*in use"):
            serve(config, print)


def test_absent_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = ServerConfig.model_validate({**REWARDS, "gpus": [1, 2]})
    with pytest.raises(ValueError, match="gpus: given 2, but torch finds 2 GPUs"):
        RewardServer(config, None, print)
    allowed = ServerConfig.model_validate({**REWARDS, "gpus": [1, 0]})
    assert RewardServer(allowed, None, print).devices == [["cuda:1"], ["cuda:0"]]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rewards.clip.axis=prompt", "rewards.clip.axis: has no effect here"),
        ("rewards.clip.weight=2", "rewards.clip.weight: has no effect here"),
        ("rewards={'a b': {type: clip_t}}", "is part of an address"),
        ("rewards={}", "rewards: "),
        ("host=192.168.0.1", "allowed: '127.0.0.1', '0.0.0.0', '::'"),
        ("port=80", "at least 1024"),
        ("token_env=s3cr-et", "token_env: given a value"),
        ("limits.pixels=0", "at least 1"),
        ("batching.max_request=3", "did you mean 'max_requests'"),
    ],
)
def test_bad_configurations_are_refused(override: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(json.dumps(REWARDS))
    assert load_recipe(file, [], ServerConfig).host == "127.0.0.1"
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, [override], ServerConfig)
    assert words in str(caught.value)
    assert "s3cr-et" not in str(caught.value).split("': ", 1)[-1]
