"""The policy that samples, where it lags behind the trained one: decay of its running average, and the distance to it.

old <- decay old + (1 - decay) new, so a decay of 0 is the copy that makes the next rollout on policy.
Dimensions: n pairs of (sample, noise level), S latent tokens, C latent channels.
"""

from jaxtyping import Float
from torch import Tensor

from customized_grpo.objectives.per_pair import squared_error


def ramp_decay(step: int, *, flat: int, rate: float, limit: float) -> float:
    """0 for ``flat`` steps, then min(rate (step - flat), limit).

    DiffusionNFT's form (``return_decay`` in NVlabs' code): rate 0.001 to 0.5 in all of its recipes but one, with two
    updates per rollout: flat 75, rate 0.0075 to 0.999. And that of AWM's running average: rate 0.001 to 0.3.

    Args:
        step: number of optimizer updates so far.
        flat: updates during which the old policy is a copy.
        rate: rise of the decay per update.
        limit: largest decay, in [0, 1].
    """
    assert step >= 0
    return min(max(step - flat, 0) * rate, limit)


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
    return squared_error(velocity, reference.detach())
