"""CLIP rewards: 100 x the cosine of an image with the prompt (``clip_t``) or the references (``clip_i``).

Dimensions: G group size, n batch, D features, H x W pixels. Source: CLIPScore (Hessel et al. 2021) as used
for subject-driven generation: no prefix before the prompt, no factor of 2.5, not clipped at 0.
"""

from collections.abc import Sequence
from typing import ClassVar, Final, final

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import Field, PositiveInt
from torch import Tensor

from customized_grpo.paths import model_path
from customized_grpo.recipe.limits import Need, PromptTokenizer
from customized_grpo.recipe.scorers import HeldModel, ModelRewardSpec, Revision
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.features import (
    DtypeName,
    FeatureCache,
    PromptLimit,
    in_batches,
    load_frozen,
    mean_cosine,
    require_prompt,
    require_references,
    to_pil,
)
from customized_grpo.types import Example
from customized_grpo.web.hub import loading

CLIP_TOKENS: Final = 77
"""Positions of every published CLIP's text side."""


class ClipConfig(ModelRewardSpec):
    """Options of both CLIP rewards."""

    transport: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    model: str = Field(default="openai/clip-vit-large-patch14", description="hub id, folder, 'mini' or 'mini-judge'")
    batch_size: PositiveInt = Field(default=32, description="images per forward")
    dtype: DtypeName = "float32"
    revision: Revision = None

    def held_models(self) -> Sequence[HeldModel]:
        """CLIP, both towers."""
        return (HeldModel(self.model, "clip", self.dtype, self.batch_size, self.revision),)


@final
class Clip:
    """A frozen CLIP, with features before normalisation.

    Args:
        config: weights, batch size and dtype.
        device: device of the model.
        processor: hub id or folder of the image processor and the tokenizer; None: the weights' own.
        processor_revision: of that hub id.
    """

    def __init__(
        self,
        config: ClipConfig,
        device: torch.device,
        *,
        processor: str | None = None,
        processor_revision: str | None = None,
    ) -> None:
        # The PIL processor explicitly: with torchvision installed the default, and so the reward, would differ.
        from transformers import CLIPImageProcessorPil

        self.device = device
        self.model = load_frozen(
            {"clip": "CLIPModel"}, config.model, "clip",
            dtype=config.dtype, device=device, revision=config.revision,
        )  # fmt: skip
        self.processor = model_path(config.model if processor is None else processor, "clip")
        self.processor_revision = config.revision if processor is None else processor_revision
        with loading("image processor of", self.processor):
            self._processor = CLIPImageProcessorPil.from_pretrained(self.processor, revision=self.processor_revision)

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """Projected features of images."""
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        features: Tensor = self.model.get_image_features(
            pixel_values=pixels.to(self.device, self.model.dtype)
        ).pooler_output
        return features.float()


@final
class ClipText:
    """The text side of a CLIP."""

    def __init__(self, clip: Clip) -> None:
        from transformers import CLIPTokenizer

        self._clip = clip
        with loading("tokenizer of", clip.processor):
            self._tokenizer = CLIPTokenizer.from_pretrained(clip.processor, revision=clip.processor_revision)
        self._max_length: int = clip.model.config.text_config.max_position_embeddings
        self._limit = PromptLimit("CLIP", self._max_length)

    @torch.no_grad()
    def __call__(self, prompt: str) -> Float[Tensor, "1 d"]:
        """Projected features of a prompt, truncated at the model's limit."""
        self._limit.check(prompt, self._tokenizer)
        tokens = self._tokenizer(
            [prompt],
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
            return_attention_mask=True,
        )
        features: Tensor = self._clip.model.get_text_features(
            input_ids=tokens["input_ids"].to(self._clip.device),
            attention_mask=tokens["attention_mask"].to(self._clip.device),
        ).pooler_output
        return features.float()


@final
class ClipT(Reward):
    """CLIP similarity of image and prompt, in [-100, 100]. Prompts over the model's limit are truncated."""

    @final
    class Config(ClipConfig):
        """A reward's section with ``type: clip_t``."""

        def prompt_tokenizer(self) -> PromptTokenizer:
            """CLIP's."""
            return PromptTokenizer(lambda: model_path(self.model, "clip"), "", CLIP_TOKENS, self.revision)

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._batch_size = config.batch_size
        self._clip = Clip(config, device)
        self._text = ClipText(self._clip)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Similarity of each image to the example's prompt.

        Raises:
            ValueError: the example has no prompt.
        """
        require_prompt(example)
        features = in_batches(self._clip.encode, to_pil(images), self._batch_size)
        return mean_cosine(features, self._text(example.prompt)).cpu()


@final
class ClipI(Reward):
    """CLIP similarity to the references, mean over them, in [-100, 100]."""

    @final
    class Config(ClipConfig):
        """A reward's section with ``type: clip_i``."""

        def needs(self) -> frozenset[Need]:
            """References."""
            return frozenset({"reference"})

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._batch_size = config.batch_size
        self._clip = Clip(config, device)
        self._references = FeatureCache(self._clip.encode)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Mean similarity of each image to the example's references.

        Raises:
            ValueError: the example has no reference.
        """
        require_references(example)
        features = in_batches(self._clip.encode, to_pil(images), self._batch_size)
        references = self._references(example.references)
        return mean_cosine(features, references).cpu()
