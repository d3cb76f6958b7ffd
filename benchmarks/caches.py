"""What ``sampling.cache`` saves and moves on the miniature, beside fewer steps: the table in docs/how-to/objective.md.

    python benchmarks/caches.py      # a minute on one core

Printed: share of the blocks' forwards that ran, and the relative distance of 24 final latents to those without a cache.
"""

import torch
from torch import Tensor

from customized_grpo import load_dataset, load_policy, load_recipe
from customized_grpo.recipe.keys import Cache
from customized_grpo.sampling.caching import RolloutCache
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.rollout import initial_noise, sample_final
from customized_grpo.sampling.schedule import sigma_grid
from customized_grpo.sampling.solver import SolverName

GROUPS, SIZE = 3, 8
SAMPLERS: tuple[tuple[SolverName, int, int], ...] = (("euler", 25, 12), ("dpm_solver_2m", 10, 5), ("euler", 6, 4))
"""Solver, its steps, and how many it takes instead."""
CACHES = [
    *({"type": "first_block", "threshold": one} for one in (0.05, 0.1, 0.2, 0.4)),
    *({"type": "taylorseer", "interval": interval} for interval in (2, 3, 5)),
    *({"type": "taylorseer", "order": order} for order in (0, 2)),
]


def main() -> None:
    """Print a row for each sampler and cache."""
    torch.set_num_threads(1)
    recipe = load_recipe("mini_nft", ["run.device=cpu"])
    policy, data = load_policy(recipe), load_dataset(recipe.data)
    conds = [policy.encode(one.prompt, one.references) for one in (data[index] for index in range(GROUPS))]

    def drawn(solver: SolverName, steps: int, cache: RolloutCache | None = None) -> Tensor:
        sigmas = sigma_grid(recipe.policy, recipe.sampling.shift, steps, policy.latent_shape[0])
        found = []
        for group, cond in enumerate(conds):
            noise = initial_noise(policy.latent_shape, SIZE, seed=1, step=0, group=group, shared=False)
            clock = Clock(policy.device)
            found.append(sample_final(policy, cond, sigmas=sigmas, noise=noise, by=solver, clock=clock, cache=cache)[0])
        return torch.cat(found)

    for solver, steps, fewer in SAMPLERS:
        whole = drawn(solver, steps)

        def show(change: object, ran: float, found: Tensor, where: str = f"{solver}, {steps} steps") -> None:
            distance = float((found - whole).norm() / whole.norm())  # noqa: B023 - called in this turn alone
            print(f"{where:>24}   {change!s:<48} {ran:.2f}   {distance:.2f}")

        for options in CACHES:
            cache = RolloutCache(Cache.model_validate(options), policy)
            found = drawn(solver, steps, cache)
            show(options, cache.drain()["rollout/blocks_run"], found)
        show(f"{fewer} steps instead", fewer / steps, drawn(solver, fewer))


if __name__ == "__main__":
    main()
