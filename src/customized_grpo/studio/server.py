"""The studio's server: uvicorn with Gradio's page behind an admission that asks other machines for a token."""

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, final

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
COOKIE: Final = "studio_token"
MAX_UPLOAD_MB: Final = 64
"""Limit on one uploaded file: a large photo of a phone has a fifth of it."""


def serve(make: Callable[[FastAPI, Path], FastAPI], host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve a page until a signal comes.

    Args:
        make: mounts the page on an application, and is given the folder of uploads, which is gone afterwards.
        host: address to listen at; another than this machine's own takes a token, which the printed address holds.
        port: 0: any that is free.
        say: told the address, once it answers.

    Raises:
        ValueError: the address or the port can't be used.
    """
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="studio-") as uploads, _listening(host, port) as listener:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = make(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), Path(uploads))
        app.add_middleware(Admission, token=token)
        number = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        query = f"/?token={token}" if token else "/"
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                say(f"studio at http://{shown}:{number}{query} (Ctrl-C ends it)")

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of pages that are cut off it is no news
                await super().shutdown(sockets)

        with suppress(KeyboardInterrupt):  # uvicorn has ended everything by then
            Server(config).run([listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "it is no port"
        raise ValueError(
            f"--host {host} --port {port}: it can't be listened at ({reason}); give another port (0: any), or end what "
            "listens there"
        ) from error
    return listener


@final
class Admission:
    """ASGI middleware: who may see the page.

    Without a token the page is this machine's own, and a request must name it so: a foreign page whose name was made to
    point here (DNS rebinding) names itself. With one, the first request brings it in its address, and a cookie after.
    """

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it."""
        answer = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (self._app if answer is None else answer)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            if request.url.hostname in LOOPBACK:
                return None
            return PlainTextResponse(f"Open it by one of these names: {', '.join(LOOPBACK)}\n", 421)
        if self._is(request.cookies.get(COOKIE, "")):
            return None
        if self._is(request.query_params.get("token", "")):
            found = RedirectResponse(request.url.path, 303)  # the token leaves the address, and with it the history
            found.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return found
        return PlainTextResponse("Open the address that the studio printed; it ends in ?token=...\n", 401)

    def _is(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(), self._token.encode())
