"""The recipe's schema: frozen, closed, and coherent across its sections."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from customized_grpo.recipe import config
from customized_grpo.recipe.config import AXES, Evaluate, Recipe
from customized_grpo.recipe.keys import Schedule
from customized_grpo.recipe.loading import RecipeError, load_recipe


def minimal(**changes: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "run": {"dir": "runs/x"},
        "policy": {"type": "uno", "model": "mini"},
        "data": {"type": "mini"},
        "rewards": {
            "clip": {"type": "clip_t", "axis": "prompt"},
            "dino": {"type": "dino", "axis": "identity"},
        },
        "train": {"evaluate_every": 0},
    }
    return recipe | changes


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [value for value in vars(config).values() if isinstance(value, type) and issubclass(value, model)]


@pytest.mark.parametrize("section", sections(config.Section))
def test_every_section_is_closed_and_frozen(section: type[BaseModel]) -> None:
    assert section.model_config.get("extra") == "forbid"
    assert section.model_config.get("frozen")


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe.model_validate(minimal())
    assert recipe.advantage.aggregator.model_dump() == {"type": "sars", "gamma": 0.4}
    assert recipe.sampling.dynamics.model_dump() == {"type": "dance_sde", "eta": 0.4}
    assert recipe.sampling.plan.model_dump() == {"type": "fraction", "fraction": 0.6}
    assert (recipe.sampling.steps, recipe.train.group_size, recipe.objective.clip) == (25, 12, 1e-4)
    assert AXES == ("prompt", "identity")


def test_plugin_sections_are_dumped_whole() -> None:
    dumped = Recipe.model_validate(minimal()).model_dump()
    assert dumped["policy"]["max_sequence_length"] == 512
    assert Recipe.model_validate(dumped) == Recipe.model_validate(minimal())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": {}}, "at least one"),
        ({"rewards": {"clip": {"type": "clip_t", "axis": "prompt"}}}, "no reward feeds the axis 'identity'"),
        ({"rewards": {"clip": {"type": "clip_t", "axis": "promt"}}}, "did you mean 'prompt'"),
        ({"rewards": {"clip": {"type": "clip_t"}}}, "allowed: prompt, identity"),
        ({"rewards": {"clip": {"axis": "prompt"}}}, "needs a 'type'"),
        ({"rewards": {"clip": "clip_t"}}, "needs a 'type'"),
        ({"train": {}}, "there is no 'evaluate' section"),
        ({"train": {"evaluate_every": 0, "group_size": 12, "updates_per_rollout": 5}}, "does not divide"),
        ({"advantage": {"max_failed_share": 2}}, "less than or equal to 1"),
    ],
)
def test_what_does_not_fit_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(minimal(**changes))
    assert message in str(caught.value)


KLEIN = {"type": "flux2-klein", "model": "some/where"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"type": "grpo"}}, "objective.type grpo compares its loss's forward with the rollout's"),
        (
            {"policy": KLEIN},
            "which doesn't work with policy.type flux2-klein; allowed: taylorseer",
        ),
        ({"policy": {"type": "toy_policy:ToyPolicy", "model": "x"}}, "leave sampling.cache out"),
        ({"policy": {"type": "uno", "model": "mini", "compile": True}}, "the code that policy.compile makes"),
        ({"sampling": {"cache": {"type": "taylorseer", "warmup": 25}}}, "warmup: given 25, but sampling.steps=25"),
        ({"sampling": {"cache": {"type": "first_block", "order": 2}}}, "order has no effect with type 'first_block'"),
        ({"sampling": {"cache": {"type": "taylorseer", "threshold": 0.2}}}, "it belongs to first_block"),
        ({"sampling": {"cache": {"type": "first_block", "threshold": 0}}}, "greater than 0"),
        ({"objective": {"type": "toy_policy:Strict"}}, "objective.type toy_policy:Strict compares"),
    ],
)
def test_where_a_cache_of_rollouts_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"objective": {"type": "nft"}, "sampling": {"cache": {"type": "first_block"}}} | changes
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(minimal(**given))
    assert message in str(caught.value)


@pytest.mark.parametrize("objective", ["nft", "awm"])
def test_a_cache_of_rollouts_is_taken_where_nothing_is_replayed(objective: str) -> None:
    for policy, kind in ((KLEIN, "taylorseer"), ({"type": "uno", "model": "mini"}, "first_block")):
        given = minimal(policy=policy, objective={"type": objective}, sampling={"cache": {"type": kind}})
        recipe = Recipe.model_validate(given)
        assert recipe.sampling.cache is not None
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_warmup_needs_a_schedule_that_uses_it() -> None:
    with pytest.raises(ValidationError, match="constant_with_warmup"):
        Schedule(warmup_steps=3)
    assert Schedule(name="cosine", warmup_steps=3).warmup_steps == 3


def test_rewards_are_metrics_and_need_no_axis_there() -> None:
    spec = Evaluate.model_validate(
        {"data": {"type": "mini"}, "metrics": {"a": {"type": "dino"}, "b": {"type": "mini_oracle"}}}
    )
    assert [metric.model_dump()["type"] for metric in spec.metrics.values()] == ["dino", "mini_oracle"]


def test_a_recipe_is_a_value() -> None:
    recipe = load_recipe("mini_customized")
    with pytest.raises(ValidationError):
        recipe.train.steps = 3  # type: ignore[misc]
    assert recipe == load_recipe("mini_customized")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("torch.full((num_steps, 3), 0.5)", r"given \(25, 3\); allowed: finite \(T, Q\) = \(25, 2\)"),
        ("torch.full((num_steps, 2), torch.nan)", "values that are not finite"),
        ("[0.5] * num_steps", "'list' object has no attribute"),
    ],
)
def test_time_weights_that_no_run_could_use_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    (tmp_path / "own_weights.py").write_text(f"import torch\ndef f(num_steps):\n    return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_weights", raising=False)
    with pytest.raises(RecipeError, match=f"advantage.time_weights: .*{said}"):
        load_recipe("mini_customized", ["sampling.steps=25", "advantage.time_weights={type: 'own_weights:f'}"])


def test_a_product_takes_no_metrics_place() -> None:
    """Its values replaced the metric's in every table."""
    metrics = {name: {"type": "clip_t", "model": "mini"} for name in ("a", "b")}
    with pytest.raises(ValidationError, match="products: 'a' is a metric's column already"):
        Evaluate.model_validate({"data": {"type": "mini"}, "metrics": metrics, "products": {"a": ["a", "b"]}})
