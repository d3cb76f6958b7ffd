"""Similarity of patches: for each patch of a reference its most similar patch in an image.

Dimensions: G images, K patches of a reference that count, P patches of an image, D features.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

OUTSIDE = 0.05
"""Share of the subject below which a patch is background."""
KEPT_TOKENS = 64
"""Number of references with cached patches; each is some hundred times the size of CLS features."""


def best_match(
    kept: Float[Tensor, "k d"],
    weight: Float[Tensor, " k"],
    patches: Float[Tensor, "g p d"],
    allowed: Bool[Tensor, "g p"] | None = None,
) -> Float[Tensor, " g"]:
    """100 x the highest cosine of each kept patch with any of an image, weighted mean over the kept; in [-100, 100].

    Anywhere in the image, because what is compared may have moved; 0 where no patch is kept.

    Args:
        kept: patches of the reference.
        weight: their weights, at least 0.
        patches: of the images.
        allowed: patches that may match, at least one of each image; None: all.
    """
    counted = weight > 0
    kept, weight = kept[counted], weight[counted]
    unit = torch.nn.functional.normalize(patches, dim=-1)
    cosine = unit @ torch.nn.functional.normalize(kept, dim=-1).T
    if allowed is not None:
        cosine = cosine.masked_fill(~allowed[:, :, None], -torch.inf)
    return (cosine.amax(dim=1) @ weight / weight.sum()).nan_to_num(0.0) * 100.0
