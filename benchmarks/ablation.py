"""The ablation on the miniature world: every variant, paired seeds, equal compute, held-out judges. Resumable.

python benchmarks/ablation.py                 # all cells; hours on two cores, one single-threaded worker a core
python benchmarks/ablation.py --only main     # one part of the grid: main, fitted, front, others
python benchmarks/ablation.py --collect       # only write docs/ablation.csv from the finished runs
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from grid import ROOT, Cell, Grid, command_line, interval
from records import write_table

RESULT = ROOT / "docs" / "ablation.csv"
COLUMNS = ("of", "over", "metric", "seeds", "mean", "low", "high", "std_seeds")
"""A row of the result: the mean of a cell or the base (``over`` is empty), the paired difference of a cell to another,
or what a cell has over ``STATIC_FRONT``."""
STATIC_FRONT = "static front"

COMMON = (
    "train.steps=100",
    "train.lr=1.2e-3",
    "train.eps=1e-8",
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
    for name in ("weighted_minimum", "weighted_maximum", "harmonic", "product"):
        yield Cell("others", f"{name}-equal", (f"advantage.aggregator={{type: {name}}}", TDW, equal), two)


Rows = dict[str, dict[int, dict[str, dict[str, float]]]]
"""Final values by cell, seed, metric and held-out example."""

GRID = Grid("ablation", COMMON, tuple(cells()), frozenset({"advantage"}))


def collect() -> list[dict[str, Any]]:
    """Final held-out means of every finished run, and differences between cells paired by seed and example."""
    rows, base = finals(GRID)
    result = means(rows, base)
    result += differences(rows, base, compares)
    for name in rows:
        result += over_front(rows, name) if above_front(rows, name) else []
    order = {name: number for number, name in enumerate(["base", *sorted(rows)])}
    result.sort(key=lambda row: (order[str(row["of"])], row.get("over", ""), row["metric"]))
    write_table(RESULT, COLUMNS, result)
    return result


def finals(grid: Grid) -> tuple[Rows, dict[str, float]]:
    """Values after the last step of every finished run, and the base's means."""
    rows: Rows = {}
    base: dict[str, float] = {}
    for (name, seed), record in grid.records().items():
        base = record["curve"]["0"]
        rows.setdefault(name, {})[seed] = record["examples"]
    return rows, base


def means(rows: Rows, base: Mapping[str, float]) -> list[dict[str, Any]]:
    """Means of the base and of each cell over seeds and examples."""
    import numpy as np

    result: list[dict[str, Any]] = [{"of": "base", "metric": metric, "mean": value} for metric, value in base.items()]
    for name, seeds in rows.items():
        values = {metric: [list(seeds[seed][metric].values()) for seed in seeds] for metric in base}
        result += [
            {"of": name, "metric": metric, "seeds": len(seeds)} | interval(np.array(of))
            for metric, of in values.items()
        ]
    return result


def differences(rows: Rows, base: Mapping[str, float], compared: Callable[[str, str], bool]) -> list[dict[str, Any]]:
    """Differences between compared cells, paired by seed and example."""
    import numpy as np

    result: list[dict[str, Any]] = []
    for name, other in ((name, other) for name in rows for other in rows if other != name and compared(name, other)):
        common = sorted(rows[name].keys() & rows[other].keys())
        for metric in base if common else ():
            paired = [
                [value - rows[other][seed][metric][key] for key, value in rows[name][seed][metric].items()]
                for seed in common
            ]
            row = {"of": name, "over": other, "metric": metric, "seeds": len(common)}
            result.append(row | interval(np.array(paired)))
    return result


def above_front(rows: Rows, name: str) -> bool:
    """Whether a cell can be held against the front of static weights."""
    return "tdw" in name and name.endswith("-equal") and all(cell in rows for cell in STATIC)


def over_front(
    rows: Rows,
    name: str,
    static: Sequence[str] = STATIC,
    at: str = "prompt_accuracy",
    metrics: Sequence[str] = ("identity_accuracy", "both", "copy"),
) -> list[dict[str, Any]]:
    """What a cell has over the front of static weights *at its own value* of ``at``: the front is linear between its
    cells and flat beyond its ends.

    The gap is linearised (delta method): every seed and example gets the value by which it moves the gap, in y and,
    through the front's slope, in x. The mean of those values is the gap itself, so its interval is theirs."""
    import numpy as np

    seeds = sorted(set.intersection(*(set(rows[cell]) for cell in (*static, name))))

    def of(cell: str, metric: str) -> Any:
        return np.array([list(rows[cell][seed][metric].values()) for seed in seeds])  # seeds, examples

    x = {cell: of(cell, at) for cell in (*static, name)}
    front = sorted(static, key=lambda cell: float(x[cell].mean()))
    means = [float(x[cell].mean()) for cell in front]
    place = float(np.clip(x[name].mean(), means[0], means[-1]))
    right = min(max(int(np.searchsorted(means, place)), 1), len(front) - 1)
    left, after = front[right - 1], front[right]
    share = (place - means[right - 1]) / (means[right] - means[right - 1])
    inside = means[0] < x[name].mean() < means[-1]
    found = []
    for metric in metrics:
        y = {cell: of(cell, metric) for cell in (left, after, name)}
        gaps = y[name] - (1 - share) * y[left] - share * y[after]
        if inside:
            slope = (y[after].mean() - y[left].mean()) / (x[after].mean() - x[left].mean())
            gaps = gaps - slope * (x[name] - (1 - share) * x[left] - share * x[after])
        found.append({"of": name, "over": STATIC_FRONT, "seeds": len(seeds), "metric": metric} | interval(gaps))
    return found


def compares(name: str, other: str) -> bool:
    """What the page shows: every cell against naive 1:1 and 1:1.5 of its step weighting, SARS + TDW against all."""
    same = name.rpartition("-")[2] == other.rpartition("-")[2]
    return same and (other.startswith(("naive_1to1-", "naive_1to1.5-")) or name.startswith("sars_tdw-"))


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then collect."""
    parser = command_line(__doc__, GRID.parts)
    given = parser.parse_args(arguments)
    if not given.collect:
        GRID.run(given.only, given.workers, given.minutes)
    cells = {row["of"] for row in collect()} - {"base"}
    sys.stdout.write(f"{len(cells)} cells -> {RESULT.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
