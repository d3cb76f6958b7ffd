"""The script that fetches DreamBench, against a server on the loopback: resume, checksums, and what it says."""

import hashlib
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_dreambench.py"
BODY = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files`` with ranges; a name in ``breaks`` breaks off in its middle so many times."""

    files: ClassVar[dict[str, bytes]] = {}
    breaks: ClassVar[dict[str, int]] = {}
    asked: ClassVar[list[tuple[str, str | None]]] = []
    ranges = True

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.asked.append((name, wanted))
        if name not in self.files:
            self.send_error(404)
            return
        body = self.files[name]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = len(body)
        if self.breaks.get(name, 0):
            self.breaks[name] -= 1
            stop = start + (len(body) - start) // 2
        self.wfile.write(body[start:stop])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def source() -> Iterator[str]:
    Server.files, Server.breaks, Server.asked, Server.ranges = (
        {"dataset/can/00.jpg": BODY, "LICENSE.md": b"CC"},
        {},
        [],
        True,
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_dreambench", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


def blob(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


def run(script: ModuleType, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    listed = folder.parent / "files.txt"
    contents = {"dataset/can/00.jpg": BODY, "LICENSE.md": b"CC"}
    listed.write_text(
        "# c\n" + "".join(f"{blob(body)} {len(body)} {name}\n" for name, body in contents.items())
    )
    monkeypatch.setattr("sys.argv", ["fetch", str(folder), "--source", source, "--files", str(listed)])
    status: int = script.main()
    return status


def test_fetches_all_and_keeps_what_is_there(
    script: ModuleType,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "dreambench"
    assert run(script, source, folder, monkeypatch) == 0
    assert (folder / "dataset" / "can" / "00.jpg").read_bytes() == BODY
    assert len(Server.asked) == 2
    assert run(script, source, folder, monkeypatch) == 0
    assert len(Server.asked) == 2
    assert "complete and checked" in capsys.readouterr().out
    (folder / "dataset" / "can" / "00.jpg").write_bytes(BODY[:-1] + b"x")
    assert run(script, source, folder, monkeypatch) == 0
    assert (folder / "dataset" / "can" / "00.jpg").read_bytes() == BODY


@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_in_the_middle_of_a_file(
    script: ModuleType, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr(Server, "ranges", ranges)
    Server.breaks["dataset/can/00.jpg"] = 1
    part = tmp_path / "d" / "dataset" / "can" / "00.jpg.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:1000])
    assert run(script, source, tmp_path / "d", monkeypatch) == 0
    assert part.with_suffix("").read_bytes() == BODY
    assert not part.exists()
    assert Server.asked[0] == ("dataset/can/00.jpg", "bytes=1000-")


def test_what_is_not_the_pinned_file_is_refused(
    script: ModuleType,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Server.files["dataset/can/00.jpg"] = b"y" * len(BODY)
    assert run(script, source, tmp_path / "d", monkeypatch) == 1
    assert "is not the file that was pinned" in capsys.readouterr().err
    assert not (tmp_path / "d" / "dataset" / "can" / "00.jpg").exists()


def test_a_missing_file_is_no_reason_to_try_again(
    script: ModuleType,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del Server.files["dataset/can/00.jpg"]
    assert run(script, source, tmp_path / "d", monkeypatch) == 1
    assert len(Server.asked) == 1
    assert "run this again to go on from here" in capsys.readouterr().err


def test_the_list_is_dreambench(script: ModuleType) -> None:
    files = script.read_files()
    assert len(files) == 161
    photos = [name for _, _, name in files if name.endswith(".jpg")]
    assert len(photos) == 158
    assert len({name.split("/")[1] for name in photos}) == 30
    assert {"LICENSE.md", "dataset/prompts_and_classes.txt", "dataset/references_and_licenses.txt"} <= {
        name for _, _, name in files
    }
