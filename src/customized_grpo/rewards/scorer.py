"""All rewards on a group: concurrency, order, failures. The result depends on nothing but the scores.

Network rewards are put in flight first, on one background event loop, and stay there while the next group is sampled;
local ones then run in the caller's thread, since sampling waits for the same device anyway. What can't be scored is
NaN, is counted, and past a share of the recent samples stops the run.
Dimensions: G group size, R rewards, H x W pixels.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from customized_grpo.rewards.background import Inline, LoopThread
from customized_grpo.rewards.base import AnyReward, AsyncGroupReward, AsyncReward, Reward, RewardFailure
from customized_grpo.rewards.features import to_pil
from customized_grpo.types import Example

WINDOW = 512
"""Samples of a reward over which its failed share is taken."""
MIN_WINDOW = 32
"""The share counts at least so many samples, the unseen ones as scored: one early failure is no outage."""

_Outcome = tuple[list[float], str]


@final
class Pending:
    """Scores on their way. ``result`` waits for them."""

    def __init__(self, collect: Callable[[], Float[Tensor, "g r"]]) -> None:
        self._collect = collect
        self._scores: Float[Tensor, "g r"] | None = None

    def result(self) -> Float[Tensor, "g r"]:
        """float32 scores on the CPU, columns in the order of the scorer's rewards, NaN where unscorable.

        Raises:
            RewardFailure: a reward asked to stop, or failed on more than the allowed share of recent samples.
        """
        if self._scores is None:
            self._scores = self._collect()
        return self._scores


@final
class Scorer:
    """Scores groups with every reward of a recipe.

    Args:
        rewards: by name; the order is that of the score columns.
        max_failed_share: largest allowed share of unscorable samples among a reward's last ``window``.
        window: samples over which that share is taken.
        max_concurrent: requests in flight at a time, for each network reward that doesn't set its own.
        timeout_s: for one image of an ``AsyncReward``, from the moment it's sent; then the sample is unscorable. A
            reward may set its own.
        background: local rewards work in a thread of their own, one group after the other, while the next group is
            sampled; else they are done when ``submit`` returns.

    Attributes:
        names: the reward of each column.
        failures: samples that each reward could not score, over the whole run.
    """

    def __init__(
        self,
        rewards: Mapping[str, AnyReward],
        *,
        max_failed_share: float,
        window: int = WINDOW,
        max_concurrent: int = 8,
        timeout_s: float = 60.0,
        background: bool = False,
    ) -> None:
        if not rewards:
            raise ValueError("a scorer needs at least one reward")
        self.names = tuple(rewards)
        self.failures = dict.fromkeys(rewards, 0)
        self._local = {name: reward for name, reward in rewards.items() if isinstance(reward, Reward)}
        self._remote = {
            name: reward
            for name, reward in rewards.items()
            if isinstance(reward, AsyncReward | AsyncGroupReward)
        }
        if strange := [name for name in rewards if name not in self._local and name not in self._remote]:
            raise ValueError(
                f"reward {strange[0]!r} is no Reward, AsyncReward or AsyncGroupReward; subclass one of them"
            )
        self._max_failed_share = max_failed_share
        self._recent: dict[str, deque[bool]] = {name: deque(maxlen=window) for name in rewards}
        self._last_error = dict.fromkeys(rewards, "")
        self._seconds = dict.fromkeys(rewards, 0.0)
        self._scored = dict.fromkeys(rewards, 0)
        self._failed = dict.fromkeys(rewards, 0)
        self._limits = {
            name: asyncio.Semaphore(reward.max_concurrent or max_concurrent)
            for name, reward in self._remote.items()
        }
        self._timeout_s = timeout_s
        self._loop = LoopThread() if self._remote else None
        self._workers = ThreadPoolExecutor(1, "local-rewards") if background and self._local else Inline()

    def submit(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Pending:
        """Start scoring a group. Network rewards are in flight on return; local ones are done, or in their thread.

        Raises:
            RewardFailure: a local reward raised (chained) or returned another shape than (g,) float32. That
                is a bug or a broken example, so it isn't masked. In the background ``result`` raises it.
        """
        flights: dict[str, Future[_Outcome]] = {}
        if self._loop is not None:
            pictures = to_pil(images)
            for name, reward in self._remote.items():
                flights[name] = self._loop.start(self._score_remote(name, reward, example, pictures))
        local: dict[str, Future[Float[Tensor, " g"]]] = {}
        try:
            for name, model in self._local.items():
                start = time.perf_counter()
                local[name] = self._workers.submit(self._score_local, name, model, example, images)
                self._seconds[name] += time.perf_counter() - start
        except BaseException:
            for flight in flights.values():
                flight.cancel()
            raise
        return Pending(lambda: self._collect(example, local, flights))

    def drain(self) -> dict[str, float]:
        """Metrics since the last drain: ``time/reward/<name>`` and ``reward/<name>/failed_share``.

        The seconds are those that a reward cost the caller: where it has a thread, the wait that sampling did not hide.
        """
        metrics = {f"time/reward/{name}": seconds for name, seconds in self._seconds.items()}
        for name, count in self._scored.items():
            if count:
                metrics[f"reward/{name}/failed_share"] = self._failed[name] / count
        for totals in (self._scored, self._failed):
            totals.update(dict.fromkeys(self.names, 0))
        self._seconds.update(dict.fromkeys(self.names, 0.0))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to stop where the uninterrupted one would: plain JSON values."""
        return {
            name: {"recent": [int(failed) for failed in self._recent[name]], "failures": self.failures[name]}
            for name in self.names
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``.

        Raises:
            ValueError: the state is that of other rewards.
        """
        if set(state) != set(self.names):
            raise ValueError(
                f"the checkpoint's rewards are {', '.join(sorted(state))} but the recipe's are "
                f"{', '.join(sorted(self.names))}; resume with the recipe that the run began with"
            )
        for name in self.names:
            self.failures[name] = int(state[name]["failures"])
            self._recent[name].clear()
            self._recent[name].extend(bool(failed) for failed in state[name]["recent"])

    def close(self) -> None:
        """Cancel what is in flight and end the threads. May be called twice."""
        self._workers.shutdown(cancel_futures=True)
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _score_local(
        self, name: str, reward: Reward, example: Example, images: UInt8[Tensor, "g h w 3"]
    ) -> Float[Tensor, " g"]:
        try:
            with torch.no_grad():
                scores = reward(example, images)
        except Exception as error:
            raise RewardFailure(
                f"reward {name!r} failed on example {example.key!r}: {_describe(error)}"
            ) from error
        if not isinstance(scores, Tensor):
            what = type(scores).__name__
            raise RewardFailure(f"reward {name!r} returned {what}; it must return a float32 tensor (g,)")
        if scores.dtype != torch.float32 or scores.shape != (len(images),):
            raise RewardFailure(
                f"reward {name!r} returned {scores.dtype} of shape {tuple(scores.shape)} for "
                f"{len(images)} images; it must return torch.float32 of shape ({len(images)},)"
            )
        return scores.cpu()

    async def _score_remote(
        self,
        name: str,
        reward: AsyncReward | AsyncGroupReward,
        example: Example,
        images: Sequence[Image.Image],
    ) -> _Outcome:
        """Scores of one reward in the order of ``images``, and the last error."""
        if isinstance(reward, AsyncReward):
            return await self._score_singly(name, reward, example, images)
        try:
            async with self._limits[name]:
                scores = [float(score) for score in await reward(example, images)]
        except RewardFailure:
            raise
        except Exception as error:
            return [math.nan] * len(images), _describe(error)
        if len(scores) != len(images):
            raise RewardFailure(f"it returned {len(scores)} scores for {len(images)} images")
        return scores, ""

    async def _score_singly(
        self, name: str, reward: AsyncReward, example: Example, images: Sequence[Image.Image]
    ) -> _Outcome:
        errors = [""] * len(images)
        timeout_s = reward.timeout_s or self._timeout_s

        async def score(index: int) -> float:
            try:
                async with self._limits[name], asyncio.timeout(timeout_s):
                    return float(await reward(example, images[index]))
            except RewardFailure:
                raise
            except TimeoutError as error:
                errors[index] = str(error) or f"no answer in {timeout_s:g} s"
            except Exception as error:
                errors[index] = _describe(error)
            return math.nan

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(index)) for index in range(len(images))]
        return [task.result() for task in tasks], next((error for error in reversed(errors) if error), "")

    def _collect(
        self,
        example: Example,
        local: Mapping[str, Future[Float[Tensor, " g"]]],
        flights: Mapping[str, Future[_Outcome]],
    ) -> Float[Tensor, "g r"]:
        columns = []
        for name in self.names:
            start = time.perf_counter()
            if name in local:
                scores, error = local[name].result(), ""
            else:
                values, error = _landed(name, example, flights[name])
                scores = torch.tensor(values, dtype=torch.float32)
            self._seconds[name] += time.perf_counter() - start
            finite = scores.isfinite()
            if not bool(finite.all()):
                bad = scores[~finite][-1].item()
                self._last_error[name] = f"{error or f'the score was {bad}'} (example {example.key!r})"
            self._count(name, (~finite).tolist())
            columns.append(torch.where(finite, scores, torch.nan))
        for name in self.names:
            self._check_share(name)
        return torch.stack(columns, dim=1)

    def _count(self, name: str, failed: list[bool]) -> None:
        self._recent[name].extend(failed)
        self._scored[name] += len(failed)
        self._failed[name] += sum(failed)
        self.failures[name] += sum(failed)

    def _check_share(self, name: str) -> None:
        recent = self._recent[name]
        share = sum(recent) / max(len(recent), MIN_WINDOW)
        if share > self._max_failed_share:
            raise RewardFailure(
                f"reward {name!r} failed on {sum(recent)} of its last {len(recent)} samples, over the "
                f"allowed share (advantage.max_failed_share: {self._max_failed_share:g}); last error: "
                f"{self._last_error[name]}"
            )


def _landed(name: str, example: Example, flight: "Future[_Outcome]") -> _Outcome:
    """The outcome of a network reward; a stop that it asked for is raised with its name."""
    try:
        return flight.result()
    except (RewardFailure, BaseExceptionGroup) as error:
        first = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
        raise RewardFailure(f"reward {name!r} stopped the run on example {example.key!r}: {first}") from first


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
