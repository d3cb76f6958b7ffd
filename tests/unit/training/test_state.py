"""Which keys of a recipe may change when a run goes on, and that the others are refused by name."""

from pathlib import Path
from typing import Any

import pytest

from customized_grpo.recipe.config import Recipe
from customized_grpo.training.state import compare_recipes, scorer_share
from runs import tiny_recipe, with_evaluation

WORLD = Path("world")


def recipe(**changes: Any) -> Recipe:
    return tiny_recipe(WORLD, Path("run"), **changes)


HARMLESS: list[tuple[str, Any]] = [
    ("run.dir", "elsewhere"),
    ("run.threads", 2),
    ("run.device", "auto"),
    ("train.steps", 99),
    ("train.checkpoint_every", 7),
    ("train.keep_checkpoints", 9),
    ("train.save_samples_every", 3),
    ("train.check_ranks_every", 3),
    ("run.timeout_s", 60),
    ("train.microbatch", 2),  # another order of adding, which is what an out-of-memory error asks for
    ("policy.gradient_checkpointing", True),
]

HARMFUL: list[tuple[str, Any]] = [
    ("run.seed", 7),
    ("run.precision", "bf16"),
    ("policy.lora.rank", 8),
    ("policy.height", 64),
    ("data.path", "other.jsonl"),
    ("sampling.steps", 7),
    ("sampling.dynamics", {"type": "cps"}),
    ("rewards.bright.weight", 2.0),
    ("advantage.aggregator", {"type": "weighted_sum"}),
    ("objective.kl", 0.1),
    ("train.lr", 0.5),
    ("train.group_size", 8),
    ("train.ema", 0.9),
    ("train.betas", (0.8, 0.9)),
    ("train.schedule", {"name": "constant_with_warmup", "warmup_steps": 2}),
]


def test_nothing_changed() -> None:
    assert compare_recipes(recipe(), recipe()) == []


def test_going_on_is_no_change() -> None:
    assert compare_recipes(recipe(), recipe(run__resume="latest")) == []


@pytest.mark.parametrize(("key", "value"), HARMLESS)
def test_harmless_changes_are_named(key: str, value: Any) -> None:
    assert compare_recipes(recipe(), recipe(**{key.replace(".", "__"): value})) == [key]


def test_an_evaluation_may_come_go_and_change() -> None:
    one, other = recipe(**with_evaluation(WORLD, 2)), recipe(**with_evaluation(WORLD, 3), evaluate__limit=1)
    assert compare_recipes(one, other) == ["evaluate.limit", "train.evaluate_every"]
    for before, after in ((one, recipe()), (recipe(), one)):
        assert {key.split(".")[0] for key in compare_recipes(before, after)} == {"evaluate", "train"}


@pytest.mark.parametrize(("key", "value"), HARMFUL)
def test_what_changes_a_step_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")) as raised:
        compare_recipes(recipe(), recipe(**{key.replace(".", "__"): value}))
    assert "where it matters" in str(raised.value)
    assert "Start a new run" in str(raised.value)


def test_both_values_are_shown() -> None:
    with pytest.raises(ValueError, match=r"train\.lr: was 0\.01, given 0\.5"):
        compare_recipes(recipe(), recipe(train__lr=0.5))


@pytest.mark.parametrize(("name", "harmless"), [("constant", True), ("linear", False), ("cosine", False)])
def test_the_number_of_steps_matters_to_a_schedule_that_ends_with_it(name: str, harmless: bool) -> None:
    before = recipe(train__schedule={"name": name})
    after = recipe(train__schedule={"name": name}, train__steps=99)
    if harmless:
        assert compare_recipes(before, after) == ["train.steps"]
    else:
        with pytest.raises(ValueError, match=r"train\.steps: was 4, given 99"):
            compare_recipes(before, after)


def test_another_reward_is_refused() -> None:
    more = {
        "bright": {"type": "runs:Brightness", "axis": "prompt"},
        "warm": {"type": "runs:Warmth", "axis": "identity"},
        "constant": {"type": "runs:Constant", "axis": "identity"},
    }
    with pytest.raises(ValueError, match=r"rewards\.constant\.axis: was None, given 'identity'"):
        compare_recipes(recipe(), recipe(rewards=more))


STATES = [
    {"judge": {"recent": [1, 0, 0], "failures": 3}},
    {"judge": {"recent": [0, 1], "failures": 4}},
]


@pytest.mark.parametrize("rank", [0, 1])
def test_as_many_ranks_as_before_get_their_own_scorer_state(rank: int) -> None:
    assert scorer_share(STATES, rank, 2) == STATES[rank]


@pytest.mark.parametrize("world", [1, 3])
def test_other_ranks_share_the_totals_and_all_recent_samples(world: int) -> None:
    shares = [scorer_share(STATES, rank, world)["judge"] for rank in range(world)]
    assert [share["failures"] for share in shares] == [7, 0, 0][:world]
    assert all(share["recent"] == [1, 0, 0, 1, 0] for share in shares)
