"""The policies on FLUX.1: ``uno`` (arXiv 2504.02160) and ``flux-kontext`` (arXiv 2506.15742).

They differ in scaling and positions of references; see ``flux_base`` for everything else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

from jaxtyping import Float
from PIL.Image import Image, Resampling
from pydantic import Field
from torch import Tensor

from customized_grpo.policies import shifts
from customized_grpo.policies.base import PolicyConfig
from customized_grpo.policies.flux_base import Flux
from customized_grpo.policies.flux_loading import FluxConfig
from customized_grpo.policies.flux_tokens import (
    PIXELS_PER_TOKEN,
    diagonal_ids,
    kontext_size,
    layered_ids,
    long_side_size,
    scale_and_crop,
    whole_tokens,
)
from customized_grpo.policies.pipelines import FromLibrary
from customized_grpo.recipe.sections import ShiftRule

_LONG_SIDE_ONE, _LONG_SIDE_SEVERAL = 512, 320


class UNOConfig(FluxConfig):
    """A recipe's section ``policy`` with ``type: uno``."""

    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {**FluxConfig.shift_rules, "uno": shifts.uno}

    type: Literal["uno"] = "uno"
    reference_size: int | None = Field(
        default=None,
        ge=PIXELS_PER_TOKEN,
        multiple_of=PIXELS_PER_TOKEN,
        description="long side of a reference in pixels; null is UNO's rule: 512 for one, 320 for several",
    )

    def reference_side(self) -> int | None:
        """Its ``reference_size``."""
        return self.reference_size

    def scaled_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """UNO's scaling of one of ``count`` references, before it is cropped to whole tokens."""
        rule = _LONG_SIDE_ONE if count == 1 else _LONG_SIDE_SEVERAL
        return long_side_size(size, self.reference_size or rule)

    def fitted_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """UNO's preprocessing."""
        return whole_tokens(self.scaled_size(size, count))


@final
class UNO(Flux):
    """FLUX.1-dev, or the miniature, with UNO's references: each lies diagonally beyond what precedes it."""

    Config: ClassVar[type[PolicyConfig]] = UNOConfig
    pipeline_class: ClassVar[Any] = FromLibrary("diffusers", "FluxPipeline")
    config: UNOConfig

    def fit(self, image: Image, count: int) -> Image:
        """UNO's preprocessing."""
        return scale_and_crop(image, self.config.scaled_size(image.size, count))

    def ids(self, grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Float[Tensor, "p 3"]:
        """UNO's diagonal offsets."""
        return diagonal_ids(grid, references)


class KontextConfig(FluxConfig):
    """A recipe's section ``policy`` with ``type: flux-kontext``."""

    type: Literal["flux-kontext"] = "flux-kontext"
    max_references: Literal[1] = Field(default=1, description="FLUX.1-Kontext was trained on one image")
    reference_size: int = Field(
        default=1024,
        ge=PIXELS_PER_TOKEN,
        multiple_of=PIXELS_PER_TOKEN,
        description="side of the square whose area a reference gets; 1024 gives the sizes that Kontext was trained on",
    )

    def reference_side(self) -> int:
        """Its ``reference_size``."""
        return self.reference_size

    def fitted_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """Kontext's preprocessing."""
        return kontext_size(size, self.reference_size)


@final
class Kontext(Flux):
    """FLUX.1-Kontext-dev: the reference lies on a plane of its own, at the image's own rows and columns."""

    Config: ClassVar[type[PolicyConfig]] = KontextConfig
    pipeline_class: ClassVar[Any] = FromLibrary("diffusers", "FluxKontextPipeline")
    config: KontextConfig

    def fit(self, image: Image, count: int) -> Image:
        """Kontext's preprocessing: stretched (Lanczos)."""
        return image.convert("RGB").resize(self.config.fitted_size(image.size, count), Resampling.LANCZOS)

    def ids(self, grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Float[Tensor, "p 3"]:
        """Kontext's planes."""
        return layered_ids(grid, references)
