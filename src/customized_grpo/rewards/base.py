"""What a reward is. The scorer, not the reward, does batching over groups, concurrency, failures and caching.

Dimensions: G group size, H x W pixels. A reward is float32, higher is better, and **NaN means unscorable** -
never 0, never a default: a false 0 in a group of 12 moves every other sample's advantage.
"""

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
    "Reward",
    "RewardConfig",
    "RewardFailure",
    "costs",
    "transport_of",
]


class RewardFailure(RuntimeError):
    """Scoring can't go on: too many failures, a broken reward, or an endpoint that refuses (a wrong key).

    A network reward may raise it to stop the run at once; its other exceptions make what it was asked for unscorable.
    """


def costs(specs: Mapping[str, BaseModel], images: Mapping[str, int]) -> dict[str, str]:
    """What each reward asks of others for its number of images; without those that ask nothing."""
    return {
        name: said
        for name, spec in specs.items()
        if isinstance(spec, RewardConfig) and (said := spec.cost(images[name]))
    }


def transport_of(spec: BaseModel) -> frozenset[str]:
    """The fields of a reward's or metric's section that change none of its values."""
    return spec.transport if isinstance(spec, RewardConfig) else frozenset()


class Reward(ABC):
    """A local model that scores a whole group at once, so that pairwise rewards need no second class.

    Attributes:
        reason: why a call gave NaN, for people; the reward may set it, and its caller empties it before the next call.
    """

    Config: ClassVar[type[RewardConfig]]
    reason: str = ""

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Load the frozen model named by ``config`` onto ``device``."""

    @abstractmethod
    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """One float32 score an image, on the CPU; NaN where an image can't be scored."""


class AsyncReward(ABC):
    """A judge or server over the network, one image a call; the scorer does the concurrency.

    Attributes:
        max_concurrent: calls at a time; None leaves it to the scorer.
        timeout_s: for one call, after which its image is unscorable; None leaves it to the scorer.
    """

    Config: ClassVar[type[RewardConfig]]
    max_concurrent: int | None = None
    timeout_s: float | None = None

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Open the client; ``device`` is there so that every reward is built alike."""

    @abstractmethod
    async def __call__(self, example: Example, image: Image) -> float:
        """The score of one image; an exception or NaN makes it unscorable."""


class AsyncGroupReward(ABC):
    """A server over the network that takes a whole group in one call, so that its references travel once.

    It keeps its own time limit, because it may wait for a server's restart. A failed call costs its whole group.

    Attributes:
        max_concurrent: groups at a time; None leaves it to the scorer.
    """

    Config: ClassVar[type[RewardConfig]]
    max_concurrent: int | None = None

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Open the client; ``device`` is there so that every reward is built alike."""

    @abstractmethod
    async def __call__(self, example: Example, images: Sequence[Image]) -> Sequence[float]:
        """One score an image, NaN where it is unscorable; an exception makes all of them unscorable."""


AnyReward = Reward | AsyncReward | AsyncGroupReward
