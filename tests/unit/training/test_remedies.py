"""A remedy that a run's own message or a page names can be followed: a run goes on with that key changed, or it is said
that it takes a new run.

The messages are read from the source, so that a new one can't be forgotten.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import customized_grpo
from customized_grpo.recipe.config import Recipe
from customized_grpo.rewards.base import RewardConfig
from customized_grpo.rewards.judge.vlm import Vlm
from customized_grpo.rewards.remote import Remote
from customized_grpo.training.resumable import compare_recipes
from runs import tiny_recipe, with_evaluation

PACKAGE: Final = Path(customized_grpo.__file__).parent
DOCS: Final = PACKAGE.parents[1] / "docs"
SECTIONS: Final = "run|policy|data|sampling|rewards|advantage|objective|train|evaluate"
KEY: Final = re.compile(rf"\b(?:{SECTIONS})\.(?!md\b)[a-z_]+(?:\.[a-z_]+)*")
NEW_RUN: Final = re.compile(r"new run|new one|run anew", re.IGNORECASE)

CHANGED: dict[str, Any] = {
    "run.resume": "latest",
    "run.dir": "elsewhere",
    "run.cache": "elsewhere",
    "run.trackers": ["tensorboard"],
    "train.steps": 9,
    "train.keep_checkpoints": 9,
    "train.max_skipped": 9,
    "train.ratio_guard": 0.5,
    "train.old_log_probs": "auto",
    "train.microbatch": 1,
    "sampling.batch": 1,
    "policy.offline": True,
    "run.ask_first": False,
    "policy.attention": "native",
    "policy.compile": True,
    "policy.gradient_checkpointing": 0.5,
    "advantage.max_failed_share": 0.5,
    "evaluate.batch": 3,
    "evaluate.metrics": {"bright": {"type": "runs:Brightness", "axis": "prompt"}},
    "evaluate.products": {"both": ["bright", "bright"]},
    "evaluate.protocol": "all",
    "evaluate.data": {"type": "manifest", "path": "elsewhere.jsonl"},
}
"""Keys that messages name as their remedy, with another value that a run goes on with."""

BEFORE: dict[str, str] = {
    "training/engine_limits.py": "of the engine; each message names another, with which any run goes on",
    "training/advice.py": "advice on the recipe, before the first step",
    "training/checkpoint.py": "names the checkpoint",
    "training/optimizers.py": "a library that is missing",
    "training/state.py": "the refusals of a resume",
    "training/identity.py": "the refusals of a resume",
    "objectives/": "a recipe that is impossible, before the first step",
    "sampling/caching.py": "a policy without caches, before the first step",
    "sampling/schedule.py": "a recipe that is impossible, before the first step",
    "advantages/time_weights.py": "a recipe that is impossible, before the first step",
    "advantages/shaping.py": "names a plug-in that is wrong",
    "policies/adapters/": "an adapter that can't be loaded, before the first step",
    "policies/flux": "a model that can't be loaded, before the first step",
    "policies/pipeline_index.py": "a model that can't be loaded, before the first step",
    "policies/pipelines.py": "a model that can't be loaded, before the first step",
    "policies/single_file.py": "a model that can't be loaded, before the first step",
    "policies/qwen_image.py": "data are looked over before the first step",
    "policies/qwen_image21.py": "a model that can't be trained, before the first step",
    "policies/export.py": "of the command export",
    "memory/": "of the command validate",
}
"""Files whose messages come before a run's first step, or name keys for another reason than to change them."""


NO_REMEDY: dict[str, str] = {
    "objective.clip": "named with its value",
    "rewards.mine": "a reward's name in an example",
    "run.precision": "beside 'new run', or beside another engine",
    "train.buckets": "how many examples each has",
    "policy.model": "before the first step",
    "policy.quantization": "before the first step: without the GPU that it began with a run is another run",
}
"""Keys that texts name for another reason than to change them."""


def messages(file: Path) -> Iterator[str]:
    """Texts of several words that are no docstring, each f-string as a whole."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    aside: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for one in body if isinstance(body, list) else []:
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                aside.add(id(one.value))
        if isinstance(node, ast.JoinedStr):
            aside |= {id(part) for value in node.values for part in ast.walk(value)}
    for node in ast.walk(tree):
        if id(node) in aside:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def of_a_run() -> list[tuple[str, str]]:
    """(file, message) of all rooms that a run is in, where a key is named."""
    found = []
    for room in ("training", "sampling", "scoring", "rewards", "objectives", "advantages", "policies", "evaluation",
                 "conditioning", "report", "data", "memory", "web"):  # fmt: skip
        for file in sorted((PACKAGE / room).rglob("*.py")):
            name = file.relative_to(PACKAGE).as_posix()
            if not name.startswith(tuple(BEFORE)):
                found += [(name, text) for text in messages(file) if KEY.search(text)]
    return found


def rows() -> list[tuple[str, str]]:
    """(page, row) of the pages that say what to do about a message."""
    found = []
    for page in (DOCS / "troubleshooting.md", DOCS / "reliability.md", DOCS / "reward-faults.md", DOCS / "judges.md"):
        lines = page.read_text(encoding="utf-8").splitlines()
        found += [(page.name, line) for line in lines if line.startswith("|") and KEY.search(line)]
    return found


def recipe(**changes: Any) -> Recipe:
    return tiny_recipe(Path("world"), Path("run"), **with_evaluation(Path("world"), 2), **changes)


def goes_on_with(key: str) -> bool:
    """True if a run goes on with the key changed."""
    if key not in CHANGED:
        return False
    before, after = recipe(), recipe(**{key.replace(".", "__"): CHANGED[key]})
    assert before != after, f"{key}: {CHANGED[key]} is no change"
    compare_recipes(before, after)  # raises where the change is refused
    return True


@pytest.mark.parametrize(("where", "text"), [*of_a_run(), *rows()])
def test_a_remedy_can_be_followed(where: str, text: str) -> None:
    for key in sorted(set(KEY.findall(text))):
        section = key.split(".")
        known = key in CHANGED or ".".join(section[:2]) in CHANGED
        if known:
            assert goes_on_with(key if key in CHANGED else ".".join(section[:2]))
        else:
            assert NEW_RUN.search(text) or key in NO_REMEDY, f"{where}: no run goes on with another {key}: {text}"


def test_the_tables_are_used() -> None:
    told = {key for _, text in [*of_a_run(), *rows()] for key in KEY.findall(text)}
    assert not {key for key in CHANGED if not any(one == key or one.startswith(f"{key}.") for one in told)}
    assert not {key for key in NO_REMEDY if key not in told}
    every = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    for start in BEFORE:
        files = [file for name, file in every.items() if name.startswith(start)]
        assert any(KEY.search(text) for file in files for text in messages(file)), start


@pytest.mark.parametrize("config", [Vlm.Config, Remote.Config])
def test_a_network_reward_names_what_a_run_may_change(config: type[RewardConfig]) -> None:
    """Its messages name its own options bare; those that aren't transport take a new run."""
    rewards = PACKAGE / "rewards"
    files = [rewards / "remote.py"] if config is Remote.Config else sorted((rewards / "judge").glob("*.py"))
    fixed = "|".join(set(config.model_fields) - config.transport - {"type", "axis", "weight"})
    advice = re.compile(rf"\b(?:raise|lower|set|give|take|use|by|with|another|ask for|expected:)\s.*?\b({fixed})\b")
    texts = [(file.name, text) for file in files for text in raised(file)]
    assert len(texts) > 5
    for name, text in texts:
        found = advice.search(text)
        assert found is None or NEW_RUN.search(text), f"{name}: {found and found[1]}: {text}"


def raised(file: Path) -> Iterator[str]:
    """The texts of what a file raises, or says of a refusal, while images are scored."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in ("Unscorable", "RewardFailure", "Refusal", "ServerDown", "RequestFailed"):
            parts = [part for given in node.args for part in ast.walk(given) if isinstance(part, ast.Constant)]
            yield " ".join(part.value for part in parts if isinstance(part.value, str))
