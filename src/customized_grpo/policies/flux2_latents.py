"""Base of the policies that draw in FLUX.2's latents: its VAE, whose batch norm's statistics scale the tokens.

Dimensions: n batch, S image tokens, R tokens of all references, C = 128 channels of a packed token (2 x 2 latents),
h x w a grid of tokens (16 x 16 pixels each).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

from customized_grpo.policies.flux_tokens import pack, unpack
from customized_grpo.policies.pipeline_policy import PipelinePolicy
from customized_grpo.policies.pixels import decode_images, pixels_of


class Flux2Latents(PipelinePolicy):
    """A policy on ``AutoencoderKLFlux2``."""

    def __init__(self, pipeline: Any, config: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(pipeline, config, device=device, dtype=dtype)
        self._mean = self._vae.bn.running_mean.float()
        self._std = (self._vae.bn.running_var.float() + self._vae.config.batch_norm_eps).sqrt()

    def _reference_tokens(
        self, pictures: Sequence[Float[Tensor, "1 3 _ _"]]
    ) -> tuple[Float[Tensor, "1 r c"], list[tuple[int, int]]]:
        """Tokens of all references, and (h, w) of each: of the mode of the VAE's posterior, as in the pipelines."""
        tokens = [torch.zeros(1, 0, self.config.channels, device=self.device)]
        grids = []
        for pixels in pictures:
            latents = self._encoded(pixels)
            tokens.append(self._scaled(latents))
            grids.append((latents.shape[-2] // 2, latents.shape[-1] // 2))
        return torch.cat(tokens, dim=1).to(self.dtype), grids

    def _encoded(self, pixels: Float[Tensor, "1 3 _ _"]) -> Float[Tensor, "1 c4 _ _"]:
        latents: Tensor = self._vae.encode(pixels.to(self.device)).latent_dist.mode()
        return latents

    def _scaled(self, latents: Float[Tensor, "1 c4 _ _"]) -> Float[Tensor, "1 s c"]:
        return (pack(latents) - self._mean) / self._std

    @torch.no_grad()
    def latents(self, images: Sequence[Image]) -> Float[Tensor, "n s c"]:
        """See ``Policy.latents``."""
        return torch.cat([self._scaled(self._encoded(pixels_of([image]))) for image in images]).float()

    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU."""

        def pixels(tokens: Tensor) -> Tensor:
            latents = unpack(tokens * self._std + self._mean, self.config.grid)
            decoded: Tensor = self._vae.decode(latents, return_dict=False)[0]
            return decoded

        return decode_images(x, pixels)
