"""A plain function as a reward: ``f(example, images) -> list[float | None]``, named by ``type: my_module:f``.

Its keyword-only parameters are options of its section. ``images`` is a list of PIL images. A plain ``def`` gets the
whole group in one call. An ``async def`` gets one image per call, in a list of one: the scorer then runs many calls
side by side, and a failed one costs one image and no group.
Dimensions: G group size, H x W pixels.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

from customized_grpo.registry import section_of
from customized_grpo.rewards.base import AsyncReward, Reward, RewardConfig
from customized_grpo.rewards.features import to_pil
from customized_grpo.types import Example


class FromFunction(Reward):
    """A reward that a plain ``def`` gives: called here, on a group, without the network's wait."""


@cache
def reward_class(function: Callable[..., Any]) -> type[Reward] | type[AsyncReward]:
    """The reward that calls ``function``: an ``AsyncReward`` of an ``async def``, else a ``Reward``.

    Raises:
        ValueError: it can't be called as ``f(example, images)``, or a parameter can't be an option.
    """
    base = _asynchronous(function) if inspect.iscoroutinefunction(inspect.unwrap(function)) else _synchronous(function)
    base.__doc__ = function.__doc__
    return base


def _synchronous(function: Callable[..., Any]) -> type[Reward]:
    class FunctionReward(FromFunction):
        Config = section_of("rewards", function, RewardConfig)

        def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
            """A function loads what it needs by itself."""
            self._function = partial(function, **_options(config))

        def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
            pictures = to_pil(images)
            return torch.tensor(_numbers(function, self._function(example, pictures), pictures))

    return FunctionReward


def _asynchronous(function: Callable[..., Any]) -> type[AsyncReward]:
    class AsyncFunctionReward(AsyncReward):
        Config = section_of("rewards", function, RewardConfig)

        def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
            """A function opens its client by itself."""
            self._function = partial(function, **_options(config))

        async def __call__(self, example: Example, image: Image) -> float:
            return _numbers(function, await self._function(example, [image]), [image])[0]

    return AsyncFunctionReward


def _options(config: RewardConfig) -> dict[str, Any]:
    return {name: value for name, value in config if name not in RewardConfig.model_fields}


def _numbers(function: Callable[..., Any], scores: Any, images: Sequence[Image]) -> list[float]:
    """The scores as floats, ``None`` as NaN.

    Raises:
        ValueError: not one number or ``None`` an image, in order: a set has none, and a mapping's items are its keys.
    """
    try:
        if isinstance(scores, Mapping | Set | str):
            raise TypeError
        given = list(scores)
        numbers = [math.nan if score is None else float(score) for score in given]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_place(function)} returned {scores!r}; return a list of one number, or None, an image"
        ) from error
    if len(numbers) != len(images):
        raise ValueError(
            f"{_place(function)} returned {len(numbers)} scores for {len(images)} images; return one an image"
        )
    return numbers


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"
