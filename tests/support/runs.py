"""Tiny training runs: a folder of random weights, rewards that look at pixels only, and recipes of them.

A reward here may end its own process by a signal in the middle of a step, which is how a killed run is made.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.recipe.config import Recipe
from customized_grpo.rewards.base import Reward, RewardConfig
from customized_grpo.types import Example
from tiny import make_tiny_flux
from tiny_rewards import example

NUM_EXAMPLES = 3
SIGNAL_AT = "TINY_RUN_SIGNAL_AT"
"""``<signal number>:<call>`` - the signal that ``Brightness`` sends to its own process, and at which of its calls."""
SLOW = "TINY_RUN_SLOW_S"
"""Seconds that ``Brightness`` takes a group."""
RAISE_AT = "TINY_RUN_RAISE_AT"
"""``<rank>:<call>`` - the rank on which ``Brightness`` raises, and at which of its calls."""


FULL: dict[str, Any] = {
    "policy__lora": None,
    "policy__full": {},
    "objective__kl": 0.01,
    "train__ema": 0.5,
    "train__updates_per_rollout": 2,
    "train__checkpoint_every": 2,
    "train__lr": 1e-3,
}
"""Changes of a recipe that train every weight, with all that a run may need of them."""


NFT: dict[str, Any] = {
    "objective": {"type": "nft", "old": {"rate": 0.2}, "kl": 0.01},
    "train__updates_per_rollout": 2,
    "train__steps": 3,
}
"""Changes of a recipe that train on the forward process, by samples of a policy that lags behind."""

TAUGHT: dict[str, dict[str, Any]] = {
    "sft": {"objective": {"kl": 0.1}, "train__steps": 3},
    "dpo": {"objective": {"beta": 50.0}, "train__steps": 3},
}
"""Changes of a recipe by its supervised objective."""

BUCKETS: dict[str, Any] = {"train__buckets": [[32, 64]], "train__steps": 3}
"""Changes of a recipe whose examples ask for two shapes."""

BALANCED: dict[str, Any] = {"policy__lora": {"rank": 2, "balance": True}, "train__steps": 3}
"""Changes of a recipe that train one adapter for every trade-off."""

STALE: dict[str, Any] = {"train__staleness": 1, "objective__clip": 0.1, "train__steps": 3}
"""Changes of a recipe whose rollouts lag an update behind."""

RULES: dict[str, Any] = {
    "advantage__rules": {
        "scale": {"bright": {"centre": 115.0, "slope": 0.5}, "warm": {"centre": 74.0, "slope": 0.5}},
        "gate": {"bright": {"by": "warm", "floor": 0.5, "penalty": 2.0}},
        "spread": {"warm": {"least": 0.1, "measure": "range"}},
        "resample": 1,
        "whiten": True,
        "difficulty": {"reward": "bright", "low": 0.01},
        "keep": {"best": 1, "worst": 1},
    },
    "train__updates_per_rollout": 2,
    "train__old_log_probs": "replay",
    "train__steps": 3,
}
"""Changes of a recipe that turn every rule on."""


class _Pixels(Reward):
    """Reads nothing but the images."""

    def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
        self.calls = 0


@final
class Brightness(_Pixels):
    """Mean of all pixels."""

    Config = RewardConfig

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        time.sleep(float(os.environ.get(SLOW, "0")))
        number, _, call = os.environ.get(SIGNAL_AT, "0:0").partition(":")
        self.calls += 1
        if self.calls == int(call):
            os.kill(os.getpid(), int(number))
        if os.environ.get(RAISE_AT) == f"{os.environ.get('RANK')}:{self.calls}":
            raise RuntimeError("broken on purpose")
        return images.float().mean((1, 2, 3))


@final
class Warmth(_Pixels):
    """Red minus blue."""

    Config = RewardConfig

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        return (images[..., 0].float() - images[..., 2].float()).mean((1, 2))


@final
class Constant(_Pixels):
    """61.9, whose float32 mean over a group is not exactly it."""

    Config = RewardConfig

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        return torch.full((len(images),), 61.9)


@final
class Offset(_Pixels):
    """``Brightness`` on top of a number that is far larger."""

    Config = RewardConfig

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        return 3e4 + images.float().mean((1, 2, 3))


@final
class Patchy(_Pixels):
    """``Brightness`` that can't score the second image of a group."""

    Config = RewardConfig

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        scores = images.float().mean((1, 2, 3))
        scores[1] = math.nan
        return scores


@final
class Rising(_Pixels):
    """``Brightness`` of at most 1, and 1 more with every call: what training is rewarded for grows."""

    Config = RewardConfig

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        self.calls += 1
        return self.calls + images.float().mean((1, 2, 3)) / 255.0


@final
class Falling(_Pixels):
    """1 less with every call, whatever the images are."""

    Config = RewardConfig

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((len(images),), -float(self.calls))


def make_tiny_world(folder: Path) -> Path:
    """``flux/`` of random weights and ``train.jsonl`` with references."""
    make_tiny_flux(folder / "flux")
    lines = []
    for i in range(NUM_EXAMPLES):
        one = example(1, key=f"dog-{i}", prompt=("a red dog", "a blue cat", "a dog")[i])
        one.references[0].rotate(90 * i).save(folder / f"{i}.png")
        lines.append(json.dumps({"id": one.key, "prompt": one.prompt, "references": [f"{i}.png"], "subject": "dog"}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def tiny_dict(world: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of 2 groups of 4 samples, 5 sampler steps and 4 tokens; ``changes`` as ``train__steps=3``."""
    data = {"type": "manifest", "path": str(world / "train.jsonl")}
    recipe: dict[str, Any] = {
        "run": {"dir": str(run), "precision": "no", "device": "cpu", "threads": 1},
        "policy": {
            "type": "uno",
            "model": str(world / "flux"),
            "height": 32,
            "width": 32,
            "max_sequence_length": 32,
            "reference_size": 32,
            "lora": {"rank": 4},
        },
        "data": data,
        "sampling": {"steps": 5},
        "rewards": {
            "bright": {"type": "runs:Brightness", "axis": "prompt"},
            "warm": {"type": "runs:Warmth", "axis": "identity"},
        },
        "advantage": {},
        "objective": {},
        "train": {
            "steps": 4,
            "group_size": 4,
            "groups_per_step": 2,
            "microbatch": 4,
            "lr": 1e-2,
            "evaluate_every": 0,
            "checkpoint_every": 0,
            "save_samples_every": 0,
        },
    }
    for path, value in changes.items():
        *above, last = path.split("__")
        section = recipe
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
    return recipe


def tiny_recipe(world: Path, run: Path, **changes: Any) -> Recipe:
    """``tiny_dict`` as a recipe."""
    return Recipe.model_validate(tiny_dict(world, run, **changes))


def break_off(trainer: Any, at: int) -> None:
    """Run a training that ends in the middle of itself, before the step number ``at``."""
    step = trainer.step

    def until(number: int) -> dict[str, float]:
        if number == at:
            raise KeyboardInterrupt
        found: dict[str, float] = step(number)
        return found

    trainer.step = until
    with suppress(KeyboardInterrupt):
        trainer.run()


def make_taught_world(world: Path, folder: Path) -> Path:
    """A copy of a tiny world whose lines have a target, a better and a worse picture, and ask for two shapes."""
    shutil.copytree(world, folder)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for number, (row, color) in enumerate(zip(rows, ("red", "green", "blue"), strict=True)):
        Image.new("RGB", (48, 32), color).save(folder / f"target-{number}.png")
        Image.new("RGB", (32, 32), "gray").save(folder / f"worse-{number}.png")
        row |= {"target": f"target-{number}.png", "chosen": f"target-{number}.png", "rejected": f"worse-{number}.png"}
        row |= {"height": 32, "width": 64 if number == 1 else 32}
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def taught_recipe(world: Path, run: Path, kind: str, **changes: Any) -> Recipe:
    """``tiny_recipe`` of a supervised objective, ``sft`` or ``dpo``."""
    plain = tiny_dict(world, run, **changes)
    for section in ("rewards", "advantage"):
        del plain[section]
    del plain["train"]["group_size"]
    plain["objective"] = {"type": kind, **plain["objective"]}
    return Recipe.model_validate(plain)


def with_evaluation(world: Path, every: int) -> dict[str, Any]:
    """Changes that add a held-out evaluation."""
    return {
        "train__evaluate_every": every,
        "evaluate": {
            "data": {"type": "manifest", "path": str(world / "train.jsonl")},
            "metrics": {"bright": {"type": "runs:Brightness"}},
            "limit": 2,
        },
    }


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without seconds, which no two runs share."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def checkpoint_bytes(run: Path, step: int) -> dict[str, bytes]:
    """The weights and the trainer's state of a checkpoint, by file name."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    files = [folder / "pytorch_lora_weights.safetensors", *sorted((folder / "state").iterdir())]
    return {file.name: file.read_bytes() for file in files}


def command(recipe: Path, *overrides: str) -> list[str]:
    """The real command in a process of its own."""
    return [sys.executable, "-m", "customized_grpo", "train", str(recipe), *overrides]


def environment(**more: str) -> dict[str, str]:
    """Variables of such a process: the checkout's package and these rewards, offline, one thread."""
    here = Path(__file__).parents[1]
    given = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join([str(here.parent / "src"), str(here / "support"), *filter(None, [given])])
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONFAULTHANDLER": "1",
        **more,
    }


def signal_at(number: signal.Signals, call: int) -> str:
    """The value of ``SIGNAL_AT``."""
    return f"{int(number)}:{call}"
