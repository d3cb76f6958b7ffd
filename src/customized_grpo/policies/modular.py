"""Opening a model of which diffusers has a modular pipeline alone: its index names, for each part, where it lies."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from torch import nn

from customized_grpo.identity.parts import Place
from customized_grpo.paths import MODULAR_INDEX
from customized_grpo.policies.acceleration import place_and_freeze, transformer_options
from customized_grpo.policies.pipeline_index import fetched
from customized_grpo.policies.pipelines import PipelineConfig, empty_transformer, explained
from customized_grpo.weights import check_finite, check_whole, read_model


@dataclass
class Parts:
    """The parts of a modular pipeline that a policy needs."""

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """The index."""

    @property
    def components(self) -> dict[str, Any]:
        """Parts by name, None for one that was left out."""
        return {name: getattr(self, name) for name in ("transformer", "vae", "text_encoder", "tokenizer")}

    def to(self, device: torch.device) -> None:
        """Move the models to a device."""
        for part in self.models.values():
            part.to(device)

    @property
    def models(self) -> dict[str, nn.Module]:
        """Those of ``components`` that have weights."""
        return {name: part for name, part in self.components.items() if isinstance(part, nn.Module)}


def open_modular(
    config: PipelineConfig,
    source: str,
    index: Mapping[str, Any],
    classes: Mapping[str, tuple[str, str]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    absent: Sequence[str],
) -> Parts:
    """Frozen parts of a folder or hub id, safetensors only. The VAE is float32: rewards see its images.

    Args:
        config: the recipe's section ``policy``.
        source: the folder or hub id.
        index: what its index says.
        classes: library and class of each model.
        device: where they run.
        dtype: of everything but the VAE.
        absent: parts to leave out; a transformer that is left out has its shapes, without weights.

    Raises:
        ValueError: a part is missing or of another class, or its weights aren't whole or no numbers.
    """
    found: dict[str, Any] = dict.fromkeys(classes)
    for name, (library, class_name) in classes.items():
        if name in absent:
            continue
        with explained(config):
            where = part_folder(config, source, index, name)
            options: dict[str, Any] = {"dtype": torch.float32 if name == "vae" else dtype}
            if name == "transformer":
                options |= transformer_options(config.quantization, dtype, device)
            if config.variant is not None and any(f".{config.variant}." in file.name for file in where.glob("*")):
                options["variant"] = config.variant
            model, report = read_model(getattr(import_module(library), class_name), str(where), options)
        check_whole(model, report, f"policy.model: the {name} of {config.model!r}")
        found[name] = model
    parts = Parts(**found, config=index)
    place_and_freeze(parts, config, device)
    for name, part in parts.models.items():
        check_finite(part.state_dict(), f"policy.model: the {name} of {config.model!r}")
    if parts.transformer is None:  # what depends on its configuration still works
        parts.transformer = empty_transformer(config).requires_grad_(False).eval()
    return parts


def save_modular(parts: Parts, folder: Path, config: PipelineConfig, source: str, index: Mapping[str, Any]) -> None:
    """Write the models as they are, copy every other part, and write an index whose places are in ``folder``.

    Args:
        parts: the models.
        folder: new or empty.
        config: the recipe's section ``policy``.
        source: where the index was read.
        index: what it says; it may name parts that the policy doesn't open.
    """
    written = dict(index)
    for name, entry in index.items():
        if not isinstance(entry, list) or not isinstance(entry[-1], dict):
            continue
        if name in parts.models:
            model: Any = parts.models[name]
            model.save_pretrained(folder / name)
        else:
            with explained(config):
                copytree(part_folder(config, source, index, name), folder / name)
        place = {"pretrained_model_name_or_path": str(folder.absolute()), "subfolder": name, "revision": None}
        written[name] = [*entry[:-1], {**entry[-1], **place}]
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    (folder / MODULAR_INDEX).write_text(text, encoding="utf-8")


def part_folder(config: PipelineConfig, source: str, index: Mapping[str, Any], name: str) -> Path:
    """The folder of a part: beside the index where it is there, else where the index says, fetched if need be.

    ``save_pretrained`` writes the folder that it wrote to into the index, which is wrong once that was moved.

    Raises:
        ValueError: the index doesn't have the part, or its place isn't there.
    """
    beside = Path(source) / name
    if beside.is_dir():
        return beside
    place = Place.of(index, name, source, config.revision)
    if place is None:
        raise ValueError(f"its {MODULAR_INDEX} has no {name}")
    folder = fetched(place.source, place.inside, place.revision)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r} for its {name}")
    return folder
