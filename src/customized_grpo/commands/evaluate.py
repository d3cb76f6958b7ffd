"""``customized-grpo evaluate``: evaluate a recipe, or compare evaluated runs. Heavy imports are inside."""

import json
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.commands.arguments import Loras, say_undone
from customized_grpo.commands.tables import print_rows
from customized_grpo.console import RANK, bars, hush_libraries, say


def evaluate(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="a recipe's file or name; with --compare the first RUN")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key.sub=value]", help="change any key; with --compare further RUNs"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="compare evaluated runs: evaluate --compare RUN_A RUN_B ...")
    ] = False,
    lora: Loras = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="another base of the same architecture (folder or hub id) to draw with on purpose, as base.model=...",
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option("--out", help="with --compare: a JSON file to write, too")] = None,
) -> None:
    """Generate held-out images by the base, and by an adapter (--lora RUN), score and report them; or compare runs."""
    if compare:
        if lora or base is not None:
            option = "--lora" if lora else "--base"
            raise ValueError(
                f"{option}: it has no effect with --compare, which reads finished evaluations; leave it out"
            )
        return _compare([config, *(overrides or [])], save)
    if save is not None:
        raise ValueError("--out: it goes with --compare; an evaluation writes into run.dir")
    from customized_grpo.recipe.config import EvaluateRecipe
    from customized_grpo.recipe.loading import load_recipe

    options = {"lora": lora, "base": None if base is None else {"model": base}}
    set_by = [f"{key}={json.dumps(value)}" for key, value in options.items() if value]
    given = say_undone([*(overrides or []), *set_by])
    recipe = load_recipe(config, given, EvaluateRecipe)
    from accelerate import PartialState

    from customized_grpo.evaluation.evaluator import evaluate as run

    hush_libraries()
    with bars() as show:
        folder = run(recipe, progress=show)
    # Left at once by all: an interpreter that ends with gloo's threads still running may be aborted by them.
    PartialState().destroy_process_group()
    say(str(folder / "evaluation" / "summary.md"))
    if RANK == 0:
        from customized_grpo.report.write import write_report

        say(str(write_report([folder])))
    return None


def _compare(runs: list[str], save: Path | None) -> None:
    from customized_grpo.evaluation.summary import write_json
    from customized_grpo.report.compare import compare_runs
    from customized_grpo.report.folders import read_runs

    found = compare_runs(read_runs([Path(run) for run in runs]))
    for entry in found:
        rows = [
            (
                name,
                *("–" if value[key] is None else f"{value[key]:+.3f}" for key in ("mean", "low", "high")),
                "–" if value["win_rate"] is None else f"{value['win_rate']:.1%}",
                str(value["n"]),
            )
            for name, value in entry["metrics"].items()
        ]
        columns = ("metric", "difference", "95 % from", "to", "higher in", "n")
        print_rows(f"{entry['of']} − {entry['to']}", columns, rows)
        for note in entry["notes"]:
            say(note)
    if save is not None:
        write_json(save, found)
        say(str(save))
