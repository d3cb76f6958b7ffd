"""``benchmarks/flux.py`` and ``visit.py`` run on a CPU with a tiny model, so that a card finds stages that work;
``roofline.py`` counts what torch counted on a card, and stores what is estimated.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runs import environment

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "flux.py"
VISIT = SCRIPT.with_name("visit.py")


def test_its_stages_run_on_a_tiny_model(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    stages = ["forward", "replay", "update", "overhead", "attention", "float8", "parts"]
    given = ["policy.norms=half", "--tiny", "--json", str(found), "--stages", *stages]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *given], env=environment(), capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    numbers = json.loads(found.read_text())
    assert {"peak", *stages} <= numbers.keys()
    assert numbers["machine"]["variant"] == ["policy.norms=half"]
    assert {"fast, stored", "nft"} <= numbers["update"].keys()
    assert all("grad/norm" in row for rows in numbers["update"].values() for row in rows)
    backends = {row["backend"]: row for row in numbers["attention"]}
    assert backends["native"]["forward"]["seconds"] > 0
    assert "can't be used here" in backends["_native_cudnn"]["failed"]
    assert 0 < numbers["float8"]["velocity_moves"] < 0.1


def visit(out: Path, *given: str) -> str:
    ended = subprocess.run(
        [sys.executable, str(VISIT), "--tiny", "--out", str(out), *given],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_visit_goes_on_where_it_stopped_and_a_stage_fails_alone(tmp_path: Path) -> None:
    said = visit(tmp_path, "--only", "now", "float8")
    assert "now (the two uses as the package is): exit 0" in said
    assert said.endswith("nothing is missing\n")
    before = (tmp_path / "now.json").stat().st_mtime_ns
    assert visit(tmp_path, "--only", "now", "float8") == "nothing is missing\n"
    assert (tmp_path / "now.json").stat().st_mtime_ns == before
    broken = json.loads((tmp_path / "now.json").read_text()) | {"well": False}
    (tmp_path / "now.json").write_text(json.dumps(broken))
    assert visit(tmp_path, "--only", "now", "--minutes", "0.01") == "missing: now; call again\n"
    table = visit(tmp_path, "--table")
    assert "| now | forward of 12 |" in table
    assert "| float8 | exit 0 | yes |" in table


def test_a_stage_that_fails_or_takes_too_long_is_said_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(VISIT.parent))
    import visit as script  # type: ignore[import-not-found]

    stages = {
        "now": script.Stage((sys.executable, "-c", "raise ValueError('broken')"), 60, "nothing"),
        "float8": script.Stage((sys.executable, "-c", "import time; time.sleep(60)"), 1, "nothing"),
        "parts": script.Stage((sys.executable, "-c", "print('well')"), 60, "nothing"),
    }
    monkeypatch.setattr(script, "STAGES", stages)
    script.main(["--out", str(tmp_path), "--only", *stages])
    ended = {name: (one["ended"], one["well"]) for name, one in script.results(tmp_path).items()}
    assert ended == {"now": ("exit 1", False), "float8": ("cut short", False), "parts": ("exit 0", True)}
    assert script.missing(tmp_path, ["parts"]) == ["now", "float8", "parts"]


def test_the_roofline_counts_what_torch_did_on_a_card_and_stores_what_is_estimated(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    given = [sys.executable, str(VISIT.with_name("roofline.py")), "--sizes", "1", "--json", str(found)]
    ended = subprocess.run(given, env=environment(), capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(found.read_text())
    measured = json.loads((VISIT.parent / "results" / "flux_h200.json").read_text())
    for use in ("forward", "replay"):
        before, now, half = (row for row in counts["costs"] if (row["use"], row["kind"]) == (use, "all"))
        for row in (before, now, half):
            assert row["tflop"] * 1e12 == pytest.approx(measured[f"flops_of_a_{use}"], rel=1e-3)
        assert before["gb"] > now["gb"] > half["gb"]
        assert before["least_ms"] > now["least_ms"] > half["least_ms"]
        took = next(row["seconds"] for row in measured[use] if row["n"] == 1 and row.get("checkpointed", 0) == 0)
        assert 0.5 * took < before["least_ms"] / 1e3 < took
    assert len(counts["stored"]) == 10
    for row in counts["stored"]:
        assert row["estimated"] == pytest.approx(row["counted"], rel=0.03), row
