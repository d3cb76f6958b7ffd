"""An update is as large as ``train.lr`` says, however small gradients are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.training.optimizers import build_optimizer
from runs import tiny_recipe


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused", "adamw_8bit"])
@pytest.mark.parametrize("scale", [1.0, 3.6e-8, 1e-9])
def test_an_update_does_not_depend_on_the_size_of_gradients(optimizer: str, scale: float) -> None:
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -r requirements-dev.txt")

    def updated(**changes: Any) -> float:
        given = {"train__optimizer": optimizer, "train__lr": 1e-3, "train__weight_decay": 0.0}
        train = tiny_recipe(Path("world"), Path("run"), **given, **changes).train
        weights = torch.nn.Parameter(torch.zeros(8192))
        made = build_optimizer([weights], train)
        for _ in range(3):
            weights.grad = torch.full_like(weights, scale)
            made.step()
        return float(-weights.detach().mean() / 3 / 1e-3)

    assert updated() == pytest.approx(1.0, abs=0.02)
    if scale == 3.6e-8:  # torch's default at FLUX's scale
        assert updated(train__eps=1e-8) == pytest.approx(3.6 / 4.6, abs=0.02)


def test_the_fused_optimizer_is_the_plain_one_to_rounding_and_is_fused() -> None:
    ends = {}
    for name in ("adamw", "adamw_fused"):
        train = tiny_recipe(Path("world"), Path("run"), train__optimizer=name, train__lr=1e-2).train
        draw = torch.Generator().manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(64, 8, generator=draw))
        made = build_optimizer([weights], train)
        assert made.defaults["fused"] == (True if name == "adamw_fused" else None)
        for _ in range(20):
            weights.grad = torch.randn(64, 8, generator=draw)
            made.step()
        ends[name] = weights.detach()
    torch.testing.assert_close(ends["adamw"], ends["adamw_fused"], rtol=1e-5, atol=1e-6)
