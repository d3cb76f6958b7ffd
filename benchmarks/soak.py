"""A long run of a tiny policy: does memory grow, are files left open, does a step get slower?

    python benchmarks/soak.py --steps 2000

Checkpoints, evaluations and samples happen on the way, as in a real run. The first quarter of the steps, less the first
fiftieth (what is loaded and cached then comes once), is compared with the last: medians of resident memory, open files,
threads, and seconds of a step. Writes benchmarks/results/soak.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "support")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULT = ROOT / "benchmarks" / "results" / "soak.json"


def train(folder: Path, steps: int) -> list[dict[str, float]]:
    """What each step saw of its own process."""
    import psutil
    import torch

    from customized_grpo.training.setup import build
    from customized_grpo.training.trainer import Trainer
    from runs import make_tiny_world, tiny_recipe, with_evaluation

    torch.set_num_threads(1)
    world = folder / "world"
    world.mkdir()
    make_tiny_world(world)
    changes = {
        "train__steps": steps,
        "train__group_size": 2,
        "train__groups_per_step": 1,
        "train__checkpoint_every": max(1, steps // 40),
        "train__save_samples_every": max(1, steps // 40),
        "train__ema": 0.9,
        "sampling__steps": 3,
        **with_evaluation(world, max(1, steps // 20)),
    }
    seen: list[dict[str, float]] = []
    process, real, began = psutil.Process(), Trainer.step, [time.perf_counter()]

    def step(self: Trainer, number: int) -> dict[str, float]:
        metrics = real(self, number)
        now = time.perf_counter()
        cpu = process.cpu_times()
        seen.append(
            {
                "memory_mib": process.memory_info().rss / 2**20,
                "files": process.num_fds(),
                "threads": process.num_threads(),
                "seconds": now - began[0],
                "cpu_seconds": cpu.user + cpu.system - (seen[-1]["cpu_total"] if seen else 0.0),
                "cpu_total": cpu.user + cpu.system,
            }
        )
        began[0] = now
        return metrics

    Trainer.step = step  # type: ignore[method-assign, assignment]
    Trainer(build(tiny_recipe(world, folder / "run", **changes))).run()
    return seen


def summary(seen: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians of the first and the last quarter."""
    warm = len(seen) // 50 + 1
    first, last = seen[warm : max(warm + 1, len(seen) // 4)], seen[-max(1, len(seen) // 4) :]
    names = ("memory_mib", "files", "threads", "seconds", "cpu_seconds")
    return {"steps": len(seen)} | {
        name: {
            "first_quarter": round(statistics.median(row[name] for row in first), 4),
            "last_quarter": round(statistics.median(row[name] for row in last), 4),
            "most": round(max(row[name] for row in seen[warm:]), 4),
        }
        for name in names
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        result = summary(train(Path(name), given.steps))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for key, value in result.items():
        sys.stdout.write(f"{key}: {value}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
