"""Plans of trained steps by time to quality on the miniature: learning curves at paired seeds, and seconds an update.

    python benchmarks/plans.py             # train what is missing; hours on two cores, resumable (``grid``)
    python benchmarks/plans.py --time      # seconds of an update of each plan, in turn in one process
    python benchmarks/plans.py --collect   # only print the table

A run's time to quality is the number of updates after which the held-out judge first reaches ``QUALITY``, interpolated
between evaluations, times the seconds of its plan's update. The published schedule's are those of one image at a time
(``benchmarks/update.py``), which gives the same curve as the batched one that is trained here, up to rounding. Runs end
there, or after 100 updates. ``plans_page.py`` puts the table and the curves into docs/benchmarks.md.
"""

import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grid import RECIPE, ROOT, Cell, Grid, command_line
from page_parts import table
from records import read_table, write_table

from customized_grpo.evaluation.statistics import student_t

SECONDS = ROOT / "benchmarks" / "results" / "plans_seconds.csv"
METRIC, QUALITY, LOWER = "judge_clip", 82.5, 81.5
"""Fixed before any run: the base is at 79.4, and 100 steps of the default plan reach about 85. A judge that training
never sees, and the smoothest of the held-out metrics. ``LOWER`` came later: the published schedule stops just short of
``QUALITY``, and a ratio needs two times."""
RIVAL = "published_flow"
"""What the others are held against: the published schedule with our noise. With its own it reaches neither."""

COMMON = (
    "train.steps=100",
    "train.lr=1.2e-3",
    "train.eps=1e-8",
    "train.evaluate_every=20",
    "train.checkpoint_every=10",
    "train.save_samples_every=0",
    "evaluate.data.size=192",
    "evaluate.save_images=0",
    "run.threads=1",
)
FLOW = "sampling.dynamics={type: flow_sde, noise_level: 0.8}"
SEEDS = (0, 1, 2)
GROUPS = 4
SHOWN = (METRIC, "identity_accuracy", "prompt_accuracy", "copy")
HEAD = [
    "plan",
    "s per update",
    f"updates to {QUALITY}",
    f"seconds to {QUALITY}",
    f"seconds to {LOWER}",
    f"times sooner than `{RIVAL}` to {LOWER} (95 % over seeds)",
    "identity accuracy at the end",
]


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
    plan("published", 25, "type: fraction, fraction: 0.6", "sampling.dynamics={type: dance_sde, eta: 0.4}", 84),
    plan("published_flow", 25, "type: fraction, fraction: 0.6", FLOW, 84),
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
        for cell in CELLS:
            if cell.name.startswith("published"):
                keys = ["run.threads=1", *cell.overrides, *SERIAL]
                trainers[cell.name] = make_trainer(str(RECIPE), keys, Path(folder, f"serial-{cell.name}"))
                one_at_a_time(trainers[cell.name])
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for step in range(repeats + 1):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                trainer.step(step)
                seconds[name] += [time.perf_counter() - began] if step else []
    return {name: summary(values) for name, values in seconds.items()}


def reached(curve: dict[str, dict[str, float]], quality: float) -> float | None:
    """The update after which a curve first reaches a quality, interpolated between evaluations."""
    points = sorted((int(step), values[METRIC]) for step, values in curve.items())
    for (before, low), (step, high) in itertools.pairwise(points):
        if high >= quality:
            return before + (quality - low) / (high - low) * (step - before)
    return None


def over_seeds(ratios: Sequence[float]) -> dict[str, float]:
    """Geometric mean of ratios that are paired by seed, with Student's 95 % interval of their logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 3:  # two would give an interval of orders of magnitude
        return {"mean": math.exp(mean), "seeds": len(logs)}
    half = student_t(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {
        "mean": math.exp(mean),
        "low": math.exp(mean - half),
        "high": math.exp(mean + half),
        "seeds": len(logs),
    }


def collect() -> dict[str, Any]:
    """Curves, and by seed the updates and seconds to both qualities; how many times sooner than ``RIVAL``, paired."""
    seconds = {row["plan"]: row for row in read_table(SECONDS)}
    plans: dict[str, Any] = {}
    for (name, seed), record in GRID.records().items():
        found = plans.setdefault(name, {"curves": {}, "updates": {}, "seconds": {}})
        found["curves"][str(seed)] = {
            step: {metric: values[metric] for metric in SHOWN} for step, values in record["curve"].items()
        }
        for quality in (QUALITY, LOWER):
            updates = reached(record["curve"], quality)
            found["updates"].setdefault(str(quality), {})[str(seed)] = updates
            found["seconds"].setdefault(str(quality), {})[str(seed)] = (
                None if updates is None else updates * GROUPS * seconds[name]["median"]
            )
    rival = plans.get(RIVAL, {"seconds": {}})["seconds"].get(str(LOWER), {})
    for found in plans.values():
        pairs = [(rival.get(seed), mine) for seed, mine in found["seconds"][str(LOWER)].items()]
        ratios = [theirs / mine for theirs, mine in pairs if theirs is not None and mine is not None]
        if ratios and all(mine is not None for _, mine in pairs):
            found["sooner"] = over_seeds(ratios)
    return {"seconds": seconds, "plans": plans}


def times(sooner: dict[str, float] | None) -> str:
    """A ratio with its interval, or with its number of seeds where that is too small for one."""
    if sooner is None:
        return "-"
    known = f"{sooner['low']:.1f} to {sooner['high']:.1f}" if "low" in sooner else f"{sooner['seeds']} seed(s)"
    return f"{sooner['mean']:.1f} ({known})"


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A line a plan: cost, time to both qualities by seed, times sooner than ``RIVAL``, and what else its end shows."""

    def each(values: dict[str, float | None]) -> str:
        return ", ".join("never" if value is None else f"{value:.0f}" for value in values.values())

    lines = []
    for name, found in result["plans"].items():
        ends = [curve[max(curve, key=int)] for curve in found["curves"].values()]
        lines.append(
            [
                f"`{name}`",
                f"{GROUPS * result['seconds'][name]['median']:.2f}",
                each(found["updates"][str(QUALITY)]),
                each(found["seconds"][str(QUALITY)]),
                each(found["seconds"][str(LOWER)]),
                times(found.get("sooner")),
                ", ".join(f"{end['identity_accuracy']:.3f}" for end in ends),
            ]
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, or time, then collect."""
    parser = command_line(__doc__, GRID.parts, 5)
    given = parser.parse_args(arguments)
    if given.time:
        measured = updates(given.repeats)
        timed = [{"plan": name, **seconds} for name, seconds in measured.items()]
        write_table(SECONDS, ("plan", "n", "median", "low", "high"), timed)
    elif not given.collect:
        GRID.run(given.only, given.workers, given.minutes)
    sys.stdout.write(table(HEAD, rows(collect())) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
