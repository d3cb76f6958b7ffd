"""Copying: how much nearer an image is to the reference that it was drawn from than to other photos of the subject.

Dimensions: G images, V other photos, D features. After the copy-paste metric of WithAnyone (arXiv 2510.14975):
(theta_gt - theta_gr) / theta_tr, by angles between features of image g, reference r and truth t, as we know it; its
code was not at hand to compare with. It compares faces with the picture that a prompt describes; here whole pictures
are compared with the subject's other photos.
"""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from customized_grpo.evaluation.metrics import Metric
from customized_grpo.evaluation.protocols import subject_photos
from customized_grpo.recipe.limits import Need
from customized_grpo.rewards.features import FeatureCache, in_batches, require_references, to_pil
from customized_grpo.rewards.vision import EncoderFields
from customized_grpo.types import Example

_ALIKE = 1e-3
"""Angle in radians below which two photos are the same picture, saved twice."""


@final
class Copy(Metric):
    """The column ``copy``, in [-1, 1]: 1 for the reference itself, -1 for another photo, 0 as near to both."""

    @final
    class Config(EncoderFields):
        """A metric's section with ``type: copy``."""

        def needs(self) -> frozenset[Need]:
            """A reference, and other photos of its subject."""
            return frozenset(("reference", "view"))

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._batch_size = config.batch_size
        self._encode = config.encoder(device).cls
        self._photos = FeatureCache(self._encode)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Mapping[str, Float[Tensor, " g"]]:
        """See ``copy_share``, by the first reference; NaN without other photos, as for the oracle's.

        Raises:
            ValueError: the example has no reference.
        """
        require_references(example)
        reference = example.references[0]  # the input, under every protocol
        others = [photo for photo in subject_photos(example) if photo != reference]
        if not others:
            return {"copy": torch.full((len(images),), torch.nan)}
        given = in_batches(self._encode, to_pil(images), self._batch_size)
        return {"copy": copy_share(given, self._photos([reference])[0], self._photos(others)).cpu()}


def copy_share(
    images: Float[Tensor, "g d"], reference: Float[Tensor, " d"], others: Float[Tensor, "v d"]
) -> Float[Tensor, " g"]:
    """(angle to another photo - angle to the reference) / angle between these two, mean over the other photos.

    The triangle inequality keeps it in [-1, 1]. Photos that are the reference once more are left out; NaN if all are.
    """
    between = _angles(others, reference[None])
    others, between = others[between[:, 0] > _ALIKE], between[between[:, 0] > _ALIKE]
    shares = (_angles(images, others) - _angles(images, reference[None])) / between.T
    return shares.mean(dim=-1).float()


def _angles(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Angles in radians, float64; by half the chords, because the arc cosine loses small ones to rounding."""
    a, b = (torch.nn.functional.normalize(one.double(), dim=-1) for one in (a, b))
    apart = (a[:, None] - b[None]).norm(dim=-1)
    return 2.0 * torch.atan2(apart, (a[:, None] + b[None]).norm(dim=-1))
