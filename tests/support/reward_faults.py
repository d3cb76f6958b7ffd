"""A loopback server that misbehaves by script, and what the reward ``remote`` makes of each fault:
the table of docs/reward-faults.md.
"""

import asyncio
import json
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from customized_grpo.recipe.server import TOKEN_ENV
from customized_grpo.rewards import remote
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.remote import Remote, RequestFailed
from tiny_rewards import example, pictures

MINE, OTHER = "0123456789abcdef", "fedcba9876543210"
LIMITS: dict[str, Any] = {"timeout_s": 1.0, "retries": 2, "wait_s": 1.5}
GROUP = 2

Step = Callable[["_Handler"], None]


def answer(status: int, content: str, **headers: str) -> Step:
    def step(handler: "_Handler") -> None:
        body = content.encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return step


def refuse(status: int, reason: str) -> Step:
    return answer(status, json.dumps({"detail": reason}))


def scores(*values: float | None, fingerprint: str = MINE) -> Step:
    return answer(200, json.dumps({"scores": values, "fingerprint": fingerprint, "batch": len(values)}))


def hang(handler: "_Handler") -> None:
    handler.server.over.wait(20)


def reset(handler: "_Handler") -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


GOOD = scores(1.0, 2.0)


class _Server(ThreadingHTTPServer):
    """Answers the calls for scores by the steps of a script; its last step goes on for ever."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, script: list[Step]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script, self.bodies, self.tokens = script, list[bytes](), list[str | None]()
        self.over, self.lock = threading.Event(), threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reset connection is what was asked for."""

    def stop(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        answer(200, json.dumps({"model": {"rewards": {"dino": {"fingerprint": MINE}}}}))(self)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            step = self.server.script[min(len(self.server.bodies), len(self.server.script) - 1)]
            self.server.bodies.append(body)
            self.server.tokens.append(self.headers["Authorization"])
        step(self)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def serving(*script: Step, port: int = 0) -> Iterator[_Server]:
    server = _Server(port, list(script))
    try:
        yield server
    finally:
        server.stop()


def client(*ports: int, **options: Any) -> Remote:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    config = {"type": "remote", "axis": "identity", "urls": urls, "reward": "dino", **LIMITS, **options}
    return Remote(Remote.Config.model_validate(config), device=torch.device("cpu"))


@contextmanager
def quick_pauses() -> Iterator[None]:
    before = remote.FIRST_PAUSE_S, remote.LONGEST_PAUSE_S
    remote.FIRST_PAUSE_S, remote.LONGEST_PAUSE_S = 0.02, 0.1
    try:
        yield
    finally:
        remote.FIRST_PAUSE_S, remote.LONGEST_PAUSE_S = before


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    script: list[Step]
    outcome: str
    """``scores``, ``unscorable``, or the start of what stops the run."""
    calls: str
    down_s: float = 0.0
    """The server is gone for so long after it has introduced itself."""
    says: str = ""


FAULTS = (
    Fault("None", [GOOD], "scores", "1"),
    Fault("Server down, back in time", [GOOD], "scores", "as soon as it is back", 0.3),
    Fault("Server down for longer than `wait_s`", [GOOD], "stops the run", "none", 60.0,
          says="run.resume=latest"),
    Fault("Reward being loaded (503)", [refuse(503, "the reward is being loaded; ask again")] * 2 + [GOOD],
          "scores", "3"),
    Fault("Worker died once (500)", [refuse(500, "Internal server error"), GOOD], "scores", "2"),
    Fault("Reward broken (500)", [refuse(500, "reward 'dino' failed on example 'dog-1': KeyError: 'box'")],
          "unscorable", "3"),
    Fault("Hang", [hang], "unscorable", "3"),
    Fault("Hang once", [hang, GOOD], "scores", "2"),
    Fault("Connection reset", [reset], "unscorable", "3"),
    Fault("Connection reset once", [reset, GOOD], "scores", "2"),
    Fault("Too long in the queue (504)", [refuse(504, "Request timed out"), GOOD], "scores", "2"),
    Fault("Garbage JSON", [answer(200, '{"scores": [1.0, ')], "unscorable", "3"),
    Fault("Another page behind the URL", [answer(200, "<html>Sign in</html>")], "unscorable", "3"),
    Fault("Redirect (302)", [answer(302, "", Location="https://example.org")], "stops the run", "1"),
    Fault("Wrong number of scores", [scores(1.0, 2.0, 3.0)], "unscorable", "3"),
    Fault("Unscorable image (null)", [scores(1.0, None)], "scores, that image unscorable", "1"),
    Fault("NaN for a score", [scores(1.0, float("nan"))], "scores, that image unscorable", "1"),
    Fault("Token refused (401)", [refuse(401, "send the server's token as 'Authorization: Bearer ...'")],
          "stops the run", "1", says=f"environment variable {TOKEN_ENV}"),
    Fault("Reward gone (404)", [refuse(404, "Not Found")], "stops the run", "1"),
    Fault("Body too large (413)", [refuse(413, "the body has 201.0 MB, over the limit of 128 (limits.body_mb)")],
          "stops the run", "1"),
    Fault("Example refused (422)",
          [refuse(422, "reward 'dino' failed on example 'dog-1': ValueError: it has no reference to compare with")],
          "stops the run", "1", says="it has no reference to compare with"),
    Fault("Another reward behind the URL", [scores(1.0, 2.0, fingerprint=OTHER)], "stops the run", "1",
          says=OTHER),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    outcome: str
    calls: int
    said: str = ""


def observe(fault: Fault) -> Seen:
    with serving(*fault.script) as server:
        port = server.server_address[1]
        reward = client(port)
        if not fault.down_s:
            outcome, said = _ask(reward, port)
            return Seen(outcome, len(server.bodies), said)
        server.stop()
        back: list[_Server] = []
        timer = threading.Timer(fault.down_s, lambda: back.append(_Server(port, fault.script)))
        timer.start()
        outcome, said = _ask(reward, port)
        timer.cancel()
        for one in back:
            one.stop()
        return Seen(outcome, sum(len(one.bodies) for one in back), said)


def observe_all() -> dict[str, Seen]:
    """Side by side, because most of the time is spent waiting."""
    with quick_pauses(), ThreadPoolExecutor(4) as pool:
        return dict(zip([fault.name for fault in FAULTS], pool.map(observe, FAULTS), strict=True))


def _ask(reward: Remote, port: int) -> tuple[str, str]:
    """Outcome and error of one group."""
    try:
        given = asyncio.run(reward(example(), to_pil(pictures(GROUP))))
    except RewardFailure as error:
        return "stops the run", str(error).replace(f"127.0.0.1:{port}", "host:8000")
    except RequestFailed as error:
        return "unscorable", str(error).replace(f"127.0.0.1:{port}", "host:8000")
    return "scores" if all(map(math.isfinite, given)) else "scores, that image unscorable", ""


def _complaints(fault: Fault, found: Seen) -> Iterator[str]:
    if found.outcome != fault.outcome:
        yield f"it ends as {found.outcome!r}"
    if (found.said == "") != fault.outcome.startswith("scores"):
        yield "it speaks where it should be silent, or the reverse"
    calls = {"none": 0, "as soon as it is back": 1}.get(fault.calls)
    if found.calls != (int(fault.calls) if calls is None else calls):
        yield f"{found.calls} calls"
    if fault.says not in found.said:
        yield f"it does not say {fault.says!r}"


def table() -> str:
    """What came of each fault; an AssertionError where it is not what must come."""
    seen, complaints = observe_all(), []
    lines = ["| Fault | Outcome | Calls | What is said |", "|---|---|---|---|"]
    for fault in FAULTS:
        found = seen[fault.name]
        complaints += [f"{fault.name}: {one}: {found.said}" for one in _complaints(fault, found)]
        said = found.said.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {fault.name} | {found.outcome} | {fault.calls} | {said} |")
    assert not complaints, "\n".join(complaints)
    return "\n".join(lines) + "\n"
