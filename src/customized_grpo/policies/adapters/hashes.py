"""Hashes of a model's frozen weights and of its trained adapter."""

import re
from hashlib import sha256
from typing import Final

import torch
from torch import nn

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
            rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


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
