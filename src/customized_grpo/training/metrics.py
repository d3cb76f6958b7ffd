"""Metrics of a training step. Every name is in the glossary (``docs/metrics.md``), which a test checks.

Dimensions: G group size, R rewards, Q axes (prompt, identity, then further ones), K trained steps, T sampler steps.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.advantages.axes import AXES
from customized_grpo.advantages.shaping import Advantages
from customized_grpo.evaluation.protocols import find_protocol
from customized_grpo.evaluation.summary import Row, column_means, columns_of


def groups(
    names: Sequence[str],
    axis_of: Sequence[int],
    rewards: Sequence[Float[Tensor, "g r"]],
    advantages: Sequence[Advantages],
    axes: Sequence[str] = AXES,
) -> dict[str, float]:
    """Metrics of a step's rewards and advantages, each a mean over the groups; ``axes`` names the columns."""
    metrics: dict[str, float] = {}
    for column, name in enumerate(names):
        values = [scores[:, column] for scores in rewards]
        finite = [value[value.isfinite()] for value in values]
        metrics[f"reward/{name}/mean"] = _mean([float(value.mean()) for value in finite if len(value)])
        metrics[f"reward/{name}/std"] = _mean([float(value.std()) for value in finite if len(value) > 1])
        metrics[f"reward/{name}/zero_variance_share"] = _mean(
            [float(_constant(value)) for value in finite if len(value) > 1]
        )
    for axis, axis_name in enumerate(axes):
        mine = [metrics[f"reward/{name}/mean"] for name, of in zip(names, axis_of, strict=True) if of == axis]
        metrics[f"reward/{axis_name}/mean"] = _mean(mine)
    for pair in combinations(range(len(axes)), 2):
        of_pair = "" if pair == (0, 1) else f"/{axes[pair[0]]}/{axes[pair[1]]}"
        metrics[f"advantage/correlation{of_pair}"] = _mean([correlation(one.axes[:, pair]) for one in advantages])
    every = torch.cat([one.axes for one in advantages])
    up, down = every > 0, every < 0
    metrics["advantage/share_synergy"] = float(up.all(1).float().mean())
    metrics["advantage/share_conflict"] = float((up.any(1) & down.any(1)).float().mean())
    metrics["advantage/share_both_down"] = float(down.all(1).float().mean())
    metrics["advantage/bonus_mean"] = _mean([float(one.bonus.mean()) for one in advantages])
    metrics["advantage/bonus_abs_mean"] = _mean([float(one.bonus.abs().mean()) for one in advantages])
    metrics["advantage/nonlinear_share"] = _mean([nonlinear_share(one) for one in advantages])
    metrics["advantage/abs_mean"] = _mean([float(one.advantage.abs().mean()) for one in advantages])
    metrics["advantage/clip_share"] = _mean([one.clipped_share for one in advantages])
    metrics["advantage/skipped_share"] = _mean([float(one.skipped) for one in advantages])
    metrics["advantage/masked_share"] = _mean([float((~one.scored).float().mean()) for one in advantages])
    return metrics


def of_samples(
    names: Sequence[str], rewards: Float[Tensor, "g r"], advantages: Advantages, axes: Sequence[str] = AXES
) -> dict[str, list[float]]:
    """Rewards and advantages of a group's samples, by name."""
    return (
        {name: rewards[:, column].tolist() for column, name in enumerate(names)}
        | {f"advantage/{axis}": advantages.axes[:, column].tolist() for column, axis in enumerate(axes)}
        | {"advantage/mean": advantages.advantage.mean(1).tolist()}
    )


def correlation(axes: Float[Tensor, "g 2"]) -> float:
    """Pearson's correlation of two axes inside a group; NaN where one is constant."""
    prompt, identity = (axes - axes.mean(0)).unbind(1)
    scale = float(prompt.norm() * identity.norm())
    return float(prompt @ identity) / scale if scale > 0 else math.nan


def nonlinear_share(group: Advantages) -> float:
    """Share of the variance of a group's advantages that no fixed weights of the axes give, in [0, 1].

    1 - R^2 of the least squares fit of each step's advantages, before they are clamped, by the axes of the samples that
    are scored; mean over the steps. 0 of a weighted sum. NaN where there are not more samples than coefficients, or all
    advantages are alike.
    """
    axes, joined = group.axes[group.scored].double(), group.joined[group.scored].double()
    if len(axes) < axes.shape[1] + 2:
        return math.nan
    axes, joined = axes - axes.mean(0), joined - joined.mean(0)
    total = joined.square().sum(0)
    # pinv and not lstsq: a constant axis makes the fit rank-deficient, which lstsq of a GPU doesn't take
    rest = (joined - axes @ (torch.linalg.pinv(axes) @ joined)).square().sum(0)
    shares = (rest / total)[total > 1e-12]
    return float(shares.clamp(0, 1).mean()) if len(shares) else math.nan


def weights(
    time_weights: Float[Tensor, "t q"], step_sensitivity: Float[Tensor, " t"], axes: Sequence[str] = AXES
) -> dict[str, float]:
    """Time weight of each trainable step and axis, and the *effective* one: constants of a run.

    A step's gradient is its time weight times ``Objective.sensitivity``, so the effective weight is that product,
    scaled so that over all trainable steps the mean of all axes' sum is 1.
    """
    metrics = {}
    trainable = step_sensitivity.nonzero().flatten().tolist()
    effective = time_weights * step_sensitivity[:, None]
    effective = effective * (len(trainable) / effective.sum())
    for step in trainable:
        for column, axis in enumerate(axes):
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


def headline(metrics: Mapping[str, float], axes: Sequence[str] = AXES) -> str:
    """Short line of the most important metrics."""
    shown = {
        **{axis: f"reward/{axis}/mean" for axis in axes},
        "corr": "advantage/correlation",
        **({} if "advantage/correlation" in metrics else {"loss": "loss/surrogate", "accuracy": "dpo/accuracy"}),
        "grad": "grad/norm",
        "s": "time/step",
    }
    return "  ".join(f"{label} {metrics[name]:.3g}" for label, name in shown.items() if name in metrics)


def _constant(values: Float[Tensor, " g"]) -> bool:
    return bool(values.std() <= 1e-6 * values.mean().abs())


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
