"""The ablation on the miniature world: every variant, paired seeds, equal compute, held-out judges. Resumable.

    python benchmarks/ablation.py                 # all cells; hours on two cores, one single-threaded worker a core
    python benchmarks/ablation.py --only main     # one part of the grid: main, fitted, front, others
    python benchmarks/ablation.py --collect       # only write docs/ablation.json from the finished runs

A finished run leaves a record in ``benchmarks/results/ablation`` (its curve, every held-out example's final values),
which is committed: with the same embedded models and recipe it is never made again, on any machine. A run that was
killed goes on from its last checkpoint in ``runs/ablation``.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "ablation"
RECORDS = ROOT / "benchmarks" / "results" / "ablation"
RECIPE = ROOT / "config" / "train" / "mini_customized.yaml"
RESULT = ROOT / "docs" / "ablation.json"

COMMON = (
    "train.steps=100",
    "train.lr=1.2e-3",
    "train.evaluate_every=50",
    "train.checkpoint_every=10",
    "train.save_samples_every=0",
    "evaluate.data.size=192",
    "evaluate.save_images=0",
    "run.threads=1",
)
"""The last step is fixed here, before any result was seen; evaluation draws are the test split's."""

CONSTANT = "advantage.time_weights={{type: constant, prompt: {p:.4f}, identity: {i:.4f}}}"


def static(ratio: float) -> str:
    """Static weights identity : prompt = 1 : ``ratio``, summing to 1."""
    return CONSTANT.format(p=ratio / (1 + ratio), i=1 / (1 + ratio))


def sars(gamma: float) -> str:
    """SARS at a gamma."""
    return f"advantage.aggregator={{type: sars, gamma: {gamma}}}"


SUM, TDW = "advantage.aggregator={type: weighted_sum}", "advantage.time_weights={type: tdw}"
FITTED = "advantage.time_weights={type: tdw, low: 0.1, start: 0.2, stop: 0.5}"
"""The place, which is what leaks, is decided in the first third of the steps (`benchmarks/world.py decided`)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant: its part of the grid, its name, what it overrides, and its seeds."""

    part: str
    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]


def cells() -> Iterator[Cell]:
    """The whole grid, in the order in which it is run within a seed."""
    five, two = (0, 1, 2, 3, 4), (0, 1)
    for weighting in ("none", "equal"):
        step = f"objective.step_weighting={weighting}"
        yield Cell("main", f"naive_1to1-{weighting}", (SUM, static(1.0), step), five)
        yield Cell("main", f"naive_1to1.5-{weighting}", (SUM, static(1.5), step), five)
        yield Cell("main", f"sars_only-{weighting}", (sars(0.4), static(1.0), step), five)
        yield Cell("main", f"tdw_only-{weighting}", (SUM, TDW, step), five)
        yield Cell("main", f"sars_tdw-{weighting}", (sars(0.4), TDW, step), five)
    equal = "objective.step_weighting=equal"
    yield Cell("fitted", "sars_tdw_fitted-none", (sars(0.4), FITTED, "objective.step_weighting=none"), five)
    yield Cell("fitted", "sars_tdw_fitted-equal", (sars(0.4), FITTED, equal), five)
    for ratio in (0.75, 2.0, 3.0):
        yield Cell("front", f"naive_1to{ratio:g}-equal", (SUM, static(ratio), equal), five)
    for gamma in (0.2, 0.8, 1.6):
        yield Cell("front", f"sars_tdw_gamma{gamma:g}-equal", (sars(gamma), TDW, equal), five)
    for name in ("minimum", "maximum", "harmonic", "product"):
        yield Cell("others", f"{name}-equal", (f"advantage.aggregator={{type: {name}}}", TDW, equal), two)


def jobs(only: str | None) -> list[tuple[Cell, int]]:
    """(cell, seed), seed by seed, so that an early stop leaves complete pairs."""
    chosen = [cell for cell in cells() if only is None or cell.part == only]
    return [(cell, seed) for seed in range(5) for cell in chosen if seed in cell.seeds]


def folder_of(cell: Cell, seed: int) -> Path:
    """The run of a cell at a seed."""
    return RUNS / f"{cell.name}-seed{seed}"


@functools.cache
def fingerprint() -> str:
    """Of what all runs have in common: the embedded models and the recipe. Other records are of another world."""
    from customized_grpo.loading import load_recipe
    from customized_grpo.paths import ASSETS

    digest = hashlib.sha256(
        load_recipe(RECIPE, COMMON).model_dump_json(exclude={"run", "advantage"}, exclude_unset=True).encode()
    )
    for name, sha256 in sorted(json.loads((ASSETS / "manifest.json").read_text()).items()):
        digest.update(sha256.encode() if name.endswith(".safetensors") else b"")
    return digest.hexdigest()[:16]


def record_of(cell: Cell, seed: int) -> dict[str, Any] | None:
    """The record of a finished run of this world, or None."""
    path = RECORDS / f"{folder_of(cell, seed).name}.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record if record["fingerprint"] == fingerprint() else None


def run_one(job: tuple[Cell, int]) -> str:
    """Train one cell at one seed, in a worker that has its libraries loaded already, and write its record."""
    from customized_grpo.loading import load_recipe
    from customized_grpo.training.trainer import train

    cell, seed = job
    folder = folder_of(cell, seed)
    began = time.monotonic()
    if not (folder / "evaluation" / "summary.json").is_file():
        resume = ("run.resume=latest",) if folder.is_dir() else ()
        own = (f"run.dir={folder}", f"run.seed={1000 + seed}", *COMMON, *cell.overrides, *resume)
        train(load_recipe(RECIPE, own))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve: dict[str, dict[str, float]] = {}
    for line in lines:
        values = {key.split("/")[1]: value for key, value in line.items() if key.startswith("evaluation/")}
        if values:
            curve[str(line["step"])] = values
    examples: dict[str, dict[str, list[float]]] = {}
    for text in max(folder.glob("evaluation/step-*.jsonl")).read_text().splitlines():
        row = json.loads(text)
        for metric, value in row["values"].items():
            examples.setdefault(metric, {}).setdefault(row["key"], []).append(value)
    means = {
        metric: {key: round(sum(values) / len(values), 4) for key, values in of.items()}
        for metric, of in examples.items()
    }
    record = {
        "fingerprint": fingerprint(),
        "cell": cell.name,
        "seed": seed,
        "curve": curve,
        "examples": means,
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    (RECORDS / f"{folder.name}.json").write_text(json.dumps(record, sort_keys=True) + "\n")
    return f"{folder.name}: {time.monotonic() - began:.0f} s"


def silence() -> None:
    """A worker's progress lines would mix with those of the others."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def collect() -> dict[str, Any]:
    """Final held-out means of every finished run, and differences between cells paired by seed and example."""
    import numpy as np

    rows: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    curves: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    base: dict[str, float] = {}
    for cell in cells():
        for seed in cell.seeds:
            record = record_of(cell, seed)
            if record is not None:
                base = record["curve"]["0"]
                curves.setdefault(cell.name, {})[str(seed)] = record["curve"]
                rows.setdefault(cell.name, {})[seed] = record["examples"]
    generator = np.random.default_rng(0)
    result: dict[str, Any] = {"base": base, "cells": {}, "differences": {}, "curves": curves}
    for name, seeds in rows.items():
        metrics = next(iter(seeds.values()))
        result["cells"][name] = {
            metric: interval(np.array([list(seeds[seed][metric].values()) for seed in seeds]), generator)
            for metric in metrics
        } | {"seeds": sorted(seeds)}
    pairs = [(name, other) for name in rows for other in rows if other != name and compares(name, other)]
    for name, other in pairs:
        common = sorted(rows[name].keys() & rows[other].keys())
        if not common:
            continue
        result["differences"][f"{name} - {other}"] = {
            metric: interval(
                np.array(
                    [
                        [
                            rows[name][seed][metric][key] - rows[other][seed][metric][key]
                            for key in rows[name][seed][metric]
                        ]
                        for seed in common
                    ]
                ),
                generator,
            )
            for metric in rows[name][common[0]]
        } | {"seeds": common}
    RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result


def compares(name: str, other: str) -> bool:
    """What the page shows: every cell against naive 1:1 and 1:1.5 of its step weighting, SARS + TDW against all."""
    same = name.rpartition("-")[2] == other.rpartition("-")[2]
    return same and (other.startswith(("naive_1to1-", "naive_1to1.5-")) or name.startswith("sars_tdw-"))


def interval(values: Any, generator: Any, resamples: int = 2000) -> dict[str, float]:
    """Mean of (seeds, examples) with a 95 % interval by a two-way bootstrap: seeds and examples are both drawn anew."""
    import numpy as np

    seeds, examples = values.shape
    drawn = np.empty(resamples)
    for i in range(resamples):
        some = values[generator.integers(seeds, size=seeds)]
        drawn[i] = some[:, generator.integers(examples, size=examples)].mean()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "std_seeds": float(values.mean(1).std()),
    }


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then collect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["main", "fitted", "front", "others"])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--collect", action="store_true")
    given = parser.parse_args(arguments)
    todo = [] if given.collect else [job for job in jobs(given.only) if record_of(*job) is None]
    end = time.monotonic() + 60 * given.minutes
    context = multiprocessing.get_context("spawn")
    if todo:
        with context.Pool(given.workers, initializer=silence) as pool:
            running: list[Any] = []
            for number, job in enumerate(todo, 1):
                while sum(not r.ready() for r in running) >= given.workers:
                    time.sleep(0.5)
                if time.monotonic() > end:
                    sys.stdout.write(f"time is up; {len(todo) - number + 1} runs are left\n")
                    break
                running.append(
                    pool.apply_async(run_one, (job,), callback=lambda text: sys.stdout.write(text + "\n"))
                )
                sys.stdout.flush()
            for one in running:
                one.get()
    sys.stdout.write(f"{len(collect()['cells'])} cells -> {RESULT.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
