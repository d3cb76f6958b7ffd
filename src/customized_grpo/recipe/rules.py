"""The section ``advantage.rules``: rules on raw rewards and on groups. Their formulas are in ``advantages.rules``."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from customized_grpo import registry
from customized_grpo.recipe.sections import Section


class Sigmoid(Section):
    """A reward becomes sigmoid(slope (r - centre)) (DyRef's DRS)."""

    centre: FiniteFloat = Field(description="the reward that becomes 1/2, in its own unit; DyRef: .65 of a cosine")
    slope: PositiveFloat = Field(
        description="steepness at the centre times 4, per unit of the reward; DyRef: 10 of a cosine"
    )
    per_reference: NonNegativeFloat = Field(default=0.0, description="added for each reference; DyRef: 3 of a cosine")
    beyond: PositiveInt = Field(default=1, description="number of references at which the slope is just that; DyRef: 2")

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        if self.beyond != 1 and not self.per_reference:
            raise ValueError("beyond has no effect without per_reference")
        if self.slope_for(0) <= 0:
            raise ValueError(
                f"given slope {self.slope:g}, and {self.per_reference:g} for each reference beyond {self.beyond}: "
                "without references a better image would score less; use a larger slope"
            )
        return self

    def slope_for(self, num_references: int) -> float:
        """Slope for an example of so many references."""
        return self.slope + self.per_reference * (num_references - self.beyond)


class Gate(Section):
    """A reward loses penalty max(0, floor - by)^2 (DivRL)."""

    by: str = Field(description="the reward that has to reach the floor")
    floor: FiniteFloat = Field(description="in that reward's unit; DivRL: .5 of a cosine")
    penalty: PositiveFloat = Field(description="points off for a gap of 1; DivRL: 5")


class Spread(Section):
    """A group whose spread of a reward is at most ``least`` teaches nothing (Edit-R1, Qwen-Image-2.0-RL)."""

    least: NonNegativeFloat = Field(description="in the reward's unit; Edit-R1: .05 of a score up to 1")
    measure: Literal["std", "range"] = "std"
    above: FiniteFloat | None = Field(
        default=None, description="only groups whose mean is above it; null: whatever the mean is; Edit-R1: .9"
    )


class Difficulty(Section):
    """Groups with a low mean reward weigh more in the loss, at mean 1 over all processes (DyRef's DAR)."""

    reward: str = Field(description="a reward in [0, 1], after its sigmoid where it has one")
    power: PositiveFloat = 2.0
    low: PositiveFloat = Field(
        default=0.5, description="smallest weight, before and after all are divided by their mean"
    )
    high: PositiveFloat = Field(default=5.0, description="largest weight")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if not self.low <= 1 <= self.high:
            raise ValueError(f"given low {self.low:g} and high {self.high:g}; 1, the mean weight, has to lie between")
        return self


class Keep(Section):
    """Only the best and the worst samples of a group are trained on (DanceGRPO)."""

    best: PositiveInt
    worst: PositiveInt

    @property
    def number(self) -> int:
        """Samples of a group that are trained on."""
        return self.best + self.worst


class Rules(Section):
    """Rules in the order in which they act; none is on by default."""

    scale: dict[str, Sigmoid] = Field(default={}, description="by reward: its sigmoid")
    gate: dict[str, Gate] = Field(default={}, description="by reward: what it loses where another is below its floor")
    spread: dict[str, Spread] = Field(
        default={}, description="by reward; a group is left out where all rewards named here are too alike"
    )
    resample: NonNegativeInt = Field(
        default=0, description="how often another prompt is sampled in place of a group that spread leaves out"
    )
    whiten: bool = Field(default=False, description="advantages have mean 0 and spread 1 over a step's groups (GDPO)")
    difficulty: Difficulty | None = Field(default=None, description="weight of a group by its mean reward")
    keep: Keep | None = Field(default=None, description="best and worst samples of a group; null: all are trained on")

    @property
    def choose(self) -> bool:
        """Whether the samples that are trained on are known only once they are scored."""
        return self.keep is not None or self.resample > 0

    @model_validator(mode="after")
    def _resample_is_used(self) -> Self:
        if self.resample and not self.spread:
            raise ValueError("resample has no effect without spread, which leaves groups out")
        return self


def check_rules(rules: Rules, rewards: Mapping[str, object], group_size: int, updates: int) -> None:
    """Raise a ``ValueError`` for a rule that names no reward, or that can't act as it says."""
    named = {f"{key}.{name}": name for key in ("scale", "gate", "spread") for name in dict(rules)[key]}
    named |= {f"gate.{name}.by": one.by for name, one in rules.gate.items()}
    if rules.difficulty is not None:
        named["difficulty.reward"] = rules.difficulty.reward
    for place, name in named.items():
        if name not in rewards:
            hint = registry.did_you_mean(name, list(rewards))
            raise ValueError(
                f"advantage.rules.{place}: there is no reward {name!r};{hint} allowed: {', '.join(rewards)}"
            )
    if own := [name for name, one in rules.gate.items() if one.by == name]:
        raise ValueError(f"advantage.rules.gate.{own[0]}.by: a reward can't be its own gate; name another")
    if rules.keep is None:
        return
    if rules.keep.number >= group_size:
        raise ValueError(
            f"advantage.rules.keep: {rules.keep.best} best and {rules.keep.worst} worst are all of train.group_size "
            f"{group_size}, so nothing is left out; use fewer, or leave the rule out"
        )
    if rules.keep.number % updates:
        raise ValueError(
            f"advantage.rules.keep: train.updates_per_rollout {updates} does not divide the {rules.keep.number} "
            "samples; every update takes an equal share of them"
        )
