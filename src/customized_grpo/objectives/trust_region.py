"""Trust regions of GRPO on transitions: GRPO-Guard's centred ratio (arXiv 2510.22319), Flow-DPPO's mask (2606.11025).

Dimensions: n pairs of (sample, trained step), S latent tokens, C latent channels, D = S C.
A transition is x' = mu + std z. Both need what a rollout does not keep for the plain ratio: the Gaussian's mean mu_old
under the policy that sampled, at every trained step (as large as ``x_next``). std is the same under both policies.
On a replay by the very policy that sampled, the first ratio is 1 and the second mask keeps everything.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from customized_grpo.objectives.per_pair import mean_over_dims, wide


def guard_log_ratio(
    x_next: Float[Tensor, "n s c"],
    mean: Float[Tensor, "n s c"],
    old_mean: Float[Tensor, "n s c"],
    std: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Log-ratio without its bias and its scale: std (log p - log p_old + mean((mu - mu_old)^2) / (2 std^2)).

    The plain log-ratio, a mean over dims as everywhere here, is mean(z (mu - mu_old)) / std minus the KL: its mean over
    draws is below 0, so that ratios sink and the upper clip is seldom reached, and its spread differs by step. What is
    left here is mean(z (mu - mu_old)), with mean 0. It is computed in this form: as a difference of two log-densities
    float32 would leave no digit of it at FLUX's size (errors of 1e-8 where the value is 1e-8 to 1e-6).

    The loss is ``clipped_surrogate`` of it against zeros, times ``guard_step_weight``; the public clip is 2e-6.

    Args:
        x_next: the recorded next state.
        mean: mu, under the policy that is trained.
        old_mean: mu_old, under the policy that sampled; no gradient.
        std: of the transition, the noise's scale with the root of the step in it (``Gaussian.std``).

    Returns:
        float32, or float64 if an input of shape (n, s, c) is; exactly 0 where ``mean`` is ``old_mean``.
    """
    x, mu, mu_old = wide(x_next, mean, old_mean.detach())
    return mean_over_dims((x - mu_old) / std.to(mu)[:, None, None] * (mu - mu_old))


def guard_step_weight(sigma: Float[Tensor, " n"], sigma_next: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 / (sigma - sigma'): factor of a step's loss under ``guard_log_ratio``, whose gradient shrinks with the step.

    d mu / d v = -d (1 + g^2 (1 - sigma) / (2 sigma)) for an SDE of noise scale g and d = sigma - sigma'. flow_grpo and
    VeRL-Omni have this factor, Flow-Factory has not.
    """
    return 1 / (sigma - sigma_next)


def dppo_keeps(
    log_ratio: Float[Tensor, " n"],
    kl: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    *,
    threshold: float,
) -> Bool[Tensor, " n"]:
    """Pairs that keep their gradient: those in the region, and those whose gradient leads back into it.

    A pair is dropped if KL >= threshold and A > 0, rho > 1, or KL >= threshold and A < 0, rho < 1.

    Args:
        log_ratio: log rho = log p - log p_old.
        kl: KL of the transition under the new policy from the one under the old, a mean over dims:
            ``sampling.dynamics.kl``, which is mean((mu - mu_old)^2) / (2 std^2).
        advantage: A.
        threshold: KL at which the region ends; 1e-5 in VeRL-Omni and UniRL, 1e-6 in Flow-Factory.
    """
    outward = ((advantage > 0) & (log_ratio > 0)) | ((advantage < 0) & (log_ratio < 0))
    return ~((kl >= threshold) & outward)


def dppo_loss(
    log_prob: Float[Tensor, " n"],
    old_log_prob: Float[Tensor, " n"],
    kl: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    *,
    threshold: float,
) -> Float[Tensor, " n"]:
    """Loss of each pair: -A rho where ``dppo_keeps``, else 0; no clipping of rho.

    Args:
        log_prob: log-probability of the recorded transition under the policy that is trained.
        old_log_prob: under the policy that sampled; no gradient.
        kl: see ``dppo_keeps``; no gradient.
        advantage: A; no gradient.
        threshold: see ``dppo_keeps``.
    """
    a = advantage.detach()
    log_ratio = log_prob - old_log_prob.detach()
    dropped = ~dppo_keeps(log_ratio.detach(), kl.detach(), a, threshold=threshold)
    # filled before the exponential: an overflow there would make the gradient of what is dropped NaN
    return (-a * log_ratio.masked_fill(dropped, 0).exp()).masked_fill(dropped, 0)
