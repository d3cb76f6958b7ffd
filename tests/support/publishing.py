"""Runs as far as ``publish`` reads them: checkpoint, recipe, steps and evaluation of any policy, without training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from customized_grpo.evaluation.tables import summarize
from customized_grpo.policies.adapters.lora import attach, save_adapter, trainable_parameters
from customized_grpo.policies.base import LoraSettings, Policy, load_policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import save_recipe
from run_folder import evaluation_rows, write_rows

STEP = 40


def noisy_adapter(policy: Policy, settings: LoraSettings, size: float = 0.1) -> Policy:
    """The policy with an adapter that is not zero."""
    attach(policy, settings, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)
    return policy


def checkpoint_of(folder: Path, recipe: Recipe, policy: Policy, step: int = STEP) -> Path:
    """A complete checkpoint of a run, with all that a real one's header says."""
    place = folder / "checkpoints" / f"step-{step:06d}"
    about = {"base_model": recipe.policy.model, "recipe": recipe.model_dump_json(exclude={"run"}), "step": str(step)}
    save_adapter(policy, place, about)
    save_recipe(recipe, place / "config.yaml")
    (place / "manifest.json").write_text("{}")
    return place


def measured(
    folder: Path, *, evaluated: bool = True, step: int = STEP, settings: Mapping[str, Any] | None = None
) -> None:
    """``metrics.jsonl``, and an evaluation of the base and of the adapter after ``step`` steps."""
    lines = [{"step": one, "time/step": 1.5, "reward/dino/mean": 0.5} for one in range(1, step + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not evaluated:
        return
    rows = {
        label: evaluation_rows(folder / "evaluation", f"step-{at:06d}", at / step, 12, seed=3)
        for label, at in (("base", 0), ("tuned", step))
    }
    for label, at in (("base", 0), ("tuned", step)):
        write_rows(folder / "evaluation", f"step-{at:06d}", rows[label])
    summarize(folder / "evaluation", "heldout", rows, dict(settings or {}))


def run_of(folder: Path, recipe: Recipe, **more: Any) -> Policy:
    """A whole run of a recipe, and its tuned policy."""
    assert recipe.policy.lora is not None
    policy = noisy_adapter(load_policy(recipe), recipe.policy.lora, more.pop("size", 0.1))
    checkpoint_of(folder, recipe, policy)
    save_recipe(recipe, folder / "config.yaml")
    measured(folder, settings={"model": recipe.policy.model, "examples": 12}, **more)
    return policy
