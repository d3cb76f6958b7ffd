"""The real server and a real run: refusals over HTTP, and a run that goes on over a dead worker and a dead server."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

import httpx2
import psutil
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from customized_grpo.recipe.server import TOKEN_ENV
from customized_grpo.rewards.base import Reward, RewardConfig
from customized_grpo.rewards.remote import Remote
from customized_grpo.testing import check_reward
from customized_grpo.training.trainer import train
from customized_grpo.types import Example
from dockerfile import exec_form, last
from reward_server import DINO, STARTS_IN_S, TOKEN, Server
from runs import checkpoint_bytes, metrics_of, tiny_recipe
from tiny_rewards import example, pictures

CHANGES = {"train__steps": 3, "train__groups_per_step": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.wait()
    family = psutil.Process(made.process.pid).children(recursive=True)
    yield made
    family += psutil.Process(made.process.pid).children(recursive=True)
    made.process.terminate()
    assert made.process.wait(60) == 0, made.log.read_text()
    alive = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not alive, "the server's end is the end of all its processes"


ACTS: dict[int, Callable[[], None]] = {}
"""What happens at which call of ``Brightness``."""


@final
class Brightness(Reward):
    """Mean of all pixels, with something happening on the side."""

    Config = RewardConfig

    def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
        self.calls = 0

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        self.calls += 1
        ACTS.get(self.calls, lambda: None)()
        return images.float().mean((1, 2, 3))


def test_refusals(server: Server) -> None:
    assert httpx2.get(f"{server.url}/info", trust_env=False).status_code == 401
    assert httpx2.get(f"{server.url}/docs", trust_env=False).status_code == 401
    assert server.post("/rewards/dinno", content=b"{}").status_code == 404
    for body, words in (
        (b"{", "JSON decode error"),
        (b"[]", "body"),
        (b'{"example": {"key": "a", "prompt": "b"}}', "images: Field required"),
        (
            b'{"example": {"key": "a", "prompt": "b"}, "images": ["/9j/4AAQ"]}',
            "images[0]: Value error, is not a PNG",
        ),
        (b'{"example": {"key": "a"}, "images": []}', "example.prompt: Field required"),
    ):
        refused = server.post("/rewards/dino", content=body)
        assert refused.status_code == 422
        assert words in refused.json()["detail"]
    large = b" " * 1_500_000
    assert server.post("/rewards/dino", content=large).status_code == 413
    chunks = (large[:100_000] for _ in range(15))
    assert server.post("/rewards/dino", content=chunks).status_code == 413, "an unannounced length is counted"
    assert TOKEN not in server.log.read_text()


def test_it_passes_the_conformance_kit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_ENV, TOKEN)
    config = Remote.Config.model_validate({"type": "remote", "urls": [server.url], "reward": "dino"})
    check_reward(Remote(config, device=torch.device("cpu")), example(2), pictures(4))


@pytest.mark.timeout(900)  # twenty seconds on a quiet machine; it starts two servers and a worker
def test_the_health_check_of_the_image(server: Server) -> None:
    """The Dockerfile's own command, at this server's port and at one where nothing listens."""
    _, *check = exec_form(last("rewards", "HEALTHCHECK"))
    for port, healthy in ((server.port, True), (1, False)):
        command = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in check)]
        ended = subprocess.run(command, env={**os.environ, "http_proxy": "http://127.0.0.1:9"}, capture_output=True)
        assert (ended.returncode == 0) == healthy


def test_a_run_outlives_a_dead_worker_and_a_dead_server(
    server: Server,
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bright = {"type": f"{__name__}:Brightness", "axis": "prompt"}
    local = {"bright": bright, "dino": {**DINO, "axis": "identity"}}
    remote = {
        "bright": bright,
        "dino": {
            "type": "remote",
            "axis": "identity",
            "urls": [server.url],
            "reward": "dino",
            "wait_s": STARTS_IN_S,
        },
    }
    monkeypatch.setenv(TOKEN_ENV, TOKEN)
    ACTS.clear()
    train(tiny_recipe(tiny_world, tmp_path / "local", rewards=local, **CHANGES))
    ACTS.update({1: server.kill_worker, 3: server.kill_and_start})
    with caplog.at_level(logging.WARNING):
        train(tiny_recipe(tiny_world, tmp_path / "remote", rewards=remote, **CHANGES))
    ACTS.clear()
    assert "a worker died; starting another" in server.log.read_text()
    assert server.log.read_text().count("serving at") == 2
    assert "waiting up to" in caplog.text
    one, other = (checkpoint_bytes(tmp_path / name, 3) for name in ("local", "remote"))
    for state in (one, other):  # the exported file's header tells which rewards it was trained with
        weights = load(state.pop("pytorch_lora_weights.safetensors"))
        state |= {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
    stands_on = [json.loads(state.pop("identity.json"))["named"] for state in (one, other)]
    assert [sorted(key for key in named if key.startswith("rewards.dino")) for named in stands_on] == [
        ["rewards.dino.model"],
        ["rewards.dino.fingerprint"],
    ]
    assert "adapter.safetensors" in one
    assert one == other
    assert metrics_of(tmp_path / "local") == metrics_of(tmp_path / "remote")
    for written in (tmp_path / "remote").rglob("*"):
        assert written.is_dir() or TOKEN.encode() not in written.read_bytes()
    assert os.environ[TOKEN_ENV] == TOKEN
