"""Shared base of UNO and Kontext: FLUX.1 with the references' tokens appended to the image's, in one sequence.

Dimensions: n batch, S image tokens, R tokens of all references, L text tokens, C = 64 channels of a packed
token, h x w a grid of tokens (16 x 16 pixels each), H x W pixels. sigma in [0, 1], 1 is noise;
velocity = noise - data.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

from customized_grpo.policies.adapters.base_lora import with_base_lora
from customized_grpo.policies.base import Policy
from customized_grpo.policies.flux_loading import FluxConfig, load_flux
from customized_grpo.policies.flux_tokens import pack, unpack
from customized_grpo.policies.pipelines import ExactInputs, run_tokens
from customized_grpo.policies.pixels import decode_images, pixels_of
from customized_grpo.types import Conditioning


class Flux(Policy):
    """FLUX.1 on diffusers' own transformer; a subclass defines scaling and positions of references.

    The reference latents are the mode of the VAE's posterior. UNO's code samples it; the mode is deterministic,
    so that a cached and a fresh conditioning agree, and is within the posterior's (very small) width.
    """

    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    batch_wide: ClassVar[tuple[str, ...]] = ("image_ids",)
    # Full names, because the suffix "proj_out" alone would match the model's last layer too.
    lora_targets: ClassVar[tuple[str, ...]] = (
        r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
        r"single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)",
    )
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "uno": (lora_targets[0], r"single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_out)"),
    }
    """``uno``: the layers that UNO's LoRA has."""

    def __init__(self, pipeline: Any, config: FluxConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.transformer = pipeline.transformer
        self.pipeline = pipeline
        self._vae = pipeline.vae
        self.latent_shape = (config.latent_shape()[0], pipeline.transformer.config.in_channels)
        self._guidance = config.guidance if pipeline.transformer.config.guidance_embeds else None
        self._exact = ExactInputs(pipeline.transformer.time_text_embed)

    @classmethod
    def load(cls, config: FluxConfig, *, device: torch.device, dtype: torch.dtype, absent: Sequence[str] = ()) -> Self:
        """Load a frozen model, its base LoRA included, without the parts that are ``absent``.

        Raises:
            ValueError: see ``load_flux`` and ``with_base_lora``.
        """
        pipeline = load_flux(config, cls.pipeline_class, device=device, dtype=dtype, absent=absent)
        beneath = with_base_lora(
            pipeline.transformer, config.base_lora, absent=absent, offline=config.offline, device=device, dtype=dtype
        )
        policy = cls(pipeline, config, device=device, dtype=dtype)
        policy.base_lora = beneath
        return policy

    def resized(self, section: Any) -> Self:
        """See ``Policy.resized``."""
        other = copy(self)
        other.config, other.latent_shape = section, (section.latent_shape()[0], self.latent_shape[1])
        return other

    def save_pipeline(self, folder: Path) -> None:
        """Write the pipeline in diffusers' layout."""
        self.pipeline.save_pretrained(folder)

    @abstractmethod
    def fit(self, image: Image, count: int) -> Image:
        """One of ``count`` references, scaled to whole tokens."""

    @abstractmethod
    def ids(self, grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Float[Tensor, "p 3"]:
        """Positions of the image's tokens, a grid of (h, w), and then of each reference's."""

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """T5 states and pooled CLIP state as the pipeline makes them, reference latents, position ids.

        Raises:
            ValueError: too few or too many references, or one that is too narrow to give a token.
        """
        self.config.check_references([image.size for image in references])
        text, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.config.max_sequence_length
        )
        return self.condition(text, pooled, [self._latents(self.fit(image, len(references))) for image in references])

    def condition(
        self,
        text: Float[Tensor, "1 l c1"],
        pooled: Float[Tensor, "1 c2"],
        references: Sequence[Tensor],
    ) -> Conditioning:
        """The conditioning of encoded text and of references' scaled latents, (1, 16, height, width) each."""
        grids = [(latents.shape[-2] // 2, latents.shape[-1] // 2) for latents in references]
        tokens = [pack(latents) for latents in references]
        return Conditioning(
            {
                "text": text.to(self.dtype),
                "pooled": pooled.to(self.dtype),
                "references": torch.cat(
                    [*tokens, torch.zeros(1, 0, self.latent_shape[1], device=self.device)], dim=1
                ).to(self.dtype),
                "image_ids": self.ids(self.config.grid, grids)[None].to(self.device),
            }
        )

    def _latents(self, image: Image) -> Float[Tensor, "1 c height width"]:
        latents = self._vae.encode(pixels_of([image]).to(self.device)).latent_dist.mode()
        scaled: Tensor = (latents - self._vae.config.shift_factor) * self._vae.config.scaling_factor
        return scaled

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples of one prompt; the reference tokens' own output is dropped."""
        c = cond.tensors
        time = sigma.to(self.device, torch.float32).expand(len(x))
        guidance = None if self._guidance is None else torch.full_like(time, self._guidance)
        exact = [1000 * value for value in (time, guidance) if value is not None]
        inputs = {
            "pooled_projections": c["pooled"].expand(len(x), -1),
            "timestep": time,
            "img_ids": c["image_ids"][0],
            "txt_ids": c["image_ids"].new_zeros(c["text"].shape[1], 3),
            "guidance": guidance,
        }
        return run_tokens(self, self._exact.at(*exact), x, c["text"], cond, inputs)

    @torch.no_grad()
    def latents(self, images: Sequence[Image]) -> Float[Tensor, "n s c"]:
        """See ``Policy.latents``."""
        return torch.cat([pack(self._latents(image)) for image in images])

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU, rounded as diffusers' ``VaeImageProcessor`` does."""
        scale, shift = self._vae.config.scaling_factor, self._vae.config.shift_factor
        return decode_images(
            x, lambda chunk: self._vae.decode(unpack(chunk, self.config.grid) / scale + shift, return_dict=False)[0]
        )
