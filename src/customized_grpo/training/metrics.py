"""Metrics of a training step. Every name is in the glossary (``docs/metrics.md``), which a test checks.

Dimensions: G group size, R rewards, Q axes, K trained steps, T sampler steps.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.advantages.shaping import Advantages
from customized_grpo.evaluation.protocols import find_protocol
from customized_grpo.evaluation.summary import Row, column_means, columns_of
from customized_grpo.recipe.config import AXES


def groups(
    names: Sequence[str],
    axis_of: Sequence[int],
    rewards: Sequence[Float[Tensor, "g r"]],
    advantages: Sequence[Advantages],
) -> dict[str, float]:
    """Metrics of a step's rewards and advantages, each a mean over the groups."""
    metrics: dict[str, float] = {}
    for column, name in enumerate(names):
        values = [scores[:, column] for scores in rewards]
        finite = [value[value.isfinite()] for value in values]
        metrics[f"reward/{name}/mean"] = _mean([float(value.mean()) for value in finite if len(value)])
        metrics[f"reward/{name}/std"] = _mean([float(value.std()) for value in finite if len(value) > 1])
        metrics[f"reward/{name}/zero_variance_share"] = _mean(
            [float(_constant(value)) for value in finite if len(value) > 1]
        )
    for axis, axis_name in enumerate(AXES):
        mine = [metrics[f"reward/{name}/mean"] for name, of in zip(names, axis_of, strict=True) if of == axis]
        metrics[f"reward/{axis_name}/mean"] = _mean(mine)
    metrics["advantage/correlation"] = _mean([correlation(one.axes) for one in advantages])
    prompt, identity = torch.cat([one.axes for one in advantages]).unbind(1)
    metrics["advantage/share_synergy"] = float(((prompt > 0) & (identity > 0)).float().mean())
    metrics["advantage/share_conflict"] = float((prompt * identity < 0).float().mean())
    metrics["advantage/share_both_down"] = float(((prompt < 0) & (identity < 0)).float().mean())
    metrics["advantage/bonus_mean"] = _mean([float(one.bonus.mean()) for one in advantages])
    metrics["advantage/bonus_abs_mean"] = _mean([float(one.bonus.abs().mean()) for one in advantages])
    metrics["advantage/abs_mean"] = _mean([float(one.advantage.abs().mean()) for one in advantages])
    metrics["advantage/clip_share"] = _mean([one.clipped_share for one in advantages])
    metrics["advantage/skipped_share"] = _mean([float(one.skipped) for one in advantages])
    metrics["advantage/masked_share"] = _mean([float((~one.scored).float().mean()) for one in advantages])
    return metrics


def correlation(axes: Float[Tensor, "g q"]) -> float:
    """Pearson's correlation of the two axes inside a group; NaN where one is constant."""
    prompt, identity = (axes - axes.mean(0)).unbind(1)
    scale = float(prompt.norm() * identity.norm())
    return float(prompt @ identity) / scale if scale > 0 else math.nan


def weights(time_weights: Float[Tensor, "t q"], step_sensitivity: Float[Tensor, " t"]) -> dict[str, float]:
    """Time weight of each trainable step and axis, and the *effective* one: constants of a run.

    A step's gradient is its time weight times ``Objective.sensitivity``, so the effective weight is that product,
    scaled so that over all trainable steps the mean of both axes' sum is 1.
    """
    metrics = {}
    trainable = step_sensitivity.nonzero().flatten().tolist()
    effective = time_weights * step_sensitivity[:, None]
    effective = effective * (len(trainable) / effective.sum())
    for step in trainable:
        for column, axis in enumerate(AXES):
            metrics[f"weight/{axis}/step_{step:02d}"] = float(time_weights[step, column])
            metrics[f"weight_effective/{axis}/step_{step:02d}"] = float(effective[step, column])
    return metrics


def evaluation(rows: Sequence[Row], protocol: str) -> dict[str, float]:
    """Mean of every metric over the protocol's units: held-out examples, or subjects."""
    unit = find_protocol(protocol).unit
    return {
        f"evaluation/{column}/mean": _mean(list(column_means(rows, column, unit).values()))
        for column in columns_of(rows)
    }


def headline(metrics: Mapping[str, float]) -> str:
    """Short line of the most important metrics."""
    shown = {
        "prompt": "reward/prompt/mean",
        "identity": "reward/identity/mean",
        "corr": "advantage/correlation",
        "grad": "grad/norm",
        "s": "time/step",
    }
    return "  ".join(f"{label} {metrics[name]:.3g}" for label, name in shown.items() if name in metrics)


def _constant(values: Float[Tensor, " g"]) -> bool:
    return bool(values.std() <= 1e-6 * values.mean().abs())


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
