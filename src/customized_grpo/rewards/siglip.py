"""SigLIP and SigLIP 2: 100 x the cosine of image and prompt.

Dimensions: G group size, n batch, D features, H x W pixels. Source: SigLIP (Zhai et al. 2023), SigLIP 2 (Tschannen et
al. 2025) at a fixed resolution. The published logit is this cosine times a temperature plus a bias, which
changes nothing within a group.
"""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import Field, PositiveInt
from torch import Tensor

from customized_grpo.paths import model_path
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.scorers import HeldModel, ModelRewardSpec, Revision
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.features import (
    DtypeName,
    PromptLimit,
    in_batches,
    load_frozen,
    mean_cosine,
    require_prompt,
    to_pil,
)
from customized_grpo.types import Example
from customized_grpo.web.hub import loading


@final
class Siglip(Reward):
    """SigLIP similarity of image and prompt, in [-100, 100]. Prompts over the limit (64 tokens) are truncated."""

    @final
    class Config(ModelRewardSpec):
        """A reward's section with ``type: siglip``."""

        transport: ClassVar[frozenset[str]] = frozenset({"batch_size"})
        model: str = Field(default="google/siglip2-base-patch16-224", description="hub id or folder")
        batch_size: PositiveInt = Field(default=32, description="images per forward")
        dtype: DtypeName = "float32"
        revision: Revision = None

        def held_models(self) -> Sequence[HeldModel]:
            """SigLIP, both towers."""
            return (HeldModel(self.model, "siglip", self.dtype, self.batch_size, self.revision),)

        def prompt_tokenizer(self) -> PromptTokenizer:
            """SigLIP's, of 64 tokens."""
            return PromptTokenizer(lambda: model_path(self.model, "siglip"), "", 64, self.revision)

    def __init__(self, config: Config, *, device: torch.device) -> None:
        # The PIL processor explicitly: with torchvision installed the default, and so the reward, would differ.
        from transformers import AutoTokenizer, SiglipImageProcessorPil

        self._device, self._batch_size = device, config.batch_size
        self._model = load_frozen(
            {"siglip": "SiglipModel"}, config.model, "siglip",
            dtype=config.dtype, device=device, revision=config.revision,
        )  # fmt: skip
        path = model_path(config.model, "siglip")
        try:
            with loading("reward model", config.model):
                self._processor = SiglipImageProcessorPil.from_pretrained(path, revision=config.revision)
                self._tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision, trust_remote_code=False)
        except ImportError as error:
            raise ValueError(
                f"reward model {config.model!r}: its tokenizer needs another package; run "
                "'pip install sentencepiece', or take a SigLIP 2 model"
            ) from error
        self._max_length: int = self._model.config.text_config.max_position_embeddings
        self._limit = PromptLimit("SigLIP", self._max_length)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Similarity of each image to the example's prompt.

        Raises:
            ValueError: the example has no prompt.
        """
        require_prompt(example)
        features = in_batches(self._encode, to_pil(images), self._batch_size)
        return mean_cosine(features, self._text(example.prompt)).cpu()

    @torch.no_grad()
    def _encode(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        features: Tensor = self._model.get_image_features(
            pixel_values=pixels.to(self._device, self._model.dtype)
        ).pooler_output
        return features.float()

    @torch.no_grad()
    def _text(self, prompt: str) -> Float[Tensor, "1 d"]:
        # Trained on lower-case text padded to full length; it pools the last position without a mask.
        self._limit.check(prompt.lower(), self._tokenizer)
        tokens = self._tokenizer(
            [prompt.lower()],
            padding="max_length",
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        features: Tensor = self._model.get_text_features(input_ids=tokens["input_ids"].to(self._device)).pooler_output
        return features.float()
