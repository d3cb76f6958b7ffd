"""Checks of a recipe's sections against each other: what nothing would read, and what can't work."""

from typing import Any

from customized_grpo.recipe.keys import Advantage, Run, Sampling, Train
from customized_grpo.recipe.sections import ObjectiveSpec, PolicySpec


def check_policy(run: Run, policy: PolicySpec, shift: float | str) -> None:
    """Raise for a shift that the policy doesn't have, and for half precision where float32 is asked for."""
    policy.shift(shift, tokens=1, steps=2)  # refuses a rule that the policy doesn't have
    if policy.quantization != "none" and run.precision == "no":
        raise ValueError(
            f"policy.quantization: {policy.quantization} weights are computed with in half precision, and "
            "run.precision=no asks for float32; use run.precision=bf16, or policy.quantization=none"
        )
    if policy.norms == "half" and run.precision == "no":
        raise ValueError(
            "policy.norms: half is half precision, and run.precision=no asks for float32; use run.precision=bf16, or "
            "policy.norms=float32"
        )


def check_balance(policy: PolicySpec, advantage: Advantage, objective: ObjectiveSpec) -> None:
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


def check_size(policy: PolicySpec, evaluated: PolicySpec) -> None:
    """Raise for an evaluation at another size by a policy that draws one."""
    if evaluated is not policy and not policy.resizes:
        raise ValueError(
            f"evaluate.height: a policy of type {policy.type} is opened for images of one size, here {policy.height} x "
            f"{policy.width} (Policy.resized); leave evaluate.height and evaluate.width out, or evaluate at "
            f"{evaluated.height} x {evaluated.width} by customized-grpo evaluate"
        )


def check_objective(objective: ObjectiveSpec, sampling: Sampling, train: Train) -> None:
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


def _check_lossy(objective: ObjectiveSpec, key: str, what: str) -> None:
    if not objective.lossy:
        raise ValueError(
            f"{key}: objective.type {objective.type} compares its loss's forward with the rollout's, which {what} "
            "computes otherwise: the ratio would be wrong before the first update; leave the key out, or train on "
            "final images (objective.type nft or awm)"
        )


def check_float8(objective: ObjectiveSpec, policy: PolicySpec, sampling: Sampling, run: Run) -> None:
    """Raise where ``sampling.float8`` would falsify what is trained, or can't work."""
    if not sampling.float8:
        return
    _check_lossy(objective, "sampling.float8", "float8")
    reasons = {
        "run.precision=no": run.precision == "no" and "asks for float32",
        f"policy.quantization={policy.quantization}": policy.quantization != "none" and "has other weights to multiply",
        "policy.full": policy.full is not None and "changes the weights that it keeps in float8",
        "policy.compile": bool(policy.compile) and "makes code of the layers that it takes the place of",
    }
    if found := [f"{key} {why}" for key, why in reasons.items() if why]:
        raise ValueError(f"sampling.float8: {found[0]}; use one of the two")


def check_cache(objective: ObjectiveSpec, policy: PolicySpec, sampling: Sampling) -> None:
    """Raise where ``sampling.cache`` would falsify what is trained, can't work, or does nothing."""
    cache = sampling.cache
    if cache is None:
        return
    _check_lossy(objective, "sampling.cache", "a cache")
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
