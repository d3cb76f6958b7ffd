"""A balanced adapter: one training for every trade-off of prompt and identity, dW(b) = dW_0 + b dW_1, b in [-1, 1].

The two low-rank updates are one adapter of twice the rank, in whose middle the second half is multiplied by b. So
optimizer, averages, engines and checkpoints know nothing of it, and for every b it is a plain LoRA. In training b is a
group's and travels in its conditioning, so that rollout, replay, old policy and base see the same. Related:
ParetoSlider (arXiv 2604.20816) conditions the network on the preference; rewarded soups (arXiv 2306.04488) interpolate
the weights of separate trainings.
"""

from collections.abc import Mapping
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from customized_grpo.seeding import generator
from customized_grpo.types import Conditioning

BALANCE: Final = "balance"
"""Name of b, (n,) or (1,), in a conditioning; of one that has none b is 0."""


@final
class Gate:
    """Hook behind each lora_A: multiplies the second half of the rank's values by b.

    Args:
        rank: of each of the two updates.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._factors: Float[Tensor, "m r"]
        self.put(Conditioning({}))

    def put(self, cond: Conditioning) -> None:
        """Take b from a conditioning. It stays until the next one, as a backward may recompute blocks."""
        b = cond.tensors[BALANCE] if BALANCE in cond.tensors else torch.zeros(1)
        self._factors = torch.cat([torch.ones_like(b)[:, None], b[:, None]], dim=1).repeat_interleave(self._rank, dim=1)

    def __call__(self, layer: nn.Module, given: Any, values: Float[Tensor, "n *p r"]) -> Float[Tensor, "n *p r"]:
        """The values of lora_A, gated."""
        factors = self._factors.to(values)
        rows = factors.repeat_interleave(max(1, len(values) // len(factors)), dim=0)  # a stack has several of each b
        return values * rows.view(len(rows), *(1,) * (values.ndim - 2), -1)


def attach_gate(transformer: nn.Module, adapter: str, rank: int) -> Gate:
    """Gate every layer of an adapter, by peft's name of it, whose rank is twice ``rank``."""
    gate = Gate(rank)
    for layer in transformer.modules():
        found: Any = getattr(layer, "lora_A", {})
        if adapter in found:
            found[adapter].register_forward_hook(gate)
    return gate


def halves(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The two updates of an adapter's weights by peft's names, dW_0 and dW_1."""

    def half(number: int) -> dict[str, Tensor]:
        parts = {name: one.chunk(2, dim=0 if ".lora_A." in name else 1) for name, one in state.items()}
        return {name: pair[number].contiguous() for name, pair in parts.items()}

    return half(0), half(1)


def drawn(seed: int, step: int, group: int) -> float:
    """b of a group: uniform in [-1, 1], of its place in the run alone."""
    return float(2 * torch.rand((), generator=generator(seed, "balance", step, group)) - 1)


def at(cond: Conditioning, b: float, device: torch.device) -> Conditioning:
    """The conditioning of a sample at b."""
    return Conditioning({**cond.tensors, BALANCE: torch.full((1,), b, device=device)})  # no copy, which waits
