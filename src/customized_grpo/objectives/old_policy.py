"""The policy that samples, where it lags behind the trained one: decay of its running average, and the distance to it.

old <- decay old + (1 - decay) new, so a decay of 0 is the copy that makes the next rollout on policy.
Dimensions: n pairs of (sample, noise level), S latent tokens, C latent channels.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from customized_grpo.objectives.per_pair import mean_over_dims, wide

NftSchedule = Literal["copy", "linear", "delayed"]
"""DiffusionNFT's decay types 0, 1 and 2."""

_NFT: dict[NftSchedule, tuple[int, float, float]] = {
    "copy": (0, 0.0, 0.0),
    "linear": (0, 0.001, 0.5),
    "delayed": (75, 0.0075, 0.999),
}


def ramp_decay(step: int, *, flat: int, rate: float, limit: float) -> float:
    """0 for ``flat`` steps, then min(rate (step - flat), limit).

    DiffusionNFT's form, and the one of AWM's running average (flat 0, rate 0.001, limit 0.3).

    Args:
        step: number of optimizer updates so far.
        flat: updates during which the old policy is a copy.
        rate: rise of the decay per update.
        limit: largest decay, in [0, 1].
    """
    assert step >= 0
    return min(max(step - flat, 0) * rate, limit)


def nft_decay(step: int, schedule: NftSchedule) -> float:
    """DiffusionNFT's decay after ``step`` updates (``return_decay`` in NVlabs' code), with its constants.

    ``copy`` is on policy; ``linear`` is min(0.001 step, 0.5), in all of NVlabs' recipes but one; ``delayed`` is 0 for
    75 updates, then min(0.0075 (step - 75), 0.999), in their recipe with two updates per rollout (OCR, beta 0.1).
    """
    flat, rate, limit = _NFT[schedule]
    return ramp_decay(step, flat=flat, rate=rate, limit=limit)


def power_decay(step: int, *, limit: float, warmup: int = 10) -> float:
    """min((1 + step) / (warmup + step), limit): the usual warm-up of a running average of weights.

    Flow-Factory's schedule ``power`` (AWM on FLUX.2-klein: limit 0.9), and the average that NFT (0.9) and AWM (0.99)
    evaluate. It starts at 1 / warmup, not at 0.

    Args:
        step: number of updates so far.
        limit: largest decay, in [0, 1].
        warmup: the larger, the slower the rise; 1 or more, and at 1 there is no warm-up.
    """
    assert step >= 0
    assert warmup >= 1
    return min((1 + step) / (warmup + step), limit)


def velocity_kl(velocity: Float[Tensor, "n s c"], reference: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    """Mean squared difference of two velocities at the same state: the KL of NFT and AWM, to the base or an average.

    It is the KL of two transitions with the same noise up to a factor of the level, which the public trainers leave out
    (``kl_weight`` "Uniform").

    Args:
        velocity: v, of the policy that is trained.
        reference: v of the base, or of the running average; no gradient.

    Returns:
        float32, or float64 if an input is.
    """
    v, fixed = wide(velocity, reference.detach())
    return mean_over_dims((v - fixed).square())
