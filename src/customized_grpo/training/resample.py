"""Other prompts in the place of groups that teach too little (``advantage.rules.resample``).

What is drawn depends on the run's seed, the step, the group's number and the attempt alone, so a resumed run draws the
same, on any number of processes.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from customized_grpo.data import order
from customized_grpo.scoring.scorer import Pending
from customized_grpo.training import engine
from customized_grpo.training.distributed import largest
from customized_grpo.training.parts import Parts
from customized_grpo.types import Rollout

Begin = Callable[[int, int], tuple[Rollout, Pending]]
"""Samples one group, given its number and its example's index, and begins to score it."""


def resample(
    parts: Parts,
    step: int,
    assigned: Sequence[tuple[int, int]],
    groups: list[Rollout],
    rewards: list[Tensor],
    begin: Begin,
    sample: Callable[[int, int], Rollout],
) -> dict[str, float]:
    """Replace groups that ``spread`` leaves out, and their rewards, in place.

    Where a forward needs all ranks, one that has fewer groups to replace samples as many as the others, and forgets
    them: it would wait for them otherwise.

    Args:
        parts: of the run.
        step: of the run.
        assigned: number and example of each of this rank's groups.
        groups: of this rank.
        rewards: of each.
        begin: samples a group and begins to score it.
        sample: samples a group alone.

    Returns:
        Metrics; none where the rule is off.
    """
    recipe, replaced = parts.recipe, set[int]()
    attempts, size = recipe.advantage.rules.resample, len(parts.dataset)
    together = engine.needs_all_ranks(parts.accelerator, parts.policy.transformer)
    for attempt in range(1, attempts + 1):
        idle = [
            place
            for place, (group, one) in enumerate(zip(groups, rewards, strict=True))
            if parts.rules.leaves_out(parts.rules.scaled(one, len(group.example.references)))
        ]
        if not (most := int(largest(parts.accelerator, float(len(idle))))):
            break
        begun = {}
        with parts.sampling():
            for turn in range(most if together else len(idle)):
                place = idle[turn] if turn < len(idle) else 0
                number = assigned[place][0] + attempt * recipe.train.groups_per_step
                seed, instead_of = recipe.run.seed, assigned[place][1]
                index = order.another(step, number, size=size, seed=seed, instead_of=instead_of)
                if turn < len(idle):
                    begun[place] = begin(number, index)
                else:
                    sample(number, index)
        with parts.clock.phase("score"):
            for place, (group, scores) in begun.items():
                groups[place], rewards[place] = group, scores.result()
        replaced |= begun.keys()
    return {"rules/resampled_share": len(replaced) / len(groups)} if attempts else {}
