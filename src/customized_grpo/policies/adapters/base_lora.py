"""The base LoRA, a released LoRA as part of FLUX's base: fused, or a frozen adapter beneath the trained one."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from customized_grpo.policies.adapters.lora import attach_frozen
from customized_grpo.policies.adapters.lora_files import WEIGHTS_NAME, find_adapter, update_of
from customized_grpo.policies.adapters.low_rank import Factors, check_fits, fuse, scaled
from customized_grpo.policies.adapters.tensor_files import read_metadata, read_tensors
from customized_grpo.policies.adapters.uno_lora import FILE_NAME, REPOSITORY, from_uno, is_uno
from customized_grpo.policies.hub_files import weights_file


class BaseLora(BaseModel):
    """A recipe's section ``policy.base_lora``: UNO's released LoRA, or any in diffusers' format."""

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
    scale: float = Field(default=1.0, description="factor on its update")
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
    """The update of ``section``, its scale inside, checked against the transformer.

    Raises:
        ValueError: see ``apply_base_lora``.
    """
    file = _find(section, offline)
    tensors = read_tensors(file, "policy.base_lora:")
    try:
        if is_uno(tensors):
            config = transformer.config
            update = from_uno(tensors, config.num_layers, config.num_single_layers)
        else:
            update = update_of(file, tensors, read_metadata(file, "policy.base_lora:"))
        check_fits(update, transformer)
    except ValueError as error:
        raise ValueError(f"policy.base_lora: {section.path!r} does not fit: {error}") from error
    return scaled(update, section.scale)


def _find(section: BaseLora, offline: bool) -> Path:
    folder = Path(section.path).expanduser()
    if folder.is_dir() and not (folder / FILE_NAME).is_file():
        return find_adapter(folder)
    default = FILE_NAME if folder.is_dir() or section.path == REPOSITORY else WEIGHTS_NAME
    return weights_file(
        section.path, "policy.base_lora.path", default=default, revision=section.revision, offline=offline
    )
