"""Forwards of a step that a loss compares with, where rollouts lag behind."""

from pathlib import Path
from typing import Any

import pytest

from customized_grpo.memory.geometry import step_geometry
from runs import tiny_recipe

AVERAGE = {"type": "awm", "average": {"limit": 0.9}, "average_kl": 1.0}


@pytest.mark.parametrize(
    ("changes", "fresh", "stale"),
    [
        ({"objective": {"type": "nft"}, "train__updates_per_rollout": 1}, 0.0, 1.0),
        ({"objective": {"type": "nft"}, "train__updates_per_rollout": 2}, 0.5, 1.0),
        ({"objective": {"type": "nft", "old": {"rate": 0.2}}, "train__updates_per_rollout": 2}, 1.0, 1.0),
        ({"objective": AVERAGE, "train__updates_per_rollout": 2}, 1.5, 2.0),
        ({"train__updates_per_rollout": 2}, 0.0, 0.0),
        ({"train__updates_per_rollout": 2, "train__old_log_probs": "replay"}, 0.5, 1.0),
    ],
)
def test_every_update_of_a_stale_rollout_compares(
    changes: dict[str, Any], fresh: float, stale: float, tmp_path: Path
) -> None:
    for staleness, expected in ((0, fresh), (1, stale)):
        recipe = tiny_recipe(tmp_path, tmp_path / "run", train__staleness=staleness, **changes)
        found = step_geometry(recipe, world=1, latent_shape=(4, 64))
        assert found.compared_forwards == round(found.replay_forwards * expected)
