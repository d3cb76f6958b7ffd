"""Check that a folder in diffusers' layout holds every weight of its models, and none that its models leave out.

The libraries draw a text encoder's missing weights at random and drop a transformer's surplus blocks, each with no more
than a line in their logs.
"""

import json
from collections.abc import Collection
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from torch import nn

from customized_grpo.paths import matching
from customized_grpo.policies.adapters.low_rank import shown

_LIBRARIES: Final = ("diffusers", "transformers")


def check_complete(folder: Path, index: str, *, skip: Collection[str], variant: str | None) -> None:
    """Compare each model's weights in a folder with its configuration, by names and shapes.

    Weights that a text encoder leaves out may be another head's, and stay.

    Args:
        folder: of a pipeline.
        index: name of the pipeline's index in it.
        skip: parts that don't come from there.
        variant: of the weights.

    Raises:
        ValueError: weights are missing, surplus, or of another shape.
    """
    parts = json.loads((folder / index).read_text(encoding="utf-8"))
    for name, entry in sorted(parts.items()):
        if name in skip or not isinstance(entry, list) or entry[0] not in _LIBRARIES or _is_quantised(folder / name):
            continue
        model = getattr(import_module(entry[0]), entry[1])
        if not issubclass(model, nn.Module):
            continue
        if entry[0] == "diffusers" and _fits(model, folder, name, variant):
            continue
        _, found = model.from_pretrained(
            str(folder),
            subfolder=name,
            variant=variant,
            device_map="meta",
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
        wrong = {
            "are missing": found["missing_keys"],
            "are of another shape than its config.json says": [key for key, *_ in found["mismatched_keys"]],
            "have no place in what its config.json says": found["unexpected_keys"] if entry[0] == "diffusers" else (),
        }
        for what, keys in wrong.items():
            if keys:
                raise ValueError(
                    f"weights of its {name} {what}: {shown(sorted(keys))}; get {str(folder / name)!r} again, "
                    "or save the whole pipeline with save_pretrained"
                )


def _fits(model: Any, folder: Path, name: str, variant: str | None) -> bool:
    """Names and shapes by the files' headers alone, as diffusers' loader would read all weights.

    False also where only it can tell, such as names of old versions.
    """
    with torch.device("meta"):
        expected = model.from_config(model.load_config(str(folder), subfolder=name)).state_dict()
    stem = f"diffusion_pytorch_model.{variant}" if variant else "diffusion_pytorch_model"
    whole = folder / name / f"{stem}.safetensors"
    found: dict[str, list[int]] = {}
    with suppress(safetensors.SafetensorError, OSError):
        for file in [whole] if whole.is_file() else matching(folder / name, f"{stem}-*.safetensors"):
            with safetensors.safe_open(str(file), framework="pt") as opened:
                found |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    return found == {key: list(tensor.shape) for key, tensor in expected.items()}


def _is_quantised(part: Path) -> bool:
    """Weights that were saved quantised have further names beside the model's."""
    config = part / "config.json"
    entries: Any = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return "quantization_config" in entries
