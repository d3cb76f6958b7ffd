"""Rules on rewards and groups beside SARS and TDW, on the miniature by the fastest setting, at equal rollouts.

    python benchmarks/rules.py                # train what is missing; hours on two cores, resumable (``grid``)
    python benchmarks/rules.py --time         # seconds of an update with each rule, in turn in one process
    python benchmarks/rules.py --regimes      # what SARS adds that static weights don't, in groups of the base
    python benchmarks/rules.py --collect      # only docs/rules.csv and its tables in docs/how-to/hold-identity.md

The setting is ``nft`` with four small updates per rollout. What it has over one update is held against the cells of
``objectives``, whose records are read, not made again.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import objectives
from ablation import COLUMNS, FITTED, STATIC_FRONT, SUM, Rows, differences, finals, means, over_front, sars, static
from grid import RECIPE, ROOT, Cell, Grid, command_line
from objectives import COMMON, SHOWN, interval_text, paired_seconds, save_fronts
from page_parts import put, seconds_table, table
from records import read_table, write_table

RESULT, PAGE = ROOT / "docs" / "rules.csv", ROOT / "docs" / "how-to" / "hold-identity.md"
IMAGE = ROOT / "docs" / "images" / "rules-fronts.png"
SECONDS = ROOT / "benchmarks" / "results" / "rules_seconds.csv"
REGIMES = ROOT / "benchmarks" / "results" / "rules_regimes.csv"

LR = "train.lr=6.0e-4"
SMALL = (*objectives.OBJECTIVES["nft"][:-1], "train.updates_per_rollout=4", LR)
"""Four updates of three samples of every group in place of one of all twelve, at half the rate: by far the furthest of
what was tried at equal rollouts on the tuning split (docs/log.md)."""

SCALED = "scale: {dino: {centre: 75, slope: 0.25}"
RULES = {
    "gate": "{gate: {clip: {by: dino, floor: 75, penalty: 0.8}}}",
    "scale": "{" + SCALED + ", clip: {centre: 80, slope: 0.1}}}",
    "difficulty": "{" + SCALED + "}, difficulty: {reward: dino}}",
    "keep": "{keep: {best: 4, worst: 4}}",
    "spread": "{spread: {clip: {least: 11}}, resample: 1}",
    "whiten": "{whiten: true}",
}
"""Numbers are quantiles of the base's rewards on the *tuning* split, over 32 groups of 12: dino's median is 75 and its
spread in a group 6, clip's quartiles are 63 and 95, and a quarter of the groups have a spread of clip below 11. The
gate takes as much from the prompt's reward of a subject one spread below the floor as two spreads of it."""

ALONE, WITH_TDW = "1to1", "tdw"
WEIGHTS = {ALONE: static(1.0), WITH_TDW: FITTED}
JUDGE = "rewards.dino={type: dino, axis: identity, model: mini-judge}"
"""An identity reward that is mostly the scene, for a strong conflict: correlation -.80 with the prompt's, not -.44."""
SEEDS = (0, 1, 2, 3, 4)


def cells() -> Iterator[Cell]:
    """Static weights and TDW, with and without SARS; every rule with TDW and alone; SARS where it may matter."""
    for weights, own in {**WEIGHTS, "1to3": static(3.0)}.items():
        yield Cell("front", f"none-{weights}", (*SMALL, SUM, own), SEEDS)
    for weights, own in WEIGHTS.items():
        yield Cell("sars", f"sars-{weights}", (*SMALL, sars(0.4), own), SEEDS)
    for rule, text in RULES.items():
        for weights, own in reversed(WEIGHTS.items()):
            yield Cell("rules", f"{rule}-{weights}", (*SMALL, SUM, own, f"advantage.rules={text}"), SEEDS)
    yield Cell("regime", "sars1.6-1to1", (*SMALL, sars(1.6), static(1.0)), SEEDS)
    yield Cell("regime", "conflict-1to1", (*SMALL, SUM, static(1.0), JUDGE), SEEDS)
    yield Cell("regime", "conflict_sars1.6-1to1", (*SMALL, sars(1.6), static(1.0), JUDGE), SEEDS)


GRID = Grid("rules", COMMON, tuple(cells()), frozenset({"advantage", "objective", "sampling", "rewards"}))

FRONTS = {
    STATIC_FRONT: ("none-1to1", "none-1to3"),
    "front of nft": ("nft-1to1", "nft-1to3"),
    "front of grpo": ("grpo-1to1", "grpo-1to3"),
}
"""Ends of static fronts at equal rollouts; the first by the rules' own setting, the others by one large update."""
FRONT = FRONTS[STATIC_FRONT]
KNOWN = ("nft-1to1", "nft-1to3", "nft-tdw", "nft-sars_tdw", "grpo-1to1", "grpo-1to3", "grpo-tdw")


def rows_of() -> tuple[Rows, dict[str, float]]:
    """Final values of every run, those of ``objectives`` first, and the base's means."""
    rows, base = finals(objectives.GRID)
    return {name: rows[name] for name in KNOWN} | finals(GRID)[0], base


def without(name: str) -> str | None:
    """What a cell is held against: the same without its rule or SARS, or with one large update."""
    rule, _, weights = name.partition("-")
    if name in KNOWN or rule == "conflict":
        return None
    if rule == "conflict_sars1.6":
        return "conflict-1to1"
    return f"nft-{weights}" if rule == "none" else f"none-{weights}"


def collect() -> list[dict[str, Any]]:
    """Means of every cell, what it has over the same without its rule, and over static fronts on either axis."""
    rows, base = rows_of()
    result = means(rows, base) + differences(rows, base, lambda name, other: other == without(name))
    for over, front in FRONTS.items():
        for name in rows:
            if set(front) <= set(rows) and name not in front and not name.startswith("conflict"):
                found = over_front(rows, name, front)
                found += over_front(rows, name, front, at="identity_accuracy", metrics=("prompt_accuracy",))
                result += [row | {"over": over} for row in found]
    order = {name: number for number, name in enumerate(["base", *rows])}
    result.sort(key=lambda row: (order[str(row["of"])], row.get("over", ""), row["metric"]))
    write_table(RESULT, COLUMNS, result)
    return result


def best_table(result: list[dict[str, Any]]) -> str:
    """TDW, SARS and small updates over each static front, on either axis at the other's own value."""
    of = {(row["of"], row.get("over"), row["metric"]): row for row in result}
    lines = []
    for name in ("grpo-tdw", "nft-1to1", "nft-tdw", "nft-sars_tdw", "none-1to1", "none-tdw", "sars-tdw"):
        if (name, None, "both") not in of:
            continue
        cells = [f"{of[name, None, metric]['mean']:.3f}" for metric in ("identity_accuracy", "prompt_accuracy")]
        for over, front in FRONTS.items():
            for metric in ("identity_accuracy", "prompt_accuracy"):
                row = of.get((name, over, metric))
                cells.append("on it" if name in front else interval_text(row, signed=True) if row else "")
        lines.append([f"`{name}`", *cells, str(of[name, None, "both"]["seeds"])])
    whose = ("small steps'", "`nft`'s", "`grpo`'s")
    fronts = [f"{axis} over {front}" for front in whose for axis in ("identity", "prompt")]
    return table(["run", "identity", "prompt", *fronts, "seeds"], lines)


def final_table(result: list[dict[str, Any]]) -> str:
    """Held-out metrics after the last step, what the rule changed, and identity over the static front."""
    of = {(row["of"], row.get("over"), row["metric"]): row for row in result}
    lines = [["base", *(f"{of['base', None, metric]['mean']:.3f}" for metric in SHOWN), "", "", "", "", ""]]
    for name in dict.fromkeys(row["of"] for row in result if row["of"] != "base"):
        if name in KNOWN:
            continue
        plain = [of.get((name, without(name), metric)) for metric in ("identity_accuracy", "prompt_accuracy")]
        over = [of.get((name, STATIC_FRONT, metric)) for metric in ("identity_accuracy", "prompt_accuracy")]
        lines.append(
            [
                f"`{name}`",
                *(f"{of[name, None, metric]['mean']:.3f}" for metric in SHOWN),
                *(interval_text(row, signed=True) if row and without(name) else "" for row in plain),
                *("on it" if name in FRONT else interval_text(row, signed=True) if row else "" for row in over),
                str(of[name, None, "both"]["seeds"]),
            ]
        )
    head = [
        "run",
        *SHOWN,
        "identity, rule minus none",
        "prompt",
        "identity over the static front",
        "prompt over it",
        "seeds",
    ]
    return table(head, lines)


GAMMAS = (0.2, 0.4, 0.8, 1.6)
IDENTITY = {
    "cut-out reference": "{type: dino, axis: identity, model: mini, segment: reference}",
    "`dino`, as shipped": "{type: dino, axis: identity, model: mini}",
    "`dino` by patches": "{type: dino, axis: identity, model: mini, features: patches}",
    "mostly the scene": "{type: dino, axis: identity, model: mini-judge}",
}
"""Identity rewards of the miniature, by how much of a leak they pay."""


def regimes(steps: int) -> list[dict[str, Any]]:
    """Correlation of the axes and the nonlinear share of SARS's advantages at each gamma, in groups of the base on the
    tuning split and in groups of normal axes."""
    import torch
    from update import make_trainer

    from customized_grpo.training import metrics

    found = []
    rewards = [f"rewards.{name}={text}" for name, text in zip("abcd", IDENTITY.values(), strict=True)]
    noises = {"a noise of its own": SMALL, "one first noise": ("sampling.shared_noise=true",)}
    for noise, keys in noises.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(metrics, "groups", wraps=metrics.groups) as seen,
        ):
            own = (*keys, "data.split=tune", "train.lr=1e-12", "run.threads=1", *rewards)
            trainer = make_trainer(str(RECIPE), own, Path(folder, "run"))
            for step in range(steps):
                trainer.step(step)
        groups = [group for call in seen.call_args_list for group in call.args[2]]
        # columns: clip, the recipe's dino, then the four of IDENTITY
        found += [
            {"groups": f"{noise}, {name}", **shares([one[:, [0, 2 + number]] for one in groups])}
            for number, name in enumerate(IDENTITY)
        ]
    generator = torch.Generator().manual_seed(0)
    for rho in (-0.8, -0.4, 0.0, 0.4):
        mix = torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]]))
        groups = [torch.randn(12, 2, generator=generator) @ mix.T for _ in range(2000)]
        found.append({"groups": f"normal axes, correlation {rho:g}", **shares(groups)})
    return found


def shares(groups: Sequence[Any]) -> dict[str, float]:
    """Means over groups of (prompt, identity) rewards."""
    import torch

    from customized_grpo.advantages import aggregators
    from customized_grpo.advantages.shaping import advantages_of
    from customized_grpo.training import metrics

    def of(gamma: float) -> list[Any]:
        return [
            advantages_of(
                group,
                torch.tensor([[0.5, 0.5]]),
                axis_of=[0, 1],
                weight_of=[1.0, 1.0],
                aggregator=partial(aggregators.sars, gamma=gamma),
                clip=5.0,
                min_valid=0.5,
            )
            for group in groups
        ]

    found = {"correlation": mean(metrics.correlation(one.axes) for one in of(0.0))}
    return found | {f"gamma_{gamma:g}": mean(metrics.nonlinear_share(one) for one in of(gamma)) for gamma in GAMMAS}


def regimes_table() -> str:
    """Correlation and nonlinear shares of every kind of groups."""
    lines = [
        [row["groups"], f"{row['correlation']:+.2f}", *(f"{row[f'gamma_{gamma:g}']:.2f}" for gamma in GAMMAS)]
        for row in read_table(REGIMES)
    ]
    return table(["groups of 12", "correlation", *(f"gamma {gamma:g}" for gamma in GAMMAS)], lines)


def plot(result: list[dict[str, Any]]) -> None:
    """The plane of prompt and identity: the static front as a line, every cell of three seeds or more as a mark."""
    of = {(row["of"], row["metric"]): row["mean"] for row in result if row.get("over") in (None, "")}
    seeds = {row["of"]: int(row["seeds"]) for row in result if row["metric"] == "both" and "seeds" in row}
    figure, axis = plt.subplots(figsize=(6.6, 4.6), layout="constrained")
    front = [(of[name, "prompt_accuracy"], of[name, "identity_accuracy"]) for name in ("base", *FRONT)]
    axis.plot(*front[0], "k*", ms=11, label="base")
    axis.plot(*zip(*front[1:], strict=True), "o-", color="#777777", label="static weights, four small updates")
    marks = {
        "none": ("D", "#111111", "four small updates"),
        "sars": ("P", "#111111", "SARS"),
        "nft": ("v", "#2b8a3e", "one large update, nft"),
        "grpo": ("<", "#c92a2a", "one large update, grpo"),
    }
    rules = {ALONE: ("^", "#d95f02", "1 : 1 and a rule"), WITH_TDW: ("s", "#3b5bdb", "TDW and a rule")}
    for name in dict.fromkeys(row["of"] for row in result if row["of"] not in {"base", *FRONT}):
        rule, _, weights = name.partition("-")
        if rule.startswith("conflict") or seeds[name] < 3:
            continue  # another reward, no rival; or the mean of one seed, whose place is that seed's
        mark, colour, label = marks.get(rule.removesuffix("1.6")) or rules[weights]
        x, y = of[name, "prompt_accuracy"], of[name, "identity_accuracy"]
        known = axis.get_legend_handles_labels()[1]
        axis.plot(x, y, mark, color=colour, ms=6, label="" if label in known else label)
        axis.annotate(weights if rule in marks else rule, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
    save_fronts(figure, axis, IMAGE)


def write_page() -> None:
    """The tables and the picture of docs/how-to/hold-identity.md."""
    result = collect()
    text = PAGE.read_text(encoding="utf-8")
    text = put(text, "rules", final_table(result))
    text = put(text, "best", best_table(result))
    text = put(text, "seconds", seconds_table(read_table(SECONDS), "rule", "one large update"))
    text = put(text, "regimes", regimes_table())
    PAGE.write_text(text, encoding="utf-8")
    plot(result)


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, or time, then write the page."""
    parser = command_line(__doc__, GRID.parts, 20)
    parser.add_argument("--regimes", action="store_true", help="measure what SARS adds instead of training")
    given = parser.parse_args(arguments)
    if given.time:
        variants = {
            "one large update": (*objectives.OBJECTIVES["nft"], SUM),
            "none": (*SMALL, SUM),
            **{rule: (*SMALL, SUM, f"advantage.rules={text}") for rule, text in RULES.items()},
        }
        measured = paired_seconds(RECIPE, variants, given.repeats)
        write_table(SECONDS, list(measured[0]), measured)
    elif given.regimes:
        write_table(REGIMES, ["groups", "correlation", *(f"gamma_{gamma:g}" for gamma in GAMMAS)], regimes(24))
    elif not given.collect:
        GRID.run(given.only, given.workers, given.minutes)
    write_page()
    sys.stdout.write(f"{RESULT.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} are written\n")


if __name__ == "__main__":
    main(sys.argv[1:])
