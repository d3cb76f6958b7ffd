"""Tables and plots of ``docs/ablation.json`` into ``docs/ablation.md`` (between its markers) and ``docs/images``.

python benchmarks/ablation_page.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from pages import put, table

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


def number(of: dict[str, float], *, signed: bool = False) -> str:
    """A mean with its interval."""
    form = "+.3f" if signed else ".3f"
    if abs(of["mean"]) >= 10:
        form = form.replace(".3f", ".1f")
    return f"{of['mean']:{form}} [{of['low']:{form}}, {of['high']:{form}}]"


def final_table(result: dict[str, Any]) -> str:
    """Held-out metrics after the last step."""
    rows = [["base", "-", *(f"{result['base'][metric]:.3f}" for metric in SHOWN)]]
    for name, cell in result["cells"].items():
        rows.append([f"`{name}`", str(len(cell["seeds"])), *(number(cell[metric]) for metric in SHOWN)])
    return table(["cell", "seeds", *SHOWN], rows)


def difference_table(result: dict[str, Any], other: str) -> str:
    """Paired differences of every cell to ``other``."""
    shown = ("identity_accuracy", "prompt_accuracy", "both", "copy")
    rows = []
    for pair, metrics in result["differences"].items():
        name, _, to = pair.partition(" - ")
        if to == other:
            seeds = str(len(metrics["seeds"]))
            rows.append([f"`{name}`", seeds, *(number(metrics[metric], signed=True) for metric in shown)])
    return table([f"minus `{other}`", "seeds", *shown], rows)


def front_table(result: dict[str, Any]) -> str:
    """What each cell with TDW has over the front of static weights at its own prompt accuracy."""
    shown = ("identity_accuracy", "both", "copy")
    rows = [
        [f"`{name}`", str(len(gaps["seeds"])), *(number(gaps[metric], signed=True) for metric in shown),
         f"{100 * gaps['beyond']:.0f} %"]
        for name, gaps in result["fronts"].items()
    ]  # fmt: skip
    return table(["over the static front", "seeds", *shown, "draws beyond its end"], rows)


def plane(result: dict[str, Any], file: Path) -> None:
    """Identity against prompt accuracy after the last step, and the two fronts."""
    figure, axis = plt.subplots(figsize=(7, 5.2), layout="constrained")
    cells = result["cells"]
    for name, cell in cells.items():
        kind, _, weighting = name.rpartition("-")
        family = next((key for key in sorted(COLOURS, key=len, reverse=True) if kind.startswith(key)), None)
        family = "naive_1to1" if kind.startswith("naive") and family is None else family
        x, y = cell["prompt_accuracy"], cell["identity_accuracy"]
        axis.errorbar(
            x["mean"], y["mean"],
            xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
            yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            fmt="o" if weighting == "equal" else "^", ms=6, lw=0.8, color=COLOURS.get(family or "", "#bbbbbb"),
        )  # fmt: skip
        if weighting == "equal":  # a triangle is told by its colour
            place = (x["mean"], y["mean"])
            axis.annotate(kind, place, fontsize=6.5, xytext=(4, 4), textcoords="offset points")
    for prefix, colour in (("naive", "#777777"), ("sars_tdw", "#3b5bdb")):
        front = sorted(
            (cell["prompt_accuracy"]["mean"], cell["identity_accuracy"]["mean"])
            for name, cell in cells.items()
            if name.startswith(prefix) and name.endswith("-equal") and "fitted" not in name
        )
        axis.plot(*zip(*front, strict=True), lw=1, ls="--", color=colour) if front else None
    axis.plot(
        result["base"]["prompt_accuracy"], result["base"]["identity_accuracy"], "*", ms=13, color="black"
    )
    axis.set(xlabel="held-out prompt accuracy", ylabel="held-out identity accuracy")
    axis.set_title(
        "Star: base. Circle: equal step weighting, triangle: none. 95 % intervals over seeds and examples.",
        fontsize=8,
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def curves(result: dict[str, Any], file: Path) -> None:
    """Means over seeds against GRPO steps, with each seed as a thin line."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 5), sharex=True, layout="constrained")
    for row, weighting in enumerate(("none", "equal")):
        for column, metric in enumerate(("identity_accuracy", "prompt_accuracy", "both", "copy")):
            axis = axes[row][column]
            for family, colour in COLOURS.items():
                seeds = result["curves"].get(f"{family}-{weighting}", {})
                lines = [
                    sorted((int(step), values[metric]) for step, values in of.items())
                    for of in seeds.values()
                ]
                for line in lines:
                    axis.plot(*zip(*line, strict=True), lw=0.5, alpha=0.35, color=colour)
                if lines:
                    steps = [step for step, _ in lines[0]]
                    means = [sum(line[i][1] for line in lines) / len(lines) for i in range(len(steps))]
                    axis.plot(steps, means, lw=1.8, color=colour, label=family)
            axis.set_title(f"{metric}, {weighting}", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False
    )
    for axis in axes[1]:
        axis.set_xlabel("GRPO step")
    figure.savefig(file, dpi=160)
    plt.close(figure)


def main() -> None:
    """Write everything."""
    result = json.loads((ROOT / "docs" / "ablation.json").read_text())
    text = PAGE.read_text()
    text = put(text, "final", final_table(result))
    text = put(text, "fronts", front_table(result))
    for other in ("naive_1to1-none", "naive_1to1-equal", "naive_1to1.5-equal"):
        text = put(text, f"difference {other}", difference_table(result, other))
    PAGE.write_text(text)
    plane(result, IMAGES / "ablation-plane.png")
    curves(result, IMAGES / "ablation-curves.png")


if __name__ == "__main__":
    main()
