"""Customized-GRPO in one file of plain calls: the embedded miniature learns two prompts, in half a minute on a CPU.

    python examples/grpo_step.py

G group size, T sampler steps, K trained steps, S latent tokens, C latent channels, Q axes (prompt, identity).
The trainer (``training/trainer.py``) calls the same functions, adds checkpoints, several processes and metrics, and
gets the same numbers; ``tests/test_examples.py`` compares them.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.utils import clip_grad_norm_

from customized_grpo import load_dataset, load_policy, load_recipe, load_rewards, sample_group, score
from customized_grpo.advantages.aggregators import sars
from customized_grpo.advantages.normalize import normalize
from customized_grpo.advantages.time_weights import tdw
from customized_grpo.console import hush_libraries
from customized_grpo.objectives.clipped_surrogate import clipped_surrogate
from customized_grpo.objectives.step_weights import step_weights
from customized_grpo.policies.adapters import tuning
from customized_grpo.sampling.dynamics import flow_sde
from customized_grpo.sampling.rollout import initial_noise, transition_noise
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas
from customized_grpo.training.replay import micro_batches, replay

SEED = 42
NUM_STEPS = 6  # T
GROUP_SIZE = 12  # G
CLIP = 1e-4  # of the ratio; tiny, because a log-probability here is a mean over the S x C numbers of a latent


def grpo(steps: int) -> Iterator[dict[str, float]]:
    """Update a LoRA on the frozen miniature FLUX; yields the mean rewards and what explains each step."""
    # The policy, the examples and the rewards come from a recipe; all else is written out below.
    recipe = load_recipe("mini_customized", ["run.device=cpu", "data.size=2"])
    policy = load_policy(recipe)  # frozen
    tuning.attach(policy, recipe.policy, SEED)  # a LoRA, which is zero at first
    parameters = list(tuning.trainable_parameters(policy).values())
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4, eps=1e-12)
    dataset = load_dataset(recipe.data)
    examples = [dataset[index] for index in range(len(dataset))]  # a prompt, its subject's references
    conds = [policy.encode(one.prompt, one.references) for one in examples]  # frozen, so once is enough
    rewards = load_rewards(recipe.rewards)  # clip: image and prompt; dino: image and references

    # How a group is sampled: T steps from noise (sigma 1) to data (sigma 0), of which all but the last draw noise.
    sigmas = shifted_sigmas(NUM_STEPS, shift=3.0)  # (T + 1,)
    every = tuple(range(NUM_STEPS - 1))
    plan = StepPlan(NUM_STEPS, stochastic=every, trained=every)  # K = T - 1
    transition = partial(flow_sde, noise_level=0.8)  # velocity, x, sigma, sigma' -> Gaussian of x'

    # How steps are weighted: the two axes against each other (TDW), and each step's gradient to the same size.
    time_weights = tdw(NUM_STEPS, low=0.1, start=0.2, stop=0.5)  # (T, Q): prompt early, identity later
    loss_weights = step_weights("equal", transition, sigmas)  # (T,)

    for step in range(steps):
        # 1. Roll out and score: G images of each prompt, without gradient.
        groups, scores = [], []
        for group, (example, cond) in enumerate(zip(examples, conds, strict=True)):
            trajectory = sample_group(
                policy,
                example,
                cond,
                sigmas=sigmas,
                plan=plan,
                transition=transition,
                noise=initial_noise(
                    policy.latent_shape, GROUP_SIZE, seed=SEED, step=step, group=group, shared=True
                ),  # (G, S, C), the same for the whole group
                draws=transition_noise(
                    policy.latent_shape, GROUP_SIZE, len(every), seed=SEED, step=step, group=group
                ),  # (G, K, S, C), in which the samples differ
                shared_noise=True,
            )
            given = score(trajectory.images, rewards, example)
            groups.append(trajectory)  # states (G, K, S, C), log-probabilities (G, K), images (G, H, W, 3)
            scores.append(torch.stack([given["clip"], given["dino"]], dim=1))  # (G, Q)

        # 2. Advantages: normalise each axis over the group, weight the axes at the trained steps, join them by SARS.
        advantages = [
            sars(normalize(one), time_weights[trajectory.steps], gamma=0.4).clamp(-5, 5)  # (G, K)
            for one, trajectory in zip(scores, groups, strict=True)
        ]

        # 3. Replay with gradient, one group at a time, and the clipped surrogate; then one update.
        optimizer.zero_grad()
        weighted = [one * loss_weights[group.steps] for one, group in zip(advantages, groups, strict=True)]
        log_ratio = torch.zeros(())
        for pairs in micro_batches(groups, weighted, samples=range(GROUP_SIZE), size=GROUP_SIZE * len(every)):
            log_prob, _ = replay(policy, transition, pairs)  # (G K,), of what was recorded
            loss = clipped_surrogate(log_prob, pairs.log_prob, pairs.advantage, CLIP)
            (loss / len(groups)).backward()
            log_ratio = torch.maximum(log_ratio, (log_prob.detach() - pairs.log_prob).abs().max())
        norm = clip_grad_norm_(parameters, max_norm=1.0)
        optimizer.step()

        prompt, identity = torch.cat(scores).mean(0).tolist()
        yield {
            "prompt": prompt,
            "identity": identity,
            "gradient": float(norm),
            "log_ratio": float(log_ratio),  # 0: the replay computes what the rollout did
        }


def main() -> None:
    """Print a line per step."""
    hush_libraries()
    options = argparse.ArgumentParser(description="Customized-GRPO on the embedded miniature.")
    options.add_argument("--steps", type=int, default=20)
    for step, row in enumerate(grpo(options.parse_args().steps), start=1):
        print(
            f"step {step:2d}  prompt {row['prompt']:5.1f}  identity {row['identity']:5.1f}  "
            f"gradient {row['gradient']:.2e}  largest |log-ratio| {row['log_ratio']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
