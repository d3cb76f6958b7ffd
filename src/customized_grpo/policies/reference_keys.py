"""Keys and values of references that attend to themselves alone, as tensors of a conditioning.

They are those of diffusers' ``Flux2KVCache``: after the rotary embedding, of every block with two streams, then of
every block with one. Dimensions: n samples, m prompts (1, or n), R tokens of all references, H heads, E features of a
head.
"""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

KEYS: Final = "keys_0"
"""Name of the first block's keys: where it is, all are."""


def tensors(cache: Any) -> dict[str, Tensor]:
    """Names and tensors, (m, R, H, E) each, of a ``Flux2KVCache``."""
    found: dict[str, Tensor] = {}
    for number, layer in enumerate([*cache.double_block_caches, *cache.single_block_caches]):
        found[f"keys_{number}"], found[f"values_{number}"] = layer.get()
    return found


def cache(given: Mapping[str, Tensor], n: int, blocks: tuple[int, int]) -> Any:
    """A ``Flux2KVCache`` of n samples from what ``tensors`` gave, for blocks with two streams and with one."""
    from diffusers.models.transformers.transformer_flux2 import Flux2KVCache

    made = Flux2KVCache(*blocks)
    for number, layer in enumerate([*made.double_block_caches, *made.single_block_caches]):
        keys, values = given[f"keys_{number}"], given[f"values_{number}"]
        layer.store(keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1))
    made.num_ref_tokens = given[KEYS].shape[1]
    return made
