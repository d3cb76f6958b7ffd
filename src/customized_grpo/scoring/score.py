"""Scores of images by a recipe's rewards in one call, for a notebook; a folder of files is scored by ``folder``.

Dimensions: n images, H x W pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from customized_grpo import registry
from customized_grpo.devices import open_device
from customized_grpo.rewards.base import AnyReward, RewardConfig, close
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.types import Example


def load_rewards(
    sections: Mapping[str, RewardConfig], *, device: torch.device | None = None, place: str = "rewards."
) -> dict[str, AnyReward]:
    """The rewards of a recipe, with their frozen models on a device.

    Args:
        sections: name to section, as in ``recipe.rewards``.
        device: of local models; None: the GPU where there is one.
        place: what stands before a reward's name in a message.

    Raises:
        ValueError: a model is not there, or can't be used.
    """
    device = device or open_device("auto")
    loaded: dict[str, AnyReward] = {}
    for name, section in sections.items():
        try:
            loaded[name] = registry.resolve("rewards", section.type)(section, device=device)
        except BaseException as error:
            close(loaded)
            if isinstance(error, ValueError):
                raise ValueError(f"{place}{name}: {error}") from error
            raise
    return loaded


def score(
    images: UInt8[Tensor, "n h w 3"] | Sequence[Image.Image],
    rewards: Mapping[str, AnyReward],
    example: Example,
) -> dict[str, Float[Tensor, " n"]]:
    """Scores of each image by each reward; higher is better, NaN means unscorable.

    Args:
        images: all of one size; a group's tensor, or RGB images as ``generate`` gives them.
        rewards: from ``load_rewards``; load them once and score often.
        example: prompt and references against which images are scored.

    Returns:
        float32 scores on the CPU by the reward's name, each in the reward's own unit.

    Raises:
        ValueError: there is no image, no reward, or the images differ in size.
        RewardFailure: a local reward raised, or a remote one refuses.

    Example:
        ``score(images, load_rewards(recipe.rewards), example)["dino"]``
    """
    group = images if isinstance(images, Tensor) else _stacked(images)
    # The caller sees which images have no score, and decides.
    with Scorer(rewards, max_failed_share=1.0) as scorer:
        columns = scorer.submit(example, group).result().unbind(1)
        return dict(zip(scorer.names, columns, strict=True))


def _stacked(images: Sequence[Image.Image]) -> UInt8[Tensor, "n h w 3"]:
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        given = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)) or "none"
        raise ValueError(f"images: given {given}; give at least one, all of one size, or score them apart")
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
