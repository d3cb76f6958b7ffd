"""The base LoRA, a released LoRA as part of FLUX's base: fused, or a frozen adapter beneath the trained one."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from customized_grpo.policies.adapters.lora_layers import attach_frozen
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.adapters.low_rank import Factors, fuse, scaled
from customized_grpo.policies.adapters.uno_lora import FILE_NAME, REPOSITORY


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
) -> None:
    """Make the LoRA of ``section`` a part of a transformer that has no adapter yet.

    Raises:
        ValueError: the file is missing, damaged, or does not fit the model; the message names the keys.
    """
    update = read_base_lora(transformer, section, offline=offline)
    try:
        if section.mode == "fuse":
            fuse(transformer, update)
        else:
            attach_frozen(transformer, update, device=device, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"policy.base_lora: {section.path!r}: {error}") from error


def read_base_lora(transformer: Any, section: BaseLora, *, offline: bool) -> dict[str, Factors]:
    """The update of ``section``, times its scale, checked against the transformer.

    Raises:
        ValueError: see ``apply_base_lora``.
    """
    try:
        update = read_lora(section.path, revision=section.revision, offline=offline).update(transformer)
    except ValueError as error:
        raise ValueError(f"policy.base_lora: {error}") from error
    return scaled(update, section.scale)
