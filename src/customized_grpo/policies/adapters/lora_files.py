"""LoRA files in diffusers' format: find, read and write them.

An adapter file is ``pytorch_lora_weights.safetensors``: keys ``transformer.<module>.lora_{A,B}.weight``, rank and
alpha in the header, so that ``pipeline.load_lora_weights(folder)`` gives the same velocity.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from customized_grpo.policies.adapters.low_rank import Factors, Update, shown
from customized_grpo.policies.adapters.tensor_files import read_metadata, read_tensors, write_tensors
from customized_grpo.policies.adapters.uno_lora import is_uno
from customized_grpo.policies.base import LoraSettings

WEIGHTS_NAME: Final = "pytorch_lora_weights.safetensors"
PREFIX: Final = "transformer."
HEADER: Final = "lora_adapter_metadata"
"""diffusers' key of the header entry that holds the LoraConfig."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """Content of an adapter file."""

    path: Path
    tensors: Mapping[str, Tensor]
    """Tensors by peft's names, without the prefix ``transformer.``."""
    rank: int
    alpha: float
    metadata: Mapping[str, str]

    def settings(self) -> LoraSettings:
        """Settings whose ``attach`` makes exactly this file's modules; ``path`` is set, so that it loads them too."""
        modules = sorted({name.split(".lora_")[0] for name in self.tensors})
        return LoraSettings(
            rank=self.rank,
            alpha=self.alpha,
            targets=tuple(exactly(module) for module in modules),
            path=str(self.path),
        )

    def check_base(self, base_hash: str) -> None:
        """Raise if the adapter names another base than this one.

        Raises:
            ValueError: it was another.
        """
        trained_on = self.metadata.get("base_hash", base_hash)
        name = self.metadata.get("base_model", "unknown")
        if trained_on != base_hash:
            raise ValueError(
                f"adapter {str(self.path)!r} was trained on another base ({name!r}, hash "
                f"{trained_on}) than this policy's (hash {base_hash}); give that base as policy.model"
            )


def exactly(module: str) -> str:
    """A pattern of this module alone: "^" pins the full name, since "proj_out" is also how other layers' names end."""
    return "^" + re.escape(module)


def read_adapter(path: str | Path) -> AdapterFile:
    """Read an adapter: a file, its folder, a checkpoint, or a run (its newest complete checkpoint).

    Raises:
        ValueError: nothing there, a damaged file, or not a LoRA of a single rank in diffusers' format.
    """
    file = find_adapter(path)
    tensors, metadata = read_tensors(file, "adapter"), read_metadata(file, "adapter")
    if is_uno(tensors):
        raise ValueError(
            f"adapter {str(file)!r} is in UNO's format, not in diffusers' ({shown(sorted(tensors))}); give it "
            f"as policy.base_lora.path={file}"
        )
    tensors = _of_transformer(file, tensors)
    ranks = {tensor.shape[0 if ".lora_A." in name else 1] for name, tensor in tensors.items() if tensor.ndim == 2}
    if len(ranks) != 1:
        raise ValueError(
            f"adapter {str(file)!r} has the ranks {sorted(ranks)}; only one rank for all is supported here. "
            f"To draw with it, or to train on top of it, give it as policy.base_lora.path={file}"
        )
    rank = ranks.pop()
    # Without an entry the scale is 1, as in diffusers.
    alpha = float(_config(file, metadata).get("lora_alpha", rank))
    return AdapterFile(path=file, tensors=tensors, rank=rank, alpha=alpha, metadata=metadata)


def update_of_adapter(file: AdapterFile) -> dict[str, Factors]:
    """The update of an adapter that was read."""
    named = {PREFIX + name: tensor for name, tensor in file.tensors.items()}
    return update_of(file.path, named, file.metadata)


def update_of(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Factors]:
    """The update of a file in diffusers' format, whatever its ranks.

    Raises:
        ValueError: other keys than a transformer's LoRA, a lonely A or B, or a LoRA of another kind (DoRA, rsLoRA).
    """
    names = _of_transformer(file, tensors)
    config = _config(file, metadata)
    for kind in ("use_dora", "use_rslora"):
        if config.get(kind):
            raise ValueError(f"LoRA {str(file)!r} is of a kind that is not supported ({kind})")
    modules = sorted({name.split(".lora_")[0] for name in names})
    expected = {f"{module}.lora_{side}.weight" for module in modules for side in "AB"}
    if missing := sorted(expected - names.keys()):
        raise ValueError(f"LoRA {str(file)!r} is not whole; missing: {shown(missing)}")
    update = {}
    for module in modules:
        a, b = (names[f"{module}.lora_{side}.weight"] for side in "AB")
        alpha = config.get("alpha_pattern", {}).get(exactly(module), config.get("lora_alpha", a.shape[0]))
        scale = float(alpha) / a.shape[0]
        update[module] = Factors(a, b if scale == 1 else b * scale)
    return update


def write_update(file: Path, update: Update, metadata: Mapping[str, str]) -> Path:
    """Write an update of any ranks as a LoRA in diffusers' format, alpha = rank everywhere."""
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
        f"{name}.lora_{side}.weight": tensor
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


def find_adapter(path: str | Path) -> Path:
    """The weights file that a file, an adapter's folder, a checkpoint or a run stands for.

    Raises:
        ValueError: there is no adapter.
    """
    given = Path(path).expanduser()
    if given.is_file() and given.suffix == ".safetensors":
        return given
    if (given / WEIGHTS_NAME).is_file():
        return given / WEIGHTS_NAME
    newest = newest_complete(given, WEIGHTS_NAME)
    if newest is None:
        raise ValueError(
            f"no adapter at {str(path)!r}; give a .safetensors file, a folder with {WEIGHTS_NAME}, a checkpoint, "
            "or a run with checkpoints/step-*"
        )
    return newest


def newest_complete(run: Path, name: str) -> Path | None:
    """A file of the newest complete checkpoint of a run that has it; None where there is none."""
    complete = {
        int(folder.name.removeprefix("step-")): folder / name
        for folder in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d+", folder.name) and (folder / "manifest.json").is_file() and (folder / name).is_file()
    }
    return complete[max(complete)] if complete else None


def _of_transformer(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    foreign = [name for name in tensors if not re.fullmatch(r"transformer\..+\.lora_[AB]\.weight", name)]
    if foreign or not tensors:
        raise ValueError(
            f"adapter {str(file)!r} is not a LoRA of a transformer in diffusers' format "
            f"(transformer.<module>.lora_A.weight): {shown(foreign) or 'it is empty'}"
        )
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(metadata.get(HEADER, "{}"))
    except ValueError as error:
        raise ValueError(f"adapter {str(file)!r} has a damaged header ({HEADER}: {error})") from error
    return {key.removeprefix(PREFIX): value for key, value in entry.items()}
