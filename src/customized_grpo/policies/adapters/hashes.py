"""Hashes of a model's frozen weights, of a LoRA that is part of them, and of the trained adapter."""

import re
from hashlib import sha256
from typing import Final

import torch
from torch import Tensor, nn

from customized_grpo.policies.adapters.low_rank import Update
from customized_grpo.policies.adapters.sharding import whole

ADAPTER: Final = "default"
"""peft's name of the trained adapter."""
OURS: Final = re.compile(rf"\.lora_[AB]\.{ADAPTER}\.")
"""Pattern that matches exactly the names of its parameters."""


def base_hash(transformer: nn.Module) -> str:
    """Identity of a base: a hash of its biases and norms, rounded to bfloat16.

    Neither quantisation nor a LoRA that was fused in changes those, and another dtype does not change the hash.
    """
    digest = sha256()
    bare = {name.replace(".base_layer.", "."): weight for name, weight in transformer.named_parameters()}
    for name, weight in sorted(bare.items()):
        if not OURS.search(name) and weight.ndim == 1 and weight.is_floating_point() and not weight.is_meta:
            digest.update(f"{name} {tuple(weight.shape)}\n".encode())
            digest.update(_rounded(weight))
    return digest.hexdigest()[:16]


def update_hash(update: Update) -> str:
    """Identity of a LoRA beneath a trained one (``policy.base_lora``), which ``base_hash`` can't see.

    A hash of its factors, the scale in B, rounded to bfloat16: neither a file's format, names or dtype nor the way in
    which the LoRA is joined to the base changes it.
    """
    digest, shared = sha256(), dict[int, bytes]()
    for name, one in sorted(update.items()):
        if id(one.a) not in shared:  # q, k and v have one A
            shared[id(one.a)] = sha256(_rounded(one.a)).digest()
        digest.update(f"{name} {tuple(one.a.shape)} {tuple(one.b.shape)}\n".encode())
        digest.update(shared[id(one.a)])
        digest.update(_rounded(one.folded().b))
    return digest.hexdigest()[:16]


def _rounded(tensor: Tensor) -> memoryview:
    """Bytes of a tensor in bfloat16, which another dtype doesn't change."""
    return tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data


def adapter_hash(module: nn.Module) -> str:
    """Hash of the module's LoRA weights and scales, by name; the same for every module without any.

    All ranks gather shards.
    """
    from peft.tuners.lora import LoraLayer

    digest = sha256()
    for name, parameter in sorted(module.named_parameters()):
        if "lora_" in name:
            digest.update(name.encode())
            digest.update(whole(parameter.detach()).cpu().float().contiguous().numpy().tobytes())
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):  # the scale is no weight: it comes from a file's alpha
            digest.update(f"{name} {sorted(layer.scaling.items())}\n".encode())
    return digest.hexdigest()[:16]
