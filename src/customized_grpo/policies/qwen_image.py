"""Qwen-Image-Edit in its "Plus" form (2509, 2511): references follow the image's tokens, and Qwen2.5-VL sees them too.

Guidance is classifier-free: a second forward with the negative prompt, with the guided velocity of each token rescaled
to its norm without guidance.

Dimensions: n batch, S image tokens, R tokens of all references, L text tokens, D text features, C = 64 channels of a
packed token, h x w a grid of tokens (16 x 16 pixels each). sigma in [0, 1], 1 is noise; velocity = noise - data.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, final

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from customized_grpo.policies import shifts
from customized_grpo.policies.base import PolicyConfig
from customized_grpo.policies.flux_tokens import pack, unpack
from customized_grpo.policies.pipeline_policy import PipelinePolicy
from customized_grpo.policies.pipelines import FromLibrary, PipelineConfig, run_tokens
from customized_grpo.policies.pixels import decode_images, pixels_of
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.sections import ShiftRule
from customized_grpo.types import Conditioning

_SEEN_SIZE = 384
"""Side of the square whose area a reference has for Qwen2.5-VL, roughly."""
_LONGEST = 200
"""Aspect ratio above which the image processor of Qwen2.5-VL, and of Qwen3-VL, raises."""
_ROUNDING = 32
_PICTURE = "Picture {}: <|vision_start|>{}<|vision_end|>"
_PAD = "<|image_pad|>"


class QwenConfig(PipelineConfig):
    """Fields of both Qwen-Images."""

    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {"dynamic": shifts.qwen_image_edit}

    guidance: NonNegativeFloat
    negative_prompt: str = Field(default=" ", description="of the second forward")
    reference_size: int = Field(
        default=1024,
        ge=_ROUNDING,
        description="a reference is scaled to about the pixels of a square of this side; diffusers: 1024",
    )

    def reference_side(self) -> int:
        """Its ``reference_size``."""
        return self.reference_size

    @model_validator(mode="after")
    def _negative_is_used(self) -> Self:
        if self.guidance <= 1 and self.negative_prompt != " ":
            raise ValueError(
                f"negative_prompt has no effect with guidance {self.guidance:g}; raise that above 1, or leave this out"
            )
        return self

    def num_forwards(self) -> int:
        """2 with guidance."""
        return 2 if self.guidance > 1 else 1


class QwenImageEditPlusConfig(QwenConfig):
    """A recipe's section ``policy`` with ``type: qwen-image-edit-plus``."""

    least_references: ClassVar[int] = 1
    caches: ClassVar[tuple[str, ...]] = ("first_block", "taylorseer")

    type: Literal["qwen-image-edit-plus"] = "qwen-image-edit-plus"
    guidance: NonNegativeFloat = Field(
        default=4.0, description="diffusers' true_cfg_scale: a second forward where above 1"
    )
    max_references: PositiveInt = 3

    def fitted_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """The pipeline's preprocessing, of the reference's tokens; Qwen2.5-VL sees a smaller picture of it."""
        check_length(size, area_size(size, _SEEN_SIZE), "Qwen2.5-VL")
        return area_size(size, self.reference_size)

    def prompt_tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """Qwen2.5-VL's, which cuts nothing off."""
        return (PromptTokenizer(self.source, "tokenizer", None, self.revision),)


@final
class QwenImageEditPlus(PipelinePolicy):
    """Qwen-Image-Edit-2509 or -2511 on diffusers' own transformer, for 1 to 3 references."""

    Config: ClassVar[type[PolicyConfig]] = QwenImageEditPlusConfig
    pipeline_class: ClassVar[Any] = FromLibrary("diffusers", "QwenImageEditPlusPipeline")
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "processor")
    # The image stream, and the keys and values by which it reads the text. The last block drops its text output, so the
    # text stream's other layers have no gradient there, and data-parallel training would wait for one.
    lora_targets: ClassVar[tuple[str, ...]] = (
        r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)",
        r"transformer_blocks\.\d+\.img_mlp\.net\.(0\.proj|2)",
    )

    # The PIL processor by name, for two reasons: with torchvision installed the default would be another one, and the
    # whole Qwen2VLProcessor can't even be made without it, because of its videos.
    processor: ClassVar[str] = "processor"
    processor_class: ClassVar[Any] = FromLibrary("transformers", "Qwen2VLImageProcessorPil")
    time_embedding: ClassVar[str] = "time_text_embed"

    def __init__(self, pipeline: Any, config: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(pipeline, config, device=device, dtype=dtype)
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(self._vae.config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(self._vae.config.latents_std, device=device).view(shape)

    @classmethod
    def idle(cls, transformer: Any) -> tuple[str, ...]:
        """The last block's parameters for its text output, which is dropped."""
        last = transformer.config.num_layers - 1
        return (rf"transformer_blocks\.{last}\.(attn\.(add_q_proj|norm_added_q|to_add_out)|txt_mlp)",)

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """Hidden states of Qwen2.5-VL for references and text, latents of the references, all grids of tokens.

        Raises:
            ValueError: no reference, more than ``max_references``, or one that is too narrow; or the text encoder was
                left out.
        """
        self.config.check_references([image.size for image in references])
        encoded = [self._encode_reference(image) for image in references]
        grids = [(latents.shape[-2] // 2, latents.shape[-1] // 2) for latents in encoded]
        seen = [self._resized(image, _SEEN_SIZE) for image in references]
        tensors = {
            "text": self._states(prompt, seen),
            "references": torch.cat([pack(latents) for latents in encoded], dim=1).to(self.dtype),
        }
        # The transformer needs the grids as numbers: kept as shapes, they are never read from the device.
        for number, grid in enumerate((self.config.grid, *grids)):
            tensors[f"grid_{number}"] = torch.empty(1, *grid, 0, device=self.device)
        if self.config.guidance > 1:
            tensors["negative"] = self._states(self.config.negative_prompt, seen)
        return Conditioning(tensors)

    def _resized(self, image: Image, side: int) -> Image:
        width, height = area_size(image.size, side)
        resized: Image = self._pipeline.image_processor.resize(image.convert("RGB"), height, width)
        return resized

    def _encode_reference(self, image: Image) -> Float[Tensor, "1 c height width"]:
        resized = self._resized(image, self.config.reference_size)
        return self._encoded(self._pipeline.image_processor.preprocess(resized))

    def _encoded(self, pixels: Float[Tensor, "1 3 _ _"]) -> Float[Tensor, "1 c height width"]:
        latents: Tensor = self._vae.encode(pixels.unsqueeze(2).to(self.device)).latent_dist.mode()[:, :, 0]
        return (latents - self._mean) / self._std

    @torch.no_grad()
    def latents(self, images: Sequence[Image]) -> Float[Tensor, "n s c"]:
        """See ``Policy.latents``."""
        return torch.cat([pack(self._encoded(pixels_of([image]))) for image in images]).float()

    def _states(self, prompt: str, pictures: Sequence[Image]) -> Float[Tensor, "1 l d"]:
        """Last hidden states of the pipeline's template filled in, without the system's part.

        transformers 5 places image tokens in two dimensions only where it is told which they are, by
        ``mm_token_type_ids``. diffusers' pipeline doesn't say so and gets positions that the model was not trained
        with (https://github.com/huggingface/diffusers/issues/14194, open in 0.42.1).
        """
        self._require_text_encoder()
        p = self._pipeline
        patches = p.processor(images=list(pictures), return_tensors="pt")
        counts = (patches["image_grid_thw"].prod(dim=1) // p.processor.merge_size**2).tolist()
        images = "".join(_PICTURE.format(k, _PAD * count) for k, count in enumerate(counts, start=1))
        tokens = p.tokenizer([p.prompt_template_encode.format(images + prompt)], return_tensors="pt")
        ids = tokens["input_ids"].to(self.device)
        states: Tensor = p.text_encoder(
            input_ids=ids,
            attention_mask=tokens["attention_mask"].to(self.device),
            mm_token_type_ids=(ids == p.tokenizer.convert_tokens_to_ids(_PAD)).int(),
            pixel_values=patches["pixel_values"].to(self.device),
            image_grid_thw=patches["image_grid_thw"].to(self.device),
            output_hidden_states=True,
        ).hidden_states[-1]
        return states[:, p.prompt_template_encode_start_idx :].to(self.dtype)

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples, guided if the conditioning has a negative."""
        time = sigma.to(self.device, torch.float32).expand(len(x))
        return self._guided(cond, lambda text: self._forward(x, time, cond, cond.tensors[text]))

    def _rescaled(self, guided: Float[Tensor, "n s c"], positive: Float[Tensor, "n s c"]) -> Float[Tensor, "n s c"]:
        rescaled: Tensor = guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return rescaled

    def _forward(
        self,
        x: Float[Tensor, "n s c"],
        time: Float[Tensor, " n"],
        cond: Conditioning,
        text: Float[Tensor, "m l d"],
    ) -> Float[Tensor, "n s c"]:
        """float32 output of the transformer for the image's own tokens."""
        # 2511 modulates the reference tokens as at time 0, and embeds both times as one batch.
        times = torch.cat([time, time * 0]) if self._pipeline.transformer.config.zero_cond_t else time
        c = cond.tensors
        grids = sorted((name for name in c if name.startswith("grid_")), key=lambda name: int(name[5:]))
        inputs = {"timestep": time, "img_shapes": [[(1, *c[name].shape[1:3]) for name in grids]]}
        return run_tokens(self, self._exact.at(times), x, text, cond, inputs)

    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU."""

        def pixels(tokens: Tensor) -> Tensor:
            latents = unpack(tokens, self.config.grid) * self._std + self._mean
            decoded: Tensor = self._vae.decode(latents.unsqueeze(2), return_dict=False)[0][:, :, 0]
            return decoded

        return decode_images(x, pixels)


def area_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of about ``side`` squared pixels and the same shape, in multiples of 32, as the pipeline has it.

    Raises:
        ValueError: the shape is so long that nothing is left of a side.
    """
    ratio = size[0] / size[1]
    width = math.sqrt(side**2 * ratio)
    scaled = tuple(round(length / _ROUNDING) * _ROUNDING for length in (width, width / ratio))
    if not all(scaled):
        raise ValueError(
            f"a reference of {size[0]} x {size[1]} pixels is too narrow: scaled to the area of {side} x {side}, "
            f"its short side is under {_ROUNDING // 2}; crop it, or raise policy.reference_size"
        )
    return scaled[0], scaled[1]


def check_length(size: tuple[int, int], seen: tuple[int, int], reader: str) -> None:
    """Raise a ``ValueError`` for a reference of ``size`` whose picture ``seen`` is too long for the ``reader``."""
    if max(seen) > _LONGEST * min(seen):
        raise ValueError(
            f"a reference of {size[0]} x {size[1]} pixels is too narrow: {reader} takes no picture over "
            f"{_LONGEST} times as long as wide; crop it"
        )
