"""Recipes: YAML plus ``key.sub=value`` overrides, read into frozen pydantic models. Unknown keys are errors.

The key names are part of the public surface. A plug-in's section is read by the plug-in's own ``Config``.
"""

from typing import Any, Self

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from customized_grpo.advantages.axes import AXES as AXES
from customized_grpo.recipe.axes import axes_of, time_weights_of
from customized_grpo.recipe.drawn import Base as Base
from customized_grpo.recipe.drawn import Buckets, at_size, buckets_of, on_base
from customized_grpo.recipe.fields import (
    DataField,
    ObjectiveField,
    PolicyField,
    RewardField,
    needs_transitions,
    targets_of,
)
from customized_grpo.recipe.fits import (
    check_balance,
    check_cache,
    check_float8,
    check_objective,
    check_policy,
    check_size,
)
from customized_grpo.recipe.keys import Advantage as Advantage
from customized_grpo.recipe.keys import Evaluate as Evaluate
from customized_grpo.recipe.keys import EvaluateSampling as EvaluateSampling
from customized_grpo.recipe.keys import Run as Run
from customized_grpo.recipe.keys import Sampling as Sampling
from customized_grpo.recipe.keys import Train as Train
from customized_grpo.recipe.rules import check_rules
from customized_grpo.recipe.samples import Samples
from customized_grpo.recipe.sections import PolicySpec, Section
from customized_grpo.recipe.supervised import UNSAMPLED, check_supervised


class Recipe(Section):
    """A whole training run."""

    run: Run
    policy: PolicyField
    data: DataField
    sampling: Sampling = Field(default={}, validate_default=True)
    rewards: dict[str, RewardField] = Field(description="at least one for each axis; none of a supervised objective")
    advantage: Advantage = Field(default={}, validate_default=True)
    objective: ObjectiveField = Field(default={"type": "grpo"}, validate_default=True)
    train: Train = Train()
    samples: Samples = Samples()
    evaluate: Evaluate | None = None

    @model_validator(mode="before")
    @classmethod
    def _sampler_of_final_latents(cls, given: Any) -> Any:
        """An objective without transitions samples by a solver, each from noise of its own, unless told otherwise."""
        objective = given.get("objective") if isinstance(given, dict) else None
        if needs_transitions(objective) or not isinstance(given.get("sampling", {}), dict):
            return given
        asked = given.get("sampling", {})
        if targets_of(objective):
            return {"rewards": {}, **given, "sampling": {**UNSAMPLED, **asked}}
        noisy = asked.get("dynamics") is not None
        own = {"dynamics": None, "plan": None, "shared_noise": noisy, "solver": None if noisy else "euler"}
        return {**given, "sampling": {**own, **asked}}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.objective.targets:
            check_supervised(self.objective, self.sampling, self.train, self.advantage, self.rewards)
        elif not self.rewards:
            raise ValueError(
                "rewards: none; give at least one for each axis (identity and prompt), as reinforcement learning needs "
                "them: a supervised objective (customized-grpo sft, dpo) does without"
            )
        for name in self.rewards:
            if name in (*self.axes, "key"):
                raise ValueError(
                    f"rewards.{name}: the name means something else in metrics.jsonl and samples/ (an axis, a sample's "
                    f"key), so one of the two would be lost; call it otherwise, as in {name}_score"
                )
        if self.train.group_size % self.train.updates_per_rollout:
            raise ValueError(
                f"train.updates_per_rollout: {self.train.updates_per_rollout} does not divide "
                f"train.group_size {self.train.group_size}; every update takes an equal share of each group"
            )
        updates, warmup = self.train.steps * self.train.updates_per_rollout, self.train.schedule.warmup_steps
        if warmup >= updates:
            raise ValueError(
                f"train.schedule.warmup_steps: given {warmup}, but the run has {updates} updates (train.steps x "
                "train.updates_per_rollout), so train.lr is never reached; use fewer, or name: constant"
            )
        if self.train.evaluate_every and self.evaluate is None:
            raise ValueError(
                "train.evaluate_every: it is set but there is no 'evaluate' section; add one, or set it to 0"
            )
        check_balance(self.policy, self.advantage, self.objective)
        if self.train.staleness and self.advantage.rules.choose:
            raise ValueError(
                "train.staleness: what losses compare with is computed where groups are sampled, an update ahead, and "
                "advantage.rules.keep and resample choose samples later; use train.staleness=0, or leave them out"
            )
        check_rules(self.advantage.rules, self.rewards, self.train.group_size, self.train.updates_per_rollout)
        check_policy(self.run, self.policy, self.sampling.shift)
        check_size(self.policy, self.evaluated)
        self.buckets()  # refuses sizes that the policy doesn't draw
        if self.train.buckets and self.sampling.batch == "auto":
            raise ValueError(
                "sampling.batch: auto tries images of one size, and train.buckets has several; give the number of "
                "samples in a forward that fits with the largest, or null for a whole group"
            )
        if not self.objective.targets:
            check_objective(self.objective, self.sampling, self.train)
            check_cache(self.objective, self.policy, self.sampling)
            check_float8(self.objective, self.policy, self.sampling, self.run)
        self.time_weights()
        return self

    @property
    def evaluated(self) -> PolicySpec:
        """The section ``policy`` as the held-out evaluation draws by it: at its size."""
        held = self.evaluate
        return self.policy if held is None else at_size(self.policy, held.height, held.width)

    def buckets(self) -> Buckets:
        """The section ``policy`` at each size of images that training draws."""
        return buckets_of(self.policy, self.train.buckets)

    def at(self, policy: PolicySpec) -> Self:
        """The recipe as one of its buckets is trained."""
        return self if policy is self.policy else self.model_copy(update={"policy": policy})

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes in their columns' order: prompt, identity, then the further ones that rewards name."""
        return AXES if self.objective.targets else axes_of(self.rewards, self.advantage.axes)

    @property
    def samples_per_update(self) -> int:
        """Number of samples of each group per optimizer update; of pictures, of a supervised objective."""
        if self.objective.targets:
            return self.objective.targets
        keep = self.advantage.rules.keep
        return (self.train.group_size if keep is None else keep.number) // self.train.updates_per_rollout

    @property
    def pairs_per_backward(self) -> int:
        """Micro-batch size, with ``train.microbatch: null`` resolved."""
        return self.train.microbatch or self.samples_per_update

    @property
    def picture_steps(self) -> int:
        """Sampler steps of the fixed prompts' pictures: their own, an evaluation's, or the training's."""
        evaluated = None if self.evaluate is None else self.evaluate.steps
        return self.samples.steps or evaluated or self.sampling.steps

    def time_weights(self, num_steps: int | None = None) -> Float[Tensor, "t q"]:
        """Weight of each axis at each step of the sampler; of a sampler of other steps, if their number is given."""
        steps = num_steps or self.sampling.steps
        return time_weights_of(self.advantage.time_weights, steps, self.axes, self.advantage.axes)


class EvaluateRecipe(Section):
    """A whole evaluation: one base, optionally one adapter on it."""

    run: Run
    policy: PolicyField
    lora: str | tuple[str, ...] | None = Field(
        default=None,
        description="a run, a checkpoint, an adapter's folder or file, or a LoRA's hub id; a list adds up; each "
        "may end in a scale, as in =0.8; null: base only",
    )
    balance: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        description="b of a balanced adapter (policy.lora.balance), from the prompt's side to the identity's; null: 0",
    )
    base: Base | None = Field(
        default=None,
        description="another base of the same architecture to draw the adapter on, on purpose; null: policy.model, on "
        "which an adapter of another base is refused",
    )
    sampling: EvaluateSampling = EvaluateSampling()
    evaluate: Evaluate

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.base is not None and not self.lora:
            raise ValueError(
                "base: it is another base for an adapter, and no adapter is given; give lora, or the base itself as "
                "policy.model"
            )
        if self.balance is not None and not self.lora:
            raise ValueError("balance: it is of a balanced adapter, and none is given; give lora, or leave it out")
        check_policy(self.run, self.evaluated, self.sampling.shift)
        return self

    @property
    def evaluated(self) -> PolicySpec:
        """The section ``policy`` as the evaluation draws by it: on its base, and at its size."""
        return at_size(on_base(self.policy, self.base), self.evaluate.height, self.evaluate.width)
