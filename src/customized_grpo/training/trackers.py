"""Trackers, by accelerate: what a run is called there, its recipe as keys, and pictures with their captions."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from customized_grpo.recipe.config import Recipe

PROJECT = "customized-grpo"


def start(accelerator: Accelerator, recipe: Recipe, run: str) -> None:
    """Start the recipe's trackers: the run is called as its folder, and a resumed one goes on with its curves.

    Args:
        accelerator: of the run.
        recipe: is logged as one value for each key.
        run: its name over all restarts (``identity.runs``). wandb's own environment variables have precedence.
    """
    name = Path(recipe.run.dir).resolve().name
    settings = {
        "wandb": {
            "name": os.environ.get("WANDB_NAME", name),
            "id": os.environ.get("WANDB_RUN_ID", run),
            "resume": os.environ.get("WANDB_RESUME", "allow"),
        },
        "trackio": {"name": f"{name}-{run[:4]}", "resume": "allow"},  # it knows a run by its name alone
        "swanlab": {"experiment_name": name},
    }
    keys = flat(recipe.model_dump(mode="json"))
    accelerator.init_trackers(PROJECT, config=keys, init_kwargs=settings)


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, bool | int | float | str | None]:
    """Nested values as ``key.sub``, the form of a recipe's overrides; a list is its JSON, as trackers take no lists."""
    found: dict[str, bool | int | float | str | None] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return found


def log_pictures(tracker: GeneralTracker, pictures: Sequence[tuple[Image.Image, str]], step: int) -> None:
    """Log pictures with their captions as ``samples/0``, ``samples/1`` and so on.

    accelerate's own ``log_images`` takes no captions, and trackio's has none.
    """
    for number, (image, caption) in enumerate(pictures):
        name = f"samples/{number}"
        if tracker.name == "wandb":
            import wandb

            tracker.log({name: wandb.Image(image, caption=caption)}, step=step)
        elif tracker.name == "swanlab":
            import swanlab

            tracker.log({name: swanlab.Image(image, caption=caption)}, step=step)
        elif tracker.name == "trackio":
            import trackio

            tracker.log({name: trackio.Image(np.asarray(image), caption=caption)}, step=step)
        else:
            tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
            tracker.log({f"{name}/caption": caption}, step=step)
