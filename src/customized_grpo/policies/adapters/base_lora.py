"""The base LoRA, a released LoRA as part of FLUX's base: fused, or a frozen adapter beneath the trained one."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from customized_grpo.policies.adapters.hashes import base_hash, update_hash
from customized_grpo.policies.adapters.lora_layers import attach_frozen
from customized_grpo.policies.adapters.lora_reader import LoraFile, read_lora
from customized_grpo.policies.adapters.low_rank import Factors, fuse, scaled
from customized_grpo.policies.adapters.uno_lora import FILE_NAME, REPOSITORY
from customized_grpo.policies.base import NO_LORA


class BaseLora(BaseModel):
    """A recipe's section ``policy.base_lora``: UNO's released LoRA, or any other of FLUX.1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        min_length=1,
        description="a .safetensors file, a run or an adapter's folder, or a hub id, which may name a file of it: "
        f"{REPOSITORY} stands for its {FILE_NAME}",
    )
    mode: Literal["fuse", "adapter"] = Field(
        default="fuse",
        description="fuse: added to the weights once, rounded to their dtype; adapter: kept apart, exact, more memory",
    )
    scale: FiniteFloat = Field(default=1.0, description="factor on its update")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")


def apply_base_lora(
    transformer: Any, section: BaseLora, *, offline: bool, device: torch.device, dtype: torch.dtype
) -> str:
    """Make the LoRA of ``section`` a part of a transformer that has no adapter yet.

    Returns:
        Its identity; see ``hashes.update_hash``.

    Raises:
        ValueError: the file is missing, damaged, of another base, or does not fit the model; the message names the
            keys.
    """
    file, update = read_base_lora(transformer, section, offline=offline)
    try:
        file.check_base(base_hash(transformer), NO_LORA)
        if section.mode == "fuse":
            fuse(transformer, update)
        else:
            attach_frozen(transformer, update, device=device, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"policy.base_lora: {section.path!r}: {error}") from error
    return update_hash(update)


def read_base_lora(transformer: Any, section: BaseLora, *, offline: bool) -> tuple[LoraFile, dict[str, Factors]]:
    """The file of ``section``, and its update times the section's scale, checked against the transformer.

    Raises:
        ValueError: see ``apply_base_lora``.
    """
    try:
        file = read_lora(section.path, revision=section.revision, offline=offline)
        update = file.update(transformer)
    except ValueError as error:
        raise ValueError(f"policy.base_lora: {error}") from error
    return file, scaled(update, section.scale)
