"""``docs/metrics.md`` names what a run emits, no more and no less."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer, train
from judge_cases import KEY, KEY_ENV
from judge_server import JudgeServer, completion
from runs import RULES, make_taught_world, taught_recipe, tiny_recipe

from .conftest import Finished

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
FILLED = {
    "<name>": "(bright|warm|far)",
    "<axis>": "(prompt|identity|diversity)",
    "<other>": "(diversity)",
    "<kk>": r"\d\d",
    "<column>": "(bright)",
}
AXES = {"bright": "prompt", "warm": "identity", "far": "diversity"}


def glossary() -> list[list[str]]:
    """The cells of every row of the page's tables."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def pattern(name: str) -> str:
    escaped = re.escape(name)
    for place, allowed in FILLED.items():
        escaped = escaped.replace(re.escape(place), allowed)
    return escaped


@pytest.fixture(scope="module")
def emitted(finished: Finished, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Of a run, and of a step each of an objective that has other metrics, a further axis, rules, a pairwise judge."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()
    ]
    changes = {"objective": {"type": "nft"}, "sampling__cache": {"type": "taylorseer"}}
    other = Trainer(build(tiny_recipe(tiny_world, tmp_path_factory.mktemp("nft") / "run", **changes)))
    rows.append(other.step(0))
    rewards: dict[str, dict[str, Any]] = {name: {"type": "runs:Offset", "axis": axis} for name, axis in AXES.items()}
    for changes in ({"rewards": rewards}, RULES):
        more = Trainer(build(tiny_recipe(tiny_world, tmp_path_factory.mktemp("more") / "run", **changes)))
        rows.append(more.step(0))
    shown = train(tiny_recipe(tiny_world, tmp_path_factory.mktemp("shown") / "run", train__steps=1, samples__every=1))
    rows += [json.loads(line) for line in (shown / "metrics.jsonl").read_text().splitlines()]
    world = make_taught_world(tiny_world, tmp_path_factory.mktemp("taught") / "world")
    taught = Trainer(build(taught_recipe(world, tmp_path_factory.mktemp("dpo") / "run", "dpo")))
    rows.append(taught.step(0))
    with JudgeServer(lambda request: completion('{"winner": 1}')) as server:
        rewards["bright"] = {"type": "vlm_pairwise", "axis": "prompt", "rubric": "prompt_following", "preset": "vllm"}
        rewards["bright"] |= {"model": "judge", "base_url": server.url, "key_env": KEY_ENV}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(KEY_ENV, KEY)
            folder = tmp_path_factory.mktemp("judged") / "run"
            judged = Trainer(build(tiny_recipe(tiny_world, folder, rewards=rewards)))
            with judged.parts.scorer:
                rows.append(judged.step(0))
    return {name for row in rows for name in row} - {"step"}


def test_every_metric_is_in_the_glossary(emitted: set[str]) -> None:
    patterns = [pattern(cells[0].strip("`")) for cells in glossary()]
    unknown = [name for name in emitted if not any(re.fullmatch(one, name) for one in patterns)]
    assert not unknown


def test_every_entry_of_the_glossary_is_a_metric(emitted: set[str]) -> None:
    names = [cells[0].strip("`") for cells in glossary()]
    assert len(names) > 30
    assert len(set(names)) == len(names)
    dead = [name for name in names if not any(re.fullmatch(pattern(name), one) for one in emitted)]
    assert not dead


def test_every_entry_says_what_it_means() -> None:
    for cells in glossary():
        assert len(cells) == 3, cells
        assert re.fullmatch(r"`[^`]+`", cells[0]), "one name a row"
        assert len(cells[1]) > 3, cells[0]


def test_a_filled_place_is_no_wildcard() -> None:
    """The control: a pattern must not match what is not its own."""
    assert not re.fullmatch(pattern("reward/<name>/mean"), "reward/other/mean")
    assert not re.fullmatch(pattern("weight/<axis>/step_<kk>"), "weight/prompt/step_1")
    assert re.fullmatch(pattern("reward/<axis>/mean"), "reward/identity/mean")
