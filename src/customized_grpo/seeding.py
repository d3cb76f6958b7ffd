"""Random generators, the only source of randomness: each draw is a function of (seed, purpose, step, index).

This gives exact resume (no generator state to save) and results that do not depend on the number of ranks, as
``index`` is global: a sample gets the same noise on any rank.
"""

import json
from hashlib import blake2b

import torch


def generator(seed: int, purpose: str, step: int, index: int) -> torch.Generator:
    """A fresh CPU generator for one draw.

    It is a CPU generator even if the model runs on a GPU, because a CUDA generator gives other numbers, which depend on
    the launch geometry. Draw on the CPU and move the result: a sample's noise is small.

    torch's CPU engine keeps the low 32 bits of a seed. So two streams of one group coincide in about 1e-8 of the
    groups, and among N streams of a whole run about N^2 / 2^33 pairs do, which is harmless there.

    Args:
        seed: the run's seed.
        purpose: what is drawn ("noise", "order", ...); streams of different purposes are independent.
        step: the GRPO step, epoch or the like.
        index: global index of the sample or group within that step.

    Example:
        ``torch.randn(256, 64, generator=generator(42, "noise", step, first + g))``
    """
    key = json.dumps([seed, purpose, step, index]).encode()
    digest = int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
    return torch.Generator(device="cpu").manual_seed(digest >> 1)  # 63 bits fit into a signed 64-bit seed
