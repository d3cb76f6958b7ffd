"""Write src/customized_grpo/memory/skeletons.json from what diffusers builds on the meta device: ``make skeletons``.

Each entry is a class, its default configuration, whole configurations that give the same layers, and these: the parts
of the model in order, each kind of repeated block once. ``tests/unit/memory/test_skeleton.py`` compares.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from customized_grpo.memory import skeleton
from customized_grpo.memory.known_models import MODELS
from customized_grpo.policies.checkpointing import repeated_blocks

PACKAGE = Path(skeleton.__file__).parents[1]
FILE = PACKAGE / "memory" / "skeletons.json"


def built(transformer: str, config: Mapping[str, Any]) -> Any:
    """A model without memory for its weights."""
    with torch.device("meta"):
        return getattr(diffusers, transformer).from_config(dict(config))


def configuration(model: Any) -> dict[str, Any]:
    """All keys, as JSON has them."""
    found: dict[str, Any] = json.loads(json.dumps(model.config))
    return {key: value for key, value in found.items() if not key.startswith("_")}


def parts(model: Any) -> list[dict[str, Any]]:
    """The model's parts as the file holds them."""
    found = []
    for name, child in _places(model):
        repeated = f"{name}.0" in dict(repeated_blocks(model))
        layers = asdict(skeleton.layers_of(child[0] if repeated else child))
        layers["linears"] = [astuple(skeleton.LinearShape(**one)) for one in layers["linears"]]
        found.append({"name": name, **({"count": len(child)} if repeated else {}), **layers})
    again, whole = skeleton.of_parts(found, {}), skeleton.of_module(model)
    assert (again.whole, again.blocks) == (whole.whole, whole.blocks), "the model is more than its parts"
    return found


def _places(model: Any) -> Iterator[tuple[str, Any]]:
    """The model's children, and in the place of a dict of lists of blocks, as FLUX.3 has one, its lists."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleDict) and all(isinstance(one, nn.ModuleList) for one in child.values()):
            yield from ((f"{name}.{key}", one) for key, one in child.items())
        else:
            yield name, child


def text() -> str:
    """The file, one line a skeleton."""
    mini = json.loads((PACKAGE / "mini/assets/flux/transformer/config.json").read_text(encoding="utf-8"))
    wanted = [(known.transformer, known.config) for known in MODELS.values()] + [(mini["_class_name"], mini)]
    entries: list[dict[str, Any]] = []
    for transformer, config in wanted:
        model = built(transformer, config)
        whole, made = configuration(model), parts(model)
        entry = next((one for one in entries if (one["transformer"], one["parts"]) == (transformer, made)), None)
        if entry is None:
            defaults = configuration(built(transformer, {}))
            entries.append(entry := dict(transformer=transformer, defaults=defaults, configurations=[], parts=made))
        if whole not in entry["configurations"]:
            entry["configurations"].append(whole)
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
