"""What a tracker of accelerate is told of a run."""

from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from customized_grpo.training.trainer import train
from runs import metrics_of, tiny_recipe


def test_a_tracker_gets_the_recipe_and_every_step(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's own way, with a tracker in place of TensorBoard's that notes what it is given."""

    class Noting(GeneralTracker):
        name, requires_logging_directory = "tensorboard", True
        seen: ClassVar[list[tuple[str, Any]]] = []

        def __init__(self, run_name: str, logging_dir: str, **_: Any) -> None:
            super().__init__()
            self.seen.append(("start", logging_dir))

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.seen.append(("recipe", values))

        def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self.seen.append((f"pictures {step}", list(values)))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self.seen.append((f"step {step}", values))

        def finish(self) -> None:
            self.seen.append(("end", None))

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Noting)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    changes = {"run__trackers": ["tensorboard"], "train__steps": 2, "samples__every": 2, "samples__number": 1}
    run = train(tiny_recipe(tiny_world, tmp_path / "run", **changes))
    assert [name for name, _ in Noting.seen] == [
        *("start", "recipe", "pictures 0", "step 0", "step 1", "step 2", "pictures 2", "step 2", "end")
    ]
    assert Noting.seen[-2][1].keys() == {"samples/0/caption"}
    del Noting.seen[-2]
    told = dict(Noting.seen)
    assert told["start"] == str(run)
    assert told["recipe"]["train.steps"] == 2
    assert told["recipe"]["rewards.bright.axis"] == "prompt"
    rows = metrics_of(run)
    assert {key: told["step 2"][key] for key in rows[1] if key != "step"} == {
        key: value for key, value in rows[1].items() if key != "step"
    }


def test_a_tracker_that_is_not_installed_is_an_error(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    recipe = tiny_recipe(tiny_world, tmp_path / "run", run__trackers=["wandb", "trackio"])
    with pytest.raises(
        ValueError, match=r"run\.trackers: trackio not installed; pip install 'customized-grpo\[trackio\]'"
    ):
        train(recipe)
    assert not (tmp_path / "run").exists()
