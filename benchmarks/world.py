"""What the miniature's base policy is like before any RL, on tuning draws: the ablation's gate, and time of decision.

python benchmarks/world.py gate     # shares of copies and of samples right on both, in-group correlation of the rewards
python benchmarks/world.py decided  # from which sampler step on each attribute no longer changes
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from customized_grpo.mini.oracle import IDENTITY, PROMPT, Oracle, judge
from customized_grpo.objectives.grpo import GRPO
from customized_grpo.paths import model_path
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.sampling.rollout import initial_noise, sample_group, transition_noise
from customized_grpo.sampling.schedule import AllPlan, StepPlan
from customized_grpo.training.metrics import correlation
from customized_grpo.training.parts import Parts
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


def parts_of(overrides: Sequence[str]) -> Parts:
    """The demo's recipe on the tuning split, without its evaluation."""
    tuning = (
        "run.dir=runs/world",
        "run.device=cpu",
        "data.split=tune",
        "train.evaluate_every=0",
        "evaluate=null",
    )
    return build(load_recipe(ROOT / "config" / "train" / "mini_customized.yaml", (*tuning, *overrides)))


def gate(parts: Parts, groups: int) -> dict[str, Any]:
    """Groups as training samples them: how many are copies, right on both, and how the two rewards go together."""
    trainer, oracle = Trainer(parts), Oracle.load(Path(model_path("mini", "oracle")))
    found: dict[str, list[Tensor]] = {}
    correlations = []
    for index in range(groups):
        trajectory = trainer.sample(0, index, index)
        judged = judge(oracle(trajectory.images), trajectory.example.extra["truth"])
        for name, values in judged.items():
            found.setdefault(name, []).append(values)
        rewards = parts.scorer.submit(trajectory.example, trajectory.images).result()
        correlations.append(correlation(trainer.advantages_of(rewards, trajectory).axes))
    every = {name: torch.cat(values) for name, values in found.items()}
    other = every["copy"] == 0
    return {name: float(values.mean()) for name, values in every.items()} | {
        "both_among_others": float(every["both"][other].mean()),
        "in_group_correlation": float(torch.tensor(correlations).nanmean()),
        "groups": groups,
    }


def decided(parts: Parts, groups: int) -> dict[str, Any]:
    """Resample the noise from step k on: the share of pairs of samples in which each attribute comes out the same.

    Samples of a group share everything before step k, so where they agree at k as much as at the last step, the
    attribute was decided before k.
    """
    oracle = Oracle.load(Path(model_path("mini", "oracle")))
    sampling, size, objective = parts.recipe.sampling, parts.recipe.train.group_size, parts.objective
    assert isinstance(objective, GRPO)
    full = AllPlan().steps(0, sampling.steps, 0)
    agreement: dict[str, list[float]] = {}
    for k in range(sampling.steps - 1):
        same: dict[str, list[float]] = {}
        for index in range(groups):
            example = parts.dataset[index]
            where = {"seed": 7, "step": 0, "group": index}
            shape = parts.policy.latent_shape
            noise = initial_noise(shape, size, shared=True, **where)
            draws = transition_noise(shape, size, len(full.stochastic), **where)
            draws[:, :k] = draws[:1, :k]  # one past for all
            trajectory = sample_group(
                parts.policy,
                example,
                parts.policy.encode(example.prompt, example.references),
                sigmas=parts.sigmas,
                plan=StepPlan(sampling.steps, full.stochastic, (0,)),
                transition=objective.transition,
                noise=noise,
                draws=draws,
                shared_noise=True,
                clock=parts.clock,
            )
            for name, values in oracle(trajectory.images).items():
                gap = (values[:, None].double() - values[None, :].double()).abs()
                if name in ("hue", "pattern_hue"):
                    gap = torch.minimum(gap, 1 - gap)
                tolerance = {"hue": 0.08, "pattern_hue": 0.08, "value": 0.12}.get(name, 0.5)
                pairs = ~torch.eye(size, dtype=torch.bool)
                same.setdefault(name, []).append(float((gap <= tolerance)[pairs].double().mean()))
        for name, shares in same.items():
            agreement.setdefault(name, []).append(sum(shares) / len(shares))
    mean = {
        axis: [sum(agreement[name][k] for name in names) / len(names) for k in range(sampling.steps - 1)]
        for axis, names in (("identity", IDENTITY), ("prompt", PROMPT))
    }
    return {
        "agreement_when_noise_is_new_from_step_k": agreement | mean,
        "sigmas": parts.sigmas.tolist(),
        "groups": groups,
    }


def main(arguments: Sequence[str]) -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gate", "decided"])
    parser.add_argument("--groups", type=int, default=32)
    given, overrides = parser.parse_known_args(arguments)
    parts = parts_of(overrides)
    result = {"gate": gate, "decided": decided}[given.what](parts, given.groups)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
