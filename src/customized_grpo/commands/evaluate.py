"""``customized-grpo evaluate``: evaluate a recipe, or compare evaluated runs. Heavy imports are inside."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.commands.arguments import Loras, say_undone
from customized_grpo.commands.cost import drawing_of, num_held_out
from customized_grpo.commands.tables import print_rows
from customized_grpo.console import RANK, bars, err, hush_libraries, say

if TYPE_CHECKING:
    from customized_grpo.recipe.config import EvaluateRecipe


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
    balances: Annotated[
        str | None,
        typer.Option(
            metavar="B,B,...",
            help="evaluate a balanced adapter at several b in [-1, 1], as in --balances=-1,-0.5,0,0.5,1, each in a "
            "folder of its own in run.dir, and report them together",
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option("--out", help="with --compare: a JSON file to write, too")] = None,
) -> None:
    """Generate held-out images by the base, and by an adapter (--lora RUN), score and report them; or compare runs."""
    if compare:
        if lora or base is not None or balances is not None:
            option = "--lora" if lora else "--base" if base is not None else "--balances"
            raise ValueError(
                f"{option}: it has no effect with --compare, which reads finished evaluations; leave it out"
            )
        return _compare([config, *(overrides or [])], save)
    if save is not None:
        raise ValueError("--out: it goes with --compare; an evaluation writes into run.dir")
    from customized_grpo.memory.needs import need_gpu
    from customized_grpo.recipe.config import EvaluateRecipe
    from customized_grpo.recipe.loading import load_recipe

    options = {"lora": lora, "base": None if base is None else {"model": base}}
    set_by = [f"{key}={json.dumps(value)}" for key, value in options.items() if value]
    given = say_undone([*(overrides or []), *set_by])
    recipe = load_recipe(config, given, EvaluateRecipe)
    need_gpu(recipe)
    recipes = [recipe] if balances is None else at_balances(recipe, balances)
    from accelerate import PartialState

    from customized_grpo.evaluation.evaluator import evaluate as run
    from customized_grpo.policies.adapters import tuning

    hush_libraries()
    folders: list[Path] = []
    tuning.read_all(recipe.lora or [], recipes[0].balance)  # what is wrong with it is said first
    for one in recipes:
        for name, text in drawing_of(one, num_held_out(one.evaluate)).items():
            say(f"{name}: {text}", on=err)
        if folders:
            lend(folders[0], Path(one.run.dir))
            PartialState().wait_for_everyone()
        with bars() as show:
            folders.append(run(one, progress=show))
        say(str(folders[-1] / "evaluation" / "summary.md"))
    # Left at once by all: an interpreter that ends with gloo's threads still running may be aborted by them.
    PartialState().destroy_process_group()
    if RANK == 0:
        from customized_grpo.report.write import write_report

        say(str(write_report(folders)))
    return None


def at_balances(recipe: "EvaluateRecipe", text: str) -> "list[EvaluateRecipe]":
    """The recipe at each b of a comma-separated list, in a folder of its own.

    Raises:
        ValueError: no number, one outside of [-1, 1], or one that is there twice.
    """
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--balances: given {text!r}; give numbers in [-1, 1], as in --balances=-1,0,1") from error
    if len(set(found)) < len(found) or not all(-1 <= one <= 1 for one in found):
        raise ValueError(f"--balances: given {text!r}; allowed: numbers from -1 to 1, each once")
    if not recipe.lora:
        raise ValueError("--balances: they are of a balanced adapter, and none is given; give --lora")
    base = Path(recipe.run.dir)
    runs = [recipe.run.model_copy(update={"dir": str(base / f"balance{b:+g}")}) for b in found]
    return [recipe.model_copy(update={"balance": b, "run": run}) for b, run in zip(found, runs, strict=True)]


def lend(earlier: Path, folder: Path) -> None:
    """Copy an evaluation's rows but its adapter's, by the main process; another keeps what stands on the same."""
    if RANK == 0 and not (folder / "evaluation").exists():
        own = shutil.ignore_patterns("tuned*", "summary*")
        shutil.copytree(earlier / "evaluation", folder / "evaluation", ignore=own)


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
