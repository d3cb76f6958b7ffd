"""Groups a second with rollouts one update ahead (``train.staleness``) against without, while rewards take their time.

    python benchmarks/overlap.py [--ranks 2] [--waits 0 1 2] [--steps 6] [--json FILE]

Each rank has one thread and two groups a step of the miniature; an artificial reward over the network takes ``wait``
seconds a group, besides the recipe's own. All settings take turns by process. The adapters of both waits must be the
same, since a wait changes no schedule: their largest difference is printed, too.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from PIL.Image import Image
from update import make_trainer

from customized_grpo.policies.adapters.tensor_files import read_tensors, write_tensors
from customized_grpo.rewards.base import AsyncGroupReward, RewardConfig
from customized_grpo.types import Example

RECIPE = "mini_customized"


@final
class Slow(AsyncGroupReward):
    """The mean of each image's pixels, after a wait."""

    class Config(RewardConfig):
        """Its section."""

        wait: float

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._wait = config.wait

    async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
        await asyncio.sleep(self._wait)
        return [float(sum(image.convert("L").resize((1, 1)).tobytes())) for image in images]


def run(ranks: int, staleness: int, wait: float, steps: int) -> tuple[list[float], dict[str, Any]]:
    """Seconds of each step after the first two, and the adapter."""
    rendezvous = ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    launch = ("-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *rendezvous) if ranks > 1 else ()
    given = ("--worker", str(staleness), str(wait), "--steps", str(steps))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *launch, __file__, *given, "--folder", folder],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        adapter = read_tensors(Path(folder, "adapter.safetensors"))
    return json.loads(done.stdout.strip().splitlines()[-1]), adapter


def worker(staleness: int, wait: float, steps: int, folder: Path) -> None:
    """One rank of ``run``."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    keys = [
        f"train.groups_per_step={2 * ranks}",
        "run.threads=1",
        f"train.staleness={staleness}",
        "objective.clip=0.1",  # an update lies between a rollout and its own
        f"rewards.slow={{type: overlap:Slow, axis: prompt, weight: 0.1, wait: {wait}}}",
    ]
    trainer = make_trainer(RECIPE, keys, folder / "run")
    seconds = []
    with trainer.parts.scorer:
        for step in range(steps + 2):
            began = time.perf_counter()
            trainer.step(step)
            seconds += [time.perf_counter() - began] if step > 1 else []
        if trainer.parts.accelerator.is_main_process:
            write_tensors(folder / "adapter.safetensors", {k: v.detach() for k, v in trainer.parts.parameters.items()})
            sys.stdout.write(f"{json.dumps(seconds)}\n")


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--waits", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        worker(int(given.worker[0]), float(given.worker[1]), given.steps, given.folder)
        return
    rows, adapters = [], dict[int, Any]()
    for wait in given.waits:
        median = {}
        for staleness in (0, 1):
            seconds, adapter = run(given.ranks, staleness, wait, given.steps)
            median[staleness] = statistics.median(seconds)
            first = adapters.setdefault(staleness, adapter)
            differ = max(float((adapter[name] - first[name]).abs().max()) for name in first)
            row = {"ranks": given.ranks, "wait_s": wait, "staleness": staleness, "step_s": median[staleness]}
            row |= {"groups_a_second": 2 * given.ranks / median[staleness], "adapter_differs": differ}
            rows.append(row)
        sys.stdout.write(
            f"wait {wait:g} s: {rows[-2]['groups_a_second']:.2f} groups a second, one update ahead "
            f"{rows[-1]['groups_a_second']:.2f}: {median[0] / median[1]:.2f} x; adapters differ from the first wait's "
            f"by {rows[-2]['adapter_differs']:.1g} and {rows[-1]['adapter_differs']:.1g}\n"
        )
        sys.stdout.flush()
    if given.json is not None:
        given.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
