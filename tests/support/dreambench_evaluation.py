"""A DreamBench evaluation of the embedded miniature: the real recipe's metrics by their names, on random weights."""

from pathlib import Path
from typing import Any, Final

import torch
import yaml

from customized_grpo.policies.adapters.lora import attach, save_adapter, trainable_parameters
from customized_grpo.policies.base import LoraSettings, load_policy
from customized_grpo.recipe.config import EvaluateRecipe
from tiny_rewards import save_clip, save_dino

RECIPE: Final = Path(__file__).parents[2] / "config" / "eval" / "dreambench.yaml"
ROWS: Final = ("real_photos", "copy_reference", "base", "tuned")


def make_models(folder: Path) -> Path:
    """``dino/`` and ``clip/`` of random weights, and ``adapter/``, which changes what the miniature draws."""
    save_dino(folder / "dino")
    save_clip(folder / "clip")
    settings = EvaluateRecipe.model_validate(evaluation(folder, folder, folder)).policy
    policy = load_policy(settings, device=torch.device("cpu"), precision="no")
    attach(policy, LoraSettings(rank=2), seed=0)
    for parameter in trainable_parameters(policy).values():
        parameter.data = torch.full_like(parameter, 0.05)
    save_adapter(policy, folder / "adapter", {})
    return folder


def evaluation(models: Path, data: Path, run: Path, *, steps: int = 2, **evaluate: Any) -> dict[str, Any]:
    """The recipe; ``evaluate`` are further keys of its section."""
    named: dict[str, dict[str, Any]] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["evaluate"]["metrics"]
    for section in named.values():
        model = str(models / ("dino" if section["type"] == "dino" else "clip"))
        section |= {"model": model} | ({"processor": model} if section["type"] == "pickscore" else {})
    return {
        "run": {"dir": str(run), "device": "cpu", "precision": "no", "threads": 1},
        "policy": {
            "type": "uno",
            "model": "mini",
            "height": 64,
            "width": 64,
            "max_sequence_length": 16,
            "reference_size": 64,
            "lora": {"rank": 2},
        },
        "lora": str(models / "adapter"),
        "sampling": {"steps": steps},
        "evaluate": {
            "protocol": "dreambench/uno-all-references",
            "data": {"type": "dreambench", "path": str(data)},
            "metrics": named,
            "batch": 2,
            "seed": 3407,
            **evaluate,
        },
    }


def results(run: Path) -> dict[str, bytes]:
    """What an evaluation found: its summary and every row, by file name."""
    folder = run / "evaluation"
    return {path.name: path.read_bytes() for path in [folder / "summary.json", *folder.glob("*.jsonl")]}
