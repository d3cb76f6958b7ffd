"""The real command ``customized-grpo serve`` in a process of its own, for tests and benchmarks that kill it."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import yaml

from customized_grpo.recipe.server import TOKEN_ENV
from runs import environment

TOKEN = "0123456789abcdef-secret"
STARTS_IN_S = 240.0
DINO = {"type": "dino", "model": "mini"}


class Server:
    """The command in a process of its own, on one port for all its lives."""

    def __init__(self, folder: Path, body_mb: int = 1) -> None:
        with socket.socket() as opened:
            opened.bind(("127.0.0.1", 0))
            self.port: int = opened.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self._config = folder / "server.yaml"
        settings = {"port": self.port, "device": "cpu", "threads": 1, "limits": {"body_mb": body_mb}}
        self._config.write_text(yaml.safe_dump({**settings, "rewards": {"dino": DINO}}))
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "customized_grpo", "serve", str(self._config)],
                env=environment(**{TOKEN_ENV: TOKEN}),
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        give_up = time.monotonic() + STARTS_IN_S
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx2.HTTPError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill_worker(self) -> None:
        children = psutil.Process(self.process.pid).children()
        (worker,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        worker.kill()

    def kill_and_start(self) -> None:
        self.process.kill()
        self.process.wait()
        self.start()

    def post(self, path: str, **content: object) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        return httpx2.post(self.url + path, headers=headers, trust_env=False, timeout=30, **content)  # type: ignore[arg-type]
