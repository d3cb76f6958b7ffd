"""The recipe that comes with an adapter, which says the policy to ``generate``: on the hub, or in a file's header."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from customized_grpo.policies.adapters.lora_files import RECIPE, find_adapter
from customized_grpo.policies.adapters.tensor_files import read_metadata
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import RecipeError, recipe_of
from customized_grpo.recipe.yaml_source import read_yaml
from customized_grpo.web.hub import hub_problem

_CONFIG = "config.yaml"
_OF_NO_USE: Final[dict[str, Any]] = {
    "data": {"type": "mini", "split": "train"},
    "train": {"evaluate_every": 0},
    "rewards": {
        "clip": {"type": "clip_t", "axis": "prompt", "model": "mini"},
        "dino": {"type": "dino", "axis": "identity", "model": "mini"},
    },
}
"""Sections that a recipe must have, and no picture depends on."""


def published_config(lora: str) -> Path:
    """The ``config.yaml`` of a LoRA's repository, in the hub's cache.

    It is others' text: one that names code (``type: module:attr``) is refused, as reading it would import that.

    Args:
        lora: organisation/name, or organisation/name/file.safetensors.

    Raises:
        RecipeError: there is none, the hub does not give it, or it is no recipe that may be read.
    """
    from httpx2 import HTTPError
    from huggingface_hub import errors, hf_hub_download

    repo = "/".join(lora.split("/")[:2])
    instead = "say which policy it is for with --config RECIPE"
    try:
        file = Path(hf_hub_download(repo, _CONFIG))
    except (OSError, HTTPError, errors.HFValidationError) as error:
        raise RecipeError(
            f"{lora}: no such file or folder, and no {_CONFIG} of it on the hub ({hub_problem(error, repo)}); give "
            f"a run or an adapter that is there, or {instead}"
        ) from error
    data, _ = read_yaml(file)
    if not {"run", "policy"} <= data.keys():
        raise RecipeError(f"{lora}: its {_CONFIG} is no recipe of customized-grpo; {instead}")
    if named := sorted({one for one in _types(data) if ":" in one}):
        raise RecipeError(f"{lora}: its {_CONFIG} names code ({', '.join(named)}), which is not imported; {instead}")
    return file


def carried_recipe(lora: str) -> Recipe | None:
    """The training recipe in the header of a LoRA's file, as checkpoints and exports have it; None if there is none.

    It is others' text, as above; only what draws is read of it: policy, precision, steps and shift.

    Raises:
        RecipeError: it names code, or is no recipe any more.
    """
    try:
        header = read_metadata(find_adapter(lora))
        found = json.loads(header[RECIPE])
        asked = {key: one for key, one in found["sampling"].items() if key in ("steps", "shift")}
        run = {"dir": "unused", "precision": header.get("precision", "bf16")}
        data = {"run": run, "policy": found["policy"], "sampling": asked}
    except (ValueError, LookupError, TypeError, AttributeError):  # no file, no such key, or another tool's
        return None
    if named := sorted({one for one in _types(data) if ":" in one}):
        raise RecipeError(
            f"{lora}: the recipe in its header names code ({', '.join(named)}), which is not imported; say which "
            "policy it is for with --config RECIPE"
        )
    return recipe_of({**_OF_NO_USE, **data}, (), Recipe)


def _types(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "type" and isinstance(one, str):
                yield one
            yield from _types(one)
    elif isinstance(value, list):
        for one in value:
            yield from _types(one)
