"""Tables and plots of ``docs/ablation.csv`` into ``docs/ablation.md`` (between its markers) and ``docs/images``.

python benchmarks/ablation_page.py
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from ablation import GRID, RESULT, STATIC_FRONT
from grid import Records
from page_parts import put, table
from records import read_table

ROOT = Path(__file__).resolve().parent.parent
PAGE, IMAGES = ROOT / "docs" / "ablation.md", ROOT / "docs" / "images"
SHOWN = ("identity_accuracy", "prompt_accuracy", "both", "copy", "judge_dino", "judge_clip")
COLOURS = {
    "naive_1to1": "#777777",
    "naive_1to1.5": "#444444",
    "sars_only": "#d95f02",
    "tdw_only": "#1b9e77",
    "sars_tdw": "#3b5bdb",
}

STATIC = tuple(f"naive_1to{ratio}" for ratio in ("0.75", "1", "1.5", "2", "3"))
GAMMAS = ("sars_tdw_gamma0.2", "sars_tdw", "sars_tdw_gamma0.8", "sars_tdw_gamma1.6")
ORIGIN = "naive_1to1"


Result = dict[tuple[str, str | None], dict[str, dict[str, Any]]]
"""Rows of ``docs/ablation.csv`` by (of, over) and metric."""


def read_result() -> Result:
    """The result that ``ablation.py`` wrote."""
    result: Result = {}
    for row in read_table(RESULT):
        result.setdefault((row["of"], row["over"]), {})[row["metric"]] = row
    return result


def number(of: dict[str, Any], *, signed: bool = False) -> str:
    """A mean with its interval, where there are seeds enough for one."""
    form = "+.3f" if signed else ".3f"
    if abs(of["mean"]) >= 10:
        form = form.replace(".3f", ".1f")
    if of["low"] is None:
        return f"{of['mean']:{form}}"
    return f"{of['mean']:{form}} [{of['low']:{form}}, {of['high']:{form}}]"


def final_table(result: Result) -> str:
    """Held-out metrics after the last step."""
    rows = [["base", "-", *(f"{result['base', None][metric]['mean']:.3f}" for metric in SHOWN)]]
    for (name, over), cell in result.items():
        if over is None and name != "base":
            seeds = str(cell[SHOWN[0]]["seeds"])
            rows.append([f"`{name}`", seeds, *(number(cell[metric]) for metric in SHOWN)])
    return table(["cell", "seeds", *SHOWN], rows)


def difference_table(result: Result, other: str) -> str:
    """Paired differences of every cell to ``other``."""
    shown = ("identity_accuracy", "prompt_accuracy", "both", "copy")
    rows = []
    for (name, over), metrics in result.items():
        if over == other:
            seeds = str(metrics[shown[0]]["seeds"])
            rows.append([f"`{name}`", seeds, *(number(metrics[metric], signed=True) for metric in shown)])
    return uncorrected(table([f"minus `{other}`", "seeds", *shown], rows))


def front_table(result: Result) -> str:
    """What each cell with TDW has over the front of static weights at its own prompt accuracy."""
    shown = ("identity_accuracy", "both", "copy")
    rows = [
        [f"`{name}`", str(gaps[shown[0]]["seeds"]), *(number(gaps[metric], signed=True) for metric in shown)]
        for (name, over), gaps in result.items()
        if over == STATIC_FRONT
    ]
    return uncorrected(table(["over the static front", "seeds", *shown], rows))


def uncorrected(of: str) -> str:
    """A table of differences, with what must be said beside it."""
    shown = of.count("[")
    chance = f"{0.05 * shown:.1f} of them would miss a true zero by chance"
    return f"{of}\n\n{shown} intervals, none corrected for their number: {chance}."


def styles(result: Result) -> dict[str, dict[str, Any]]:
    """Marker and colour of every cell with equal step weighting, in the legend's order."""
    found: dict[str, dict[str, Any]] = {}
    for colours, names in (("Greys", STATIC), ("Blues", GAMMAS)):
        for i, name in enumerate(names):
            shade = plt.get_cmap(colours)(0.35 + 0.65 * i / (len(names) - 1))
            found[name] = {"color": shade, "marker": "o"}
    found["tdw_only"] = {"color": COLOURS["tdw_only"], "marker": "s"}
    found["sars_only"] = {"color": COLOURS["sars_only"], "marker": "s"}
    found["sars_tdw_fitted"] = {"color": "#c2185b", "marker": "D"}
    for name, marker in zip(("weighted_minimum", "weighted_maximum", "harmonic", "product"), "v^<>", strict=True):
        found[name] = {"color": "#b08d57", "marker": marker}
    return {name: style for name, style in found.items() if (f"{name}-equal", None) in result}


def half(of: dict[str, Any]) -> float:
    """Half the length of a symmetric interval; none for too few seeds."""
    return 0.0 if of["low"] is None else (of["high"] - of["low"]) / 2


def plane(result: Result, file: Path) -> None:
    """Differences to naive 1:1, paired by seed and example: identity and leaks against prompt, and the two fronts."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    origin = {"mean": 0.0, "low": 0.0, "high": 0.0}
    naive, shown = result[f"{ORIGIN}-equal", None], styles(result)
    for axis, metric in zip(axes, ("identity_accuracy", "copy"), strict=True):
        places: dict[str, tuple[float, float]] = {}
        for name, style in shown.items():
            of = result.get((f"{name}-equal", f"{ORIGIN}-equal"), {})
            x, y = of.get("prompt_accuracy", origin), of.get(metric, origin)
            places[name], seeds = (x["mean"], y["mean"]), of.get(metric, naive[metric])["seeds"]
            axis.errorbar(
                *places[name],
                xerr=half(x),
                yerr=half(y),
                **style, ls="none", ms=8, mec="white", mew=0.7, lw=0.9, label=f"{name} ({seeds})",
            )  # fmt: skip
        for names, colour in ((STATIC, "#777777"), (GAMMAS, COLOURS["sars_tdw"])):
            front = sorted(places[name] for name in names if name in places)
            axis.plot(*zip(*front, strict=True), lw=1.2, ls="--", color=colour, zorder=0)
        base = [result["base", None][one]["mean"] - naive[one]["mean"] for one in ("prompt_accuracy", metric)]
        axis.plot(*base, "*", ms=14, color="black", ls="none", label="base")
        axis.axhline(0, lw=0.5, color="#999999", zorder=0)
        axis.axvline(0, lw=0.5, color="#999999", zorder=0)
        axis.set(xlabel="prompt accuracy over naive 1 : 1", ylabel=f"{metric} over naive 1 : 1")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Equal step weighting, after the last step. Paired differences, 95 % intervals over seeds and examples; "
        "in brackets: seeds. Dashed: static weights, and SARS + TDW over gamma.",
        fontsize=9,
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9, frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def curves(records: Records, file: Path) -> None:
    """Means over seeds against GRPO steps, with each seed as a thin line."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 5), sharex=True, layout="constrained")
    for row, weighting in enumerate(("none", "equal")):
        for column, metric in enumerate(("identity_accuracy", "prompt_accuracy", "both", "copy")):
            axis = axes[row][column]
            for family, colour in COLOURS.items():
                lines = [
                    sorted((int(step), values[metric]) for step, values in record["curve"].items())
                    for (cell, _), record in records.items() if cell == f"{family}-{weighting}"
                ]  # fmt: skip
                for line in lines:
                    axis.plot(*zip(*line, strict=True), lw=0.5, alpha=0.35, color=colour)
                if lines:
                    steps = [step for step, _ in lines[0]]
                    means = [sum(line[i][1] for line in lines) / len(lines) for i in range(len(steps))]
                    axis.plot(steps, means, lw=1.8, color=colour, label=family)
            axis.set_title(f"{metric}, {weighting}", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("GRPO step")
    figure.savefig(file, dpi=160)
    plt.close(figure)


def main() -> None:
    """Write everything."""
    result = read_result()
    text = PAGE.read_text()
    text = put(text, "final", final_table(result))
    text = put(text, "fronts", front_table(result))
    for other in ("naive_1to1-none", "naive_1to1-equal", "naive_1to1.5-equal"):
        text = put(text, f"difference {other}", difference_table(result, other))
    PAGE.write_text(text)
    plane(result, IMAGES / "ablation-plane.png")
    curves(GRID.records(), IMAGES / "ablation-curves.png")


if __name__ == "__main__":
    main()
