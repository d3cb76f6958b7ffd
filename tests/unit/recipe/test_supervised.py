"""Recipes of supervised runs: made of those for RL, and refused where a key has no effect."""

from pathlib import Path
from typing import Any

import pytest

from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import RecipeError, load_recipe, load_supervised, save_recipe, shipped_recipes
from customized_grpo.recipe.yaml_source import read_yaml

TRAINING = sorted(name for name, file in shipped_recipes().items() if file.parent.name == "train")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize("name", TRAINING)
def test_every_shipped_recipe_has_a_supervised_form(name: str, kind: str) -> None:
    plain = load_recipe(name)
    recipe, aside = load_supervised(name, [], kind)
    assert recipe.objective.type == kind
    assert not recipe.rewards
    assert {"rewards"} <= set(aside)
    assert recipe.run.dir == f"{plain.run.dir}-{kind}"
    assert recipe.policy == plain.policy
    assert recipe.data == plain.data
    assert recipe.evaluate == plain.evaluate
    for key in ("lr", "steps", "groups_per_step", "microbatch", "optimizer", "schedule", "checkpoint_every"):
        if f"train.{key}" in aside:  # an odd micro-batch, of which dpo makes no pairs
            assert (kind, key) == ("dpo", "microbatch")
            assert (plain.train.microbatch or 0) % 2 == 1
            continue
        assert dict(recipe.train)[key] == dict(plain.train)[key], key
    assert recipe.samples_per_update == recipe.objective.targets


def test_what_is_left_aside_is_said_and_the_resolved_recipe_stays_as_it_is(tmp_path: Path) -> None:
    recipe, aside = load_supervised("mini_nft", ["run.dir=runs/own", "objective.levels.number=2"], "sft")
    assert recipe.run.dir == "runs/own"
    assert aside == [
        "rewards",
        "advantage",
        "sampling.solver",
        "train.group_size",
        "train.updates_per_rollout",
        "objective",
    ]
    save_recipe(recipe, tmp_path / "config.yaml")
    again, none = load_supervised(tmp_path / "config.yaml", [], "sft")
    assert (again, none) == (recipe, [])
    assert load_recipe(tmp_path / "config.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rewards.one={type: pickscore, axis: prompt}", "rewards: it has no effect with objective.type sft"),
        ("advantage.clip=3.0", "advantage: it has no effect"),
        ("sampling.solver=euler", "sampling.solver: it has no effect"),
        ("sampling.batch=2", "sampling.batch: it has no effect"),
        ("sampling.shared_noise=true", "sampling.shared_noise: it has no effect"),
        ("train.group_size=4", "train.group_size: it has no effect"),
        ("train.updates_per_rollout=2", "train.updates_per_rollout: it has no effect"),
        ("train.old_log_probs=replay", "train.old_log_probs: it has no effect"),
        ("objective.step_weighting=equal", "objective.step_weighting: it has no effect"),
        ("objective.beta=2.0", "objective.beta"),
        ("objective.levels={draw: grid, number: 9}", "objective.levels.number: given 9"),
    ],
)
def test_what_a_supervised_run_has_no_use_for_is_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_supervised("mini_nft", [override], "sft")
    assert said in str(refused.value)


def test_dpo_has_its_own_hold_on_the_base_and_takes_pairs_whole() -> None:
    with pytest.raises(RecipeError, match=r"objective\.kl: it has no effect with dpo"):
        load_supervised("mini_nft", ["objective.kl=0.1"], "dpo")
    with pytest.raises(RecipeError, match=r"train\.microbatch: given 3, but dpo compares the two pictures"):
        load_supervised("mini_nft", ["train.microbatch=3"], "dpo")


def test_reinforcement_learning_still_needs_rewards() -> None:
    data: dict[str, Any] = read_yaml(shipped_recipes()["mini_nft"])[0]
    with pytest.raises(ValueError, match="rewards: none; give at least one for each axis"):
        Recipe.model_validate(data | {"rewards": {}})
