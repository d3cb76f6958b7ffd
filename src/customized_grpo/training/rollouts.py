"""The groups of a step, sampled and with their scores under way; with ``train.staleness`` one update ahead.

At staleness 1 the next step's groups are sampled before this step's update, so that their rewards (judges, servers, a
card of their own) work while it runs: "one-step off-policy" of asynchronous trainers, on the processes that there are.
What sampled is known, so losses compare with it: recorded log-probabilities, or values recomputed at once.
"""

from collections.abc import Callable, Sequence
from typing import final

from customized_grpo.scoring.scorer import Pending
from customized_grpo.training import autotune, averages
from customized_grpo.training.parts import Parts
from customized_grpo.types import Rollout

Begun = tuple[list[Rollout], list[Pending]]
"""Groups, with what their losses compare with, and their scores."""


@final
class Rollouts:
    """The groups of one rank, step by step.

    Args:
        parts: of the run.
        begin: samples the groups of a step and begins to score them.
        shares: samples of each group per update.
    """

    def __init__(
        self, parts: Parts, begin: Callable[[int], list[tuple[Rollout, Pending]]], shares: Sequence[range]
    ) -> None:
        self._parts, self._begin, self._shares = parts, begin, shares
        self._ahead: tuple[int, Begun] | None = None

    def of(self, step: int) -> Begun:
        """This rank's groups of a step; the next one's are sampled, too, if rollouts are stale."""
        parts, train = self._parts, self._parts.recipe.train
        if parts.behind is None:
            with parts.sampling():
                return self._sampled(step)
        (of, now), self._ahead = self._ahead or (step, None), None
        assert of == step, f"step {of} was sampled ahead, and step {step} is asked for: steps follow one another"
        if now is None and step == 0:
            with parts.sampling():
                now = self._sampled(step)
        elif now is None:  # of a resumed run: by the weights that sampled it before
            with averages.in_place(parts.behind, parts.parameters, parts.policy):
                now = self._sampled(step)
        with parts.sampling():
            parts.behind.take(parts.parameters)
            if step + 1 < train.steps:
                self._ahead = step + 1, self._sampled(step + 1)
        return now

    def _sampled(self, step: int) -> Begun:
        begun = self._begin(step)
        groups = [group for group, _ in begun]
        if not self._parts.recipe.advantage.rules.choose:  # else only those that are trained on, once they are known
            groups = autotune.with_old(self._parts, groups, self._shares)
        return groups, [scores for _, scores in begun]
