"""Base classes of rewards. The scorer, not the reward, does batching over groups, concurrency, failures and caching.

Dimensions: G group size, H x W pixels. A reward is float32, higher is better, and **NaN means unscorable** -
never 0, never a default: a false 0 in a group of 12 moves every other sample's advantage.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import BaseModel
from torch import Tensor

from customized_grpo.recipe.sections import RewardSpec as RewardConfig
from customized_grpo.types import Example

__all__ = [
    "AnyReward",
    "AsyncGroupReward",
    "AsyncReward",
    "Budgeted",
    "Reward",
    "RewardConfig",
    "RewardFailure",
    "account_of",
    "begin",
    "close",
    "costs",
    "fingerprint_of",
    "transport_of",
]


_log = logging.getLogger(__name__)


class RewardFailure(RuntimeError):
    """Scoring can't go on: too many failures, a broken reward, or an endpoint that refuses (a wrong key).

    A network reward may raise it to stop the run at once; other exceptions make the requested images unscorable.
    """


class Budgeted(RewardConfig):
    """The ``Config`` of a reward that has a budget of each run."""

    @abstractmethod
    def balance(self, samples: int, account: str | None) -> str:
        """What is spent and left, and whether that suffices, for people; empty without a budget.

        Args:
            samples: images that are still to be scored.
            account: under which it is counted, see ``AsyncReward.begin``; None: of a run that has not begun.
        """

    def asked_tokens(self, samples: int) -> int:
        """Tokens to score ``samples`` images, roughly, for a price; 0: none, or unknown."""
        return 0


def costs(
    specs: Mapping[str, BaseModel], images: Mapping[str, int], *, place: str = "", run: str | None = None
) -> dict[str, str]:
    """Cost (API requests, tokens) of each reward for its number of images, without the free ones.

    Args:
        specs: sections by name.
        images: by name, those that are still to be scored.
        place: of the sections, as for ``begin``.
        run: the run's name; None: it has not begun, and has spent nothing.
    """
    said = {}
    for name, spec in specs.items():
        if isinstance(spec, RewardConfig) and (cost := spec.cost(images[name])):
            account = None if run is None else account_of(run, place, name)
            said[name] = cost + (spec.balance(images[name], account) if isinstance(spec, Budgeted) else "")
    return said


def begin(rewards: Mapping[str, object], run: str, place: str) -> None:
    """Tell rewards or metrics in whose name they will be asked.

    Args:
        rewards: by name; local ones have nothing to count.
        run: the run's name, see ``identity.runs``.
        place: what stands before a name in the recipe: ``rewards.`` or ``evaluate.metrics.``.
    """
    for name, reward in rewards.items():
        if isinstance(reward, AsyncReward | AsyncGroupReward):
            reward.begin(account_of(run, place, name))


def close(rewards: Mapping[str, object]) -> None:
    """Let rewards or metrics close what they have open; one that can't is said and doesn't hide what ended the run."""
    for name, reward in rewards.items():
        if isinstance(reward, AsyncReward | AsyncGroupReward):
            try:
                reward.close()
            except Exception as error:
                _log.warning("%s can't be closed: %s: %s", name, type(error).__name__, error)


def account_of(run: str, place: str, name: str) -> str:
    """The account of a reward or metric in a run; see ``begin``."""
    return f"{place}{name} of run {run}"


def transport_of(spec: BaseModel) -> frozenset[str]:
    """Fields of a reward's or metric's section that don't change its values."""
    return spec.transport if isinstance(spec, RewardConfig) else frozenset()


class Reward(ABC):
    """A local model that scores a whole group at once, so that pairwise rewards need no second class.

    Attributes:
        reason: reason for a NaN, for people; a reward may set it, and its caller resets it before each call.
    """

    Config: ClassVar[type[RewardConfig]]
    reason: str = ""

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Load the frozen model named by ``config`` onto ``device``."""

    @abstractmethod
    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """One float32 score per image, on the CPU; NaN where an image can't be scored."""


class AsyncReward(ABC):
    """A judge or server over the network, one image per call; the scorer does the concurrency.

    Attributes:
        max_concurrent: limit on concurrent calls; None: the scorer's.
        timeout_s: timeout of a call, after which its image is unscorable; None: the scorer's.
    """

    Config: ClassVar[type[RewardConfig]]
    max_concurrent: int | None = None
    timeout_s: float | None = None

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Open the client; ``device`` is given so that all rewards are built alike."""

    def begin(self, account: str) -> None:
        """Count what is limited per run, such as a budget, under ``account``; called before the first image, if at all.

        A run's account stays the same over its restarts. Where nothing is called (a server, a notebook), there is one
        for all that share the reward's file.
        """
        return

    def close(self) -> None:
        """Close connections and files, when a run or evaluation has ended or failed; may be called twice."""
        return

    @abstractmethod
    async def __call__(self, example: Example, image: Image) -> float:
        """The score of one image; an exception or NaN makes it unscorable."""


class AsyncGroupReward(ABC):
    """A server over the network that scores a whole group per call, so that references are sent once.

    It has its own timeout, because it may wait for a server's restart. A failed call leaves its whole group unscored.

    Attributes:
        max_concurrent: limit on concurrent groups; None: the scorer's.
        fingerprint: identity of what computes the scores; None where it isn't known.
        relative: whether scores compare images within their group alone, so that it can't be a metric.
    """

    Config: ClassVar[type[RewardConfig]]
    max_concurrent: int | None = None
    fingerprint: str | None = None
    relative: bool = False

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Open the client; ``device`` is given so that all rewards are built alike."""

    def begin(self, account: str) -> None:
        """As ``AsyncReward.begin``."""
        return

    def drain(self) -> Mapping[str, float]:
        """Metrics of its own since the last drain, by name; they become ``reward/<name>/...`` of a step."""
        return {}

    def close(self) -> None:
        """Close connections and files, when a run or evaluation has ended or failed; may be called twice."""
        return

    @abstractmethod
    async def __call__(self, example: Example, images: Sequence[Image]) -> Sequence[float]:
        """One score per image, NaN if unscorable; an exception makes all images unscorable."""


AnyReward = Reward | AsyncReward | AsyncGroupReward


def fingerprint_of(reward: object) -> str | None:
    """Identity of the server behind a reward or metric; None for one that is computed here, or doesn't say."""
    return reward.fingerprint if isinstance(reward, AsyncGroupReward) else None
