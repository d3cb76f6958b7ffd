"""The remote reward, computed on another GPU or machine: the client of ``customized-grpo serve``.

A group is one request, so its references are sent once, and the scores equal those of the reward run locally. The
client waits for a server that is down; a server with another reward stops the run. The consequences of each fault are
listed in docs/reward-faults.md.
"""

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar, final
from urllib.parse import urlsplit

import torch
from PIL.Image import Image
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, ValidationError

from customized_grpo.console import RANK
from customized_grpo.recipe.scorers import Lack
from customized_grpo.recipe.server import NAME, TOKEN_ENV, VARIABLE
from customized_grpo.registry import did_you_mean
from customized_grpo.rewards.base import AsyncGroupReward, RewardConfig, RewardFailure
from customized_grpo.rewards.trial import DOWN_S, LIMIT_S, Trial, first_example, first_images, waited_for
from customized_grpo.rewards.wire import ScoreResponse, read_token, request_body
from customized_grpo.types import Example
from customized_grpo.web.addresses import tidy, tls_advice
from customized_grpo.web.reach import asked

if TYPE_CHECKING:
    import httpx2

FIRST_PAUSE_S = 0.25
"""Pause before the first retry; each further one is twice as long, up to ``LONGEST_PAUSE_S``."""
LONGEST_PAUSE_S = 5.0
_CONNECT_S: Final = 5.0
_BUSY: Final = (429, 502, 503)
"""Statuses of a server that is starting, or gone behind a proxy: the client waits for it."""
_FAULTY: Final = (408, 500, 504)
"""Statuses of a failed request; a retry may succeed."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class ServerDown(Exception):
    """The server can't be reached, or is still starting."""


class RequestFailed(Exception):
    """The server was reached, but this request failed."""


def _server(given: str) -> str:
    url = tidy(given)
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:  # the URL is not shown: it may hold a secret
        raise ValueError(
            "a URL must hold no user, password, query or fragment; write it as http://host:8000, and put a token into "
            f"the environment variable {TOKEN_ENV}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"given {url!r}; write it as http://host:8000")
    return url


@final
class Remote(AsyncGroupReward, Trial):
    """Any reward, computed by a server that ``customized-grpo serve`` runs elsewhere."""

    @final
    class Config(RewardConfig):
        """A reward's section with ``type: remote``."""

        transport: ClassVar[frozenset[str]] = frozenset(("urls", "token_env", "timeout_s", "retries", "wait_s"))

        urls: tuple[Annotated[str, AfterValidator(_server)], ...] = Field(
            min_length=1,
            description="http://host:8000; with several servers of the same reward, groups go to them in turn",
        )
        reward: str = Field(pattern=NAME, description="its name in the server's configuration")
        fingerprint: str | None = Field(
            default=None,
            pattern=r"^[0-9a-f]{16}$",
            description="fingerprint of the reward, as printed by the server; null: that of the first answer",
        )
        token_env: str = Field(
            default=TOKEN_ENV, pattern=VARIABLE, description="environment variable that holds the token"
        )
        timeout_s: PositiveFloat = Field(
            default=120.0, description="timeout of a group, including waiting in the server"
        )
        retries: NonNegativeInt = Field(
            default=3, description="retries of a failed request; then its group is unscorable"
        )
        wait_s: NonNegativeFloat = Field(
            default=300.0, description="time to wait for a server that is down, before the run stops"
        )

        def unreachable(self) -> list[Lack]:
            """The servers at which nothing listens; /health needs no token."""
            said = {url: asked(f"{url}/health") for url in self.urls}
            return [
                Lack(f"{url}: {why}", "start it (customized-grpo serve), or give its address (urls)")
                for url, why in said.items()
                if why
            ]

        def scored_by(self) -> Mapping[str, str]:
            """The reward that the server is asked for."""
            return {"type": self.type, "reward": self.reward}

    def __init__(self, config: Config, *, device: torch.device) -> None:
        """Connect to the server, or wait for it.

        Raises:
            RewardFailure: it isn't reachable in time, refuses the token, or doesn't serve the reward.
        """
        self._config = config
        self.fingerprint = config.fingerprint
        token = read_token(config.token_env)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ssl = ssl.create_default_context() if any(u.startswith("https") for u in config.urls) else False
        self._turn = count(RANK)  # ranks start with different servers
        self._missing = False
        waited_for(self._patiently(self._introduce))

    @classmethod
    def first_answer(cls, config: Config, account: str) -> str:
        """As ``Trial.first_answer``: its token, its rewards, and the scores of a small group."""
        hurried = {"timeout_s": min(config.timeout_s, LIMIT_S), "wait_s": min(config.wait_s, DOWN_S), "retries": 0}
        servers = ", ".join(config.urls)
        try:
            server = cls(config.model_copy(update=hurried), device=torch.device("cpu"))
            scores = waited_for(server(first_example(), first_images()))
        except (RewardFailure, RequestFailed) as error:
            down = isinstance(error.__cause__, ServerDown)
            said = f"{error.__cause__}; start it (customized-grpo serve), or give its address (urls)" if down else error
            raise ValueError(f"{config.reward!r} at {servers} has no answer to a first question: {said}") from error
        shown = ", ".join(f"{score:.4g}" for score in scores)
        return f"{config.reward!r} at {servers} answers a first question (scores {shown})"

    async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
        """Scores of a group, NaN where the server's reward gives none.

        Raises:
            RewardFailure: an error that a retry can't fix.
            Exception: the request failed in all ``retries``.
        """
        body = await asyncio.to_thread(request_body, example, images)

        async def ask(url: str) -> list[float]:
            answer = await self._request("POST", f"{url}/rewards/{self._config.reward}", body)
            return self._scores(url, answer, len(images))

        return await self._patiently(ask)

    async def _introduce(self, url: str) -> None:
        """Check the server's reward, before any image is generated."""
        answer = await self._request("GET", f"{url}/info")
        try:
            rewards: dict[str, Any] = answer.json()["model"]["rewards"]
            found = {str(name): str(about["fingerprint"]) for name, about in rewards.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RewardFailure(f"{url} is not a reward server: /info doesn't list rewards") from error
        name = self._config.reward
        if name not in found:
            raise RewardFailure(
                f"{url} serves no reward {name!r};{did_you_mean(name, list(found))} it has: {', '.join(found)}"
            )
        self._recognise(url, found[name])

    async def _patiently(self, ask: Callable[[str], Awaitable[T]]) -> T:
        """The first answer, with retries of failed requests and waiting for a server that is down."""
        config, failed, down_since, missing = self._config, 0, math.inf, ""
        turn = next(self._turn)
        for attempt in count():
            url = config.urls[(turn + attempt) % len(config.urls)]
            try:
                answer = await ask(url)
            except RequestFailed:
                failed, down_since = failed + 1, math.inf
                if failed > config.retries:
                    raise
            except ServerDown as error:
                down_since = min(down_since, time.monotonic())
                if time.monotonic() - down_since >= config.wait_s:
                    raise RewardFailure(
                        f"{url} has been down for {config.wait_s:g} s (wait_s): {error}. Start it again "
                        "(customized-grpo serve), and go on with run.resume=latest"
                    ) from error
                missing = f"{url} ({error})"
            else:
                if self._missing:
                    self._missing = False
                    _log.warning("reward %r: %s is there, going on", config.reward, url)
                return answer
            if (attempt + 1) % len(config.urls) == 0:  # try the next server without a pause
                rounds = (attempt + 1) // len(config.urls)
                if math.isfinite(down_since):
                    self._say_missing(missing)
                await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** min(rounds - 1, 10), LONGEST_PAUSE_S))
        raise AssertionError("unreachable")

    async def _request(self, method: str, url: str, body: bytes | None = None) -> "httpx2.Response":
        """One request on its own connection, which costs a millisecond and is bound to no other event loop."""
        import httpx2

        config = self._config
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        timeout = httpx2.Timeout(None, connect=_CONNECT_S)
        try:
            # No proxy and no .netrc from the environment: they are for the internet, whatever the server's name.
            async with (
                asyncio.timeout(config.timeout_s),
                httpx2.AsyncClient(timeout=timeout, trust_env=False, verify=self._ssl) as client,
            ):
                response = await client.request(method, url, content=body, headers=headers)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if advice := tls_advice(str(error)):
                raise RewardFailure(f"{url} can't be asked: {advice} ({error})") from error
            raise ServerDown(f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise RequestFailed(f"{url}: no answer in {config.timeout_s:g} s (timeout_s)") from error
        except httpx2.HTTPError as error:
            if advice := tls_advice(str(error)):
                raise RewardFailure(f"{url} can't be asked: {advice}") from error
            said = str(error) or "the connection broke"
            raise RequestFailed(f"{url}: {said} ({type(error).__name__})") from error
        if response.status_code == 200:
            return response
        reason = f"{url} answers {response.status_code}: {_detail(response)}"
        if response.status_code in _BUSY:
            raise ServerDown(reason)
        if response.status_code in _FAULTY:
            raise RequestFailed(reason)
        if response.status_code == 401:
            reason += f"; set the environment variable {config.token_env} to the server's token"
        raise RewardFailure(reason)

    def _scores(self, url: str, answer: "httpx2.Response", wanted: int) -> list[float]:
        try:
            response = ScoreResponse.model_validate_json(answer.content)
        except ValidationError as error:
            raise RequestFailed(f"{url}: an answer that isn't understood: {_start(answer.text)!r}") from error
        self._recognise(url, response.fingerprint)
        if len(response.scores) != wanted:
            raise RequestFailed(f"{url}: {len(response.scores)} scores for {wanted} images")
        return [math.nan if score is None else score for score in response.scores]

    def _recognise(self, url: str, fingerprint: str) -> None:
        """Raise unless the fingerprint is the run's: all scores must be of one reward, also after a restart."""
        self.fingerprint = self.fingerprint or fingerprint
        if fingerprint != self.fingerprint:
            expected = "the recipe's fingerprint" if self._config.fingerprint else "the one that answered first"
            raise RewardFailure(
                f"{url} serves another {self._config.reward!r}: its fingerprint is {fingerprint}, and {expected} is "
                f"{self.fingerprint}; its type, model or options differ. Start the server with the former "
                "configuration, or give this one's fingerprint in the recipe of a new run"
            )

    def _say_missing(self, server: str) -> None:
        if not self._missing:
            self._missing = True
            name, wait = self._config.reward, self._config.wait_s
            _log.warning("reward %r: waiting up to %g s for %s", name, wait, server)


def _detail(response: "httpx2.Response") -> str:
    """The server's error text, shortened; FastAPI puts it in ``detail``."""
    try:
        said = response.json()["detail"]
    except (ValueError, TypeError, KeyError):
        said = response.text
    return _start(str(said)) or response.reason_phrase


def _start(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + "..."
