"""The scorer of all rewards on a group: concurrency, order, failures. The result depends only on the scores.

Network rewards are started first, on one background event loop, and run while the next group is sampled. Local ones
run in the caller's thread or, on a GPU, in their own thread and stream, which sampling overlaps too. Unscorable
samples are NaN and counted with their reason; above a share of the recent samples they stop the run.
Dimensions: G group size, R rewards, H x W pixels.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self, final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from customized_grpo.rewards.base import AnyReward, AsyncGroupReward, AsyncReward, Reward, RewardFailure
from customized_grpo.rewards.features import to_pil
from customized_grpo.scoring import requests
from customized_grpo.scoring.requests import Outcome
from customized_grpo.scoring.tally import Tally
from customized_grpo.scoring.workers import Inline, LoopThread, worker
from customized_grpo.types import Example


@final
class Pending:
    """Scores in progress. ``result`` waits for them.

    Attributes:
        reasons: reward to the reason why each image has no score, empty if it has one; filled by ``result``.
    """

    def __init__(
        self, collect: Callable[[], Float[Tensor, "g r"]], reasons: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._collect = collect
        self.reasons = {} if reasons is None else reasons
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
        rewards: rewards by name, in the order of the score columns.
        max_failed_share: largest allowed share of unscorable samples among a reward's recent ones; see ``Tally``.
        background: device of local rewards that run in their own thread (and stream), one group after the other,
            while the next group is sampled; None: they are done when ``submit`` returns.

    Attributes:
        names: the reward of each column.
        tally: samples that each reward could not score; part of every checkpoint.
    """

    def __init__(
        self,
        rewards: Mapping[str, AnyReward],
        *,
        max_failed_share: float,
        background: torch.device | None = None,
    ) -> None:
        self.names = tuple(rewards)
        self._local = {name: reward for name, reward in rewards.items() if isinstance(reward, Reward)}
        self._remote = {
            name: reward for name, reward in rewards.items() if isinstance(reward, AsyncReward | AsyncGroupReward)
        }
        if strange := [name for name in rewards if name not in self._local and name not in self._remote]:
            raise ValueError(
                f"reward {strange[0]!r} is not a Reward, AsyncReward or AsyncGroupReward; subclass one of them"
            )
        self.tally = Tally(self.names, max_failed_share=max_failed_share)
        self._seconds = dict.fromkeys(rewards, 0.0)
        self._limits = {name: requests.limit(reward) for name, reward in self._remote.items()}
        self._loop = LoopThread() if self._remote else None
        self._workers = worker(background) if background is not None and self._local else Inline()

    def submit(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Pending:
        """Start scoring a group. On return, network rewards are in flight, local ones done or in their thread.

        Raises:
            RewardFailure: a local reward raised (chained) or did not return (g,) float32. That is a bug or a broken
                example, so it isn't masked. In the background ``result`` raises it.
        """
        assert self.names, "nothing scores without a reward; a supervised step submits nothing"
        return self._start(example, images, self.names, self.tally)

    def beside(self, example: Example, images: UInt8[Tensor, "n h w 3"]) -> dict[str, list[float]]:
        """Scores of images that are no group's, NaN where unscorable: nothing is counted, and nothing stops the run.

        Rewards that compare the images of a group with each other are left out.

        Raises:
            RewardFailure: as ``submit`` and ``Pending.result``.
        """
        compare = {name for name, one in self._remote.items() if isinstance(one, AsyncGroupReward) and one.relative}
        names = tuple(name for name in self.names if name not in compare)
        scores = self._start(example, images, names, None).result() if names else torch.empty(len(images), 0)
        return dict(zip(names, scores.T.tolist(), strict=True))

    def _start(
        self, example: Example, images: UInt8[Tensor, "g h w 3"], names: Sequence[str], tally: Tally | None
    ) -> Pending:
        flights: dict[str, Future[Outcome]] = {}
        if self._loop is not None:
            pictures = to_pil(images)
            for name, reward in ((name, one) for name, one in self._remote.items() if name in names):
                own = [picture.copy() for picture in pictures]
                flights[name] = self._loop.start(self._ask(name, reward, example.copy(), own))
        local: dict[str, Future[Outcome]] = {}
        try:
            for name, model in ((name, one) for name, one in self._local.items() if name in names):
                start = time.perf_counter()
                local[name] = self._workers.submit(score_locally, name, model, example, images)
                self._seconds[name] += time.perf_counter() - start
        except BaseException:
            for flight in flights.values():
                flight.cancel()
            raise
        reasons: dict[str, Sequence[str]] = {}
        return Pending(lambda: self._collect(example, names, local, flights, reasons, tally), reasons)

    def drain(self) -> dict[str, float]:
        """Metrics since the last drain: ``time/reward/<name>``, ``reward/<name>/failed_share``, and rewards' own.

        Times are seconds that the caller waited: for a reward with its own thread, what sampling did not hide.
        """
        metrics = {f"time/reward/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds.update(dict.fromkeys(self.names, 0.0))
        for name, reward in self._remote.items():
            if isinstance(reward, AsyncGroupReward):
                metrics |= {f"reward/{name}/{own}": value for own, value in reward.drain().items()}
        return metrics | self.tally.drain()

    def close(self) -> None:
        """Cancel requests in flight and end the threads. May be called twice."""
        self._workers.shutdown(cancel_futures=True)
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def _ask(
        self,
        name: str,
        reward: AsyncReward | AsyncGroupReward,
        example: Example,
        images: Sequence[Image.Image],
    ) -> Outcome:
        if isinstance(reward, AsyncReward):
            questions = [(example, image) for image in images]
            return await requests.ask_singly(reward, questions, self._limits[name])
        return await requests.ask_together(reward, example, images, self._limits[name])

    def _collect(
        self,
        example: Example,
        names: Sequence[str],
        local: Mapping[str, Future[Outcome]],
        flights: Mapping[str, Future[Outcome]],
        reasons: dict[str, Sequence[str]],
        tally: Tally | None,
    ) -> Float[Tensor, "g r"]:
        columns = []
        for name in names:
            start = time.perf_counter()
            outcome = local[name].result() if name in local else _landed(name, example, flights[name])
            self._seconds[name] += time.perf_counter() - start
            scores = torch.tensor(outcome.scores, dtype=torch.float32)  # which may overflow to infinity
            reasons[name] = Outcome(scores.tolist(), outcome.errors).reasons()
            if tally is not None:
                tally.count(name, example.key, reasons[name])
            columns.append(torch.where(scores.isfinite(), scores, torch.nan))
        if tally is not None:
            tally.check()
        return torch.stack(columns, dim=1)


def _landed(name: str, example: Example, flight: "Future[Outcome]") -> Outcome:
    """Outcome of a network reward; if it asked to stop, raises with its name."""
    try:
        return flight.result()
    except RewardFailure as error:
        raise RewardFailure(f"reward {name!r} stopped the run on example {example.key!r}: {error}") from error


def score_locally(name: str, reward: Reward, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Outcome:
    """Outcome of a local reward, which is given pictures of its own.

    Raises:
        RewardFailure: it raised (chained), or did not return (g,) float32.
    """
    reward.reason = ""
    try:
        with torch.no_grad():
            scores = reward(example.copy(), images.clone())
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        raise RewardFailure(
            f"reward {name!r} failed on example {example.key!r}: {requests.describe(error)} ({place})"
        ) from error
    if not isinstance(scores, Tensor):
        what = type(scores).__name__
        raise RewardFailure(f"reward {name!r} returned {what}; it must return a float32 tensor (g,)")
    if scores.dtype != torch.float32 or scores.shape != (len(images),):
        raise RewardFailure(
            f"reward {name!r} returned {scores.dtype} of shape {tuple(scores.shape)} for "
            f"{len(images)} images; it must return torch.float32 of shape ({len(images)},)"
        )
    return Outcome.of(scores.tolist(), reward.reason)
