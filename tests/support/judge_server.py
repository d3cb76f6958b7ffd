"""An OpenAI-compatible endpoint on loopback that misbehaves as told: raw sockets, so that it can hang, drip and reset.

It answers by what it sees: the script is given the generated image's first pixel, taken from the request's data URL.
"""

import asyncio
import base64
import io
import json
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self

from PIL import Image

Pixel = tuple[int, int, int]


@dataclass(frozen=True)
class Reply:
    """What is sent back; ``how``: ``whole``, ``hang``, ``reset`` or ``drip`` (a byte every 50 ms)."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    how: str = "whole"


@dataclass(frozen=True)
class Request:
    """What was received: the path, the JSON body, the headers in lower case, and how often this very image was asked
    before."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    images: Sequence[Image.Image]
    attempt: int
    seconds_since_last: float

    @property
    def image(self) -> Image.Image:
        return self.images[-1]

    @property
    def pixel(self) -> Pixel:
        pixel = self.image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return (int(pixel[0]), int(pixel[1]), int(pixel[2]))

    @property
    def text(self) -> str:
        (content,) = [m["content"] for m in self.body["messages"] if m["role"] == "user"]
        return "\n".join(part["text"] for part in content if part["type"] == "text")


Script = Callable[[Request], Reply]


def completion(
    content: Any,
    *,
    finish: str | None = "stop",
    error: Any = None,
    logprobs: Any = None,
    tokens: int = 300,
    **message: Any,
) -> Reply:
    """A chat completion with one choice."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "logprobs": logprobs,
        "message": {"role": "assistant", "content": content, **message},
        **({} if error is None else {"error": error}),
    }
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [choice],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 8, "total_tokens": tokens + 8},
    }
    return as_json(body)


def as_json(body: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"content-type": "application/json", **named})


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    return as_json({"error": {"message": message, "type": "error", "code": code}}, status, **headers)


def score(value: Any) -> Reply:
    return completion(json.dumps({"score": value}))


class JudgeServer:
    """``with JudgeServer(script) as server``: ``server.url`` is the base URL, ``server.requests`` what came in."""

    def __init__(self, script: Script, port: int = 0, tls: SSLContext | None = None) -> None:
        self._script, self._port, self._tls = script, port, tls
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now = 0
        self._last: dict[bytes, float] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
                try:
                    await self._answer(writer, self._script(self._request(lines[0], body, headers)))
                finally:
                    self._now -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _request(self, line: str, body: bytes, headers: Mapping[str, str]) -> Request:
        asked = json.loads(body)
        urls = [
            part["image_url"]["url"]
            for message in asked["messages"]
            for part in message["content"]
            if isinstance(part, dict) and part["type"] == "image_url"
        ]
        images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for url in urls]
        same, now = urls[-1].encode(), time.monotonic()
        attempt = sum(one.image.tobytes() == images[-1].tobytes() for one in self.requests)
        request = Request(line.split()[1], asked, headers, images, attempt, now - self._last.get(same, -1e9))
        self._last[same] = now
        self.requests.append(request)
        return request

    async def _answer(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        if reply.how == "hang":
            await asyncio.sleep(60)
        if reply.how == "reset":
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError
        headers = {"content-length": str(len(reply.body)), "connection": "keep-alive", **reply.headers}
        lines = [
            f"HTTP/1.1 {reply.status} X",
            *(f"{name}: {value}" for name, value in headers.items()),
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode())
        if reply.how == "drip":
            for at in range(len(reply.body)):
                writer.write(reply.body[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0.05)
        else:
            writer.write(reply.body)
        await writer.drain()
