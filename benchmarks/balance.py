"""One balanced adapter beside separate trainings with static weights, on the miniature: fronts and hypervolumes.

    python benchmarks/balance.py             # train and evaluate what is missing; hours on two cores, resumable
    python benchmarks/balance.py --collect   # only docs/balance.csv and the tables in docs/how-to/balance.md

The setting is that of ``rules``: ``nft`` with four small updates per rollout. Its static weights 1 : 1 are read from
there, not made again. A *point* is an evaluation of a finished run: of a balanced adapter at one b, or of two static
ends, added with weights that sum to 1 (rewarded soups).
"""

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rules
from ablation import COLUMNS, STATIC_FRONT, SUM, Rows, finals, means, over_front, static
from grid import ROOT, Cell, Grid, Records, examples_of, interval, silence
from objectives import COMMON, SHOWN, interval_text, save_fronts
from page_parts import put, table
from records import write_table

RESULT, PAGE = ROOT / "docs" / "balance.csv", ROOT / "docs" / "how-to" / "balance.md"
IMAGE = ROOT / "docs" / "images" / "balance-front.png"
SEEDS = (0, 1, 2, 3, 4)
STEPS = 40
ENDS = ("static-1to0.75", "static-1to3")
STATIC = (ENDS[0], "none-1to1", ENDS[1])
"""Separate trainings, identity : prompt."""
BALANCES = (-1.0, -0.5, 0.0, 0.5, 1.0)
SHARES = (0.25, 0.5, 0.75)
"""Of the prompt's end in an interpolation."""
BALANCED = {"balanced": STEPS, "balanced_long": len(STATIC) * STEPS}
"""Steps of a balanced run: as many as one of the separate ones, and as all of them."""
REFERENCE = {"prompt_accuracy": 0.9, "identity_accuracy": 0.75}
"""Corner of the hypervolume, a little worse than the base on either axis; fixed before any result was seen."""


def cells() -> Iterator[Cell]:
    """Trainings, those of one compute first."""
    plain = (*rules.SMALL, SUM)
    yield Cell("main", "balanced", (*plain, static(1.0), "policy.lora.balance=true"), SEEDS)
    for name, ratio in zip(ENDS, (0.75, 3.0), strict=True):
        yield Cell("main", name, (*plain, static(ratio)), SEEDS)
    long = BALANCED["balanced_long"]
    steps = (f"train.steps={long}", f"train.evaluate_every={long}")
    yield Cell("long", "balanced_long", (*plain, static(1.0), "policy.lora.balance=true", *steps), SEEDS)


VARIED = frozenset({"advantage", "objective", "sampling", "policy"})
GRID = Grid("balance", COMMON, tuple(cells()), VARIED)

MIXES = {f"mix-{share:g}": share for share in SHARES}
AT = {f"{run}@{b:+g}": (run, b) for run in BALANCED for b in BALANCES}
POINTS = Grid("balance_points", COMMON, tuple(Cell("points", name, (), SEEDS) for name in (*AT, *MIXES)), VARIED)


def evaluate(point: str, seed: int) -> dict[str, Any]:
    """Evaluate a point on the held-out examples of the trainings: its record."""
    from customized_grpo.commands.evaluate import lend
    from customized_grpo.evaluation.evaluator import evaluate as run
    from customized_grpo.recipe.config import EvaluateRecipe
    from customized_grpo.recipe.loading import load_recipe

    where = {cell.name: str(GRID.folder_of(cell, seed)) for cell in GRID.cells}
    if point in AT:
        name, b = AT[point]
        drawn = [f'lora="{where[name]}"', f"balance={b}"]
    else:
        share = MIXES[point]
        identity, prompt = (where[end] for end in ENDS)
        drawn = [f'lora=["{identity}={1 - share}", "{prompt}={share}"]']
    folder = ROOT / "runs" / POINTS.name / f"{point}-seed{seed}"
    earlier = sorted(folder.parent.glob("*/evaluation/summary.json"))
    if earlier:
        lend(earlier[0].parent.parent, folder)
    own = ("evaluate.data.size=192", "evaluate.save_images=0", "run.threads=1", f"run.dir={folder}")
    run(load_recipe("mini", (*own, *drawn), EvaluateRecipe))
    base, tuned = (examples_of(folder / "evaluation" / f"{kind}.jsonl") for kind in ("base", "tuned"))
    curve = {
        step: {metric: float(np.mean(list(values.values()))) for metric, values in of.items()}
        for step, of in (("0", base), (str(STEPS), tuned))
    }
    return {"curve": curve, "examples": tuned}


UNITS = {
    "main": (("balanced", *ENDS), (*(name for name, (run, _) in AT.items() if run == "balanced"), *MIXES)),
    "long": (("balanced_long",), tuple(name for name, (run, _) in AT.items() if run == "balanced_long")),
}
"""Trainings and points that are recorded together: a point needs weights, which a record doesn't have."""


def run_unit(unit: tuple[str, int]) -> tuple[tuple[str, int], Records, Records]:
    """Train and evaluate a unit at a seed: its records of trainings and of points."""
    part, seed = unit
    names, points = UNITS[part]
    trained = {(cell.name, seed): GRID.run_one(cell, seed)[2] for cell in GRID.cells if cell.name in names}
    return unit, trained, {(point, seed): evaluate(point, seed) for point in points}


def run_missing(only: str | None, workers: int) -> None:
    """Every unit that is not recorded whole, seed by seed."""
    done = {**GRID.records(), **POINTS.records()}
    units = [(part, seed) for part in UNITS if only in (None, part) for seed in SEEDS]
    missing = [
        (part, seed) for part, seed in units if not all((name, seed) in done for name in itertools.chain(*UNITS[part]))
    ]
    with multiprocessing.get_context("spawn").Pool(workers, initializer=silence) as pool:
        for (part, seed), trained, points in pool.imap_unordered(run_unit, missing):
            GRID.keep(trained)
            POINTS.keep(points)
            sys.stdout.write(f"{part}, seed {seed}\n")
            sys.stdout.flush()


def rows_of() -> tuple[Rows, dict[str, float]]:
    """Final values of every training and point, and the base's means."""
    static_rows, base = finals(rules.GRID)
    found = {"none-1to1": static_rows["none-1to1"]}
    return found | finals(GRID)[0] | finals(POINTS)[0], base


FRONTS = {
    "three separate runs": STATIC,
    "two ends interpolated": (ENDS[0], *MIXES, ENDS[1]),
    **{f"`{run}`": tuple(name for name, (of, _) in AT.items() if of == run) for run in BALANCED},
}
AXES = tuple(REFERENCE)
LABEL = {"three separate runs": (5, 5), "`balanced`": (-20, -9), "`balanced_long`": (6, 3)}
"""Where the picture writes a point's b or weights, in points beside it."""


def hypervolume(points: Any) -> float:
    """Area that points (n, 2), higher is better, dominate above the origin."""
    area, best = 0.0, 0.0
    for x, y in sorted(points.tolist(), reverse=True):
        if x > 0 and y > best:
            area, best = area + x * (y - best), y
    return area


def volumes(rows: Rows, front: Sequence[str], seeds: Sequence[int]) -> Any:
    """The hypervolume of a front above ``REFERENCE``, spread over (seeds, examples).

    Linearised (delta method): each seed and example gets the value by which it moves the area, so the mean of all is
    the area itself and their interval is its interval."""
    values = np.array([[[list(rows[c][s][m].values()) for m in AXES] for c in front] for s in seeds])
    values = values - np.array(list(REFERENCE.values()))[None, None, :, None]  # seeds, points, axes, examples
    at = values.mean((0, 3))
    area, step = hypervolume(at), 1e-6
    spread = np.full(values[:, 0, 0].shape, area)
    for point, axis in itertools.product(range(len(front)), range(2)):
        moved = at.copy()
        moved[point, axis] += step
        spread += (hypervolume(moved) - area) / step * (values[:, point, axis] - at[point, axis])
    return spread


def collect() -> list[dict[str, Any]]:
    """Means of every run and point, what each balanced point has over the separate runs' front, and hypervolumes."""
    rows, base = rows_of()
    result = means(rows, base)
    for name in (*AT, *MIXES):
        if name in rows and set(STATIC) <= set(rows):
            found = over_front(rows, name, STATIC)
            found += over_front(rows, name, STATIC, at="identity_accuracy", metrics=("prompt_accuracy",))
            result += found
    first = FRONTS["three separate runs"]
    for title, front in FRONTS.items():
        if not set((*front, *first)) <= set(rows):
            continue
        seeds = sorted(set.intersection(*(set(rows[name]) for name in (*front, *first))))
        area, separate = (volumes(rows, one, seeds) for one in (front, first))
        row = {"of": title, "metric": "hypervolume", "seeds": len(seeds)}
        result.append(row | interval(area))
        if front != first:
            result.append(row | {"over": "three separate runs"} | interval(area - separate))
    write_table(RESULT, COLUMNS, result)
    return result


def points_table(of: Mapping[tuple[Any, ...], dict[str, Any]]) -> str:
    """Held-out metrics of every run and point, and what it has over the separate runs' front."""
    lines = [["base", *(f"{of['base', None, metric]['mean']:.3f}" for metric in SHOWN), "", "", ""]]
    for name in (*STATIC, *MIXES, *AT):
        if (name, None, "both") not in of:
            continue
        over = [of.get((name, STATIC_FRONT, metric)) for metric in ("identity_accuracy", "prompt_accuracy")]
        shown = name.replace("none", "static")
        lines.append(
            [
                f"`{shown}`",
                *(f"{of[name, None, metric]['mean']:.3f}" for metric in SHOWN),
                *("on it" if name in STATIC else interval_text(row, signed=True) if row else "" for row in over),
                str(of[name, None, "both"]["seeds"]),
            ]
        )
    return table(["run, @ b", *SHOWN, "identity at equal prompt", "prompt at equal identity", "seeds"], lines)


def volumes_table(of: Mapping[tuple[Any, ...], dict[str, Any]]) -> str:
    """Hypervolumes, and their differences to that of the separate runs."""
    cost = {"three separate runs": "3", "two ends interpolated": "2", "`balanced`": "1", "`balanced_long`": "3"}
    lines = []
    for title in FRONTS:
        if (title, None, "hypervolume") in of:
            own, over = (of.get((title, to, "hypervolume")) for to in (None, "three separate runs"))
            texts = [thousandths(row) if row else "" for row in (own, over)]
            lines.append([title, cost[title], *texts, str(own["seeds"] if own else "")])
    return table(["front", "trainings' compute", "hypervolume / 1000", "over separate runs", "seeds"], lines)


def thousandths(row: Mapping[str, Any]) -> str:
    """A small number with its interval."""
    mean, low, high = (1000 * row[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f}, {high:+.1f})"


def plot(of: Mapping[tuple[Any, ...], dict[str, Any]]) -> None:
    """Fronts in the plane of prompt and identity, each point with its b."""
    figure, axis = plt.subplots(figsize=(6.6, 4.6), layout="constrained")
    looks = dict(
        zip(FRONTS, (("o-", "#777777"), ("^--", "#d95f02"), ("s-", "#3b5bdb"), ("D-", "#2b8a3e")), strict=True)
    )
    base = of["base", None, "prompt_accuracy"]["mean"], of["base", None, "identity_accuracy"]["mean"]
    axis.plot(*base, "k*", ms=11, label="base")
    for title, front in FRONTS.items():
        if not all((name, None, "both") in of for name in front):
            continue
        places = [tuple(of[name, None, metric]["mean"] for metric in AXES) for name in front]
        mark, colour = looks[title]
        axis.plot(*zip(*places, strict=True), mark, color=colour, ms=5, label=title.replace("`", "").replace("_", ", "))
        for name, place in zip(front, places, strict=True) if front != FRONTS["two ends interpolated"] else ():
            text = name.partition("@")[2] or (name.partition("-")[2].replace("to", " : ") if name in STATIC else "")
            axis.annotate(text, place, textcoords="offset points", xytext=LABEL[title], fontsize=7, color=colour)
    save_fronts(figure, axis, IMAGE)


def write_page() -> None:
    """The tables and the picture of docs/how-to/balance.md."""
    of = {(row["of"], row.get("over"), row["metric"]): row for row in collect()}
    text = put(PAGE.read_text(encoding="utf-8"), "points", points_table(of))
    PAGE.write_text(put(text, "volumes", volumes_table(of)), encoding="utf-8")
    plot(of)


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=UNITS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--collect", action="store_true")
    given = parser.parse_args(arguments)
    if not given.collect:
        run_missing(given.only, given.workers)
    write_page()
    sys.stdout.write(f"{RESULT.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} are written\n")


if __name__ == "__main__":
    main(sys.argv[1:])
