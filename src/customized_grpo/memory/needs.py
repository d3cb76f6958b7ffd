"""A machine's fitness for a recipe, before anything is fetched or loaded."""

from typing import Final

import torch

from customized_grpo import registry
from customized_grpo.memory.footprint import UnknownModelError, shapes
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import EvaluateRecipe, Recipe

_SMALL: Final = 500_000_000
"""Parameters that a CPU can still be asked for without being told."""


def parameters_of(recipe: Recipe | EvaluateRecipe) -> int | None:
    """Parameters of a recipe's transformer, from its shapes; None where they aren't known here."""
    policy = recipe.policy
    kind: type[Policy] = registry.resolve("policies", policy.type)
    try:
        return shapes(policy.source(), kind.encoders).transformer.whole.num_values
    except (UnknownModelError, OSError, ValueError):
        return None


def lacks_gpu(recipe: Recipe | EvaluateRecipe) -> str:
    """The reason why a recipe should not run here: a large model, no GPU, and nobody asked for a CPU; else empty."""
    if recipe.run.device != "auto" or torch.accelerator.current_accelerator(check_available=True) is not None:
        return ""
    size = parameters_of(recipe)
    if size is None or size < _SMALL:
        return ""
    return f"torch finds no GPU here, and {recipe.policy.model} has {size / 1e9:.1f} billion parameters"


def need_gpu(recipe: Recipe | EvaluateRecipe) -> None:
    """Refuse a large model without a GPU, before tens of gigabytes are fetched for steps of hours.

    Raises:
        ValueError: see ``lacks_gpu``.
    """
    if why := lacks_gpu(recipe):
        raise ValueError(
            f"run.device: auto, but {why}, so that a step would take hours; run it on a machine with a GPU, or try the "
            "miniature (customized-grpo demo); run.device=cpu if you mean it"
        )
