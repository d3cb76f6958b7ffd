"""Published results of other papers, shown beside measured ones and marked as such.

They come from other code, other images and often other samplers. Features are cosines in the sources; here they are
times 100, as this package's metrics are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final


@final
@dataclass(frozen=True, slots=True)
class Published:
    """One method's published numbers, by standard metric name.

    Attributes:
        main: whether it also appears in the main table, marked, and not only in the list below.
    """

    name: str
    source: str
    metrics: Mapping[str, float]
    main: bool = False


STANDARD: Final[Mapping[str, tuple[str, str]]] = {
    "dino_vits16": ("dino", "facebook/dino-vits16"),
    "dinov2_base": ("dino", "facebook/dinov2-base"),
    "clip_i_vitb32": ("clip_i", "openai/clip-vit-base-patch32"),
    "clip_t_vitb32": ("clip_t", "openai/clip-vit-base-patch32"),
    "hpsv3": ("hpsv3", "MizzenAI/HPSv3"),
    "pickscore": ("pickscore", "yuvalkirstain/PickScore_v1"),
}
"""Standard metric name to its type and model; with another type, model or options it is not comparable."""

_UNO_TABLE_1: Final = "UNO, Table 1 (arXiv 2504.02160v1)"
_CUSTOMIZED_GRPO_FIGURE: Final = (
    "Customized-GRPO, figure of identity against prompt (arXiv 2510.18263); its references are not stated"
)
_DINO, _CLIP_I, _CLIP_T = "dino_vits16", "clip_i_vitb32", "clip_t_vitb32"

UNO_TABLE_1: Final = tuple(
    Published(
        name,
        _UNO_TABLE_1,
        {_DINO: dino, _CLIP_I: clip_i} | ({_CLIP_T: clip_t} if clip_t else {}),
        main=name == "UNO",
    )
    for name, dino, clip_i, clip_t in (
        ("Real photos (oracle)", 77.4, 88.5, None),
        ("Textual Inversion", 56.9, 78.0, 25.5),
        ("DreamBooth", 66.8, 80.3, 30.5),
        ("BLIP-Diffusion", 67.0, 80.5, 30.2),
        ("ELITE", 64.7, 77.2, 29.6),
        ("Re-Imagen", 60.0, 74.0, 27.0),
        ("BootPIG", 67.4, 79.7, 31.1),
        ("SSR-Encoder", 61.2, 82.1, 30.8),
        ("RealCustom++", 70.2, 79.4, 31.8),
        ("OmniGen", 69.3, 80.1, 31.5),
        ("OminiControl", 68.4, 79.9, 31.2),
        ("FLUX IP-Adapter", 58.2, 82.0, 28.8),
        ("UNO", 76.0, 83.5, 30.4),
    )
)
"""DreamBench, one subject, mean over all photos of the subject."""

CUSTOMIZED_GRPO_FIGURE: Final = tuple(
    Published(
        name,
        _CUSTOMIZED_GRPO_FIGURE,
        {_DINO: identity, "hpsv3": prompt},
        main=name == "Customized-GRPO",
    )
    for name, identity, prompt in (
        ("UNO (in the paper's figure)", 76.0, 7.87),
        ("UNO + GRPO, rewards 1 : 1", 86.1, 4.12),
        ("UNO + GRPO, rewards 1 : 1.5", 80.1, 7.56),
        ("Customized-GRPO", 81.2, 8.32),
    )
)
"""The paper's own methods. Its other identity values equal the DINO column of UNO's table to three digits."""
