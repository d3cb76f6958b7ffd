"""A plain function as a reward: ``f(example, images) -> list[float | None]``, named by ``type: my_module:f``.

``images`` is a list of PIL images. A plain ``def`` gets the whole group in one call. An ``async def`` gets one image a
call, in a list of one: the scorer then runs many calls side by side, and a failed one costs one image and no group.
Dimensions: G group size, H x W pixels.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

from customized_grpo.rewards.base import AsyncReward, Reward, RewardConfig
from customized_grpo.rewards.features import to_pil
from customized_grpo.types import Example


class FunctionConfig(RewardConfig):
    """A reward's section whose ``type`` is a function: it has no options of its own."""


def reward_class(function: Callable[..., Any]) -> type[Reward] | type[AsyncReward]:
    """The reward that calls ``function``: an ``AsyncReward`` of an ``async def``, else a ``Reward``.

    Raises:
        ValueError: it can't be called as ``f(example, images)``.
    """
    try:
        inspect.signature(function).bind("example", "images")
    except TypeError as error:
        raise ValueError(
            f"{_place(function)} can't be called as f(example, images): {error}; give a function of two arguments, "
            "or a class (see 'Write a reward' in the docs)"
        ) from error
    base = _asynchronous(function) if inspect.iscoroutinefunction(function) else _synchronous(function)
    base.__doc__ = function.__doc__
    return base


def _synchronous(function: Callable[..., Any]) -> type[Reward]:
    class FunctionReward(Reward):
        Config = FunctionConfig

        def __init__(self, config: FunctionConfig, *, device: torch.device) -> None:
            """A function loads what it needs by itself."""

        def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
            pictures = to_pil(images)
            return torch.tensor(_numbers(function, function(example, pictures), pictures))

    return FunctionReward


def _asynchronous(function: Callable[..., Any]) -> type[AsyncReward]:
    class AsyncFunctionReward(AsyncReward):
        Config = FunctionConfig

        def __init__(self, config: FunctionConfig, *, device: torch.device) -> None:
            """A function opens its client by itself."""

        async def __call__(self, example: Example, image: Image) -> float:
            return _numbers(function, await function(example, [image]), [image])[0]

    return AsyncFunctionReward


def _numbers(function: Callable[..., Any], scores: Any, images: Sequence[Image]) -> list[float]:
    """The scores as floats, ``None`` as NaN.

    Raises:
        ValueError: not one number or ``None`` an image.
    """
    try:
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
