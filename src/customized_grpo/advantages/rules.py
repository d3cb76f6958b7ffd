"""Rules on raw rewards and on groups, each one formula with its source; none knows which axis or aggregator it serves.

Dimensions: G group size, n groups of a step (over all ranks), K trained steps.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Measure = Literal["std", "range"]


def sigmoid_scale(rewards: Float[Tensor, " g"], *, centre: float, slope: float) -> Float[Tensor, " g"]:
    """sigmoid(slope (r - centre)): steep where samples should be told apart, flat where a reward is good enough.

    DyRef's reward scaling (DRS, arXiv 2606.26947, code ea6ec79): centre .65 and slope 10 + 3 (number of references - 2)
    on a cosine; there of each reference, before their mean, here of the reward as it is. NaN stays NaN.
    """
    return torch.sigmoid(slope * (rewards - centre))


def gate(rewards: Float[Tensor, " g"], by: Float[Tensor, " g"], *, floor: float, penalty: float) -> Float[Tensor, " g"]:
    """r - penalty max(0, floor - by)^2: a reward counts as it is only where another is at its floor or above.

    DivRL (arXiv 2606.23950, code b0d3f69): r is the diversity of structure, ``by`` the identity, with floor .5 and
    penalty 5. Where ``by`` is NaN so is the result.
    """
    return rewards - penalty * (floor - by).clamp(min=0).square()


def difficulty_weights(means: Float[Tensor, " n"], *, power: float, low: float, high: float) -> Float[Tensor, " n"]:
    """Weight of each group in the loss: w = clamp((1 - p)^power, low, high), then clamp(w / mean w, low, high).

    p is a group's mean reward in [0, 1]: groups that are far from right weigh more. DyRef (DAR, arXiv 2606.26947, code
    ea6ec79): power 2 (of 1 - p + 1e-6), low .5, high 5; its mean is over the groups of one process, here over all.

    Args:
        means: mean reward of every group of the step; NaN where none of its samples is scored: its weight is 1, and the
            others' mean is without it.
    """
    known = means.isfinite()
    weight = (1 - means.clamp(0, 1) + 1e-6).pow(power).clamp(low, high)
    mean = torch.where(known, weight, 0).sum() / known.sum().clamp(min=1)
    return torch.where(known, (weight / mean).clamp(low, high), 1.0)


def spread(rewards: Float[Tensor, " g"], measure: Measure) -> float:
    """Spread of a group's finite rewards: the standard deviation over the group (not over a sample of one), or largest
    minus smallest; 0 of fewer than two.
    """
    finite = rewards[rewards.isfinite()].double()
    if len(finite) < 2:
        return 0.0
    return float(finite.std(correction=0) if measure == "std" else finite.max() - finite.min())


def is_too_alike(rewards: Float[Tensor, " g"], *, least: float, measure: Measure, above: float | None = None) -> bool:
    """True of a group that teaches little: its spread is at most ``least``, and its mean above ``above`` if given.

    Edit-R1 (arXiv 2510.16888, code 4217f25) leaves out prompts of a high mean (.9) and a low standard deviation (.05);
    the report of Qwen-Image-2.0-RL (arXiv 2606.27608) goes by the range alone.
    """
    finite = rewards[rewards.isfinite()]
    if above is not None and len(finite) and float(finite.double().mean()) <= above:
        return False
    return spread(rewards, measure) <= least


def whiten(
    advantages: Float[Tensor, "n g k"], used: Bool[Tensor, "n g"]
) -> tuple[Float[Tensor, "n g k"], Float[Tensor, ""]]:
    """(A - mean) / (std + 1e-4) over all groups of a step, with the unbiased std; 0 where a sample is not used.

    Batch-wise normalisation of GDPO (arXiv 2601.05242, code of NVlabs/GDPO): whatever the aggregator and the number of
    axes, advantages then have spread 1.

    Args:
        advantages: of every group of the step, before they are clamped.
        used: samples that count: scored, and of a group that is neither left out nor all alike.

    Returns:
        The whitened advantages, and the std that divided them; 0 and zeros where fewer than two samples are used.
    """
    values = advantages[used].double()
    if values.numel() < 2:
        return torch.zeros_like(advantages), torch.zeros(())
    std = values.std()
    whitened = (advantages.double() - values.mean()) / (std + 1e-4)
    return torch.where(used[..., None], whitened, 0.0).float(), std.float()


def best_and_worst(advantages: Float[Tensor, "g k"], *, best: int, worst: int) -> Int[Tensor, " n"]:
    """Indices of the samples with the largest and the smallest mean advantage over the steps, in the group's order.

    DanceGRPO (arXiv 2505.07818, ``bestofn`` in its code): what lies between teaches least, and isn't replayed. Of equal
    samples the first counts as the worse one. A sample without a score has advantage 0 and stands in between.
    """
    order = advantages.mean(1).argsort(stable=True)
    return torch.cat([order[:worst], order[len(order) - best :]]).sort().values
