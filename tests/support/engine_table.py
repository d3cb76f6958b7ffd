"""Options of a recipe and engines of accelerate, which are run together on two processes or refused: the table of
docs/how-to/multi-gpu.md. ``tests/distributed/test_engine_table.py`` runs every case of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from customized_grpo import registry
from customized_grpo.recipe.config import Recipe
from customized_grpo.training.engine_limits import Engine, check
from runs import tiny_recipe, with_evaluation

SHOWN: Final = (Engine.DDP, Engine.FSDP2, Engine.ZERO2, Engine.ZERO3)
RUN: Final = (Engine.DDP, Engine.FSDP2)
"""Engines that are run here; DeepSpeed's by ``make test-deepspeed``, which is one plain run."""

Changes = dict[str, Any]

DRAWN: Final = "a branch drawn for each group"
BATCH_AUTO: Final = "`sampling.batch: auto`"
EIGHT_BIT_MOMENTS: Final = "`train.optimizer: adamw_8bit`"
FOUR_BIT: Final = "`policy.quantization: 4bit`"
EIGHT_BIT: Final = "`policy.quantization: 8bit`"
COMPILE: Final = "`policy.compile`"
FIRST_BLOCK: Final = "`sampling.cache: first_block`"
FLOAT8: Final = "`sampling.float8`"
GUIDANCE: Final = "guidance (two forwards a velocity)"
FULL: Final = "full"
COMPILED: Final = "compiled"


@dataclass(frozen=True)
class Site:
    """What options name: weights of ``flux`` and ``qwen``, a LoRA, a reward server."""

    world: Path
    port: int = 8000

    @property
    def qwen(self) -> Path:
        return self.world / "qwen"

    @property
    def lora(self) -> Path:
        return self.world / "dit_lora.safetensors"


def options(site: Site) -> dict[str, Changes]:
    """Each option by its name in the table, as changes of ``tiny_recipe``. A later one is laid over an earlier one."""
    guided = {"type": "qwen-image-edit-plus", "model": str(site.qwen), "height": 32, "width": 32, "reference_size": 32}
    remote = {
        "type": "remote", "axis": "identity", "urls": [f"http://127.0.0.1:{site.port}"], "reward": "dino",
    }  # fmt: skip
    held_out = with_evaluation(site.world, 2)
    held_out["evaluate"] |= {"limit": 3, "batch": 1}
    return {
        GUIDANCE: {"policy": {**guided, "guidance": 4.0, "lora": {"rank": 4}}},
        "`policy.lora`": {},
        "`policy.lora.qkv: shared`": {"policy__lora": {"rank": 4, "targets": ["uno"], "qkv": "shared"}},
        "`policy.base_lora`": {"policy__base_lora": {"path": str(site.lora), "mode": "adapter"}},
        "`policy.full`": {"policy__lora": None, "policy__full": {}},
        EIGHT_BIT_MOMENTS: {"train__optimizer": "adamw_8bit", "policy__lora": {"rank": 32}},
        FOUR_BIT: {"policy__quantization": "4bit", "run__precision": "bf16"},
        EIGHT_BIT: {"policy__quantization": "8bit", "run__precision": "bf16"},
        "`run.precision: bf16`": {"run__precision": "bf16"},
        "`train.ema`": {"train__ema": 0.5},
        "`objective.kl`": {"objective__kl": 0.1},
        "`policy.gradient_checkpointing`": {"policy__gradient_checkpointing": True},
        "`policy.gradient_checkpointing: 0.5`": {"policy__gradient_checkpointing": 0.5},
        "`policy.recompute: cheap`": {"policy__gradient_checkpointing": True, "policy__recompute": "cheap"},
        "`policy.norms: half`": {"policy__norms": "half", "run__precision": "bf16"},
        COMPILE: {"policy__compile": True},
        "plan `all`": {"sampling__plan": {"type": "all"}},
        "plan `fraction`": {"sampling__plan": {"type": "fraction", "fraction": 0.6}},
        "plan `window`, `dpm_solver_2m`": {
            "sampling__plan": {"type": "window", "width": 2, "mode": "random", "every": 1, "solver": "dpm_solver_2m"}
        },
        "plan `branch`": {"sampling__plan": {"type": "branch", "at": 1, "steps_after": 1}},
        DRAWN: {"sampling__plan": {"type": "branch"}},
        "`train.updates_per_rollout: 2`": {"train__updates_per_rollout": 2, "train__microbatch": None},
        "`train.old_log_probs: replay`": {"train__old_log_probs": "replay"},
        "`train.staleness: 1`": {"train__staleness": 1, "objective__clip": 0.1},
        "`sampling.batch: 2`": {"sampling__batch": 2, "train__microbatch": 2},
        BATCH_AUTO: {"sampling__batch": "auto"},
        FIRST_BLOCK: {"objective": {"type": "nft"}, "sampling__cache": {"type": "first_block", "threshold": 1.0}},
        "`sampling.cache: taylorseer`": {
            "objective": {"type": "nft"},
            "sampling__cache": {"type": "taylorseer", "warmup": 1},
        },
        FLOAT8: {"objective": {"type": "nft"}, "sampling__float8": True, "run__precision": "bf16"},
        "`nft` with an old policy": {"objective": {"type": "nft", "old": {"rate": 0.2}}},
        "`awm` with a running average": {
            "objective": {"type": "awm", "average": {"rate": 0.2}, "average_kl": 0.1},
        },
        "`objective.ratio: guard`": {"objective": {"ratio": "guard"}},
        "`objective.ratio: dppo`": {"objective": {"ratio": "dppo"}},
        "shared noise": {"sampling__shared_noise": True},
        "noise for each sample": {"sampling__shared_noise": False},
        "remote rewards": {"rewards__warm": remote, "run__ask_first": False},
        "evaluation with a remainder": held_out,
    }


CASES: Final[Mapping[str, tuple[str, ...]]] = {
    "adapter": (
        "`policy.lora`", "`train.ema`", "`objective.kl`", "`policy.gradient_checkpointing: 0.5`",
        "plan `window`, `dpm_solver_2m`", "shared noise", "evaluation with a remainder",
    ),
    "several-updates": (
        "`policy.lora.qkv: shared`", "`run.precision: bf16`", "`objective.kl`", "`policy.gradient_checkpointing`",
        "plan `all`", "`train.updates_per_rollout: 2`", "`train.old_log_probs: replay`", "`sampling.batch: 2`",
        "noise for each sample", "remote rewards",
    ),
    "guidance": (
        GUIDANCE, "`run.precision: bf16`", "`objective.kl`", "`policy.gradient_checkpointing: 0.5`", "plan `branch`",
        "evaluation with a remainder",
    ),
    FULL: (
        "`policy.full`", "`run.precision: bf16`", "`train.ema`", "`objective.kl`",
        "`policy.gradient_checkpointing: 0.5`", "plan `fraction`",
    ),
    "nft": (
        "`policy.lora`", "`train.updates_per_rollout: 2`", "`nft` with an old policy", "evaluation with a remainder",
    ),
    "first-block": ("`policy.lora`", "`policy.gradient_checkpointing: 0.5`", FIRST_BLOCK),
    "taylorseer": (GUIDANCE, "`sampling.cache: taylorseer`", "`run.precision: bf16`"),
    "awm": ("`policy.full`", "`train.updates_per_rollout: 2`", "`awm` with a running average"),
    "guard": ("`policy.lora`", "`train.updates_per_rollout: 2`", "`objective.ratio: guard`"),
    "dppo": ("`policy.lora`", "`train.updates_per_rollout: 2`", "`objective.ratio: dppo`"),
    "four-bit": ("`policy.lora`", "`policy.base_lora`", FOUR_BIT, "`objective.kl`", "`policy.gradient_checkpointing`"),
    "eight-bit": (EIGHT_BIT_MOMENTS, EIGHT_BIT, "`train.ema`", DRAWN, BATCH_AUTO),
    "stale": (
        "`policy.lora`", "`run.precision: bf16`", "`policy.recompute: cheap`", "`policy.norms: half`",
        "plan `all`", "`train.staleness: 1`",
    ),
    "float8": ("`policy.lora`", "`run.precision: bf16`", FLOAT8),
    COMPILED: ("`policy.lora`", COMPILE, "`run.precision: bf16`"),
}  # fmt: skip
"""Recipes that are run on two processes: options that go together, in the order of ``options``."""

WITH_DEEPSPEED: Final = ("`policy.lora`", "`run.precision: bf16`", "plan `fraction`", "shared noise")
"""What ``make test-deepspeed`` runs."""


def recipe_of(names: tuple[str, ...], site: Site, run: Path, **more: Any) -> Recipe:
    """The tiny recipe with options of these names, 2 steps with a checkpoint after each."""
    known = options(site)
    changes: Changes = {"run__device": "auto", "train__steps": 2, "train__checkpoint_every": 1, "sampling__steps": 4}
    for name in names:
        changes |= known[name]
    return tiny_recipe(site.world, run, **(changes | more))


def refusal(engine: Engine, names: tuple[str, ...]) -> str | None:
    """What the engine says to these options; None if it takes them."""
    more = {"run__precision": "bf16"} if engine.is_deepspeed else {}
    try:
        check(engine, recipe_of(names, Site(Path("world")), Path("run"), **more))
    except ValueError as error:
        return str(error)
    return None


def cases_of(engine: Engine) -> list[str]:
    """Names of the cases that run under an engine."""
    return [name for name, names in CASES.items() if refusal(engine, names) is None]


def table() -> str:
    """Engine x option: run by the tests, refused with which message, or neither."""
    plans = {plan["type"] for one in options(Site(Path())).values() if (plan := one.get("sampling__plan"))}
    assert plans == set(registry.available("plans")), "a plan that no case runs"
    notes: list[str] = []
    lines = ["| Option | " + " | ".join(one.value for one in SHOWN) + " |", "|---|" + "---|" * len(SHOWN)]
    for option in options(Site(Path())):
        cells = [_cell(engine, option, notes) for engine in SHOWN]
        lines.append(f"| {option} | {' | '.join(cells)} |")
    said = [f"{number}. {text}" for number, text in enumerate(notes, start=1)]
    return "\n".join([*lines, "", "Refused before anything is loaded, with:", "", *said])


def _cell(engine: Engine, option: str, notes: list[str]) -> str:
    said = refusal(engine, (option,))
    if said is not None:
        notes += [said] if said not in notes else []
        return f"refused ({notes.index(said) + 1})"
    if engine in RUN:
        assert any(option in CASES[name] for name in cases_of(engine)), f"{option} is never run under {engine.value}"
        return "run"
    return "run (`make test-deepspeed`)" if option in WITH_DEEPSPEED else "not run"
