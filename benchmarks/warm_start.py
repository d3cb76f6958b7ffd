"""What a warm start is worth before RL, on the miniature at equal seconds: sft then nft, against either alone.

    python benchmarks/warm_start.py             # train what is missing; half an hour on two cores, resumable (``grid``)
    python benchmarks/warm_start.py --time      # seconds of a step of sft and of nft, in turn in one process
    python benchmarks/warm_start.py --collect   # only docs/warm_start.csv and the table in docs/how-to/warm-start.md

``nft`` alone is the cell ``none-tdw`` of ``rules``, whose records are read, not made again.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import rules
from ablation import COLUMNS, FITTED, SUM, Rows, differences, finals, means
from grid import RECIPE, ROOT, Cell, Grid, command_line
from objectives import COMMON, SHOWN, interval_text, paired_seconds
from page_parts import put, seconds_table, table
from records import read_table, write_table

RESULT, PAGE = ROOT / "docs" / "warm_start.csv", ROOT / "docs" / "how-to" / "warm-start.md"
SECONDS = ROOT / "benchmarks" / "results" / "warm_start_seconds.csv"

SFT = (
    "objective={type: sft, levels: {draw: stratified, number: 8}}",
    "rewards={}",
    "advantage={}",
    "sampling={steps: 6, shift: 3.0}",
    "train.lr=2.0e-3",
)
"""The rate is the best of 6e-4, 2e-3 and 5e-3 on the tuning split (docs/log.md)."""
NFT = (*rules.SMALL, SUM, FITTED)
WARM, REST, ALONE = 60, 33, 367
"""Steps of the warm start, of ``nft`` after it, and of ``sft`` alone: each way takes as long as 40 steps of ``nft``, by
the ratio that ``--time`` gave before any was run (a step of ``sft`` costs .109 of one of ``nft``)."""
SEEDS = (0, 1, 2)


def cells() -> Iterator[Cell]:
    """The warm start, ``nft`` on it, and ``sft`` as long as both; only the last step is judged."""
    yield Cell("warm", "warm", (*SFT, *_steps(WARM)), SEEDS)
    base = "policy.base_lora={path: runs/warm_start/warm-seed<seed>, mode: fuse}"
    yield Cell("rest", "warm_nft", (*NFT, *_steps(REST), base), SEEDS)
    yield Cell("rest", "sft", (*SFT, *_steps(ALONE)), SEEDS)


def _steps(number: int) -> tuple[str, str]:
    return f"train.steps={number}", f"train.evaluate_every={number}"


GRID = Grid(
    "warm_start", COMMON, tuple(cells()), frozenset({"advantage", "objective", "sampling", "rewards", "policy"})
)
ALONE_NFT = "nft"


def rows_of() -> tuple[Rows, dict[str, float]]:
    """Final values of every run at this grid's seeds, and the base's means."""
    known, base = finals(rules.GRID)
    alone = {seed: values for seed, values in known["none-tdw"].items() if seed in SEEDS}
    return {ALONE_NFT: alone} | finals(GRID)[0], base


def collect() -> list[dict[str, Any]]:
    """Means of each way, and what each has over ``nft`` alone, paired."""
    rows, base = rows_of()
    result = means(rows, base) + differences(rows, base, lambda name, other: other == ALONE_NFT)
    write_table(RESULT, COLUMNS, result)
    return result


def final_table(result: list[dict[str, Any]]) -> str:
    """Held-out metrics after the last step, and the differences to ``nft`` alone."""
    of = {(row["of"], row.get("over"), row["metric"]): row for row in result}
    told = {
        "base": "base",
        ALONE_NFT: "`nft` alone, 40 steps",
        "warm": f"`sft` alone, {WARM} steps: the warm start",
        "warm_nft": f"`sft`, {WARM} steps, then `nft`, {REST}",
        "sft": f"`sft` alone, {ALONE} steps",
    }
    lines = []
    for name, text in told.items():
        if (name, None, "both") not in of:
            continue
        over = [of.get((name, ALONE_NFT, metric)) for metric in ("identity_accuracy", "prompt_accuracy", "both")]
        shown = [f"{of[name, None, metric]['mean']:.3f}" for metric in SHOWN]
        lines.append([text, *shown, *(interval_text(row, signed=True) if row else "" for row in over)])
    head = ["way", *SHOWN, "identity over `nft` alone", "prompt", "both"]
    return table(head, lines)


def write_page() -> None:
    """The tables of docs/how-to/warm-start.md."""
    text = put(PAGE.read_text(encoding="utf-8"), "warm_start", final_table(collect()))
    PAGE.write_text(
        put(text, "seconds", seconds_table(read_table(SECONDS), "step", "`nft`'s", digits=3)), encoding="utf-8"
    )


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, or time, then write the page."""
    given = command_line(__doc__, GRID.parts, 20).parse_args(arguments)
    if given.time:
        measured = paired_seconds(RECIPE, {"nft": NFT, "sft": SFT}, given.repeats)
        write_table(SECONDS, list(measured[0]), measured)
    elif not given.collect:
        for part in GRID.parts:  # nft begins on finished warm starts
            if given.only in (None, part):
                GRID.run(part, given.workers, given.minutes)
    write_page()
    sys.stdout.write(f"{RESULT.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} are written\n")


if __name__ == "__main__":
    main(sys.argv[1:])
