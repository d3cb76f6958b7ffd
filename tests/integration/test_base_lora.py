"""Training on a base that has UNO's LoRA beneath, by the trainer: exact ratios, KL to that base, resume, images."""

from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data.images import load_image
from customized_grpo.sampling.draw import draw
from customized_grpo.training.trainer import train
from runs import checkpoint_bytes, metrics_of, tiny_recipe
from uno_tiny import uno_file


@pytest.mark.parametrize("mode", ["adapter", "fuse"])
def test_a_run_on_unos_lora(tiny_world: Path, tmp_path: Path, mode: str) -> None:
    changes = {
        "policy__base_lora": {"path": str(uno_file(tmp_path)), "mode": mode},
        "policy__lora": {"rank": 2, "targets": ["uno"], "qkv": "shared"},
        "sampling__shift": "dynamic",
        "objective__kl": 0.1,
        "train__steps": 2,
        "train__checkpoint_every": 1,
        "train__updates_per_rollout": 2,
    }
    whole = tiny_recipe(tiny_world, tmp_path / "whole", **changes)
    train(whole)
    rows = metrics_of(tmp_path / "whole")
    assert [row["ratio/max_abs_log_first"] for row in rows] == [0.0, 0.0]
    assert all(row["loss/kl"] > 0 for row in rows)  # after each rollout's first update the policy has left its base

    train(tiny_recipe(tiny_world, tmp_path / "parts", **changes | {"train__steps": 1}))
    train(tiny_recipe(tiny_world, tmp_path / "parts", **changes, run__resume="latest"))
    before, after = (checkpoint_bytes(tmp_path / name, 2) for name in ("whole", "parts"))
    assert before == after

    reference = Image.new("RGB", (32, 32), "red")
    options = {"steps": 2, "seed": 0, "num": 2}
    out = tmp_path / "out.png"
    files = draw(whole, str(tmp_path / "whole"), [reference], "a dog", out, grid=None, **options)
    assert [load_image(file).size for file in files] == [(32, 32)] * 2
