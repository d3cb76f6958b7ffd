"""Client of an OpenAI-compatible endpoint: requests, retries, and which errors skip an image or stop a run.

The SDK retries 408, 409, 429, 5xx, timeouts and broken connections, and respects ``Retry-After``. A request that still
fails leaves one image unscored. One that would be refused again (a wrong key, model, parameter, an empty account)
stops the run. The client has its own event loop in a thread, so callers may use any loop, or a new one each time.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar, final

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.answer import Unscorable
from customized_grpo.rewards.judge.presets import Endpoint

T = TypeVar("T")

_CONNECT_S: Final = 10.0
_CLOSE_S: Final = 5.0
_SHOWN: Final = 400
_PASSING: Final = (408, 409, 429)
_EMPTY_ACCOUNT: Final = ("insufficient_quota", "billing_hard_limit_reached", "arrearage")
_MODERATED: Final = (
    "content_filter",
    "content_policy_violation",
    "data_inspection_failed",
    "datainspectionfailed",
)
"""Codes of a 400 that concerns only this picture or text."""


@final
class Client:
    """Client of one endpoint, by the ``openai`` SDK.

    Args:
        timeout_s: silence after which an attempt is retried.
        deadline_s: limit on the total time, including waits and retries.
        retries: number of retries after the first attempt.
        concurrency: limit on concurrent questions.
        before_request: called before each HTTP request, including retries; it may raise ``RewardFailure``.
        on_close: called when the client is no longer used.

    Raises:
        ValueError: the SDK is not installed, or the key is not in the environment.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float,
        deadline_s: float,
        retries: int,
        concurrency: int,
        before_request: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(
                "judges are asked by the package 'openai', which is not installed: pip install 'customized-grpo[judge]'"
            ) from error
        self._sdk: Any = openai
        self._key = _key(endpoint)
        self._deadline_s = deadline_s

        async def count(request: object) -> None:
            before_request()

        headers: dict[str, Any] = {}
        if (
            "openai.com" not in endpoint.base_url
        ):  # the SDK takes these from the environment and would send them to any endpoint
            headers = dict.fromkeys(("OpenAI-Organization", "OpenAI-Project"), openai.Omit())
        client = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=self._key or "none",
            timeout=openai.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            max_retries=retries,
            default_headers=headers,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]}),
        )
        self._client: Any = client
        self._turn = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        thread.start()
        # At the latest at exit. The callback must not refer to this object, or it would live until then.
        self.close = weakref.finalize(self, _shut, self._loop, thread, client.close, on_close)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the client's loop; cancelling the wait cancels the work."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def ask(self, request: dict[str, Any]) -> Any:
        """A chat completion with a choice. Only inside ``run``.

        Raises:
            Unscorable: no answer, or not a chat completion.
            RewardFailure: the endpoint refuses for good, or the budget is spent.
        """
        answer, failure = await self._attempt(request)
        if failure is not None:
            # Raised here and not where it was caught: a chained error of the SDK would be printed, and it may hold
            # secrets that the endpoint echoed.
            raise failure
        if not isinstance(answer, self._sdk.types.chat.ChatCompletion):
            raise Unscorable(self._clean(f"the answer is not a chat completion: {answer!r}"))
        return answer

    async def _attempt(self, request: dict[str, Any]) -> tuple[Any, Exception | None]:
        """The SDK's answer, or the exception to raise instead."""
        try:
            async with self._turn, asyncio.timeout(self._deadline_s):
                return await self._client.chat.completions.create(**request), None
        except RewardFailure as failure:
            return None, failure
        except TimeoutError:
            return None, Unscorable(f"no whole answer in {self._deadline_s:g} s")
        except self._sdk.APIStatusError as error:
            return None, self._refusal(error)
        except self._sdk.APITimeoutError:
            return None, Unscorable("no answer: the endpoint was silent, at every attempt")
        except self._sdk.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, RewardFailure):  # of the budget; older SDKs wrap every exception
                return None, RewardFailure(str(cause))
            said = f"{type(cause).__name__} {cause}".strip()
            return None, Unscorable(self._clean(f"no connection, at every attempt: {said}"))
        except Exception as error:  # anything that the SDK can't parse
            return None, Unscorable(self._clean(f"the answer can't be read: {type(error).__name__}: {error}"))

    def complaint(self, answer: Any) -> str:
        """Message of an answer without choices."""
        said = getattr(answer, "error", None)
        return self._clean(f"the answer has no choices{f': {said}' if said else ''}")

    def _refusal(self, error: Any) -> Exception:
        code = str(error.code or "").lower()
        said = self._clean(f"HTTP {error.status_code}: {_said(error)}")
        if error.status_code == 400 and code in _MODERATED:
            return Unscorable(f"refused by the endpoint's content filter: {said}")
        if error.status_code == 429 and code in _EMPTY_ACCOUNT:
            return RewardFailure(f"the judge's account is empty: {said}")
        if error.status_code in _PASSING or error.status_code >= 500:
            return Unscorable(f"{said}, at every attempt")
        return RewardFailure(f"the judge refuses, and would refuse again: {said}")

    def _clean(self, text: str) -> str:
        """Text shortened to a few lines, without the key."""
        flat = " ".join(text.split())
        if self._key:
            flat = flat.replace(self._key, "***")
        return flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN - 1]}…"


def _key(endpoint: Endpoint) -> str:
    if not endpoint.key_env:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {endpoint.key_env} is not set; put the key of {endpoint.base_url} there "
            "(export it in the shell that starts the run), or name another variable by key_env"
        )
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"what is in the environment variable {endpoint.key_env} can't be a key")
    return key


def _said(error: Any) -> str:
    """The endpoint's error message."""
    body = error.body
    if isinstance(body, list) and body:  # Gemini wraps its error in a list
        body = body[0]
    if isinstance(body, dict):
        inner = body.get("error", body)
        said = inner.get("message") if isinstance(inner, dict) else inner
        if said:
            return str(said)
    return str(body or error.message)


def _shut(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    close: Callable[[], Awaitable[None]],
    on_close: Callable[[], None],
) -> None:
    async def leave() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close()
        on_close()
        loop.call_soon(loop.stop)

    leaving = asyncio.run_coroutine_threadsafe(leave(), loop)
    if threading.current_thread() is not thread:  # the garbage collector may run in any thread
        try:
            leaving.result(_CLOSE_S)
        except TimeoutError:
            return
        thread.join(_CLOSE_S)
        loop.close()
