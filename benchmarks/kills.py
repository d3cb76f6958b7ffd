"""Kill a training run by -9 at random moments, resume it, and compare what it ends with, byte for byte.

    python benchmarks/kills.py --runs 50

One run after the other, on a tiny policy of random weights, each in a process of its own (forked from one that has the
libraries loaded). A run is killed in one of four phases in turn - rollout, replay, save, evaluation -, at a random
occurrence of it and a random time into it; where the process really was is noted. Then it is resumed to the end. The
final adapter, optimizer, trainer's state and metrics must be those of the uninterrupted run. Finished runs are kept in
benchmarks/results/kills.csv, so the command goes on where it was stopped.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import torch
from records import read_table, write_table

import customized_grpo.policies.flux  # noqa: F401 - loaded once, for all children
from killed_runs import KINDS, Stage, child, one
from runs import make_tiny_world

RESULT = Path(__file__).parent / "results" / "kills.csv"


def moment(number: int, spans: dict[str, tuple[int, float]]) -> tuple[str, int, float]:
    """The random moment of run ``number``: (phase, its occurrence, seconds into it)."""
    draw, kind = random.Random(number), KINDS[number % len(KINDS)]
    times, seconds = spans[kind]
    return kind, draw.randint(1, times), draw.uniform(0, seconds)


def measured(folder: Path, world: Path) -> tuple[Path, dict[str, tuple[int, float]]]:
    """The uninterrupted run, and of each phase how often it comes and how long it takes."""
    stage, seen, last, since = Stage(), dict.fromkeys(KINDS, 0.0), "other", time.monotonic()
    whole, log = folder / "whole", folder / "whole.log"
    pid = child(log, stage, world, whole)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        now = stage.now
        if last in seen:
            seen[last] += time.monotonic() - since
        last, since = now, time.monotonic()
        time.sleep(0.0005)
    if ended[1]:
        raise RuntimeError(log.read_text(errors="replace")[-3000:])
    return whole, {kind: (stage.count(kind), seen[kind] / max(1, stage.count(kind))) for kind in KINDS}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Moments and outcomes, by where the process was when it died."""
    lines = [
        "| Killed in | Runs | A half-written checkpoint lay there | Equal to the uninterrupted run |",
        "|---|---|---|---|",
    ]
    for place in sorted({record["died_in"] for record in records}):
        of = [record for record in records if record["died_in"] == place]
        halves, equal = (sum(record[key] for record in of) for key in ("half_written", "equal"))
        lines.append(f"| {place} | {len(of)} | {halves} | {equal} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so long")
    given = parser.parse_args(arguments)
    end = time.monotonic() + 60 * given.minutes

    torch.set_num_threads(1)
    records = read_table(RESULT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = folder / "world"
        world.mkdir()
        make_tiny_world(world)
        whole, spans = measured(folder, world)
        for number in range(len(records), given.runs):
            if time.monotonic() > end:
                break
            records.append(one(str(number), folder, world, whole, *moment(number, spans)))
            write_table(RESULT, list(records[0]), records)
            sys.stdout.write(f"{records[-1]}\n")
            sys.stdout.flush()
    sys.stdout.write(table(records))
    return int(not all(record["equal"] for record in records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
