"""Which keys of a recipe may change when a run goes on, and that the others are refused by name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import save_recipe
from customized_grpo.training import resumable
from customized_grpo.training.faults import MemoryFullError, explained
from customized_grpo.training.resumable import compare_recipes, saved_recipe
from customized_grpo.training.state import scorer_share
from runs import tiny_recipe, with_evaluation

WORLD = Path("world")
ROOT = Path(__file__).parents[3]


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
    ("train.max_skipped", 3),
    ("train.ratio_guard", 0.01),
    ("train.old_log_probs", "replay"),
    ("advantage.max_failed_share", 0.5),
    ("policy.attention", "_native_math"),
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
    ("train.eps", 1e-8),
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
    assert "start a new run" in str(raised.value)


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
        with pytest.raises(ValueError, match=rf"train\.steps: was 4, given 99 \(the {name} schedule ends there\)"):
            compare_recipes(before, after)


def test_a_cache_of_rollouts_belongs_to_a_run() -> None:
    def cached(**changes: Any) -> Recipe:
        return recipe(objective={"type": "nft"}, **changes)

    for before, after in (
        (None, {"type": "taylorseer"}),
        ({"type": "first_block"}, {"type": "first_block", "threshold": 0.2}),
    ):
        with pytest.raises(ValueError, match=r"sampling\.cache"):
            compare_recipes(cached(sampling__cache=before), cached(sampling__cache=after))
    for kind in ("taylorseer", "first_block"):
        pair = [cached(sampling__cache={"type": kind}, sampling__batch=size) for size in (1, 2)]
        if kind == "taylorseer":  # it skips by the number of a step
            assert compare_recipes(*pair) == ["sampling.batch"]
        else:  # which blocks are skipped is decided for all samples of a forward
            with pytest.raises(ValueError, match=r"sampling\.batch: was 1, given 2"):
                compare_recipes(*pair)


@pytest.mark.parametrize(("kind", "advised"), [("taylorseer", True), ("first_block", False)])
def test_a_run_out_of_memory_is_advised_what_a_resume_takes(tmp_path: Path, kind: str, advised: bool) -> None:
    given = recipe(objective={"type": "nft"}, sampling__cache={"type": kind})
    with pytest.raises(MemoryFullError) as caught, explained(given, tmp_path):
        raise torch.OutOfMemoryError("no room")
    assert ("sampling.batch" in str(caught.value)) == advised


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


REMOTE = {
    "judge": {"type": "vlm", "axis": "prompt", "rubric": "prompt_following", "model": "m", "base_url": "http://a/v1"},
    "served": {"type": "remote", "axis": "identity", "reward": "dino", "urls": ["http://a:8000"]},
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("judge", {"base_url": "http://b/v1", "budget_requests": 9, "concurrency": 2}),
        ("served", {"urls": ["http://b:8000"], "wait_s": 9.0, "timeout_s": 9.0}),
    ],
)
def test_a_run_goes_on_with_another_transport_of_its_rewards(name: str, changes: dict[str, Any]) -> None:
    """Else a run that its judge's budget has stopped, or whose server moved, could not resume."""
    before = recipe(rewards=REMOTE)
    after = recipe(rewards=REMOTE | {name: REMOTE[name] | changes})
    assert {key.split(".")[2] for key in compare_recipes(before, after)} == set(changes)
    with pytest.raises(ValueError, match=rf"rewards\.{name}\.weight"):
        compare_recipes(before, recipe(rewards=REMOTE | {name: REMOTE[name] | {"weight": 2.0}}))


def test_a_checkpoint_has_the_defaults_of_its_time(tmp_path: Path) -> None:
    """AdamW's epsilon was torch's before it could be set."""
    save_recipe(recipe(), tmp_path / "config.yaml")
    assert saved_recipe(tmp_path / "config.yaml").train.eps == 1e-12
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(re.sub(r"\n  eps: .*", "", text))
    assert saved_recipe(tmp_path / "config.yaml").train.eps == 1e-8
    with pytest.raises(ValueError, match=r"train\.eps: was 1e-08, given 1e-12\. Give the former values"):
        compare_recipes(saved_recipe(tmp_path / "config.yaml"), recipe())


REMEDY = re.compile(r"`((?:train|sampling|advantage|policy|rewards|run)\.[a-z_.]+)")


def test_a_remedy_that_says_resume_names_keys_that_may_change() -> None:
    """The page of troubleshooting, and the messages of a run that stopped itself."""
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if "resume" in line]
    told = [cell for line in rows if line.startswith("|") for cell in line.split("|")[-2].split("; or look at")[:1]]
    keys = {key for cell in told for key in REMEDY.findall(cell)}
    assert {"train.microbatch", "train.max_skipped", "train.ratio_guard", "advantage.max_failed_share"} <= keys
    starts_anew = {"policy.lora.path", "run.precision"}
    assert [key for key in keys - starts_anew if not key.startswith((*resumable.HARMLESS, *resumable.ROUNDING))] == []
