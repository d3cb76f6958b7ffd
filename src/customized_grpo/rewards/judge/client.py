"""Client of an OpenAI-compatible endpoint: requests, retries, and which errors skip an image or stop a run.

408, 409, 429, 5xx, timeouts and broken connections are asked again, after as long as the endpoint says anywhere in
its answer; a wait that goes beyond the deadline is not begun. A request that still fails leaves one image unscored. One
that would be refused again (a wrong key, model, parameter, an empty account, a used-up quota of the day) stops the run.
The client has its own event loop in a thread, so callers may use any loop, or a new one each time.
"""

import asyncio
import json
import os
import ssl
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from itertools import count
from typing import Any, Final, TypeVar, final
from urllib.parse import urlsplit

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.presets import Endpoint
from customized_grpo.rewards.judge.refusals import Refusal, error_in, refusal
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.web.addresses import tls_advice
from customized_grpo.web.proxies import is_private, proxy_of, settings_of

T = TypeVar("T")

_CONNECT_S: Final = 10.0
_CLOSE_S: Final = 5.0
_LAST_S: Final = 3.0
"""For answers in flight when a client is closed."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
_DAY_S: Final = 86_400.0
_SHOWN: Final = 400


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
        ValueError: the SDK is not installed, the key is not in the environment, or a proxy can't be used.
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
        self._url = endpoint.base_url
        self._deadline_s, self._retries = deadline_s, retries

        async def before(request: Any) -> None:
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
            max_retries=0,
            default_headers=headers,
            http_client=self._http(openai, {"request": [before], "response": [_unfollowed(self._url)]}),
        )
        self._client: Any = client
        self._turn = asyncio.Semaphore(concurrency)
        self._begun = set[asyncio.Task[Any]]()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        thread.start()
        # At the latest at exit. The callback must not refer to this object, or it would live until then.
        self.close = weakref.finalize(self, _shut, self._loop, thread, self._begun, client.close, on_close)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the client's loop; cancelling the wait cancels the work."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _http(self, sdk: Any, hooks: Mapping[str, Any]) -> Any:
        """The SDK's HTTP client, with the proxy that this endpoint is asked through."""
        proxy = self._proxy = proxy_of(self._url)
        if proxy is not None:
            return sdk.DefaultAsyncHttpxClient(event_hooks=hooks, proxy=proxy.url)
        # The SDK would read all of the environment's proxies, also those that aren't for this endpoint.
        if is_private(urlsplit(self._url).hostname or "") or any(settings_of(os.environ)):
            return sdk.DefaultAsyncHttpxClient(event_hooks=hooks, trust_env=False, verify=ssl.create_default_context())
        return sdk.DefaultAsyncHttpxClient(event_hooks=hooks)

    async def in_turn(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What ``question`` gives, as one of the concurrent ones. Only inside ``run``.

        Until its turn it may be cancelled. Once begun it goes on, as it is paid for and its answer is to be kept; only
        ``close`` ends it, after a few seconds.
        """
        async with self._turn:
            task = asyncio.create_task(question())
            self._begun.add(task)
            task.add_done_callback(self._begun.discard)
            return await asyncio.shield(task)

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """A chat completion, as read from JSON. Only inside ``run``.

        Raises:
            Unscorable: no answer, or not a chat completion.
            RewardFailure: the endpoint refuses for good, or the budget is spent.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                answer, failure = await self._patiently(request)
        except TimeoutError:
            failure = Unscorable(f"no whole answer in {self._deadline_s:g} s")
        if failure is not None:
            # Raised here and not where it was caught: a chained error of the SDK would be printed, and it may hold
            # secrets that the endpoint echoed.
            raise failure
        return answer

    async def _patiently(self, request: dict[str, Any]) -> tuple[dict[str, Any], Exception | None]:
        """The answer, or the exception to raise, after as many attempts and waits as are allowed."""
        end = self._loop.time() + self._deadline_s
        for attempt in count():
            answer, problem = await self._attempt(request)
            if not isinstance(problem, Refusal):
                return answer, problem
            message = self._clean(problem.message)
            if problem.kind == "stop":
                return answer, RewardFailure(message)
            if problem.kind == "image":
                return answer, Unscorable(message)
            left = end - self._loop.time()
            if problem.wait_s is not None and problem.wait_s >= left:
                asked = f"{problem.wait_s:.4g} s" if problem.wait_s < _DAY_S else "a day or more"
                return answer, Unscorable(
                    f"{message.rstrip('.')}; it asks to wait {asked}, longer than what is left of "
                    f"deadline_s ({self._deadline_s:g}); raise it, or lower concurrency"
                )
            if attempt >= self._retries:
                return answer, Unscorable(f"{message}, at every attempt")
            pause = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
            await asyncio.sleep(max(pause, problem.wait_s or 0.0))
        raise AssertionError("unreachable")

    async def _attempt(self, request: dict[str, Any]) -> tuple[dict[str, Any], Refusal | Exception | None]:
        """The answer to one request, or what came instead of it."""
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**request)
        except RewardFailure as failure:
            return {}, failure
        except self._sdk.APIStatusError as error:
            status = int(error.status_code)
            found = refusal(status, error.response.headers, _json(error.response.text))
            hint = f" (asked: {self._url}/chat/completions)" if status in (404, 405) else ""
            return {}, Refusal(found.kind, found.message + hint, found.wait_s)
        except self._sdk.APITimeoutError:
            return {}, Refusal("again", f"no answer: the endpoint was silent{self._way()}")
        except self._sdk.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, RewardFailure):  # of the budget; older SDKs wrap every exception
                return {}, RewardFailure(str(cause))
            return {}, self._broken(f"{type(cause).__name__} {cause}".strip())
        except Exception as error:  # anything that the SDK can't parse
            return {}, Unscorable(self._clean(f"the answer can't be read: {type(error).__name__}: {error}"))
        body = _json(raw.http_response.text)
        if not isinstance(body, dict):
            return {}, Unscorable(self._clean(f"the answer can't be read as a chat completion: {body!r}"))
        if (found_error := error_in(body)) is not None:
            status, inner = found_error
            return {}, refusal(status, raw.http_response.headers, {**body, "choices": None, "error": inner})
        return body, None

    def _broken(self, said: str) -> Refusal:
        """What a lost connection means: it may come again, unless the address itself is wrong."""
        if advice := tls_advice(said):
            return Refusal("stop", f"{self._url} can't be asked{self._way()}: {advice} ({said})")
        if said.startswith("ProxyError") and any(f" {status}" in said for status in (401, 403, 404, 407)):
            return Refusal("stop", f"{self._url} can't be asked{self._way()}: {said}")
        return Refusal("again", f"no connection{self._way()}: {said}")

    def _way(self) -> str:
        return f", through {self._proxy}" if self._proxy is not None else ""

    def complaint(self, answer: Mapping[str, Any]) -> str:
        """Message of an answer without choices."""
        usual = ("id", "object", "created", "model", "usage", "choices", "system_fingerprint")
        said = {name: value for name, value in answer.items() if name not in usual and value}
        return self._clean(f"the answer has no choices{f': {said}' if said else ''}")

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


def _unfollowed(url: str) -> Callable[[Any], Awaitable[None]]:
    """A hook that refuses what the SDK would follow by a GET, which has no question in it."""

    async def check(response: Any) -> None:
        if response.status_code in (301, 302, 303):
            to = response.headers.get("location", "nowhere").partition("?")[0]
            raise RewardFailure(
                f"{url} answers {response.status_code} and sends on to {to}, where a question can't follow; give the "
                "address behind it as base_url"
            )

    return check


def _json(text: str) -> Any:
    """What JSON says, or the text itself."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return text


def _shut(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    begun: set[asyncio.Task[Any]],
    close: Callable[[], Awaitable[None]],
    on_close: Callable[[], None],
) -> None:
    async def leave() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks - begun:
            task.cancel()
        if begun:
            await asyncio.wait(begun, timeout=_LAST_S)
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
