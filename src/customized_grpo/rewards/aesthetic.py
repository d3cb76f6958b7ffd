"""LAION's aesthetic predictor v2: predicted beauty of an image, about 1 to 10, regardless of the prompt.

Dimensions: G group size, n batch, D features, H x W pixels. Source: Schuhmann's improved-aesthetic-predictor
(sac+logos+ava1-l14-linearMSE): five linear layers, with nothing in between, on normalised CLIP ViT-L/14 features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.recipe.scorers import HeldModel
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.clip import Clip, ClipConfig
from customized_grpo.rewards.features import in_batches, to_pil
from customized_grpo.types import Example
from customized_grpo.weights import check_finite

_WIDTHS: Final = (1024, 128, 64, 16, 1)


@final
class Aesthetic(Reward):
    """Predicted beauty of each image, about 1 to 10."""

    @final
    class Config(ClipConfig):
        """A reward's section with ``type: aesthetic``."""

        head: str = Field(
            min_length=1,
            description="the predictor's weights as .safetensors; they are published pickled, and nothing is unpickled "
            "here: the page 'Choose rewards' has the lines that convert them",
        )

        def held_models(self) -> Sequence[HeldModel]:
            """CLIP and the predictor on it."""
            return (*super().held_models(), HeldModel(self.head))

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._batch_size = config.batch_size
        self._clip = Clip(config, device)
        self._head = _load_head(config.head, self._clip.model.config.projection_dim).to(device)

    @torch.no_grad()
    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Predicted beauty of each image; the example is not used."""
        features = in_batches(self._clip.encode, to_pil(images), self._batch_size)
        scores: Tensor = self._head(torch.nn.functional.normalize(features, dim=-1))
        return scores[:, 0].cpu()


def _load_head(name: str, width: int) -> nn.Module:
    """The published layers without dropouts, which have the numbers 1, 3 and 5 in the file."""
    path = Path(name).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"head {name!r}: give an existing .safetensors file; docs/how-to/choose-rewards.md says how to make it "
            "from the published .pth"
        )
    sizes = [width, *_WIDTHS]
    places = ("0", "2", "4", "6", "7")
    layers = nn.ModuleDict({place: nn.Linear(sizes[at], sizes[at + 1]) for at, place in enumerate(places)})
    try:
        weights = {key.removeprefix("layers."): tensor.float() for key, tensor in load_file(path).items()}
        layers.load_state_dict(weights, strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"head {name!r} is not an aesthetic predictor on features of {width}: {' '.join(str(error).split())[:400]}"
        ) from error
    check_finite(weights, f"head {name!r}")
    return nn.Sequential(*layers.values()).eval().requires_grad_(False)
