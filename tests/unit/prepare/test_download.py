"""Downloads from a server on this machine: resumed, checked, complete or absent."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from customized_grpo.prepare import download as module
from customized_grpo.prepare.download import DownloadError, Remote, download, listing

CONTENT = bytes(range(256)) * 4000


@dataclass
class Server:
    """Serves ``content`` at every path, in the mood that is set."""

    url: str = ""
    content: bytes = CONTENT
    break_after: int = 0
    """Close the connection after so many bytes of the next answer."""
    ranges: bool = True
    status: int = 200
    retry_after: str = ""
    asked: list[str] = field(default_factory=list)
    """The Range header of every request."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.asked.append(wanted)
            if state.status != 200:
                self.send_response(state.status)
                if state.retry_after:
                    self.send_header("Retry-After", state.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if first >= len(state.content):
                self.send_error(416)
                return
            body = state.content[first:]
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.break_after:
                body, state.break_after = body[: state.break_after], 0
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/a.bin"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    yield state
    server.shutdown()
    server.server_close()


def remote(server: Server, name: str = "sub/a.bin", **changes: object) -> Remote:
    facts = {"sha256": hashlib.sha256(CONTENT).hexdigest()} | changes
    return Remote(name, server.url, len(CONTENT), **facts)  # type: ignore[arg-type]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".download.lock")


def test_a_file_arrives_whole_and_is_kept(server: Server, tmp_path: Path) -> None:
    sizes: list[int] = []
    assert download([remote(server)], tmp_path, lambda name, size: sizes.append(size)) == 1
    assert (tmp_path / "sub/a.bin").read_bytes() == CONTENT
    assert sum(sizes) == len(CONTENT)
    assert download([remote(server)], tmp_path) == 0
    assert server.asked == [""]
    assert left(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.break_after, server.ranges = 300_000, ranges
    sizes: list[int] = []
    assert download([remote(server)], tmp_path, lambda name, size: sizes.append(size)) == 1
    assert (tmp_path / "sub/a.bin").read_bytes() == CONTENT
    assert sum(sizes) == len(CONTENT)
    assert server.asked[0] == ""
    assert server.asked[1].startswith("bytes=")
    assert len(server.asked) == 2


def test_another_run_goes_on_where_one_stopped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    assert download([remote(server, "a.bin")], tmp_path) == 1
    assert server.asked == ["bytes=1000-"]
    assert left(tmp_path) == ["a.bin"]


def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    assert download([remote(server, "a.bin")], tmp_path) == 1
    assert server.asked == ["bytes=1000-", ""]
    (tmp_path / "a.bin").write_bytes(b"x" * len(CONTENT))  # of the right size, but spoilt
    assert download([remote(server, "a.bin")], tmp_path) == 1
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_git_checksums_of_small_files(server: Server, tmp_path: Path) -> None:
    sha1 = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    assert download([remote(server, sha256="", git_sha1=sha1)], tmp_path) == 1
    with pytest.raises(DownloadError, match="checksum"):
        download([remote(server, "b", sha256="", git_sha1="0" * 40)], tmp_path)


def test_a_wrong_file_never_takes_its_place(server: Server, tmp_path: Path) -> None:
    server.content = b"y" * len(CONTENT)
    with pytest.raises(DownloadError, match="checksum is not the one that is listed; run the command again"):
        download([remote(server)], tmp_path)
    server.content = CONTENT + b"more"
    with pytest.raises(DownloadError, match="sends more than the 1,024,000 bytes"):
        download([remote(server)], tmp_path)
    server.content = b"<html>404</html>"
    with pytest.raises(DownloadError, match="of 1,024,000 bytes arrived"):
        download([remote(server, "c.bin")], tmp_path)
    assert "a.bin" not in left(tmp_path)
    assert "c.bin" not in left(tmp_path)


@pytest.mark.parametrize(
    ("status", "requests", "message"),
    [(404, 1, "404 Not Found"), (403, 1, "accept the licence on the hub and set HF_TOKEN"), (503, 6, "503")],
)
def test_what_the_server_refuses(server: Server, tmp_path: Path, status: int, requests: int, message: str) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=message):
        download([remote(server)], tmp_path)
    assert len(server.asked) == requests


def test_names_from_elsewhere_stay_in_the_folder(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="would be written outside"):
        download([remote(server, "../a.bin")], tmp_path / "in")


def test_what_there_is() -> None:
    files, licence = listing("dreambench")
    assert len([file for file in files if file.name.endswith(".jpg")]) == 158
    assert all(len(file.sha256) == 64 and file.size > 0 for file in files)
    assert "CC BY 4.0" in licence
    assert [file.name for file in listing("dreambench", ["dataset/cat/0[01].jpg"])[0]] == [
        "dataset/cat/00.jpg",
        "dataset/cat/01.jpg",
    ]
    assert listing("dreambench++")[0][0].size == 15_061_282
    with pytest.raises(ValueError, match="given 'dreambenhc'; allowed: dreambench"):
        listing("dreambenhc")
    with pytest.raises(ValueError, match="none of the 161 files matches"):
        listing("dreambench", ["*.gif"])
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):  # the tests are offline
        listing("nobody/nothing")


def test_this_machine_is_asked_without_a_proxy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # discard: nothing listens there
    assert download([remote(server)], tmp_path) == 1


def test_a_proxy_that_cant_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "socks://me:s3cret@127.0.0.1:7890")
    with pytest.raises(ValueError, match=r"^https_proxy: given 'socks://\*\*\*@127.0.0.1:7890'.*socks5://"):
        download([Remote("a.bin", "https://example.com/a.bin", 5, sha256="0")], tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    with pytest.raises(DownloadError, match=r"can't be asked: .*HTTPS_PROXY: given 'socks://\*\*\*@"):
        listing("nobody/nothing")


def test_a_hub_that_cant_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DownloadError, match=r"nobody/nothing: .*can't be reached"):
        listing("nobody/nothing")


@pytest.mark.parametrize(
    ("asked", "requests", "message"), [("3", 6, "429"), ("3600", 1, "429 .* asks to wait 3,600 s")]
)
def test_a_server_is_asked_again_when_it_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, requests: int, message: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.status, server.retry_after = 429, asked
    with pytest.raises(DownloadError, match=message):
        download([remote(server)], tmp_path)
    assert len(server.asked) == requests
    assert waits == [3.0] * (requests - 1)
