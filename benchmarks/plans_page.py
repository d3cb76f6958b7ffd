"""Table and learning curves of the plans into ``docs/benchmarks.md`` (between its markers) and ``docs/images``.

python benchmarks/plans_page.py
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from page_parts import put, table
from plans import GROUPS, HEAD, METRIC, QUALITY, collect, rows

ROOT = Path(__file__).resolve().parent.parent
PAGE, IMAGE = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "images" / "plans.png"


def curves(result: dict[str, Any], file: Path) -> None:
    """The held-out judge against updates and against seconds: a line a seed."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for (name, found), colour in zip(result["plans"].items(), colours, strict=False):
        each = GROUPS * result["seconds"][name]["median"]
        for axis, scale in zip(axes, (1.0, each), strict=True):
            for number, curve in enumerate(found["curves"].values()):
                line = sorted((int(step) * scale, values[METRIC]) for step, values in curve.items())
                line = line[axis is axes[1] :]  # a logarithmic axis has no 0
                axis.plot(*zip(*line, strict=True), lw=1.2, color=colour, marker=".", label="" if number else name)
    for axis, label in zip(axes, ("updates", "seconds of updates on one thread"), strict=True):
        axis.axhline(QUALITY, color="black", lw=0.8, ls=":")
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xscale("log")
    axes[0].set_ylabel(f"held-out {METRIC}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def main() -> None:
    """Write everything."""
    result = collect()
    PAGE.write_text(put(PAGE.read_text(), "plans", table(HEAD, rows(result))))
    curves(result, IMAGE)


if __name__ == "__main__":
    main()
