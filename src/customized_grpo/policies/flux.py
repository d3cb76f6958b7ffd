"""FLUX.1 with UNO's references (arXiv 2504.02160): their tokens follow the image's, at positions diagonally beyond.

Dimensions: n batch, S image tokens, R tokens of all references, L text tokens, C = 64 channels of a packed
token, h x w a grid of tokens (16 x 16 pixels each), H x W pixels. sigma in [0, 1], 1 is noise;
velocity = noise - data.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, final

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from jaxtyping import Float, UInt8
from PIL import Image as PILImage
from PIL.Image import Image
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator
from torch import Tensor, nn

from customized_grpo.policies.acceleration import quantization_of, settle
from customized_grpo.policies.base import Policy, PolicyConfig
from customized_grpo.types import Conditioning

PIXELS_PER_TOKEN = 16
"""The VAE shrinks by 8, and a token packs 2 x 2 latents."""

_DECODE_CHUNK = 4
_LONG_SIDE_ONE, _LONG_SIDE_SEVERAL = 512, 320


class UNOConfig(PolicyConfig):
    """A recipe's section ``policy`` with ``type: uno``."""

    not_encoded: ClassVar[frozenset[str]] = PolicyConfig.not_encoded | {"guidance", "max_references"}

    type: Literal["uno"] = "uno"
    model: str = Field(description="a folder in diffusers' layout, a hub id, or the shipped 'mini'")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    variant: str | None = Field(default=None, description="weights variant, such as 'fp16'")
    guidance: NonNegativeFloat = Field(
        default=3.5, description="distilled guidance; without effect on FLUX.1-schnell"
    )
    max_sequence_length: int = Field(default=512, ge=1, le=512, description="T5 tokens of a prompt")
    reference_size: int | None = Field(
        default=None,
        ge=PIXELS_PER_TOKEN,
        multiple_of=PIXELS_PER_TOKEN,
        description="long side of a reference in pixels; null is UNO's rule: 512 for one, 320 for several",
    )
    max_references: PositiveInt = 4

    @field_validator("height", "width")
    @classmethod
    def _whole_tokens(cls, pixels: int) -> int:
        if pixels % PIXELS_PER_TOKEN:
            low = pixels // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
            near = f"{low} or {low + PIXELS_PER_TOKEN}" if low else str(PIXELS_PER_TOKEN)
            raise ValueError(f"given {pixels}; FLUX needs a multiple of {PIXELS_PER_TOKEN}: use {near}")
        return pixels

    def latent_shape(self) -> tuple[int, int]:
        """(S, 64): a token is 2 x 2 latents of FLUX's 16 channels."""
        return (self.height // PIXELS_PER_TOKEN) * (self.width // PIXELS_PER_TOKEN), 64


@dataclass(slots=True)
class _ExactTime:
    """Puts float32 1000 sigma and 1000 guidance back on their way into the time embedding, for one forward.

    diffusers casts both to the hidden dtype before it multiplies by 1000, so that under bf16 sigma 0.986 becomes
    984, and steps as near become one. A hook keeps the module's parameter names and survives DDP.
    """

    time: Tensor | None = None
    guidance: Tensor | None = None

    @contextmanager
    def at(self, sigma: Float[Tensor, " n"], guidance: Float[Tensor, " n"] | None) -> Iterator[None]:
        self.time = sigma * 1000
        self.guidance = None if guidance is None else guidance * 1000
        try:
            yield
        finally:
            self.time = self.guidance = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.time is None:
            return args
        exact = (self.time,) if self.guidance is None else (self.time, self.guidance)
        return (*exact, *args[len(exact) :])


@final
class UNO(Policy):
    """FLUX.1-dev, or the miniature, with UNO's reference conditioning on diffusers' own transformer.

    The reference latents are the mode of the VAE's posterior. UNO's code samples it; the mode is deterministic,
    so that a cached and a fresh conditioning agree, and is within the posterior's (very small) width.
    """

    Config: ClassVar[type[PolicyConfig]] = UNOConfig
    pipeline_class: ClassVar[Any] = FluxPipeline
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    batch_wide: ClassVar[tuple[str, ...]] = ("image_ids",)
    # Full names, because the suffix "proj_out" alone would hit the model's last layer too.
    lora_targets: ClassVar[tuple[str, ...]] = (
        r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
        r"single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)",
    )

    def __init__(self, pipeline: Any, config: UNOConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.transformer = pipeline.transformer
        self._pipeline = pipeline
        self._vae = pipeline.vae
        self._grid = (config.height // PIXELS_PER_TOKEN, config.width // PIXELS_PER_TOKEN)
        self.latent_shape = (self._grid[0] * self._grid[1], pipeline.transformer.config.in_channels)
        self._guidance = config.guidance if pipeline.transformer.config.guidance_embeds else None
        self._exact_time = _ExactTime()
        pipeline.transformer.time_text_embed.register_forward_pre_hook(self._exact_time)

    @classmethod
    def load(
        cls, config: UNOConfig, *, device: torch.device, dtype: torch.dtype, absent: Sequence[str] = ()
    ) -> Self:
        """Load from a folder or the hub, safetensors only. The VAE stays in float32: rewards see its images.

        Raises:
            ValueError: no such model, a gated one, or one that is no FLUX.1 in diffusers' layout.
        """
        source = config.source()
        if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
            raise ValueError(
                f"policy.model: the folder {source!r} has no model_index.json; give one in diffusers' layout (as "
                "FluxPipeline.save_pretrained writes it), a hub id such as black-forest-labs/FLUX.1-dev, or 'mini'"
            )
        try:
            pipeline = FluxPipeline.from_pretrained(
                source,
                dtype={"default": dtype, "vae": torch.float32},
                use_safetensors=True,
                revision=config.revision,
                variant=config.variant,
                **quantization_of(config.quantization, dtype, device, absent),
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"policy.model: {config.model!r} can't be loaded: {reason} - is it FLUX.1 in diffusers' layout, "
                "and if it is a gated hub id, have you accepted its licence and run 'hf auth login'?"
            ) from error
        if pipeline.vae_scale_factor * 2 != PIXELS_PER_TOKEN:
            raise ValueError(
                f"policy.model: the VAE of {config.model!r} shrinks by {pipeline.vae_scale_factor}; "
                "this policy needs FLUX.1's, which shrinks by 8"
            )
        settle(pipeline, config, device, FluxTransformer2DModel)
        return cls(pipeline, config, device=device, dtype=dtype)

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """T5 states and pooled CLIP state as ``FluxPipeline`` makes them, reference latents, position ids.

        Without references the model is plain FLUX.

        Raises:
            ValueError: more references than ``max_references``, or one that is too narrow to give a token.
        """
        if len(references) > self.config.max_references:
            raise ValueError(
                f"{len(references)} references given, but policy.max_references is {self.config.max_references}; "
                "give fewer, or raise it"
            )
        text, pooled, _ = self._pipeline.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.config.max_sequence_length
        )
        long_side = self.config.reference_size or (
            _LONG_SIDE_ONE if len(references) == 1 else _LONG_SIDE_SEVERAL
        )
        packed = [self._encode_reference(fit_reference(image, long_side)) for image in references]
        grids = [(latents.shape[-2] // 2, latents.shape[-1] // 2) for latents in packed]
        tokens = [pack(latents) for latents in packed]
        return Conditioning(
            {
                "text": text.to(self.dtype),
                "pooled": pooled.to(self.dtype),
                "references": torch.cat(
                    [*tokens, torch.zeros(1, 0, self.latent_shape[1], device=self.device)], dim=1
                ).to(self.dtype),
                "image_ids": position_ids(self._grid, grids)[None].to(self.device),
            }
        )

    def _encode_reference(self, image: Image) -> Float[Tensor, "1 c h w"]:
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)[None]
        latents = self._vae.encode(pixels.to(self.device)).latent_dist.mode()
        scaled: Tensor = (latents - self._vae.config.shift_factor) * self._vae.config.scaling_factor
        return scaled

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples of one prompt; the reference tokens' own output is dropped."""
        n, s, _ = x.shape
        c = cond.tensors
        time = sigma.to(self.device, torch.float32).expand(n)
        guidance = None if self._guidance is None else torch.full_like(time, self._guidance)
        tokens = torch.cat([x.to(self.dtype), c["references"].expand(n, -1, -1)], dim=1)
        half = self.dtype in (torch.bfloat16, torch.float16)
        with (
            self._exact_time.at(time, guidance),
            torch.autocast(self.device.type, dtype=self.dtype if half else torch.bfloat16, enabled=half),
        ):
            output = self.transformer(
                hidden_states=tokens,
                encoder_hidden_states=c["text"].expand(n, -1, -1),
                pooled_projections=c["pooled"].expand(n, -1),
                timestep=time,
                img_ids=c["image_ids"][0],
                txt_ids=c["image_ids"].new_zeros(c["text"].shape[1], 3),
                guidance=guidance,
                return_dict=False,
            )[0]
        velocity: Tensor = output[:, :s].float()
        return velocity

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU, rounded as diffusers' ``VaeImageProcessor`` does."""
        images = []
        for chunk in torch.split(x.float(), _DECODE_CHUNK):
            latents = (
                unpack(chunk, self._grid) / self._vae.config.scaling_factor + self._vae.config.shift_factor
            )
            pixels = self._vae.decode(latents, return_dict=False)[0]
            images.append(
                ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
            )
        return torch.cat(images)


def position_ids(grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Float[Tensor, "p 3"]:
    """(0, row, column) of each token: the image from the origin, reference k from the corner of what precedes it.

    Args:
        grid: (h, w) of the image in tokens.
        references: (h, w) of each reference, in order.
    """
    ids, row, column = [], 0, 0
    for h, w in (grid, *references):
        rows, columns = torch.meshgrid(
            torch.arange(row, row + h), torch.arange(column, column + w), indexing="ij"
        )
        ids.append(torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3))
        row, column = row + h, column + w
    return torch.cat(ids).float()


def fit_reference(image: Image, long_side: int) -> Image:
    """UNO's preprocessing: scale to a long side of ``long_side`` (Lanczos), crop the centre to whole tokens.

    Raises:
        ValueError: the short side is under one token after scaling.
    """
    width, height = image.size
    scale = long_side / max(width, height)
    width, height = (max(int(side * scale + 1e-6), 1) for side in (width, height))
    kept_w, kept_h = (side // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN for side in (width, height))
    if not (kept_w and kept_h):
        raise ValueError(
            f"a reference of {image.width} x {image.height} pixels is too narrow: scaled to a long side of "
            f"{long_side}, its short side is under {PIXELS_PER_TOKEN}; crop it, or raise policy.reference_size"
        )
    left, top = (width - kept_w) // 2, (height - kept_h) // 2
    scaled = image.convert("RGB").resize((width, height), PILImage.Resampling.LANCZOS)
    return scaled.crop((left, top, left + kept_w, top + kept_h))


def pack(latents: Float[Tensor, "n c height width"]) -> Float[Tensor, "n s c4"]:
    """Every 2 x 2 latents become one token, channel first, as ``FluxPipeline`` packs them."""
    n, c, height, width = latents.shape
    grid = latents.reshape(n, c, height // 2, 2, width // 2, 2)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, c * 4)


def unpack(tokens: Float[Tensor, "n s c4"], grid: tuple[int, int]) -> Float[Tensor, "n c height width"]:
    """The inverse of ``pack`` for a grid of (h, w) tokens."""
    n, _, channels = tokens.shape
    h, w = grid
    return (
        tokens.reshape(n, h, w, channels // 4, 2, 2)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(n, channels // 4, h * 2, w * 2)
    )
