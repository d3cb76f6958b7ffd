"""LoRA files in diffusers' format: find and write them. ``lora_reader`` reads these and all others.

Ours is ``pytorch_lora_weights.safetensors``: keys ``transformer.<module>.lora_{A,B}.weight``, rank and alpha in the
header, so that ``pipeline.load_lora_weights(folder)`` gives the same velocity.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from customized_grpo.paths import matching
from customized_grpo.policies.adapters.low_rank import Update
from customized_grpo.policies.adapters.tensor_files import is_part, write_tensors
from customized_grpo.policies.adapters.uno_lora import FILE_NAME, REPOSITORY
from customized_grpo.policies.hub_files import hub_lora, is_hub_id

WEIGHTS_NAME: Final = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"
"""peft's names of a LoRA and of its configuration beside it."""
PREFIX: Final = "transformer."
HEADER: Final = "lora_adapter_metadata"
"""diffusers' key of the header entry that holds the LoraConfig."""
RECIPE: Final = "recipe"
"""Key of the header entry that holds the training recipe, as JSON without its section ``run``."""
_WHOLE: Final = "transformer/config.json"
"""What a checkpoint of full fine-tuning holds."""
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


def exactly(module: str) -> str:
    """A pattern of this module alone: "^" pins the full name, since "proj_out" is also how other layers' names end."""
    return "^" + re.escape(module)


def write_update(file: Path, update: Update, metadata: Mapping[str, str]) -> Path:
    """Write an update of any ranks as a LoRA in diffusers' format, alpha = rank everywhere."""
    update = {name: one.folded() for name, one in update.items()}
    rank = Counter(one.rank for one in update.values()).most_common(1)[0][0]
    pattern = {exactly(name): one.rank for name, one in sorted(update.items()) if one.rank != rank}
    config = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": rf"({'|'.join(re.escape(name) for name in sorted(update))})",
    }
    tensors = {
        f"{name}.lora_{side}.weight": tensor.clone()  # layers may share one A, and safetensors writes no tensor twice
        for name, one in update.items()
        for side, tensor in (("A", one.a), ("B", one.b))
    }
    return write_adapter(file, tensors, config, metadata)


def write_adapter(
    file: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], metadata: Mapping[str, str]
) -> Path:
    """Write a LoRA in diffusers' format; the same weights and metadata give the same bytes.

    Args:
        file: its folder is created if missing.
        tensors: by peft's names, without the prefix ``transformer.``.
        config: of peft's ``LoraConfig``, for the header.
        metadata: what else the header says.
    """
    header = {
        **metadata,
        "format": "pt",
        HEADER: json.dumps({PREFIX + key: value for key, value in config.items()}, sort_keys=True),
    }
    write_tensors(file, {PREFIX + name: tensor for name, tensor in tensors.items()}, header)
    return file


def find_adapter(path: str | Path, *, revision: str | None = None, offline: bool = False) -> Path:
    """The weights file that a file, an adapter's folder, a checkpoint, a run or a hub id stands for.

    Args:
        path: one of these; a hub id is ``organisation/name`` or ``organisation/name/file.safetensors``.
        revision: branch, tag or commit on the hub.
        offline: look into the hub's cache only.

    Raises:
        ValueError: there is no adapter, or it is one of several files that only together are one.
    """
    file = _found(path, revision=revision, offline=offline)
    if is_part(file):
        raise ValueError(
            f"LoRA {str(file)!r} is one part of a file that was saved in several, which are not read here: join them "
            "(load_file of each part and one save_file of all their tensors, of safetensors.torch) and give that file "
            "from a folder of its own"
        )
    return file


def _found(path: str | Path, *, revision: str | None, offline: bool) -> Path:
    given = Path(path).expanduser()
    if given.suffix in _PICKLES and given.is_file():
        raise ValueError(
            f"{str(given)!r} is a pickle, which can run any program and is never opened here; convert it to "
            "safetensors, or get the file that is"
        )
    if given.is_file() and given.suffix in (".safetensors", ".sft"):
        return given
    if (newest := newest_complete(given, WEIGHTS_NAME)) is not None:
        return newest
    inside = matching(given, "*.safetensors")
    named = [one for one in inside if one.name in (WEIGHTS_NAME, PEFT_WEIGHTS, FILE_NAME)] or inside
    if len(named) == 1 or (named and all(map(is_part, named))):
        return named[0]
    if named:
        raise ValueError(
            f"the folder {str(path)!r} holds {len(named)} files ({', '.join(one.name for one in named[:3])}); give one"
        )
    if not given.exists() and is_hub_id(str(path)):
        names = (FILE_NAME,) if str(path) == REPOSITORY else (WEIGHTS_NAME, PEFT_WEIGHTS)
        return hub_lora(str(path), names=names, beside={PEFT_WEIGHTS: PEFT_CONFIG}, revision=revision, offline=offline)
    pickles = sorted(one.name for one in given.glob("*") if one.suffix in _PICKLES) if given.is_dir() else []
    also = f", and the pickles there ({', '.join(pickles[:3])}) are never opened" if pickles else ""
    if newest_complete(given, _WHOLE) or (given / _WHOLE).is_file():
        also = ", but a whole transformer, from which policy.full.path starts"
    raise ValueError(
        f"no adapter at {str(path)!r}{also}; give a .safetensors file, a folder with {WEIGHTS_NAME}, a checkpoint, "
        "a run with checkpoints/step-*, or organisation/name or organisation/name/file.safetensors on the hub"
    )


def newest_complete(run: Path, name: str) -> Path | None:
    """A file of the newest complete checkpoint of a run that has it; None where there is none."""
    complete = {
        int(folder.name.removeprefix("step-")): folder / name
        for folder in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d+", folder.name) and (folder / "manifest.json").is_file() and (folder / name).is_file()
    }
    return complete[max(complete)] if complete else None
