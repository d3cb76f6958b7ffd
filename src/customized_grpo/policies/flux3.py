"""The policy on FLUX.3 [klein]: text, image and references run through blocks of their own, then through common ones.

References and text are at time 0, and each reference has a place of its own on the axis along which text advances. The
base is guided by a second forward without the prompt. The step-distilled form is a flow map: it also takes the time
that a step goes to, and has no guidance.

Dimensions: n batch, S image tokens, R tokens of all references, L text tokens, C = 128 channels of a packed token,
D text features, T sampler steps, h x w a grid of tokens (16 x 16 pixels each). sigma in [0, 1], 1 is noise;
velocity = noise - data.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, Literal, Self, final

import torch
from jaxtyping import Float
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from customized_grpo.paths import MODULAR_INDEX
from customized_grpo.policies import shifts
from customized_grpo.policies.base import PolicyConfig
from customized_grpo.policies.flux2_latents import Flux2Latents
from customized_grpo.policies.flux2_tokens import text_ids
from customized_grpo.policies.flux3_tokens import MANY, ONE, fitted_size, image_ids, scaled_size
from customized_grpo.policies.modular import Parts, open_modular, part_folder, save_modular
from customized_grpo.policies.pipeline_index import check_class, read_index
from customized_grpo.policies.pipelines import FromLibrary, PipelineConfig, autocast, explained
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.sections import ShiftRule
from customized_grpo.types import Conditioning

_DISTILLED: Final = "Flux3DistilledModularPipeline"
_CLASSES: Final = {
    "transformer": ("diffusers", "Flux3Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLFlux2"),
    "text_encoder": ("transformers", "Qwen3VLForConditionalGeneration"),
}


class Flux3KleinConfig(PipelineConfig):
    """A recipe's section ``policy`` with ``type: flux3-klein``."""

    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {"dynamic": shifts.flux3}
    channels: ClassVar[int] = 128
    distilled: ClassVar[frozenset[str]] = frozenset({"black-forest-labs/flux-3-image-klein"})
    distilled_forms: ClassVar[frozenset[str]] = frozenset({_DISTILLED})
    distilled_steps: ClassVar[int | None] = 16

    type: Literal["flux3-klein"] = "flux3-klein"
    guidance: float = Field(
        default=3.5,
        ge=1.0,
        description="classifier-free guidance of the base model, a second forward where above 1; without effect on the "
        "step-distilled one",
    )
    max_sequence_length: int = Field(
        default=800,
        ge=1,
        le=8192,
        description="text tokens; a shorter prompt is padded to a multiple of 80. diffusers: 8192",
    )
    reference_size: int | None = Field(
        default=None,
        ge=64,
        description="a reference of more pixels than a square of this side is shrunk to as many; null: diffusers' 2048 "
        "for one reference, which is padded to whole tokens, and 1024 for each of several, which are cropped",
    )
    max_references: int = Field(default=10, ge=1, le=10, description="most references of an example")

    def reference_side(self) -> int:
        """``side`` of one reference."""
        return self.side(1)

    def side(self, count: int) -> int:
        """Side of the square whose pixels each of ``count`` references has at most."""
        return self.reference_size or (ONE if count == 1 else MANY)

    def fitted_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """The pipeline's preprocessing."""
        return fitted_size(size, count, self.side(count))

    def prompt_tokens(self) -> int:
        """Its ``max_sequence_length``."""
        return self.max_sequence_length

    def prompt_tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """Qwen 3 VL's, with the marks of a message around a prompt."""
        return (PromptTokenizer(self.source, "tokenizer", self.max_sequence_length, self.revision, _frame),)

    def num_forwards(self) -> int:
        """2 with guidance, as the section doesn't show whether the model is distilled."""
        return 2 if self.guidance > 1 else 1


def _frame(tokenizer: Any) -> int:
    given = {"add_generation_prompt": True, "return_dict": False}
    return len(tokenizer.apply_chat_template([{"role": "user", "content": ""}], **given))


@final
class Flux3Klein(Flux2Latents):
    """FLUX.3 [klein], the base or its step-distilled form, for up to ten references."""

    Config: ClassVar[type[PolicyConfig]] = Flux3KleinConfig
    pipeline_class: ClassVar[Any] = FromLibrary("diffusers", "Flux3ModularPipeline")
    pipeline_forms: ClassVar[tuple[str, ...]] = (_DISTILLED,)
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    batch_wide: ClassVar[tuple[str, ...]] = ("reference_ids",)
    # Not the references' own five blocks: an example without references gives them no gradient, and data-parallel
    # training would wait for one. Keys and values by which the image reads references are in the common blocks.
    lora_targets: ClassVar[tuple[str, ...]] = (
        r"(mode_blocks\.image|txt_mode_blocks|single_transformer_blocks)\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
        r"(mode_blocks\.image|txt_mode_blocks|single_transformer_blocks)\.\d+\.ff\.linear_(in|out)",
    )
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "every_block": (
            r"(mode_blocks\.\w+|txt_mode_blocks|single_transformer_blocks)\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
            r"(mode_blocks\.\w+|txt_mode_blocks|single_transformer_blocks)\.\d+\.ff\.linear_(in|out)",
        )
    }

    # AutoProcessor's Qwen3VLProcessor can't be made without torchvision; for text its tokenizer and chat template, in
    # the same folder, are enough.
    processor: ClassVar[str] = "tokenizer"
    processor_class: ClassVar[Any] = FromLibrary("transformers", "AutoTokenizer")
    time_embedding: ClassVar[str] = "time_proj"

    @classmethod
    def _open(cls, config: Any, *, device: torch.device, dtype: torch.dtype, absent: Sequence[str]) -> Parts:
        source, index = read_index(cls.pipeline_class, config, MODULAR_INDEX)
        check_class(index["_class_name"], (cls.pipeline_class.__name__, *cls.pipeline_forms), config)
        parts = open_modular(config, source, index, _CLASSES, device=device, dtype=dtype, absent=absent)
        flow_map = bool(parts.transformer.config.flow_map)
        if flow_map != (index["_class_name"] == _DISTILLED):
            raise ValueError(
                f"policy.model: {config.model!r} holds a {index['_class_name']}, but its transformer has flow_map "
                f"{str(flow_map).lower()}: {_DISTILLED} needs true, the base false; give a model whose parts fit"
            )
        if cls.processor not in absent:
            with explained(config):
                folder = part_folder(config, source, index, cls.processor)
                parts.tokenizer = cls.processor_class.from_pretrained(str(folder))
        return parts

    def save_pipeline(self, folder: Path) -> None:
        """Write the parts and an index that names them there, as ``save_pretrained`` of a modular pipeline does."""
        source, index = read_index(self.pipeline_class, self.config, MODULAR_INDEX)
        save_modular(self._pipeline, folder, self.config, source, index)

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """Hidden states of the text, latents of the references and their positions.

        Raises:
            ValueError: more references than ``max_references``, or one that is too narrow; or the text encoder was left
                out.
        """
        self.config.check_references([image.size for image in references])
        tokens, grids = self._reference_tokens([self._pixels(image, len(references)) for image in references])
        ids = [image_ids(grid, -1 - k) for k, grid in enumerate(grids)]
        tensors = {
            "text": self._states(prompt),
            "references": tokens,
            "reference_ids": torch.cat([*ids, torch.zeros(0, 4)])[None].to(self.device),
        }
        if self.config.guidance > 1 and not self._flow_map:
            tensors["negative"] = self._negative
        return Conditioning(tensors)

    @cached_property
    def _flow_map(self) -> bool:
        return bool(self._pipeline.transformer.config.flow_map)

    @cached_property
    def _negative(self) -> Float[Tensor, "1 l d"]:
        """Encoded empty prompt, the same for every prompt."""
        return self._states("")

    def _states(self, prompt: str) -> Float[Tensor, "1 l d"]:
        from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

        self._require_text_encoder()
        tokenizer = self._pipeline.tokenizer
        states: Tensor = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
            self._pipeline.text_encoder,
            SimpleNamespace(apply_chat_template=tokenizer.apply_chat_template, tokenizer=tokenizer),
            prompt,
            device=self.device,
            max_sequence_length=self.config.max_sequence_length,
        )
        return states.to(self.dtype)

    def _pixels(self, image: Image, count: int) -> Float[Tensor, "1 3 height width"]:
        scaled = scaled_size(image.size, count, self.config.side(count))
        if scaled != image.size:
            image = self._processor.resize(image, height=scaled[1], width=scaled[0])
        pixels: Tensor = self._processor.preprocess(image, resize_mode="fill" if count == 1 else "crop")[0]
        return pixels

    @cached_property
    def _processor(self) -> Any:
        from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor

        return Flux3ImageProcessor()

    def on_grid(self, cond: Conditioning, sigmas: Float[Tensor, " t_plus_1"]) -> Conditioning:
        """With the noise levels, of a flow map: each step goes to the next of them."""
        return Conditioning({**cond.tensors, "levels": sigmas[None]}) if self._flow_map else cond

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples, guided if the conditioning has a negative.

        A flow map's is the mean velocity to the next level below sigma of ``on_grid``; without a grid, the velocity at
        sigma itself.
        """
        time = sigma.to(self.device, torch.float32).expand(len(x))
        return self._guided(cond, lambda text: self._forward(x, time, cond, cond.tensors[text]))

    def _forward(
        self,
        x: Float[Tensor, "n s c"],
        time: Float[Tensor, " n"],
        cond: Conditioning,
        text: Float[Tensor, "m l d"],
    ) -> Float[Tensor, "n s c"]:
        inputs: dict[str, Any] = {}
        if (references := cond.tensors["references"]).shape[1]:
            inputs["image_cond_hidden_states"] = references.expand(len(x), -1, -1)
            inputs["image_cond_ids"] = cond.tensors["reference_ids"][0]
        times = [time * 1000, time * 0]
        if self._flow_map:
            inputs["target_timestep"] = target = self._target(time, cond)
            times.append(target * 1000)
        with self._exact.in_turn(*times), autocast(self.device, self.dtype):
            output: Tensor = self.transformer(
                hidden_states=x.to(self.dtype),
                encoder_hidden_states=text.expand(len(x), -1, -1),
                timestep=time,
                img_ids=self._image_ids,
                txt_ids=text_ids(text.shape[1], self.device),
                return_dict=False,
                **inputs,
            )[0]
        return output.float()

    def _target(self, time: Float[Tensor, " n"], cond: Conditioning) -> Float[Tensor, " n"]:
        if "levels" not in cond.tensors:
            return time
        levels = cond.tensors["levels"]
        return torch.where(levels < time[:, None], levels, 0.0).amax(dim=1)

    def resized(self, section: Any) -> Self:
        """See ``Policy.resized``; positions of the image's tokens are of the new size."""
        other = super().resized(section)
        vars(other).pop("_image_ids", None)
        return other

    @cached_property
    def _image_ids(self) -> Float[Tensor, "s 4"]:
        return image_ids(self.config.grid, 0).to(self.device)
