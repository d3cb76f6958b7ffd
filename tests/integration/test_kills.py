"""A few moments of ``benchmarks/kills.py``, one in each phase: killed by -9, resumed, equal to the byte."""

from pathlib import Path

import pytest

from killed_runs import Stage, child, finished, one


@pytest.fixture(scope="module")
def whole(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    finished(child(folder / "log", Stage(), tiny_world, folder / "run"), folder / "log")
    return folder / "run"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(("kind", "occurrence"), [("rollout", 8), ("replay", 9), ("save", 2), ("evaluate", 2)])
def test_killed_in_a_phase(whole: Path, tiny_world: Path, tmp_path: Path, kind: str, occurrence: int) -> None:
    record = one("it", tmp_path, tiny_world, whole, kind, occurrence, 0.001)
    assert record["died_in"] != "ended before"
    assert record["newest"] == ("step-000004" if kind == "replay" else "step-000002")
    assert record["equal"]
