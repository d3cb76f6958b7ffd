"""Qwen-Image-2.1: one causal sequence; references stand in the text where Qwen3-VL sees them, the image stands last.

Text and references attend to nothing behind them and are modulated as at sigma = 0, so their keys and values are the
same at all noise levels and for all samples of a prompt. A forward is therefore two: one of this prefix, once for all
its samples, and one of the images, which read the prefix's keys and values. Both are calls of diffusers' transformer
(``kv_cache_mode`` extract and cached). A rollout keeps the prefix; a replay computes it anew, with its gradient.

Dimensions: n batch, m prompts (1 or n), S image tokens, R tokens of all references, L text tokens with one slot for
each 2 x 2 of R, D text features, C = 64 channels of a token, which is one latent (16 x 16 pixels), h x w a grid of
tokens. sigma in [0, 1], 1 is noise; velocity = noise - data.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, UInt8
from PIL.Image import Image
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from customized_grpo.policies.base import PolicyConfig
from customized_grpo.policies.pipeline_policy import PipelinePolicy
from customized_grpo.policies.pipelines import FromLibrary, autocast
from customized_grpo.policies.pixels import decode_images, pixels_of
from customized_grpo.policies.qwen3_vl import PictureProcessor
from customized_grpo.policies.qwen_image import QwenConfig, area_size, check_length
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.types import Conditioning

_SLOT = 4
"""Tokens of one slot of the text."""
_LEAST = (1, 2, 2)
"""The smallest image: what stands behind a prefix that is computed alone."""
_SIDE = 32
"""Pixels along a slot."""
_SHRINKS = 16


class QwenImage21Config(QwenConfig):
    """A recipe's section ``policy`` with ``type: qwen-image-2.1``."""

    not_encoded: ClassVar[frozenset[str]] = QwenConfig.not_encoded | {"keep_keys"}
    side_of: ClassVar[int] = _SIDE
    vae_shrinks: ClassVar[int] = _SHRINKS
    prefix: ClassVar[bool] = True

    type: Literal["qwen-image-2.1"] = "qwen-image-2.1"
    guidance: NonNegativeFloat = Field(
        default=1.0, description="diffusers' true_cfg_scale: a second forward where above 1; the model is made for 1"
    )
    max_references: int = Field(default=10, ge=1, le=10)
    keep_keys: bool = Field(
        default=True,
        description="a rollout keeps the keys and values of text and references: the same bits, less time, more memory",
    )

    def fitted_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """The pipeline's preprocessing, the same for the reference's tokens and for Qwen3-VL."""
        fitted = area_size(size, self.reference_size)
        check_length(size, fitted, "Qwen3-VL")
        return fitted

    def prompt_tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """Qwen3-VL's, which cuts nothing off."""
        return (PromptTokenizer(self.source, "processor", None, self.revision),)

    def kept_tokens(self, references: int, text: int) -> int:
        """All of them, with ``keep_keys``."""
        return references + text if self.keep_keys else 0


@final
class QwenImage21(PipelinePolicy):
    """Qwen-Image-2.1 on diffusers' own transformer, from text alone or with up to ten references."""

    Config: ClassVar[type[PolicyConfig]] = QwenImage21Config
    pipeline_class: ClassVar[Any] = FromLibrary("diffusers", "QwenImage21Pipeline")
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    batch_wide: ClassVar[tuple[str, ...]] = ("slots", "negative_slots")
    lora_targets: ClassVar[tuple[str, ...]] = (
        r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
        r"transformer_blocks\.\d+\.img_mlp\.(proj|gate_layer|out)",
    )

    processor: ClassVar[str] = "processor"
    processor_class: ClassVar[Any] = PictureProcessor
    processor_at_once: ClassVar[bool] = True
    time_embedding: ClassVar[str] = "time_text_embed"

    def __init__(self, pipeline: Any, config: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(pipeline, config, device=device, dtype=dtype)
        _check_model(pipeline, config)
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(self._vae.config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(self._vae.config.latents_std, device=device).view(shape)

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """Hidden states of Qwen3-VL for references and text, which of them are slots, latents of the references, grids.

        Without references the model draws from text alone.

        Raises:
            ValueError: more references than ``max_references``, or one that is too narrow; or the text encoder was left
                out.
        """
        self.config.check_references([image.size for image in references])
        resized = [self._resized(image) for image in references]
        encoded = [self._encoded(self._pipeline.image_processor.preprocess(image)) for image in resized]
        packed = [latents.flatten(2).transpose(1, 2) for latents in encoded]
        none = torch.zeros(1, 0, self.config.channels, device=self.device)
        tensors = {"references": torch.cat([*packed, none], dim=1).to(self.dtype)}
        # The transformer needs the grids as numbers: kept as shapes, they are never read from the device.
        for number, latents in enumerate(encoded):
            tensors[f"grid_{number}"] = torch.empty(1, *latents.shape[-2:], 0, device=self.device)
        tensors["text"], tensors["slots"] = self._states(prompt, resized)
        if self.config.guidance > 1:
            tensors["negative"], tensors["negative_slots"] = self._states(self.config.negative_prompt, resized)
        return Conditioning(tensors)

    def _resized(self, image: Image) -> Image:
        # The VAE reads and writes four channels, the last of which is opacity.
        width, height = area_size(image.size, self.config.reference_size)
        resized: Image = self._pipeline.image_processor.resize(image.convert("RGBA"), height, width)
        return resized

    def _encoded(self, pixels: Float[Tensor, "1 4 _ _"]) -> Float[Tensor, "1 c height width"]:
        latents: Tensor = self._vae.encode(pixels.unsqueeze(2).to(self.device)).latent_dist.mode()[:, :, 0]
        return (latents - self._mean) / self._std

    @torch.no_grad()
    def latents(self, images: Sequence[Image]) -> Float[Tensor, "n s c"]:
        """See ``Policy.latents``; wholly opaque."""
        encoded = [self._encoded(pixels_of([image.convert("RGBA")])) for image in images]
        return torch.cat([one.flatten(2).transpose(1, 2) for one in encoded]).float()

    def _states(self, prompt: str, pictures: Sequence[Image]) -> tuple[Float[Tensor, "1 l d"], Bool[Tensor, "1 l"]]:
        self._require_text_encoder()
        states, _, slots = self._pipeline.encode_prompt(prompt, image=list(pictures) or None, device=self.device)
        return states.to(self.dtype), slots

    @torch.no_grad()
    def prefill(self, cond: Conditioning) -> Conditioning:
        """Keys and values of text and references beside the conditioning, unless ``keep_keys`` is false."""
        if not self.config.keep_keys:
            return cond
        kept: dict[str, Tensor] = {}
        for text in ("text", "negative"):
            if text in cond.tensors:
                pairs, _ = self._prefix(cond, text)
                for number, (key, value) in enumerate(pairs):
                    kept |= {f"{text}_key_{number}": key, f"{text}_value_{number}": value}
        return Conditioning({**cond.tensors, **kept})

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples, guided if the conditioning has a negative.

        Raises:
            ValueError: a gradient is asked for with the keys of ``prefill``, which would be taken for constants.
        """
        time = sigma.to(self.device, torch.float32).expand(len(x))
        return self._guided(cond, lambda text: self._forward(x, time, cond, text))

    def _forward(
        self,
        x: Float[Tensor, "n s c"],
        time: Float[Tensor, " n"],
        cond: Conditioning,
        text: Literal["text", "negative"],
    ) -> Float[Tensor, "n s c"]:
        """float32 output of the transformer for the images' own tokens."""
        output = None
        if f"{text}_key_0" in cond.tensors:
            if torch.is_grad_enabled():
                raise ValueError(
                    "the keys and values that prefill kept carry no gradient; give the conditioning of encode, or "
                    "torch.no_grad()"
                )
            blocks = range(self._pipeline.transformer.config.num_layers)
            pairs = [(cond.tensors[f"{text}_key_{one}"], cond.tensors[f"{text}_value_{one}"]) for one in blocks]
        else:
            pairs, output = self._prefix(cond, text)
        # A cache of its own: where activations are recomputed, the prefix writes to its cache again.
        cache = self._new_cache()
        for layer, pair in zip(cache.layer_caches, pairs, strict=True):
            layer.store(*(one.expand(len(x), -1, -1, -1) for one in pair))
        image = (1, *self.config.grid)
        velocity: Tensor = self._call(x.to(self.dtype), time, cond, text, image, cache, "cached").float()
        if output is not None and torch.is_grad_enabled():
            # The prefix's gradient comes by its keys alone. FSDP2 gathers a block's weights for the backward pass when
            # a gradient reaches the block's output, so one of zero has to.
            velocity = velocity + 0 * output.sum()
        return velocity

    def _prefix(
        self, cond: Conditioning, text: str
    ) -> tuple[list[tuple[Float[Tensor, "m p h d"], Float[Tensor, "m p h d"]]], Float[Tensor, "m p_out c"]]:
        """Keys and values of text and references in each block, and the transformer's output, which means nothing."""
        cache, m = self._new_cache(), len(cond.tensors[text])
        nothing = torch.zeros(m, _SLOT, self.config.channels, device=self.device, dtype=self.dtype)
        time = torch.zeros(m, device=self.device)
        output = self._call(nothing, time, cond, text, _LEAST, cache, "extract")
        return [layer.get() for layer in cache.layer_caches], output

    def _new_cache(self) -> Any:
        from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

        return QwenImage21KVCache(self._pipeline.transformer.config.num_layers)

    def _call(
        self,
        x: Float[Tensor, "n s c"],
        time: Float[Tensor, " n"],
        cond: Conditioning,
        text: str,
        image: tuple[int, int, int],
        cache: Any,
        mode: Literal["extract", "cached"],
    ) -> Float[Tensor, "n s_out c"]:
        """The transformer's output in its dtype: of all tokens, or with ``cached`` of the images' alone."""
        n, c = len(x), cond.tensors
        slots = c["slots" if text == "text" else "negative_slots"]
        grids = sorted((name for name in c if name.startswith("grid_")), key=lambda name: int(name[5:]))
        behind = torch.ones(1, x.shape[1] // _SLOT, dtype=torch.bool, device=slots.device)
        # Text and references are modulated as at time 0, which is embedded as a last row.
        with self._exact.at(torch.cat([time, time[:1] * 0])), autocast(self.device, self.dtype):
            output: Tensor = self.transformer(
                hidden_states=torch.cat([c["references"].expand(n, -1, -1), x], dim=1),
                encoder_hidden_states=c[text].expand(n, -1, -1),
                timestep=time,
                img_shapes=[[*((1, *c[name].shape[1:3]) for name in grids), image]],
                img_mask=torch.cat([slots, behind], dim=1),
                kv_cache=cache,
                kv_cache_mode=mode,
                return_dict=False,
            )[0]
        return output

    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU; what the model made transparent is laid on white."""

        def pixels(tokens: Tensor) -> Tensor:
            latents = tokens.transpose(1, 2).unflatten(2, self.config.grid) * self._std + self._mean
            decoded: Tensor = self._vae.decode(latents.unsqueeze(2), return_dict=False)[0][:, :, 0]
            color, opacity = decoded[:, :3], decoded[:, 3:] / 2 + 0.5
            return 1 - (1 - color) * opacity

        return decode_images(x, pixels)


def _check_model(pipeline: Any, config: QwenImage21Config) -> None:
    """Raise a ``ValueError`` for a model that this policy would compute otherwise than its pipeline."""
    vae, transformer = pipeline.vae.config, pipeline.transformer.config
    needed = {
        f"a VAE that shrinks by {_SHRINKS}": 2 ** len(vae.temperal_downsample) == _SHRINKS and vae.patch_size is None,
        "a VAE with opacity (four channels)": vae.in_channels == vae.out_channels == 4,
        f"latents of {config.channels} channels": vae.z_dim == transformer.in_channels == config.channels,
        "unpatched latents (patch_size 1)": transformer.patch_size == 1,
        "text and references modulated at time 0 (causal_condition)": transformer.causal_condition,
        "no noise levels of its own (sample_sigmas), as step-distilled models have": not pipeline.config.sample_sigmas,
    }
    for need, met in needed.items():
        if not met:
            raise ValueError(
                f"policy.model: {config.model!r} can't be trained by policy.type {config.type}: it needs {need}"
            )
