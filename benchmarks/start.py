"""Seconds of CPU that each command takes which only looks: user and system time of its process and of its workers.

    python benchmarks/start.py --repeats 5

Each command runs in a fresh interpreter: once to fill the caches of the machine and of Python, and then a few times, of
which the table shows the median and the range. ``import torch`` stands beside them: most begin with it. The result
goes to benchmarks/results/start.csv.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "start.csv"
ROWS = 10
PROGRAM = ("-m", "customized_grpo")


def manifest(folder: Path) -> Path:
    """A manifest of ten rows with a picture each."""
    lines = []
    for number in range(ROWS):
        Image.linear_gradient("L").rotate(7 * number).resize((512, 512)).save(folder / f"{number}.png")
        line = {"id": f"row-{number}", "prompt": "a bag", "references": [f"{number}.png"], "subject": "bag"}
        lines.append(json.dumps(line) + "\n")
    path = folder / "manifest.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def seconds(arguments: Sequence[str], environment: dict[str, str]) -> float:
    """CPU time of one run; doctor and a recipe that doesn't fit give advice by exit code 1."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats: int = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        commands: dict[str, Sequence[str]] = {
            "import torch": ("-c", "import torch"),
            "--help": (*PROGRAM, "--help"),
            "validate mini_customized": (*PROGRAM, "validate", "mini_customized"),
            "validate uno_customized_grpo --memory-gb 24": (
                *PROGRAM, "validate", "uno_customized_grpo", "--memory-gb", "24"
            ),
            "plugins": (*PROGRAM, "plugins"),
            "schema": (*PROGRAM, "schema"),
            "doctor": (*PROGRAM, "doctor"),
            f"data check, {ROWS} rows": (*PROGRAM, "data", "check", str(manifest(folder))),
        }  # fmt: skip
        rows = []
        for name, arguments in commands.items():
            seconds(arguments, environment)
            taken = [seconds(arguments, environment) for _ in range(repeats)]
            rows.append((name, statistics.median(taken), min(taken), max(taken)))
            print(f"{name:<48} {rows[-1][1]:.2f} s ({rows[-1][2]:.2f} to {rows[-1][3]:.2f})")
    with RESULT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("command", "median_s", "lowest_s", "highest_s"))
        writer.writerows((name, *(f"{value:.2f}" for value in values)) for name, *values in rows)


if __name__ == "__main__":
    main()
