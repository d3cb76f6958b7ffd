"""Base of the policies on FLUX.2 and both Qwen-Images: a diffusers pipeline, one part of which is read apart."""

from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.policies.base import Policy
from customized_grpo.policies.pipeline_index import check_class, read_index
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
        """See ``pipelines.open_pipeline``."""
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
        return cls(pipeline, config, device=device, dtype=dtype)

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
