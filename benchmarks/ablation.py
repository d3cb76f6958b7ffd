"""The ablation on the miniature world: every variant, paired seeds, equal compute, held-out judges. Resumable.

python benchmarks/ablation.py                 # all cells; hours on two cores, one single-threaded worker a core
python benchmarks/ablation.py --only main     # one part of the grid: main, fitted, front, others
python benchmarks/ablation.py --collect       # only write docs/ablation.json from the finished runs
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from grid import ROOT, Cell, Grid, interval

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


RATIOS = (0.75, 1.0, 1.5, 2.0, 3.0)
STATIC = tuple(f"naive_1to{ratio:g}-equal" for ratio in RATIOS)
"""The front of static weights."""

SUM, TDW = "advantage.aggregator={type: weighted_sum}", "advantage.time_weights={type: tdw}"
FITTED = "advantage.time_weights={type: tdw, low: 0.1, start: 0.2, stop: 0.5}"
"""The place, which is what leaks, is decided in the first third of the steps (`benchmarks/world.py decided`)."""


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


GRID = Grid("ablation", COMMON, tuple(cells()), frozenset({"advantage"}))


def collect() -> dict[str, Any]:
    """Final held-out means of every finished run, and differences between cells paired by seed and example."""
    import numpy as np

    rows: Rows = {}
    curves: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    base: dict[str, float] = {}
    for (name, seed), record in GRID.records().items():
        base = record["curve"]["0"]
        curves.setdefault(name, {})[str(seed)] = record["curve"]
        rows.setdefault(name, {})[seed] = record["examples"]
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
    result["fronts"] = {name: over_front(rows, name, generator) for name in rows if above_front(rows, name)}
    RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result


Rows = dict[str, dict[int, dict[str, dict[str, float]]]]
"""Final values by cell, seed, metric and held-out example."""


def above_front(rows: Rows, name: str) -> bool:
    """Whether a cell can be held against the front of static weights."""
    return "tdw" in name and name.endswith("-equal") and all(cell in rows for cell in STATIC)


def over_front(rows: Rows, name: str, generator: Any, resamples: int = 2000) -> dict[str, Any]:
    """What a cell has over the front of static weights *at its own prompt accuracy*: the front is linear between its
    cells and flat beyond its ends. Two-way bootstrap, all cells drawn together; ``beyond``: draws past its end."""
    import numpy as np

    seeds = sorted(set.intersection(*(set(rows[cell]) for cell in (*STATIC, name))))
    shown = ("prompt_accuracy", "identity_accuracy", "both", "copy")
    values = np.array(
        [
            [[list(rows[cell][seed][metric].values()) for seed in seeds] for cell in (*STATIC, name)]
            for metric in shown
        ]
    )  # metrics, cells, seeds, examples

    def gap(means: Any) -> tuple[Any, bool]:
        x, at = means[0, :-1], means[0, -1]
        order = np.argsort(x)
        return means[1:, -1] - [np.interp(at, x[order], y[order]) for y in means[1:, :-1]], at > x.max()

    drawn = []
    for _ in range(resamples):
        some = values[:, :, generator.integers(len(seeds), size=len(seeds))]
        drawn.append(gap(some[..., generator.integers(values.shape[3], size=values.shape[3])].mean((2, 3))))
    low, high = np.quantile([one for one, _ in drawn], [0.025, 0.975], axis=0)
    mean, _ = gap(values.mean((2, 3)))
    gaps = {
        metric: {"mean": float(mean[i]), "low": float(low[i]), "high": float(high[i])}
        for i, metric in enumerate(shown[1:])
    }
    return gaps | {"seeds": seeds, "beyond": float(np.mean([beyond for _, beyond in drawn]))}


def compares(name: str, other: str) -> bool:
    """What the page shows: every cell against naive 1:1 and 1:1.5 of its step weighting, SARS + TDW against all."""
    same = name.rpartition("-")[2] == other.rpartition("-")[2]
    return same and (other.startswith(("naive_1to1-", "naive_1to1.5-")) or name.startswith("sars_tdw-"))


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then collect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=GRID.parts)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--collect", action="store_true")
    given = parser.parse_args(arguments)
    if not given.collect:
        GRID.run(given.only, given.workers, given.minutes)
    sys.stdout.write(f"{len(collect()['cells'])} cells -> {RESULT.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
