"""The base LoRA, a released LoRA as part of a model's base: fused, or a frozen adapter beneath the trained one."""

from collections.abc import Sequence
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
    """A recipe's section ``policy.base_lora``: UNO's released LoRA, or any other of the policy's model."""

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

    def check_training(self, quantization: str, *, full: bool) -> None:
        """Raise a ``ValueError`` where the LoRA can't be joined to weights of this kind, or trained with them."""
        if quantization != "none" and self.mode == "fuse":
            raise ValueError(f"base_lora: it can't be fused into {quantization} weights; use base_lora.mode=adapter")
        if full and self.mode == "adapter":
            raise ValueError("full: the base's LoRA must be in the weights that are trained; use base_lora.mode=fuse")


def with_base_lora(
    transformer: Any,
    section: BaseLora | None,
    *,
    absent: Sequence[str],
    offline: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """Make a recipe's ``policy.base_lora`` a part of a transformer that was just opened, if it has one.

    Args:
        transformer: without an adapter.
        section: of the recipe, or None.
        absent: parts that were left out; a transformer without weights takes no LoRA.
        offline: don't ask the hub.
        device: where it runs.
        dtype: of its weights.

    Returns:
        Its identity; ``NO_LORA`` where there is none.

    Raises:
        ValueError: see ``apply_base_lora``.
    """
    if section is None or "transformer" in absent:
        return NO_LORA
    return apply_base_lora(transformer, section, offline=offline, device=device, dtype=dtype)


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
