"""Structural diversity: how unlike the reference's the layout of a subject is, whatever it is made of.

A self-similarity matrix (SSM) holds the cosines between an image's own patches: the places of its parts, without their
looks. Dimensions: G group size, K patches of the subject, P patches, D features. Source: nSSM of DivRL (arXiv
2606.23950), which takes another network's features, resized to 32 x 32; here they are DINO's last patches as they are.
"""

from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from customized_grpo.recipe.limits import Need
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.cutout import MissingMask, required_masks
from customized_grpo.rewards.features import FeatureCache, in_batches, require_references, to_pil
from customized_grpo.rewards.patches import KEPT_TOKENS
from customized_grpo.rewards.vision import EncoderSpec
from customized_grpo.types import Example

_ROUNDING = 1e-6
"""Deviation of a cosine from the mean that the rounding of float32 features explains."""


@final
class StructureDiversity(Reward):
    """One minus the correlation of the self-similarities of image and reference, in [0, 2]; 0 for a copy."""

    @final
    class Config(EncoderSpec):
        """A reward's section with ``type: structure_diversity``."""

        missing_mask: MissingMask = "error"

        def needs(self) -> frozenset[Need]:
            """References and, unless missing ones are skipped, their masks."""
            masks: tuple[Need, ...] = ("mask",) if self.missing_mask == "error" else ()
            return frozenset(("reference", *masks))

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self._encoder = config.encoder(device)
        self._references = FeatureCache(self._encoder.tokens, KEPT_TOKENS)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Structural diversity of each image, mean over the references; see ``structure_diversity``.

        NaN where a self-similarity is the same for all pairs, and for the whole group if a mask is missing and
        ``missing_mask`` is ``skip``.

        Raises:
            ValueError: the example has no reference, or lacks a mask.
        """
        require_references(example)
        masks, self.reason = required_masks(example, self._config.missing_mask)
        if masks is None:
            return torch.full((len(images),), torch.nan)
        patches = in_batches(self._encoder.tokens, to_pil(images), self._config.batch_size)[:, 1:]
        each = []
        for reference, mask in zip(self._references(example.references), masks, strict=True):
            inside = (self._encoder.coverage(mask) > 0.5).to(patches.device)
            each.append(structure_diversity(patches[:, inside], reference[1:][inside]))
        scores = torch.stack(each).mean(dim=0).cpu()
        if not bool(scores.isfinite().all()):
            self.reason = "fewer than three patches of a subject, or all alike, have no structure to compare"
        return scores


def structure_diversity(patches: Float[Tensor, "g k d"], reference: Float[Tensor, "k d"]) -> Float[Tensor, " g"]:
    """1 - Pearson's correlation of the cosines between all pairs of patches, in the images and in the reference.

    DivRL's code divides by unbiased deviations, which makes its correlation of n pairs smaller by (n - 1) / n.

    Args:
        patches: of the images, at the places of the subject in the reference.
        reference: of the reference.
    """
    given, wanted = (_self_similarity(one) for one in (patches, reference[None]))
    # 0 / 0, NaN, where one has no structure
    products = (given * wanted).sum(dim=-1)
    correlation = products / (given.square().sum(dim=-1) * wanted.square().sum(dim=-1)).sqrt()
    return (1.0 - correlation).float()


def _self_similarity(patches: Float[Tensor, "n k d"]) -> Float[Tensor, "n m"]:
    """Cosines of the m = K (K - 1) / 2 pairs of patches, float64, without their mean; 0 if all are alike."""
    unit = torch.nn.functional.normalize(patches.double(), dim=-1)
    first, second = torch.triu_indices(patches.shape[1], patches.shape[1], offset=1, device=patches.device)
    cosine = (unit @ unit.transpose(1, 2))[:, first, second]
    deviation = cosine - cosine.mean(dim=-1, keepdim=True)
    return deviation.where((deviation.abs() > _ROUNDING).any(dim=-1, keepdim=True), 0.0)
