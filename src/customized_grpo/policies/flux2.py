"""The policies on FLUX.2 and FLUX.2 [klein]: references follow the image's tokens, each on its own plane along time.

FLUX.2 encodes text by Mistral 3 and takes guidance as an input; [klein] encodes it by Qwen 3, and its undistilled base
models are guided by a second forward without the prompt. Everything else is the same.

Dimensions: n batch, S image tokens, R tokens of all references, L text tokens, C = 128 channels of a packed token,
D text features, h x w a grid of tokens (16 x 16 pixels each). sigma in [0, 1], 1 is noise; velocity = noise - data.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int, UInt8
from PIL.Image import Image
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from customized_grpo.policies import shifts
from customized_grpo.policies.base import PolicyConfig
from customized_grpo.policies.flux_tokens import pack, scale_and_crop, unpack, whole_tokens
from customized_grpo.policies.pipeline_policy import PipelinePolicy
from customized_grpo.policies.pipelines import FromLibrary, PipelineConfig, decode_images, run_tokens
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.sections import ShiftRule
from customized_grpo.types import Conditioning

_PLANE = 10
"""Distance along time between one reference and the next."""
_SHORTEST, _WIDEST = 64, 8
"""diffusers takes no reference with a side under 64 pixels or more than 8 times as wide as high."""


class _Config(PipelineConfig):
    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {"dynamic": shifts.flux2}
    channels: ClassVar[int] = 128
    # Of first_block diffusers 0.42 expects the last block's output as a pair, and FLUX.2's is one fused sequence.
    caches: ClassVar[tuple[str, ...]] = ("taylorseer",)

    max_sequence_length: int = Field(default=512, ge=1, le=512, description="text tokens; shorter ones are padded")
    reference_size: int = Field(
        default=1024,
        ge=_SHORTEST,
        description="a reference of more pixels than a square of this side is shrunk to as many; diffusers: 1024",
    )

    def reference_side(self) -> int:
        """Its ``reference_size``."""
        return self.reference_size

    def fitted_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """The pipelines' preprocessing."""
        return whole_tokens(shrunk_size(size, self.reference_size))

    def prompt_tokens(self) -> int:
        """Its ``max_sequence_length``."""
        return self.max_sequence_length


class Flux2Config(_Config):
    """A recipe's section ``policy`` with ``type: flux2``."""

    not_encoded: ClassVar[frozenset[str]] = PipelineConfig.not_encoded | {"guidance"}

    type: Literal["flux2"] = "flux2"
    guidance: NonNegativeFloat = Field(default=4.0, description="distilled guidance, an input of the model")

    def prompt_tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """Mistral's, with the pipeline's system message before a prompt."""
        return (PromptTokenizer(self.source, "tokenizer", self.max_sequence_length, self.revision, _system_frame),)


class Flux2KleinConfig(_Config):
    """A recipe's section ``policy`` with ``type: flux2-klein``."""

    type: Literal["flux2-klein"] = "flux2-klein"
    guidance: NonNegativeFloat = Field(
        default=4.0,
        description="classifier-free guidance of the base models, a second forward where above 1; without effect on "
        "the step-distilled ones",
    )

    def prompt_tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """Qwen 3's, with the marks of a message around a prompt."""
        return (PromptTokenizer(self.source, "tokenizer", self.max_sequence_length, self.revision, _message_frame),)

    def num_forwards(self) -> int:
        """2 with guidance, as the section doesn't show whether the model is distilled."""
        return 2 if self.guidance > 1 else 1


def _system_frame(tokenizer: Any) -> int:
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    return len(tokenizer.apply_chat_template(format_input([""], SYSTEM_MESSAGE), return_dict=False)[0])


def _message_frame(tokenizer: Any) -> int:
    given = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": False}
    return len(tokenizer.apply_chat_template([{"role": "user", "content": ""}], **given))


class _Flux2(PipelinePolicy):
    """Shared base of both families. The reference latents are the mode of the VAE's posterior, as in the pipelines."""

    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    batch_wide: ClassVar[tuple[str, ...]] = ("image_ids",)
    lora_targets: ClassVar[tuple[str, ...]] = (
        r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.linear_(in|out)",
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    )

    # FLUX.2's "tokenizer" is a processor that needs torchvision to be made. It is asked for text alone, for which its
    # own tokenizer and chat template, which are in the same folder, are enough.
    processor: ClassVar[str] = "tokenizer"
    processor_class: ClassVar[Any] = FromLibrary("transformers", "AutoTokenizer")
    time_embedding: ClassVar[str] = "time_guidance_embed"

    def __init__(self, pipeline: Any, config: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(pipeline, config, device=device, dtype=dtype)
        self._mean = self._vae.bn.running_mean.float()
        self._std = (self._vae.bn.running_var.float() + self._vae.config.batch_norm_eps).sqrt()

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """Hidden states of the text, latents of the references, positions of all image tokens.

        Without references the model draws from text alone.

        Raises:
            ValueError: more references than ``max_references``, or one of a shape that the model doesn't take; or the
                text encoder was left out.
        """
        self.config.check_references([image.size for image in references])
        encoded = [self._encode_reference(image) for image in references]
        tokens = [pack(latents) for latents in encoded]
        grids = [(latents.shape[-2] // 2, latents.shape[-1] // 2) for latents in encoded]
        packed = torch.cat([*tokens, torch.zeros(1, 0, self.config.channels, device=self.device)], dim=1)
        return Conditioning(
            {
                **self._encode_text(prompt),
                "references": ((packed - self._mean) / self._std).to(self.dtype),
                "image_ids": position_ids(self.config.grid, grids)[None].to(self.device),
            }
        )

    def _encode_text(self, prompt: str) -> dict[str, Float[Tensor, "1 l d"]]:
        return {"text": self._states(prompt)}

    def _states(self, prompt: str) -> Float[Tensor, "1 l d"]:
        self._require_text_encoder()
        states: Tensor = self._pipeline.encode_prompt(
            prompt, device=self.device, max_sequence_length=self.config.max_sequence_length
        )[0]
        return states.to(self.dtype)

    def _encode_reference(self, image: Image) -> Float[Tensor, "1 c height width"]:
        fitted = scale_and_crop(image, shrunk_size(image.size, self.config.reference_size))
        pixels = self._pipeline.image_processor.preprocess(fitted).to(self.device)
        latents: Tensor = self._vae.encode(pixels).latent_dist.mode()
        return latents

    def _forward(
        self,
        x: Float[Tensor, "n s c"],
        time: Float[Tensor, " n"],
        guidance: Float[Tensor, " n"] | None,
        cond: Conditioning,
        text: Float[Tensor, "m l d"],
    ) -> Float[Tensor, "n s c"]:
        """float32 output of the transformer for the image's own tokens."""
        exact = (time * 1000,) if guidance is None else (time * 1000, guidance * 1000)
        inputs = {
            "timestep": time,
            "img_ids": cond.tensors["image_ids"],
            "txt_ids": text_ids(text.shape[1], self.device)[None],
            "guidance": guidance,
        }
        return run_tokens(self, self._exact.at(*exact), x, text, cond, inputs)

    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU."""

        def pixels(tokens: Tensor) -> Tensor:
            latents = unpack(tokens * self._std + self._mean, self.config.grid)
            decoded: Tensor = self._vae.decode(latents, return_dict=False)[0]
            return decoded

        return decode_images(x, pixels)


@final
class Flux2(_Flux2):
    """FLUX.2-dev: guidance is distilled into the model, which embeds it as it embeds the time."""

    Config: ClassVar[type[PolicyConfig]] = Flux2Config
    pipeline_class: ClassVar[Any] = FromLibrary("diffusers", "Flux2Pipeline")

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples; the reference tokens' own output is dropped."""
        time = sigma.to(self.device, torch.float32).expand(len(x))
        return self._forward(x, time, torch.full_like(time, self.config.guidance), cond, cond.tensors["text"])


@final
class Flux2Klein(_Flux2):
    """FLUX.2 [klein], 4B or 9B: step-distilled without guidance, or a base model with classifier-free guidance."""

    Config: ClassVar[type[PolicyConfig]] = Flux2KleinConfig
    pipeline_class: ClassVar[Any] = FromLibrary("diffusers", "Flux2KleinPipeline")

    def _encode_text(self, prompt: str) -> dict[str, Float[Tensor, "1 l d"]]:
        guided = self.config.guidance > 1 and not self._pipeline.config.is_distilled
        return {"text": self._states(prompt)} | ({"negative": self._negative} if guided else {})

    @cached_property
    def _negative(self) -> Float[Tensor, "1 l d"]:
        """Encoded empty prompt, the same for every prompt."""
        return self._states("")

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples, guided if the conditioning has a negative; see ``_forward``."""
        time = sigma.to(self.device, torch.float32).expand(len(x))
        positive = self._forward(x, time, None, cond, cond.tensors["text"])
        if "negative" not in cond.tensors:
            return positive
        negative = self._forward(x, time, None, cond, cond.tensors["negative"])
        guided: Tensor = negative + self.config.guidance * (positive - negative)
        return guided


def position_ids(grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Int[Tensor, "p 4"]:
    """(time, row, column, 0) of each token: the image at time 0, reference k at 10 (k + 1), all from the same corner.

    Args:
        grid: (h, w) of the image in tokens.
        references: (h, w) of each reference, in order.
    """
    each = []
    for k, (h, w) in enumerate((grid, *references)):
        axes = torch.tensor([_PLANE * k]), torch.arange(h), torch.arange(w), torch.arange(1)
        each.append(torch.cartesian_prod(*axes))
    return torch.cat(each)


def text_ids(length: int, device: torch.device) -> Int[Tensor, "l 4"]:
    """(0, 0, 0, place) of each text token."""
    places = torch.arange(length, device=device)
    return torch.stack([*[torch.zeros_like(places)] * 3, places], dim=1)


def shrunk_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The pipelines' scaling: (width, height) of at most ``side`` squared pixels.

    Raises:
        ValueError: it is too small or too long for the model.
    """
    width, height = size
    if min(size) < _SHORTEST or max(size) > _WIDEST * min(size):
        raise ValueError(
            f"a reference of {width} x {height} pixels: FLUX.2 takes sides of at least {_SHORTEST} pixels, none over "
            f"{_WIDEST} times the other; crop or enlarge it"
        )
    if width * height <= side**2:
        return size
    scale = math.sqrt(side**2 / (width * height))
    return int(width * scale), int(height * scale)
