"""The policies on FLUX.2 and FLUX.2 [klein]: references follow the image's tokens, each on its own plane along time.

FLUX.2 encodes text by Mistral 3 and takes guidance as an input; [klein] encodes it by Qwen 3, and its undistilled base
models are guided by a second forward without the prompt. Everything else is the same.

Dimensions: n batch, S image tokens, R tokens of all references, L text tokens, C = 128 channels of a packed token,
D text features, h x w a grid of tokens (16 x 16 pixels each). sigma in [0, 1], 1 is noise; velocity = noise - data.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from PIL.Image import Image
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from customized_grpo.policies import reference_keys, shifts
from customized_grpo.policies.base import PolicyConfig
from customized_grpo.policies.flux2_latents import Flux2Latents
from customized_grpo.policies.flux2_tokens import SHORTEST, position_ids, shrunk_size, text_ids
from customized_grpo.policies.flux_tokens import scale_and_crop, whole_tokens
from customized_grpo.policies.pipelines import FromLibrary, PipelineConfig, autocast, run_tokens
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.sections import ShiftRule
from customized_grpo.types import Conditioning

_KV = "Flux2KleinKVPipeline"
"""A checkpoint whose index has this class was trained with references that attend to themselves alone."""
_KV_MODEL = "black-forest-labs/FLUX.2-klein-9b-kv"
"""Such a checkpoint, for estimates alone: they don't open its index."""


class _Config(PipelineConfig):
    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {"dynamic": shifts.flux2}
    channels: ClassVar[int] = 128
    # Of first_block diffusers 0.42 expects the last block's output as a pair, and FLUX.2's is one fused sequence.
    caches: ClassVar[tuple[str, ...]] = ("taylorseer",)

    max_sequence_length: int = Field(default=512, ge=1, le=512, description="text tokens; shorter ones are padded")
    reference_size: int = Field(
        default=1024,
        ge=SHORTEST,
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

    distilled: ClassVar[frozenset[str]] = frozenset(
        ("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-9B", _KV_MODEL)
    )
    distilled_forms: ClassVar[frozenset[str]] = frozenset({_KV})
    distilled_steps: ClassVar[int | None] = 4

    type: Literal["flux2-klein"] = "flux2-klein"
    guidance: NonNegativeFloat = Field(
        default=4.0,
        description="classifier-free guidance of the base models, a second forward where above 1; without effect on "
        "the step-distilled ones",
    )

    def prompt_tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """Qwen 3's, with the marks of a message around a prompt."""
        return (PromptTokenizer(self.source, "tokenizer", self.max_sequence_length, self.revision, _message_frame),)

    def kept_tokens(self, references: int, text: int) -> int:
        """Those of references that attend to themselves alone."""
        return references if self._closed() else 0

    def num_forwards(self) -> int:
        """2 with guidance, as the section doesn't show whether the model is distilled; closed references have none."""
        return 2 if self.guidance > 1 and not self._closed() else 1

    def _closed(self) -> bool:
        return self.model == _KV_MODEL or self.known_index().get("_class_name") == _KV


def _system_frame(tokenizer: Any) -> int:
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    return len(tokenizer.apply_chat_template(format_input([""], SYSTEM_MESSAGE), return_dict=False)[0])


def _message_frame(tokenizer: Any) -> int:
    given = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": False}
    return len(tokenizer.apply_chat_template([{"role": "user", "content": ""}], **given))


class _Flux2(Flux2Latents):
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

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """Hidden states of the text, latents of the references, positions of all image tokens.

        Without references the model draws from text alone.

        Raises:
            ValueError: more references than ``max_references``, or one of a shape that the model doesn't take; or the
                text encoder was left out.
        """
        self.config.check_references([image.size for image in references])
        tokens, grids = self._reference_tokens([self._pixels(image) for image in references])
        return Conditioning(
            {
                **self._encode_text(prompt),
                "references": tokens,
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

    def _pixels(self, image: Image) -> Float[Tensor, "1 3 height width"]:
        fitted = scale_and_crop(image, shrunk_size(image.size, self.config.reference_size))
        pixels: Tensor = self._pipeline.image_processor.preprocess(fitted)
        return pixels

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
    pipeline_forms: ClassVar[tuple[str, ...]] = (_KV,)

    @cached_property
    def _closed(self) -> bool:
        """Whether references attend to themselves alone: the checkpoint's index says so by its pipeline's class."""
        return type(self._pipeline).__name__ == _KV

    def _encode_text(self, prompt: str) -> dict[str, Float[Tensor, "1 l d"]]:
        # The pipeline of closed references has no guidance, and doesn't say whether its model is distilled.
        guided = self.config.guidance > 1 and not self._closed and not self._pipeline.config.is_distilled
        return {"text": self._states(prompt)} | ({"negative": self._negative} if guided else {})

    @cached_property
    def _negative(self) -> Float[Tensor, "1 l d"]:
        """Encoded empty prompt, the same for every prompt."""
        return self._states("")

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples, guided if the conditioning has a negative; see ``_forward``.

        Where references attend to themselves alone, their keys and values are computed apart from the image, once for
        all samples of a prompt: of ``prefill`` or here, by the same forward, so that kept ones change no bit.
        """
        time = sigma.to(self.device, torch.float32).expand(len(x))
        if self._closed and cond.tensors["references"].shape[1]:
            return self._with_keys(x, time, self.prefill(cond))
        return self._guided(cond, lambda text: self._forward(x, time, None, cond, cond.tensors[text]))

    def prefill(self, cond: Conditioning) -> Conditioning:
        """With the references' keys and values of every block, where they attend to themselves alone."""
        references = cond.tensors["references"]
        if not self._closed or reference_keys.KEYS in cond.tensors or not references.shape[1]:
            return cond
        time = torch.zeros(len(references), device=self.device)
        text = torch.zeros(len(references), 1, cond.tensors["text"].shape[2], device=self.device, dtype=self.dtype)
        # Not even a reference's modulation depends on the image: it is that of time 0.
        with self._exact.at(time), autocast(self.device, self.dtype):
            _, cache = self.transformer(
                hidden_states=references,
                encoder_hidden_states=text,
                timestep=time,
                img_ids=cond.tensors["image_ids"][:, self.latent_shape[0] :],
                txt_ids=text_ids(1, self.device)[None],
                kv_cache_mode="extract",
                num_ref_tokens=references.shape[1],
                return_dict=False,
            )
        return Conditioning({**cond.tensors, **reference_keys.tensors(cache)})

    def _with_keys(
        self, x: Float[Tensor, "n s c"], time: Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        with self._exact.at(time * 1000), autocast(self.device, self.dtype):
            output: Tensor = self.transformer(
                hidden_states=x.to(self.dtype),
                encoder_hidden_states=cond.tensors["text"].expand(len(x), -1, -1),
                timestep=time,
                img_ids=cond.tensors["image_ids"][:, : self.latent_shape[0]],
                txt_ids=text_ids(cond.tensors["text"].shape[1], self.device)[None],
                kv_cache=reference_keys.cache(cond.tensors, len(x), self._blocks),
                kv_cache_mode="cached",
                return_dict=False,
            )[0]
        return output.float()

    @cached_property
    def _blocks(self) -> tuple[int, int]:
        """Number of blocks with two streams, and with one."""
        config = self._pipeline.transformer.config
        return config.num_layers, config.num_single_layers
