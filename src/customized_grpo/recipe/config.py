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
from customized_grpo.recipe.keys import Advantage as Advantage
from customized_grpo.recipe.keys import Evaluate as Evaluate
from customized_grpo.recipe.keys import EvaluateSampling as EvaluateSampling
from customized_grpo.recipe.keys import Run as Run
from customized_grpo.recipe.keys import Sampling as Sampling
from customized_grpo.recipe.keys import Train as Train
from customized_grpo.recipe.rules import check_rules
from customized_grpo.recipe.sections import ObjectiveSpec, PolicySpec, Section
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
        _fits_balance(self.policy, self.advantage, self.objective)
        check_rules(self.advantage.rules, self.rewards, self.train.group_size, self.train.updates_per_rollout)
        _fits_policy(self.run, self.policy, self.sampling.shift)
        _fits_size(self.policy, self.evaluated)
        self.buckets()  # refuses sizes that the policy doesn't draw
        if self.train.buckets and self.sampling.batch == "auto":
            raise ValueError(
                "sampling.batch: auto tries images of one size, and train.buckets has several; give the number of "
                "samples in a forward that fits with the largest, or null for a whole group"
            )
        if not self.objective.targets:
            _fits_objective(self.objective, self.sampling, self.train)
            _fits_cache(self.objective, self.policy, self.sampling)
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
        _fits_policy(self.run, self.evaluated, self.sampling.shift)
        return self

    @property
    def evaluated(self) -> PolicySpec:
        """The section ``policy`` as the evaluation draws by it: on its base, and at its size."""
        return at_size(on_base(self.policy, self.base), self.evaluate.height, self.evaluate.width)


def _fits_policy(run: Run, policy: PolicySpec, shift: float | str) -> None:
    policy.shift(shift, tokens=1, steps=2)  # refuses a rule that the policy doesn't have
    if policy.quantization != "none" and run.precision == "no":
        raise ValueError(
            f"policy.quantization: {policy.quantization} weights are computed with in half precision, and "
            "run.precision=no asks for float32; use run.precision=bf16, or policy.quantization=none"
        )


def _fits_balance(policy: PolicySpec, advantage: Advantage, objective: ObjectiveSpec) -> None:
    """Raise for a balance that nothing moves, and for a reach without one."""
    balanced = policy.lora is not None and policy.lora.balance
    if balanced and objective.targets:
        raise ValueError(
            f"policy.lora.balance: b moves the weights of rewards, and objective.type {objective.type} has none; "
            "leave it out, and train it on the warm start (policy.base_lora)"
        )
    if not balanced and advantage.reach != Advantage.model_fields["reach"].default:
        raise ValueError(
            f"advantage.reach: given {advantage.reach:g}, which has no effect without policy.lora.balance; leave it out"
        )


def _fits_size(policy: PolicySpec, evaluated: PolicySpec) -> None:
    if evaluated is not policy and not policy.resizes:
        raise ValueError(
            f"evaluate.height: a policy of type {policy.type} is opened for images of one size, here {policy.height} x "
            f"{policy.width} (Policy.resized); leave evaluate.height and evaluate.width out, or evaluate at "
            f"{evaluated.height} x {evaluated.width} by customized-grpo evaluate"
        )


def _fits_objective(objective: ObjectiveSpec, sampling: Sampling, train: Train) -> None:
    """Raise for what an objective needs of a rollout and isn't there, and for what it never looks at."""
    if objective.transitions:
        if missing := [name for name in ("dynamics", "plan") if dict(sampling)[name] is None]:
            raise ValueError(
                f"sampling.{missing[0]}: null, but objective.type {objective.type} trains the sampler's stochastic "
                "transitions; leave the key out for the default"
            )
        if objective.compares_means and train.old_log_probs == "auto":
            raise ValueError(
                "train.old_log_probs: auto compares log-probabilities, and this objective.ratio compares means; give "
                "rollout or replay"
            )
        if sampling.solver is not None:
            raise ValueError(
                f"sampling.solver: it has no effect with objective.type {objective.type}, whose plan has its own; "
                "set sampling.plan.solver, where the plan has deterministic steps"
            )
        return
    objective.num_levels(sampling.steps)  # refuses more than there are
    noisy = sampling.dynamics is not None
    if noisy != (sampling.plan is not None):
        raise ValueError(
            "sampling.plan: it says which steps draw noise by sampling.dynamics, so give both, or neither for a solver"
        )
    if noisy == (sampling.solver is not None):
        raise ValueError(
            f"sampling.solver: objective.type {objective.type} samples by a solver (euler or dpm_solver_2m), or with "
            "noise on the way (sampling.dynamics and sampling.plan); give one, and null for the other"
        )
    plan: Any = sampling.plan
    if noisy and (first := plan.steps(0, sampling.steps, 0)).trained != first.stochastic:
        raise ValueError(
            f"sampling.plan: objective.type {objective.type} trains no step of the sampler, so a plan that trains some "
            "of its noisy steps and not others says nothing; use {type: all}, a window or a branch"
        )
    if problem := objective.unused(train.updates_per_rollout):
        raise ValueError(f"objective.{problem}")
    if sampling.shared_noise and not noisy:
        raise ValueError(
            "sampling.shared_noise: a solver draws no noise on the way, so all samples of a group would be the same "
            "image; use sampling.shared_noise=false, or sampling.dynamics and sampling.plan"
        )
    unused: dict[str, tuple[Any, Any]] = {"train.old_log_probs": (train.old_log_probs, "rollout")}
    if not objective.compares:
        unused["train.ratio_guard"] = (train.ratio_guard, Train.model_fields["ratio_guard"].default)
    for key, (given, needed) in unused.items():
        if given != needed:
            raise ValueError(
                f"{key}: it has no effect with objective.type {objective.type}, which trains on noised final images "
                f"and replays no transition; leave the key out, or give {key}={needed}"
            )


def _fits_cache(objective: ObjectiveSpec, policy: PolicySpec, sampling: Sampling) -> None:
    """Raise where ``sampling.cache`` would falsify what is trained, can't work, or does nothing."""
    cache = sampling.cache
    if cache is None:
        return
    if not objective.lossy:
        raise ValueError(
            f"sampling.cache: objective.type {objective.type} compares its loss's forward with the rollout's, which a "
            "cache computes otherwise: the ratio would be wrong before the first update; leave the key out, or train "
            "on final images (objective.type nft or awm)"
        )
    if cache.type not in policy.caches:
        known = f"allowed: {', '.join(policy.caches)}" if policy.caches else "leave sampling.cache out"
        raise ValueError(
            f"sampling.cache.type: given {cache.type!r}, which doesn't work with policy.type {policy.type}; {known}"
        )
    if policy.compile:
        raise ValueError(
            "sampling.cache: it puts hooks on the blocks for every rollout and takes them off again, which the code "
            "that policy.compile makes doesn't look for; use one of the two"
        )
    if len(cache.computed_steps(sampling.steps) or ()) == sampling.steps:
        raise ValueError(
            f"sampling.cache.warmup: given {cache.warmup}, but sampling.steps={sampling.steps}, so no step is ever "
            f"extrapolated; use at most {sampling.steps - 1}, or leave sampling.cache out"
        )
