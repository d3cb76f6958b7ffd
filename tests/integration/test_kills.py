"""A few of the moments of ``benchmarks/kills.py``, one in each phase: killed by -9, resumed, equal to the byte."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.fixture(scope="module")
def kills() -> Any:
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def whole(kills: Any, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    kills.finished(kills.child(folder / "log", kills.Stage(), tiny_world, folder / "run"), folder / "log")
    return folder / "run"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "occurrence"), [("rollout", 8), ("replay", 9), ("save", 2), ("evaluate", 2)]
)
def test_killed_in_a_phase(
    kills: Any, whole: Path, tiny_world: Path, tmp_path: Path, kind: str, occurrence: int
) -> None:
    record = kills.one("it", tmp_path, tiny_world, whole, kind, occurrence, 0.001)
    assert record["died_in"] != "ended before"
    assert record["newest"] == ("step-000004" if kind == "replay" else "step-000002")
    assert record["equal"]
