"""Base of the policies on FLUX.2 and both Qwen-Images: a diffusers pipeline, one part of which is read apart."""

import json
from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from pathlib import Path
from shutil import copytree
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.paths import MODEL_INDEX
from customized_grpo.policies.adapters.base_lora import with_base_lora
from customized_grpo.policies.base import Policy
from customized_grpo.policies.pipeline_index import check_class, fetched, read_index
from customized_grpo.policies.pipelines import ExactInputs, explained, open_pipeline
from customized_grpo.types import Conditioning


class PipelinePolicy(Policy):
    """A policy on a pipeline whose own class for one part needs torchvision.

    Attributes:
        processor: name of that part.
        processor_class: class of transformers that reads it instead.
        processor_at_once: whether the pipeline is made with it, as it asks it for something; else it is added later, as
            the pipeline takes no part of another class.
        time_embedding: name of the transformer's module that embeds sigma.
    """

    processor: ClassVar[str]
    processor_class: ClassVar[Any]
    processor_at_once: ClassVar[bool] = False
    time_embedding: ClassVar[str]
    _mean: Tensor
    _std: Tensor

    def __init__(self, pipeline: Any, config: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.transformer = pipeline.transformer
        self.latent_shape = config.latent_shape()
        self._pipeline = pipeline
        self._vae = pipeline.vae
        self._exact = ExactInputs(pipeline.transformer.get_submodule(self.time_embedding))

    @classmethod
    def load(cls, config: Any, *, device: torch.device, dtype: torch.dtype, absent: Sequence[str] = ()) -> Self:
        """A frozen policy, its base LoRA included, without the parts that are ``absent``.

        Raises:
            ValueError: see ``pipelines.open_pipeline`` and ``with_base_lora``.
        """
        pipeline = cls._open(config, device=device, dtype=dtype, absent=absent)
        beneath = with_base_lora(
            pipeline.transformer, config.base_lora, absent=absent, offline=False, device=device, dtype=dtype
        )
        policy = cls(pipeline, config, device=device, dtype=dtype)
        policy.base_lora = beneath
        return policy

    @classmethod
    def _open(cls, config: Any, *, device: torch.device, dtype: torch.dtype, absent: Sequence[str]) -> Any:
        source, index = read_index(cls.pipeline_class, config)
        check_class(index["_class_name"], (cls.pipeline_class.__name__, *cls.pipeline_forms), config)
        form = getattr(import_module("diffusers"), index["_class_name"])
        part = None
        if cls.processor not in absent:
            with explained(config):
                part = cls.processor_class.from_pretrained(source, subfolder=cls.processor, revision=config.revision)
        own = {cls.processor: part if cls.processor_at_once else None}
        pipeline = open_pipeline(form, config, source, device=device, dtype=dtype, absent=absent, own=own)
        pipeline.register_modules(**{cls.processor: part})
        return pipeline

    def save_pipeline(self, folder: Path) -> None:
        """Write the pipeline in diffusers' layout; the part that was read by another class is copied as it is."""
        source, index = read_index(self.pipeline_class, self.config)
        part = self._pipeline.components[self.processor]
        self._pipeline.register_modules(**{self.processor: None})
        self._pipeline.save_pretrained(folder)
        self._pipeline.register_modules(**{self.processor: part})
        copytree(fetched(source, self.processor, self.config.revision), folder / self.processor)
        file = folder / MODEL_INDEX
        written = json.loads(file.read_text(encoding="utf-8")) | {self.processor: index[self.processor]}
        file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")

    def resized(self, section: Any) -> Self:
        """See ``Policy.resized``."""
        other = copy(self)
        other.config, other.latent_shape = section, section.latent_shape()
        return other

    def _guided(
        self, cond: Conditioning, forward: Callable[[Literal["text", "negative"]], Float[Tensor, "n s c"]]
    ) -> Float[Tensor, "n s c"]:
        """Classifier-free guidance: negative + guidance (positive - negative); one forward where there is no negative.

        Args:
            cond: with ``text``, and ``negative`` if it is guided.
            forward: the velocity by one of these.
        """
        positive = forward("text")
        if "negative" not in cond.tensors:
            return positive
        negative = forward("negative")
        guided: Tensor = negative + self.config.guidance * (positive - negative)
        return self._rescaled(guided, positive)

    def _rescaled(self, guided: Float[Tensor, "n s c"], positive: Float[Tensor, "n s c"]) -> Float[Tensor, "n s c"]:
        """The guided velocity as the pipeline scales it; most don't."""
        return guided

    def _require_text_encoder(self) -> None:
        if self._pipeline.text_encoder is None:
            raise ValueError("this policy was loaded without its text encoder; load it by Policy.load to encode")
