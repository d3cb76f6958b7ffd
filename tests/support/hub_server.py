"""A server on this machine that speaks the hub's endpoints for making, filling and reading a repository of models."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import listening

COMMIT = "c" * 40


@dataclass
class Hub:
    """State of the server."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)
    """What came in the header Authorization of every request that writes."""
    refuse: int = 0
    """Status of every answer to a request that writes; 0: it is done."""


def _answer(hub: Hub, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
    """Status, content (bytes or JSON) and headers."""
    parts = path.partition("?")[0].strip("/").split("/")
    if parts[:2] == ["api", "repos"]:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        hub.repos.setdefault(repo, {})
        hub.private.setdefault(repo, asked["visibility"] == "private")
        return 200, {"url": f"{hub.url}/{repo}"}, {}
    if parts[:2] == ["api", "validate-yaml"]:
        return 200, {"errors": [], "warnings": []}, {}
    if parts[:2] == ["api", "models"]:
        repo, rest = "/".join(parts[2:4]), parts[4:]
        if repo not in hub.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        files = hub.repos[repo]
        if rest[:1] == ["preupload"]:
            names = [one["path"] for one in json.loads(body)["files"]]
            return 200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}, {}
        if rest[:1] == ["commit"]:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return 200, {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}, {}
        if rest[:1] == ["tree"]:
            return 200, [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()], {}
        siblings = [{"rfilename": name} for name in files]
        return 200, {"id": repo, "sha": COMMIT, "private": hub.private[repo], "siblings": siblings, "tags": []}, {}
    if len(parts) > 4 and parts[2] == "resolve":
        found = hub.repos.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if found is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, found, {"ETag": f'"{hashlib.sha1(found).hexdigest()}"', "X-Repo-Commit": COMMIT}
    return 404, {"error": f"{method} {path}"}, {}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub without repositories, on a free port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            writes = self.command == "POST"
            if writes:
                hub.tokens.append(self.headers.get("Authorization"))
            if writes and hub.refuse:
                status, content, headers = hub.refuse, {"error": "refused"}, {}
            else:
                status, content, headers = _answer(hub, self.command, self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = _serve

        def log_message(self, format: str, *arguments: object) -> None: ...

    with listening(Handler) as hub.url:
        yield hub
