"""How an update's time grows: with group size, sampler steps, resolution, references, and processes; and what threads,
precision and batches do to it on this machine.

    python benchmarks/scaling.py [--axes threads precision ...] [--repeats 3] [--ranks 1 2] [--json FILE]

One axis at a time is changed from the miniature's recipe, one group an update; all values of an axis take turns. Each
process has one thread, so that ranks compare like with like.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from update import make_trainer, summary

from customized_grpo.data.base import Dataset
from customized_grpo.types import Example

RECIPE = "mini_customized"
AXES: dict[str, dict[int | str, tuple[str, ...]]] = {
    "group_size": {n: (f"train.group_size={n}", f"train.microbatch={5 * n}") for n in (4, 8, 12, 24)},
    "steps": {n: (f"sampling.steps={n}", f"train.microbatch={12 * (n - 1)}") for n in (4, 6, 10, 20)},
    "pixels": {n: (f"policy.height={n}", f"policy.width={n}", "train.microbatch=12") for n in (64, 96, 128)},
    "references": {n: () for n in (1, 2, 3, 4)},
    "threads": {n: (f"run.threads={n}",) for n in (1, 2)},
    "precision": {name: (f"run.precision={name}",) for name in ("no", "bf16")},
    "rollout_batch": {n: (f"sampling.batch={n}",) for n in (1, 3, 6, 12)},
    "replay_batch": {n: (f"train.microbatch={n}",) for n in (1, 6, 12, 30, 60)},
}


class MoreReferences(Dataset):
    """Another data set, each reference several times."""

    def __init__(self, inner: Dataset, times: int) -> None:
        self._inner, self._times = inner, times

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Example:
        one = self._inner[index]
        return replace(one, references=one.references * self._times, masks=one.masks * self._times)


def measure(axis: str, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of an update of one group for each value of an axis."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for value, keys in AXES[axis].items():
            trainers[value] = make_trainer(RECIPE, ["run.threads=1", *keys], Path(folder, str(value)))
            if axis == "references":
                assert isinstance(value, int)
                parts = trainers[value].parts
                trainers[value].parts = replace(parts, dataset=MoreReferences(parts.dataset, value))
        seconds: dict[int | str, list[float]] = {value: [] for value in trainers}
        for step in range(repeats + 1):
            for value, trainer in trainers.items():
                torch.set_num_threads(trainer.recipe.run.threads)
                began = time.perf_counter()
                trainer.step(step)
                seconds[value] += [time.perf_counter() - began] if step else []
    return {str(value): summary(all_) for value, all_ in seconds.items()}


def groups_a_second(ranks: int, steps: int) -> float:
    """Throughput of ``ranks`` one-thread processes with two groups each, after a warm-up step."""
    rendezvous = ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    launch = ("-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *rendezvous) if ranks > 1 else ()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *launch, __file__, "--worker", folder, "--repeats", str(steps)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
    return ranks * 2 / float(done.stdout.strip().splitlines()[-1])


def worker(folder: Path, steps: int) -> None:
    """One rank of ``groups_a_second``: prints the median seconds of a step."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = make_trainer(RECIPE, [f"train.groups_per_step={2 * ranks}", "run.threads=1"], folder / "run")
    seconds = []
    for step in range(steps + 1):
        began = time.perf_counter()
        trainer.step(step)
        seconds.append(time.perf_counter() - began)
    if trainer.parts.accelerator.is_main_process:
        sys.stdout.write(f"{statistics.median(seconds[1:])}\n")


def main(arguments: Sequence[str]) -> None:
    """Measure every axis, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES))
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker is not None:
        worker(given.worker, given.repeats)
        return
    found: dict[str, Any] = {axis: measure(axis, given.repeats) for axis in given.axes}
    found["groups_a_second"] = {str(n): groups_a_second(n, given.repeats) for n in given.ranks}
    for axis in given.axes:
        first = next(iter(found[axis].values()))["median"]
        for value, second in found[axis].items():
            sys.stdout.write(f"{axis:>12} {value:>4}: {second['median']:.3f} s, {second['median'] / first:.2f} x\n")
    for ranks, rate in found["groups_a_second"].items():
        sys.stdout.write(f"{ranks} process(es): {rate:.3f} groups a second\n")
    if given.json is not None:
        given.json.write_text(json.dumps(found | {"torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
