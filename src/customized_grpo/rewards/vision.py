"""Vision transformers of the DINO families: model classes and image preprocessing.

Preprocessing is fixed here, not left to whichever backend transformers finds, because it is part of the reward:

* ``dinov2``, ``dinov2_with_registers``: the checkpoint's own settings in the PIL processor.
* ``dinov3_vit``: transformers has no PIL processor for it. The order is: scale to [0, 1], then resize with
  antialiasing in floating point, then normalise.
* ``vit``: the original DINO. The hub's settings stretch an image to a square; papers resize the shorter side to 256
  bicubically, crop 224 and use ImageNet's mean and std, as is done here.

Dimensions: n batch, H x W pixels, P patches, D features. Tokens are (CLS, patches); registers are dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor

from customized_grpo.paths import model_path
from customized_grpo.recipe.scorers import HeldModel, MetricSpec, Revision, RewardSpec
from customized_grpo.rewards.cutout import binary
from customized_grpo.rewards.features import DtypeName, load_frozen
from customized_grpo.web.hub import loading

Prepare = Callable[[Sequence[Image.Image]], Tensor]
"""Maps n RGB images to pixel values (n, 3, H, W)."""

FAMILIES: Final[Mapping[str, str]] = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "vit": "ViTModel",
}
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_MODES: Final = {2: "bilinear", 3: "bicubic"}
"""PIL's filter numbers to torch's resize modes."""


class EncoderFields(MetricSpec):
    """Fields of what measures by features of a ``VisionEncoder``."""

    model: str = Field(
        default="facebook/dinov2-base",
        description="DINOv2, DINOv3 or the original DINO: hub id, folder, 'mini' or 'mini-judge'",
    )
    batch_size: PositiveInt = Field(default=32, description="images per forward")
    dtype: DtypeName = "float32"
    revision: Revision = None

    def model_name(self) -> str:
        """Its ``model``."""
        return self.model

    def held_models(self) -> Sequence[HeldModel]:
        """The encoder."""
        return (HeldModel(self.model, "dino", self.dtype, self.batch_size, self.revision),)

    def encoder(self, device: torch.device) -> "VisionEncoder":
        """The encoder, loaded onto ``device``."""
        return VisionEncoder(self.model, dtype=self.dtype, device=device, revision=self.revision)


class EncoderSpec(EncoderFields, RewardSpec):
    """The typed base of the ``Config`` of a reward on features of a ``VisionEncoder``."""

    transport: ClassVar[frozenset[str]] = frozenset({"batch_size"})


@final
class VisionEncoder:
    """A frozen encoder of one of the families."""

    def __init__(self, name: str, *, dtype: DtypeName, device: torch.device, revision: str | None = None) -> None:
        self._device = device
        self._model = load_frozen(FAMILIES, name, "dino", dtype=dtype, device=device, revision=revision)
        config = self._model.config
        self._prepare = _preparation(config, model_path(name, "dino"), revision)
        # dinov2 and vit have no registers and no such setting.
        self._skip = 1 + int(config.to_dict().get("num_register_tokens", 0))
        self._patch = int(config.patch_size)

    @torch.no_grad()
    def tokens(self, images: Sequence[Image.Image]) -> Float[Tensor, "n t d"]:
        """Features after the last layer, float32: CLS first, then the patches row by row."""
        states = self._states(images)
        return torch.cat([states[:, :1], states[:, self._skip :]], dim=1).float()

    @torch.no_grad()
    def cls(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """CLS features only."""
        return self._states(images)[:, 0].float()

    def coverage(self, mask: Image.Image) -> Float[Tensor, " p"]:
        """Share of the subject in each patch: its mask goes the way of its picture, through resize, crop and patches.

        The mask is black and white (see ``cutout``), so that a pixel's share after the resize is its brightness
        between that of a black and that of a white picture. What a last patch has no room for counts nowhere, as in the
        model. 0 everywhere means that the crop leaves nothing of the subject.
        """
        black, white, given = self._prepare(
            [Image.new("RGB", mask.size), Image.new("RGB", mask.size, "white"), binary(mask).convert("RGB")]
        )
        share = ((given - black) / (white - black)).mean(dim=0)
        return torch.nn.functional.avg_pool2d(share[None], self._patch).flatten()

    def _states(self, images: Sequence[Image.Image]) -> Float[Tensor, "n t d"]:
        pixels = self._prepare(images).to(self._device, self._model.dtype)
        states: Tensor = self._model(pixel_values=pixels).last_hidden_state
        return states


def _preparation(config: Any, path: str, revision: str | None) -> Prepare:
    # The PIL processor explicitly: with torchvision installed the default, and so the reward, would differ.
    from transformers import BitImageProcessorPil

    if config.model_type == "dinov3_vit":
        with loading("image processor of", path):
            settings = BitImageProcessorPil.get_image_processor_dict(path, revision=revision)[0]
        return _float_resize(settings)
    if config.model_type == "vit":
        crop = int(config.image_size)
        processor = BitImageProcessorPil(
            size={"shortest_edge": round(crop * 256 / 224)},
            crop_size={"height": crop, "width": crop},
            image_mean=list(_IMAGENET_MEAN),
            image_std=list(_IMAGENET_STD),
        )
    else:
        with loading("image processor of", path):
            processor = BitImageProcessorPil.from_pretrained(path, revision=revision)

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    return prepare


def _float_resize(settings: Mapping[str, Any]) -> Prepare:
    """DINOv3's preprocessing from its ``preprocessor_config.json``."""
    size = settings.get("size", {})
    if set(size) != {"height", "width"} or settings.get("resample", 2) not in _MODES:
        raise ValueError(
            f"its preprocessor_config.json has size {size!r} and resample {settings.get('resample')!r}; this "
            "reward supports a size of height and width, resized bilinearly (2) or bicubically (3)"
        )
    shape, mode = (size["height"], size["width"]), _MODES[settings.get("resample", 2)]
    mean = torch.tensor(settings.get("image_mean", _IMAGENET_MEAN))[:, None, None]
    std = torch.tensor(settings.get("image_std", _IMAGENET_STD))[:, None, None]

    def one(image: Image.Image) -> Tensor:
        scaled = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255.0
        resized = torch.nn.functional.interpolate(scaled[None], shape, mode=mode, antialias=True, align_corners=False)
        return (resized[0] - mean) / std

    return lambda images: torch.stack([one(image) for image in images])
