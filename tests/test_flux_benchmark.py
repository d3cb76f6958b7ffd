"""``benchmarks/flux.py`` runs on a CPU with a tiny model, so that a borrowed card finds stages that work."""

import json
import subprocess
import sys
from pathlib import Path

from runs import environment

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "flux.py"


def test_its_stages_run_on_a_tiny_model(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    given = ["--tiny", "--stages", "forward", "replay", "update", "--json", str(found)]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *given], env=environment(), capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert {"peak", "forward", "replay", "update"} <= json.loads(found.read_text()).keys()
