"""What training must not move."""

from hashlib import sha256

import torch
from torch import nn

from customized_grpo.policies.adapters.hashes import OURS


def frozen_hash(transformer: nn.Module) -> str:
    """sha256 of every weight but the trained adapter's; the same before and after it is attached."""
    digest = sha256()
    bare = {name.replace(".base_layer.", "."): weight for name, weight in transformer.named_parameters()}
    for name, weight in sorted(bare.items()):
        if not OURS.search(name):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
