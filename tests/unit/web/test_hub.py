"""Every place that fetches from a hub, against hubs that refuse: a line with what was asked for and what to do."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import pytest

import hub_doors
from customized_grpo.web.hub import hub_problem, loading
from loopback import listening
from runs import environment

REFUSALS: dict[str, tuple[int, dict[str, str], str]] = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}, "it is gated: accept its licence at {url}/"),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}, "or run 'hf auth login'"),
    "unauthorized": (401, {"X-Error-Code": "RepoNotFound"}, "or run 'hf auth login'"),
    "nowhere": (0, {}, "HF_ENDPOINT name a mirror, or fetch it by 'hf download"),
}


@contextmanager
def hub(status: int, headers: dict[str, str]) -> Iterator[str]:
    """A hub that refuses everything; of status 0 nothing listens."""
    if not status:
        yield "http://127.0.0.1:9"
        return

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b'{"error": "no"}'
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = refuse

        def log_message(self, format: str, *arguments: object) -> None: ...

    with listening(Handler) as url:
        yield url


def told(text: str, advice: str) -> bool:
    """One line with the advice; libraries that no longer say why the hub gave nothing get all of it."""
    whole = "where it is gated accept its licence there" in text and "let HF_ENDPOINT name a mirror" in text
    return "\n" not in text and (advice in text or whole)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_every_door_says_in_a_line_what_to_do(tmp_path: Path, refusal: str) -> None:
    status, headers, advice = REFUSALS[refusal]
    with hub(status, headers) as url:
        asked = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, hub_doors.__file__, tmp_path / "said.json"]
        subprocess.run(command, env=environment(**asked), check=True, timeout=380)
    said: dict[str, Any] = json.loads((tmp_path / "said.json").read_text())
    assert set(said) == set(hub_doors.DOORS)
    wrong = [
        f"{door}: {one['kind']}: {one['text']}"
        for door, one in said.items()
        if not (one["users"] and hub_doors.REPO in one["text"] and told(one["text"], advice.format(url=url)))
    ]
    assert wrong == []


def test_a_full_disk_and_half_a_download() -> None:
    full = OSError("while it is written")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(
            ValueError, match=r"^model 'o/n' can't be loaded: No space left on device: make room, or let HF_HOME"
        ),
        loading("model", "o/n"),
    ):
        raise full
    half = OSError("Consistency check failed: file should be of size 9 but has size 4 (a.safetensors).\nWe are sorry")
    assert hub_problem(half, "o/n").endswith("(a.safetensors).; run it again, which goes on where the download stopped")
    with pytest.raises(ValueError, match="run it again"), loading("model", "o/n"):
        raise httpx2.RemoteProtocolError("peer closed connection without sending complete message body")
    with pytest.raises(KeyError), loading("model", "o/n"):
        raise KeyError("a bug keeps its traceback")
