"""The attribute oracle as an evaluation metric."""

from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from customized_grpo.evaluation.metrics import Metric
from customized_grpo.mini.oracle import Oracle, judge
from customized_grpo.paths import model_path
from customized_grpo.recipe.sections import MetricSpec
from customized_grpo.types import Example


@final
class MiniOracle(Metric):
    """Identity and prompt accuracy in the miniature world, by its held-out attribute oracle."""

    @final
    class Config(MetricSpec):
        """A metric's section with ``type: mini_oracle``."""

        type: str = "mini_oracle"
        model: str = Field(default="mini", description="a folder with an oracle, or 'mini'")

        def model_name(self) -> str | None:
            """Its ``model``."""
            return self.model

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._oracle = Oracle.load(Path(model_path(config.model, "oracle"))).to(device)
        self._device = device

    def __call__(
        self, example: Example, images: UInt8[Tensor, "g h w 3"]
    ) -> Mapping[str, Float[Tensor, "g"]]:
        """identity_accuracy, prompt_accuracy, identity_all, prompt_all, both and copy of each image.

        Raises:
            ValueError: the example is not of the miniature world.
        """
        truth = example.extra.get("truth")
        if truth is None:
            raise ValueError(
                f"example {example.key!r} has no truth to compare with: mini_oracle judges data of `type: mini` only"
            )
        found = {name: value.cpu() for name, value in self._oracle(images.to(self._device)).items()}
        return judge(found, truth)
