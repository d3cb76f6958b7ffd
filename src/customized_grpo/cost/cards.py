"""Peak arithmetic of GPUs in bfloat16, as their makers publish it, to scale measured seconds by."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from customized_grpo import registry

_PEAKS: Final[Mapping[str, int]] = {
    "B200": 2250,
    "H200 NVL": 835,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "A30": 165,
    "A40": 150,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 364,
    "RTX A6000": 155,
    "RTX 5090": 209,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""TFLOP/s of dense matrix products with sums in float32, by the makers' data sheets; longer names before shorter."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU."""

    name: str
    """As its driver says it."""
    model: str | None = None
    """As the table has it; None: it doesn't."""

    @property
    def tflops(self) -> int | None:
        """Published peak in bfloat16, if known."""
        return None if self.model is None else _PEAKS[self.model]


def card_named(name: str) -> Card:
    """The card of a driver's name, such as "NVIDIA A100-SXM4-80GB", or of a part of it."""
    plain = _plain(name)
    if re.search(r"\b(laptop|mig)\b", plain):  # named after a card that it is a part of, or slower than
        return Card(name)
    found = (known for known in _PEAKS if re.search(rf"\b{_plain(known)}\b", plain))
    return Card(name, next(found, None))


def asked_card(name: str) -> Card:
    """The card that somebody asks for.

    Raises:
        ValueError: the table doesn't have it.
    """
    card = card_named(name)
    if card.model is None:
        hint = registry.did_you_mean(name, list(_PEAKS))
        raise ValueError(f"--card: given {name!r};{hint} known: {', '.join(_PEAKS)}")
    return Card(f"NVIDIA {card.model}", card.model)


def card_here(device: str) -> Card | None:
    """This machine's first GPU, unless ``run.device`` is the CPU; None where there is none."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return None
    return card_named(torch.cuda.get_device_name(0))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).lower()
