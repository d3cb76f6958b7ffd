"""PickScore: human preference of an image for a prompt; about 19 to 23 for photographs.

Dimensions: G group size, n batch, D features, H x W pixels. Source: Pick-a-Pic (Kirstain et al. 2023): a CLIP-H tuned
on human choices, whose score is the cosine times the model's own temperature (about 100).
"""

from typing import final

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from customized_grpo.paths import model_path
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.scorers import Revision
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.clip import CLIP_TOKENS, Clip, ClipConfig, ClipText
from customized_grpo.rewards.features import in_batches, mean_cosine, require_prompt, to_pil
from customized_grpo.types import Example


@final
class PickScore(Reward):
    """PickScore of each image for the prompt. Prompts over 77 tokens are truncated."""

    @final
    class Config(ClipConfig):
        """A reward's section with ``type: pickscore``."""

        model: str = Field(default="yuvalkirstain/PickScore_v1", description="hub id or folder of the weights")
        processor: str = Field(
            default="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            description="hub id or folder of tokenizer and image processor, which PickScore's own page takes from here",
        )
        processor_revision: Revision = None

        def prompt_tokenizer(self) -> PromptTokenizer:
            """CLIP-H's."""
            return PromptTokenizer(lambda: model_path(self.processor, "clip"), "", CLIP_TOKENS, self.processor_revision)

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._batch_size = config.batch_size
        self._clip = Clip(config, device, processor=config.processor, processor_revision=config.processor_revision)
        self._text = ClipText(self._clip)
        # mean_cosine is already 100 x the cosine.
        self._scale = float(self._clip.model.logit_scale.float().exp()) / 100.0

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """PickScore of each image.

        Raises:
            ValueError: the example has no prompt.
        """
        require_prompt(example)
        features = in_batches(self._clip.encode, to_pil(images), self._batch_size)
        return (mean_cosine(features, self._text(example.prompt)) * self._scale).cpu()
