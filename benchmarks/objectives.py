"""Objectives against each other on the miniature, at equal seconds: fronts of static weights, TDW, SARS + TDW.

    python benchmarks/objectives.py             # train what is missing; hours on two cores, resumable (``grid``)
    python benchmarks/objectives.py --time      # seconds of an update of each objective, in turn in one process
    python benchmarks/objectives.py --collect   # only docs/objectives.csv and the table in docs/how-to/objective.md

An update of each costs the same within some per cent (``--time``), so equal updates are equal seconds.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from ablation import COLUMNS, FITTED, STATIC_FRONT, SUM, differences, finals, means, over_front, sars, static
from grid import RECIPE, ROOT, Cell, Grid, command_line
from page_parts import put, table
from records import read_table, write_table

RESULT, PAGE = ROOT / "docs" / "objectives.csv", ROOT / "docs" / "how-to" / "objective.md"
IMAGE = ROOT / "docs" / "images" / "objective-fronts.png"
SECONDS = ROOT / "benchmarks" / "results" / "objectives_seconds.csv"

COMMON = (
    "train.steps=40",
    "train.evaluate_every=40",
    "train.checkpoint_every=10",
    "train.save_samples_every=0",
    "evaluate.data.size=192",
    "evaluate.save_images=0",
    "run.threads=1",
)
"""The last step is fixed here, before any result was seen; evaluation draws are the test split's."""

SOLVER = (
    "sampling.dynamics=null",
    "sampling.plan=null",
    "sampling.shared_noise=false",
    "sampling.solver=euler",
)
OBJECTIVES = {
    "grpo": ("train.lr=2.4e-3",),
    "nft": ("objective={type: nft, step_weighting: equal}", *SOLVER, "train.lr=1.2e-3"),
    "awm": ("objective={type: awm, step_weighting: equal}", *SOLVER, "train.lr=1.2e-3"),
}
"""Each at the rate at which it moves as far as the others on the tuning split (docs/log.md)."""

RATIOS = (1.0, 2.0, 3.0)
WEIGHTS = {
    **{f"1to{ratio:g}": (SUM, static(ratio)) for ratio in RATIOS},
    "tdw": (SUM, FITTED),
    "sars_tdw": (sars(0.4), FITTED),
}
"""Static weights identity : prompt, TDW that is fitted to the miniature (``ablation``), and SARS with it."""
SEEDS = (0, 1, 2, 3, 4)
SHOWN = ("identity_accuracy", "prompt_accuracy", "both", "copy")
COLOURS = {"grpo": "#777777", "nft": "#3b5bdb", "awm": "#d95f02"}


def cells() -> Iterator[Cell]:
    """All cells, the ends of the fronts first; AWM, whose gradient on policy is nearly NFT's, with few weights."""
    for objective, keys in OBJECTIVES.items():
        for weights, own in WEIGHTS.items():
            if objective != "awm" or weights in {"1to1", "sars_tdw"}:
                part = "more" if objective == "awm" or weights == "1to2" else "main"
                yield Cell(part, f"{objective}-{weights}", (*keys, *own), SEEDS)


GRID = Grid("objectives", COMMON, tuple(cells()), frozenset({"advantage", "objective", "sampling"}))
OWN_FRONT = "its own front"


def ends(name: str) -> tuple[str, str]:
    """Ends of the static front of a cell's own objective."""
    objective = name.split("-")[0]
    return f"{objective}-1to1", f"{objective}-1to3"


FRONT = ends("grpo-1to1")


def compared(name: str, other: str) -> bool:
    """Pairs that the result holds: objectives at the same weights, and each weighting against 1 : 1."""
    (objective, weights), (rival, others) = name.split("-"), other.split("-")
    return (weights == others and rival == "grpo") or (objective == rival and others == "1to1")


def collect() -> list[dict[str, Any]]:
    """Means of every cell, paired differences, and what each has over GRPO's and its own objective's static front."""
    rows, base = finals(GRID)
    result = means(rows, base) + differences(rows, base, compared)
    for name in rows:
        for over, front in ((STATIC_FRONT, FRONT), (OWN_FRONT, ends(name))):
            if name not in front and all(cell in rows for cell in front):
                result += [row | {"over": over} for row in over_front(rows, name, front)]
    order = {name: number for number, name in enumerate(["base", *rows])}
    result.sort(key=lambda row: (order[str(row["of"])], row.get("over", ""), row["metric"]))
    write_table(RESULT, COLUMNS, result)
    return result


def paired_seconds(recipe: Path, variants: Mapping[str, Sequence[str]], repeats: int) -> list[dict[str, Any]]:
    """Seconds of each variant's update of one group, its phases, and its ratio to the first one's; all take turns."""
    from update import make_trainer, summary

    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: make_trainer(str(recipe), ["run.threads=1", *keys], Path(folder, name))
            for name, keys in variants.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        phases: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
        for step in range(repeats + 1):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                metrics = trainer.step(step)
                if step:  # the first one warms up
                    seconds[name].append(time.perf_counter() - began)
                    phases[name].append(metrics)
    found = []
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratio = summary([mine / other for mine, other in zip(values, first, strict=True)])
        found.append(
            {"variant": name, **summary(values)}
            | {f"ratio_{key}": ratio[key] for key in ("median", "low", "high")}
            | {phase: summary([one.get(f"time/{phase}", 0.0) for one in phases[name]])["median"] for phase in PHASES}
        )
    return found


PHASES = ("rollout", "decode", "score", "replay", "optimizer")


def final_table(result: list[dict[str, Any]]) -> str:
    """Held-out metrics after the last step, and identity over static fronts at the same prompt accuracy."""
    of = {(row["of"], row.get("over"), row["metric"]): row for row in result}
    lines = [["base", *(f"{of['base', None, metric]['mean']:.3f}" for metric in SHOWN), "", "", ""]]
    for name in dict.fromkeys(row["of"] for row in result if row["of"] != "base"):
        own, over = (of.get((name, front, "identity_accuracy")) for front in (OWN_FRONT, STATIC_FRONT))
        lines.append(
            [
                f"`{name}`",
                *(interval_text(of[name, None, metric]) for metric in SHOWN),
                "on it" if name in ends(name) else interval_text(own, signed=True) if own else "",
                "on it" if name in FRONT else interval_text(over, signed=True) if over else "",
                str(of[name, None, "both"]["seeds"]),
            ]
        )
    return table(["run", *SHOWN, "identity over its own static front", "over GRPO's", "seeds"], lines)


def interval_text(row: dict[str, Any], *, signed: bool = False) -> str:
    """A mean with its interval, if it has one."""
    form = "+.3f" if signed else ".3f"
    bounds = "" if row["low"] is None else f" ({row['low']:{form}}, {row['high']:{form}})"
    return f"{row['mean']:{form}}{bounds}"


def seconds_table() -> str:
    """Seconds of an update of one group, and where they go."""
    lines = [
        [
            f"`{row['variant']}`",
            f"{row['median']:.3f} ({row['low']:.3f}, {row['high']:.3f})",
            f"{row['ratio_median']:.2f} ({row['ratio_low']:.2f}, {row['ratio_high']:.2f})",
            *(f"{row[phase]:.3f}" for phase in PHASES),
        ]
        for row in read_table(SECONDS)
    ]
    return table(["objective", "seconds (quartiles)", "over `grpo`, paired", *PHASES], lines)


def save_fronts(figure: Any, axis: Any, image: Path) -> None:
    """Label a plane of prompt and identity, and write it."""
    axis.set_xlabel("prompt accuracy (held out)")
    axis.set_ylabel("identity accuracy (held out)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(image, dpi=160)
    plt.close(figure)


def plot(result: list[dict[str, Any]]) -> None:
    """Prompt against identity: a line a front, a mark a schedule, with intervals."""
    of = {(row["of"], row["metric"]): row for row in result if row.get("over") in (None, "")}
    figure, axis = plt.subplots(figsize=(6.6, 4.6), layout="constrained")
    base = [of["base", metric]["mean"] for metric in ("prompt_accuracy", "identity_accuracy")]
    axis.plot(*base, "k*", ms=11, label="base")
    for objective, colour in COLOURS.items():
        front = []
        for weights in WEIGHTS:
            name = f"{objective}-{weights}"
            if (name, "both") not in of or of[name, "both"]["low"] is None:
                continue  # not run, or at too few seeds to be drawn beside the others
            x, y = (of[name, metric] for metric in ("prompt_accuracy", "identity_accuracy"))
            mark = {"tdw": "s", "sars_tdw": "D"}.get(weights, "o")
            spread = [[[one["mean"] - one["low"]], [one["high"] - one["mean"]]] for one in (x, y)]
            axis.errorbar(x["mean"], y["mean"], spread[1], spread[0], fmt=mark, color=colour, lw=0.7, ms=6)
            axis.annotate(weights, (x["mean"], y["mean"]), textcoords="offset points", xytext=(5, 5), fontsize=7)
            front += [(x["mean"], y["mean"])] if mark == "o" else []
        if front:
            axis.plot(*zip(*sorted(front), strict=True), color=colour, lw=1.3, label=objective)
    save_fronts(figure, axis, IMAGE)


def write_page() -> None:
    """The tables and the picture of docs/how-to/objective.md."""
    result = collect()
    text = PAGE.read_text(encoding="utf-8")
    text = put(text, "fronts", final_table(result))
    text = put(text, "seconds", seconds_table())
    PAGE.write_text(text, encoding="utf-8")
    plot(result)


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, or time, then write the page."""
    parser = command_line(__doc__, GRID.parts, 20)
    given = parser.parse_args(arguments)
    if given.time:
        measured = paired_seconds(RECIPE, OBJECTIVES, given.repeats)
        write_table(SECONDS, list(measured[0]), measured)
    elif not given.collect:
        GRID.run(given.only, given.workers, given.minutes)
    write_page()
    sys.stdout.write(f"{RESULT.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} are written\n")


if __name__ == "__main__":
    main(sys.argv[1:])
