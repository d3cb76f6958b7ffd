"""``benchmarks/roofline.py``: its counts are torch's own on a card, and what it says of memory is what is estimated."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import roofline  # noqa: E402 (in a folder of scripts)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {variant: roofline.model_of(variant) for variant in roofline.VARIANTS}


@pytest.fixture(scope="module")
def found(models: dict[str, Any]) -> dict[str, Any]:
    return {
        variant: roofline.measure(model, roofline.PEAK, roofline.BANDWIDTH, (1,)) for variant, model in models.items()
    }


def test_flops_are_those_that_torch_counted_on_a_card(found: dict[str, Any]) -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "flux_h200.json").read_text(encoding="utf-8"))
    for costs in found.values():
        for use in ("forward", "replay"):
            assert roofline.total(costs[use, 1]).flops == pytest.approx(measured[f"flops_of_a_{use}"], rel=1e-3)


def test_what_was_measured_took_longer_than_the_bound(found: dict[str, Any]) -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "flux_h200.json").read_text(encoding="utf-8"))
    forward = next(row["seconds"] for row in measured["forward"] if row["n"] == 1)
    assert 0.5 * forward < roofline.total(found[roofline.PLAIN]["forward", 1]).seconds < forward


def test_each_gain_moves_fewer_bytes_with_the_same_arithmetic(found: dict[str, Any]) -> None:
    for use in ("forward", "replay"):
        costs = [roofline.total(one[use, 1]) for one in found.values()]
        assert costs[0].bytes > costs[1].bytes > costs[2].bytes
        assert costs[0].seconds > costs[1].seconds > costs[2].seconds
        assert costs[0].flops == costs[1].flops == costs[2].flops


@pytest.mark.parametrize(("share", "recompute"), roofline.STORED)
@pytest.mark.parametrize("norms", ["float32", "half"])
def test_the_estimate_is_what_is_stored_at_full_size(
    models: dict[str, Any], norms: str, share: float, recompute: Any
) -> None:
    model = models[roofline.NOW if norms == "float32" else "with `policy.norms=half`"]
    with model.fake:
        counted = roofline.stored_bytes(model, 1, share, recompute)
    assert roofline.estimated(share, recompute, norms) == pytest.approx(counted, rel=0.03)
