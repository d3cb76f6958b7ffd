"""Identity of an untrained policy: its options and the content of the files that they name."""

from typing import Final

from customized_grpo.identity.hashes import FileHashes, short_hash
from customized_grpo.identity.sections import identified
from customized_grpo.recipe.sections import PolicySpec

_NO_PIXELS: Final = ("lora", "full", "gradient_checkpointing", "recompute", "offline", "keep_keys")
"""Fields that don't decide what an untrained model draws."""
_ADDED: Final = {"norms": "float32", "channels_last": False}
"""Fields that came after runs had been made, at the value that changes nothing: those runs' bases keep their names."""


def base_identity(policy: PolicySpec, hashes: FileHashes) -> str:
    """Hash of a recipe's policy as far as it decides the images before the first step.

    A folder that full fine-tuning starts from is in it; an adapter that training starts from has a hash of its own.
    """
    plain = {name for name, usual in _ADDED.items() if getattr(policy, name, usual) == usual}
    section = policy.model_dump(mode="json", exclude=plain | set(_NO_PIXELS))
    start = policy.full.path if policy.full is not None else None
    return short_hash(identified([section, start], hashes))
