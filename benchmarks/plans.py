"""Plans of trained steps by time to quality on the miniature: learning curves at paired seeds, and seconds an update.

    python benchmarks/plans.py             # train what is missing; hours on two cores, resumable (``grid``)
    python benchmarks/plans.py --time      # seconds of an update of each plan, in turn in one process
    python benchmarks/plans.py --collect   # only print the table and write docs/plans.json

A plan's time to quality is the first evaluation at which the mean over its seeds reaches ``QUALITY``, interpolated
between evaluations, times the seconds of its update: the published schedule's are those of one image at a time
(``benchmarks/update.py``), which gives the same curve as the batched one that is trained here, up to rounding.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grid import RECIPE, ROOT, Cell, Grid

RESULT = ROOT / "docs" / "plans.json"
METRIC, QUALITY = "judge_clip", 82.5
"""Fixed before any run: the base is at 79.4, and 100 steps of the default plan reach about 85. A judge that training
never sees, and the smoothest of the held-out metrics."""

COMMON = (
    "train.steps=100",
    "train.lr=1.2e-3",
    "train.evaluate_every=20",
    "train.checkpoint_every=10",
    "train.save_samples_every=0",
    "evaluate.data.size=192",
    "evaluate.save_images=0",
    "run.threads=1",
)
FLOW = "sampling.dynamics={type: flow_sde, noise_level: 0.8}"
SEEDS = (0, 1, 2)


def plan(name: str, steps: int, section: str, dynamics: str = FLOW, microbatch: int = 60) -> Cell:
    """A cell: T, the plan, the dynamics."""
    keys = (
        f"sampling.steps={steps}",
        f"sampling.plan={{{section}}}",
        dynamics,
        f"train.microbatch={microbatch}",
    )
    return Cell("plans", name, keys, SEEDS)


CELLS = (
    plan("all", 6, "type: all"),
    plan(
        "published", 25, "type: fraction, fraction: 0.6", "sampling.dynamics={type: dance_sde, eta: 0.4}", 84
    ),
    plan("fraction", 6, "type: fraction, fraction: 0.6"),
    plan("window_progressive", 6, "type: window, width: 2, every: 10"),
    plan("window_random", 6, "type: window, width: 2, mode: random, every: 1"),
    plan("window_decay", 6, "type: window, width: 2, mode: decay, every: 10"),
    plan("window_exp_decay", 6, "type: window, width: 2, mode: exp_decay, every: 10, onset: 0.2"),
    plan(
        "window_thin",
        10,
        "type: window, width: 2, mode: random, every: 1, steps_after: 2, solver: dpm_solver_2m",
    ),
    plan("branch", 6, "type: branch"),
)
GRID = Grid("plans", COMMON, CELLS, frozenset({"sampling", "train"}), until=(METRIC, QUALITY))


def updates(repeats: int) -> dict[str, dict[str, float]]:
    """Median and quartiles of each plan's seconds for an update of one group; all take turns in one process."""
    from update import SERIAL, make_trainer, one_at_a_time, summary

    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            cell.name: make_trainer(str(RECIPE), ["run.threads=1", *cell.overrides], Path(folder, cell.name))
            for cell in CELLS
        }
        serial = next(cell for cell in CELLS if cell.name == "published").overrides
        trainers["published"] = make_trainer(
            str(RECIPE), ["run.threads=1", *serial, *SERIAL], Path(folder, "serial")
        )
        one_at_a_time(trainers["published"])
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for step in range(repeats + 1):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                trainer.step(step)
                seconds[name] += [time.perf_counter() - began] if step else []
    return {name: summary(values) for name, values in seconds.items()}


def reached(curve: dict[str, dict[str, float]]) -> float | None:
    """The step at which a curve first reaches ``QUALITY``, interpolated between evaluations."""
    before: tuple[int, float] | None = None
    for step, value in sorted((int(step), values[METRIC]) for step, values in curve.items()):
        if value >= QUALITY:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (QUALITY - before[1]) / (value - before[1])
        before = step, value
    return None


def collect() -> dict[str, Any]:
    """Curves, steps and seconds to ``QUALITY``, and each plan's ratio to the published one, paired by seed."""
    kept: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    result: dict[str, Any] = {
        "metric": METRIC,
        "quality": QUALITY,
        "seconds": kept.get("seconds", {}),
        "plans": {},
    }
    for (name, seed), record in GRID.records().items():
        found = result["plans"].setdefault(name, {"curves": {}, "steps": {}})
        found["curves"][str(seed)] = {step: values[METRIC] for step, values in record["curve"].items()}
        found["steps"][str(seed)] = reached(record["curve"])
    groups = 4
    for name, found in result["plans"].items():
        if name in result["seconds"]:
            each = groups * result["seconds"][name]["median"]
            found["seconds"] = {
                seed: None if steps is None else steps * each for seed, steps in found["steps"].items()
            }
    RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result


def show(result: dict[str, Any]) -> None:
    """A line a plan."""
    sys.stdout.write(f"time until {METRIC} reaches {QUALITY}, by seed\n")
    for name, found in result["plans"].items():
        second = result["seconds"].get(name)
        update = f"{second['median']:.2f} s a group" if second else "not timed"
        steps = ", ".join("never" if s is None else f"{s:.0f}" for s in found["steps"].values())
        times = ", ".join("never" if s is None else f"{s:.0f}" for s in found.get("seconds", {}).values())
        sys.stdout.write(f"{name:>20}: {update:>16}; steps {steps}; seconds {times or '-'}\n")


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, or time, then collect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--repeats", type=int, default=5, help="of --time")
    parser.add_argument(
        "--time", action="store_true", help="measure the seconds of updates instead of training"
    )
    parser.add_argument("--collect", action="store_true")
    given = parser.parse_args(arguments)
    if given.time:
        kept: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        RESULT.write_text(json.dumps(kept | {"seconds": updates(given.repeats)}))
    elif not given.collect:
        GRID.run(None, given.workers, given.minutes)
    show(collect())


if __name__ == "__main__":
    main(sys.argv[1:])
