"""What content fingerprints cost: seconds to the first step of a run and to the first row of an evaluation.

    PYTHONPATH=src:tests/support python benchmarks/identity.py --rows 7000 --before /tmp/before/src

Every row has a picture of its own (a JPEG of 512 x 512, in the page cache) and two views. The policies are tiny, so
there is nothing for the hashing to hide behind: a model of some gigabytes takes longer to load. Each start is a process
of its own, once for the source tree of ``--before`` (``git archive REVISION src | tar -x -C /tmp/before``) and once for
this one, in turn; the table shows medians. The result goes to benchmarks/results/identity.csv.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "identity.csv"
KINDS = 50
"""Number of different pictures; each file ends in bytes of its own, so none has the hash of another."""


def make(folder: Path, rows: int) -> None:
    """A tiny FLUX, and a manifest over pictures of about a hundred kilobytes."""
    from runs import make_tiny_world

    make_tiny_world(folder)
    draw = np.random.default_rng(0)
    pictures = []
    for _ in range(KINDS):
        coarse = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC).save(folder / "one.jpg", quality=97)
        pictures.append((folder / "one.jpg").read_bytes())
    lines = []
    for number in range(rows):
        names = [f"{number:05d}-{part}.jpg" for part in ("reference", "view", "other")]
        for part, name in enumerate(names):
            (folder / name).write_bytes(pictures[(number + part) % KINDS] + f"{number} {part}".encode())
        row = {"id": f"row-{number}", "prompt": f"a bag, number {number}", "references": names[:1], "views": names[1:]}
        lines.append(json.dumps(row | {"subject": "bag", "extra": {"subject_id": f"bag-{number % 30}"}}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")


def run(world: Path, folder: Path, resume: str | None) -> dict[str, float]:
    """Seconds until the first step begins, and until one step is done and saved."""
    from customized_grpo.training.trainer import Trainer, train
    from runs import tiny_recipe

    times: list[float] = []
    step = Trainer.step

    def timed(self: Trainer, number: int) -> dict[str, float]:
        times.append(time.perf_counter())
        return step(self, number)

    Trainer.step = timed  # type: ignore[method-assign, assignment]
    more = {"train__steps": 1 if resume is None else 2, "run__resume": resume}
    began = time.perf_counter()
    train(tiny_recipe(world, folder, train__checkpoint_every=1, train__group_size=2, sampling__steps=2, **more))
    return {"to the first step": times[0] - began, "with a step and its checkpoint": time.perf_counter() - began}


def evaluation(world: Path, folder: Path) -> dict[str, float]:
    """Seconds until the first row, and in all."""
    from customized_grpo.evaluation.evaluator import evaluate
    from customized_grpo.recipe.config import EvaluateRecipe

    times: list[float] = []
    recipe: dict[str, Any] = {
        "run": {"dir": str(folder), "device": "cpu", "precision": "no"},
        "policy": {"type": "evaluation_fakes:TinyPolicy", "model": "none", "height": 2, "width": 2},
        "sampling": {"steps": 2},
        "evaluate": {
            "data": {"type": "manifest", "path": str(world / "train.jsonl")},
            "metrics": {"bright": {"type": "evaluation_fakes:Bright"}},
        },
    }
    began = time.perf_counter()
    evaluate(
        EvaluateRecipe.model_validate(recipe),
        progress=lambda label, done, total: times.append(time.perf_counter()),
    )
    return {"to the first row": times[0] - began, "in all": time.perf_counter() - began}


JOBS = {
    "a run": lambda world, folder: run(world, folder, None),
    "a run that goes on": lambda world, folder: run(world, folder, "latest"),
    "an evaluation": evaluation,
    "an evaluation that is finished": evaluation,
}


def job(name: str, source: Path, world: Path, folder: Path) -> dict[str, float]:
    """One job in a process of its own, on a source tree."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(source), str(ROOT / "tests" / "support")]), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, __file__, "--job", name, "--world", str(world), "--run", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=7000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="src of an earlier version")
    parser.add_argument("--job", choices=JOBS)
    parser.add_argument("--world", type=Path)
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(JOBS[given.job](given.world, given.run)))
        return
    sources = {"before": given.before, "after": ROOT / "src"} if given.before else {"after": ROOT / "src"}
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch) / "world"
        world.mkdir()
        make(world, given.rows)
        time.sleep(3)  # what was just written is not remembered
        for repeat in range(given.repeats):
            for source, path in sources.items():
                for name in JOBS:
                    folder = Path(scratch) / f"{source}-{repeat}-{'run' if 'run' in name else 'evaluation'}"
                    for part, seconds in job(name, path, world, folder).items():
                        found.setdefault((name, part), {}).setdefault(source, []).append(seconds)
                shutil.rmtree(Path(scratch) / f"{source}-{repeat}-evaluation")
    with RESULT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("rows", "what", "until", *(f"{source}_s" for source in sources)))
        for (name, part), by_source in found.items():
            medians = [statistics.median(by_source[source]) for source in sources]
            writer.writerow((given.rows, name, part, *(f"{one:.2f}" for one in medians)))
            print(f"{name + ', ' + part:<64}", *(f"{s} {m:6.2f} s" for s, m in zip(sources, medians, strict=True)))


if __name__ == "__main__":
    main()
