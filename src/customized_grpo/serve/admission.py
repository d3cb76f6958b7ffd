"""Admission of requests to the server: checks the token, the body size, and that a worker is ready."""

import secrets
from collections.abc import Callable
from typing import Final, final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from customized_grpo.serve.api import refusal

OPEN: Final = "/health"
"""The only path without a token, for load balancers; it tells only whether the server is ready."""


@final
class Admission:
    """ASGI middleware that refuses requests by their headers, before a body is read."""

    def __init__(self, app: ASGIApp, *, token: str | None, max_bytes: int, is_ready: Callable[[str], bool]) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._max_bytes = max_bytes
        self._is_ready = is_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http":
            status, reason = self._refuse(scope["path"], scope["method"], Headers(scope=scope))
            if status:
                await refusal(status, reason)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse(self, path: str, method: str, headers: Headers) -> tuple[int, str]:
        if self._token is not None and path != OPEN:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), self._token):
                return 401, "send the server's token as 'Authorization: Bearer ...'"
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            megabytes = self._max_bytes / 1e6
            return (
                413,
                f"the body has {int(length) / 1e6:.1f} MB, over the limit of {megabytes:g} (limits.body_mb)",
            )
        if method == "POST" and not self._is_ready(path):
            return 503, "the reward is being loaded; ask again"
        return 0, ""
