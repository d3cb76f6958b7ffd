"""The recipe's ``advantage.rules`` on a step: on the rewards of a group, and over the groups of all ranks.

Dimensions: G group size, R rewards, K trained steps, n groups of a step over all ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from customized_grpo.advantages import rules as formulas
from customized_grpo.advantages.shaping import Advantages
from customized_grpo.recipe.config import Recipe
from customized_grpo.training.distributed import gather_rows


@final
class RewardRules:
    """The rules of a recipe. Without one, rewards and advantages are passed on as they are."""

    def __init__(self, recipe: Recipe) -> None:
        self._rules, self._clip = recipe.advantage.rules, recipe.advantage.clip
        self._columns = {name: column for column, name in enumerate(recipe.rewards)}

    def scaled(self, rewards: Float[Tensor, "g r"], num_references: int) -> Float[Tensor, "g r"]:
        """Rewards of a group after ``scale``."""
        if not self._rules.scale:
            return rewards
        rewards = rewards.clone()
        for name, one in self._rules.scale.items():
            values = rewards[:, self._columns[name]]
            slope = one.slope_for(num_references)
            rewards[:, self._columns[name]] = formulas.sigmoid_scale(values, centre=one.centre, slope=slope)
        return rewards

    def gated(self, scaled: Float[Tensor, "g r"]) -> Float[Tensor, "g r"]:
        """Scaled rewards after ``gate``. Gates look at rewards that no gate has changed."""
        if not self._rules.gate:
            return scaled
        rewards = scaled.clone()
        for name, one in self._rules.gate.items():
            by = scaled[:, self._columns[one.by]]
            column = self._columns[name]
            rewards[:, column] = formulas.gate(scaled[:, column], by, floor=one.floor, penalty=one.penalty)
        return rewards

    def leaves_out(self, scaled: Float[Tensor, "g r"]) -> bool:
        """Whether a group is too alike in every reward that ``spread`` names."""
        named = self._rules.spread
        return bool(named) and all(
            formulas.is_too_alike(scaled[:, self._columns[name]], least=one.least, measure=one.measure, above=one.above)
            for name, one in named.items()
        )

    def over_groups(
        self, accelerator: Accelerator, scaled: Sequence[Float[Tensor, "g r"]], advantages: Sequence[Advantages]
    ) -> list[Advantages]:
        """Advantages of this rank's groups after ``whiten`` and ``difficulty``, which look at those of all ranks.

        Every rank computes on the same rows in the order of the groups, so the result doesn't depend on their number.

        Raises:
            ValueError: on all ranks, if ``difficulty`` is given a reward that is not in [0, 1].
        """
        given = list(advantages)
        first = accelerator.process_index * len(given)
        mine = slice(first, first + len(given))
        if self._rules.whiten:
            rows = gather_rows([(one.joined.tolist(), one.compared.tolist()) for one in given])
            joined, used = (torch.tensor(part) for part in zip(*rows, strict=True))
            whitened, _ = formulas.whiten(joined, used)
            given = [one.whitened(values, self._clip) for one, values in zip(given, whitened[mine], strict=True)]
        if (rule := self._rules.difficulty) is not None:
            column = self._columns[rule.reward]
            values = torch.tensor(gather_rows([rewards[:, column].tolist() for rewards in scaled]))
            _check_unit(rule.reward, values)
            weights = formulas.difficulty_weights(values.nanmean(1), power=rule.power, low=rule.low, high=rule.high)
            given = [replace(one, weight=weight) for one, weight in zip(given, weights[mine].tolist(), strict=True)]
        return given

    def metrics(self, scaled: Sequence[Float[Tensor, "g r"]], advantages: Sequence[Advantages]) -> dict[str, float]:
        """Metrics of the rules that are on."""
        found = {}
        for name, one in self._rules.gate.items():
            by = torch.cat([rewards[:, self._columns[one.by]] for rewards in scaled])
            found[f"rules/gate/{name}"] = float((by < one.floor).float().mean())
        if self._rules.spread:
            found["rules/left_out_share"] = sum(one.left_out for one in advantages) / len(advantages)
        if self._rules.difficulty is not None:
            found["rules/max_weight"] = max(one.weight for one in advantages)
        return found


def _check_unit(name: str, values: Tensor) -> None:
    finite = values[values.isfinite()]
    if len(finite) and (float(finite.min()) < 0 or float(finite.max()) > 1):
        found = f"from {float(finite.min()):.3g} to {float(finite.max()):.3g}"
        raise ValueError(
            f"advantage.rules.difficulty.reward: {name!r} is {found}, where a difficulty needs values in [0, 1]; "
            f"start a new run with advantage.rules.scale.{name}, or with another reward"
        )
