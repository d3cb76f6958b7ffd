"""Record of how an evaluation's images were made and measured: the ``settings`` of a summary."""

from typing import Any

from pydantic import BaseModel

from customized_grpo import registry
from customized_grpo.data.dreambench import DreamBench, photos
from customized_grpo.recipe.config import Evaluate, EvaluateSampling, Sampling
from customized_grpo.recipe.sections import MetricSpec, PolicySpec
from customized_grpo.rewards.base import transport_of


def settings_of(
    policy: PolicySpec, sampling: EvaluateSampling | Sampling, spec: Evaluate, examples: int
) -> dict[str, Any]:
    """A summary's ``settings``: how images are made, for the record and for ``Protocol.departures``.

    Args:
        policy: the recipe's policy section; only options that decide the pixels of a given model are kept.
    """
    drawn = policy.model_dump(
        mode="json",
        include={"type", "model", "height", "width", "guidance", "negative_prompt", "reference_size"},
    )
    base = policy.model_dump(mode="json", include={"transformer", "base_lora"}, exclude_none=True)
    shape, steps = policy.latent_shape(), spec.steps or sampling.steps
    shift = policy.shift(sampling.shift, tokens=shape[0], steps=steps) if shape else None
    return {
        **drawn,
        **base,
        "steps": steps,
        "shift": round(shift.value, 3) if shift else sampling.shift,
        "seed": spec.seed,
        "images_per_prompt": spec.images_per_prompt,
        "examples": examples,
        "data": registry.type_of(spec.data),
        **({"photos": photos(spec.data.path)} if isinstance(spec.data, DreamBench.Config) else {}),
        "metrics": {
            name: (isinstance(one, MetricSpec) and one.model_name()) or registry.type_of(one)
            for name, one in spec.metrics.items()
        },
        "metric_options": {name: options for name, one in spec.metrics.items() if (options := _options(one))},
    }


def _options(spec: BaseModel) -> dict[str, Any]:
    """A metric's type and its non-default options that change its values."""
    shown = {"axis", "weight", "model", *transport_of(spec)}
    return spec.model_dump(mode="json", exclude=shown, exclude_defaults=True) | {"type": registry.type_of(spec)}
