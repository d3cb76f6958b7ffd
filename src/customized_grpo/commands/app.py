"""The command ``customized-grpo``: thin, every heavy import inside the command that needs it.

A mistake of the user (a recipe, a path, a folder) gives one message on stderr and exit code 2, without a traceback;
``CUSTOMIZED_GRPO_TRACEBACK=1`` shows it. On several processes only the main one prints.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from customized_grpo import __version__
from customized_grpo.commands.data import data_app
from customized_grpo.commands.export import export
from customized_grpo.commands.generate import generate
from customized_grpo.commands.memory import MemoryGb, show_memory
from customized_grpo.commands.score import score
from customized_grpo.commands.serve import serve
from customized_grpo.console import RANK, UserErrors, err, hush_libraries, out, say

app = typer.Typer(
    cls=UserErrors,
    name="customized-grpo",
    help="Online reinforcement learning for subject-driven image generation: Customized-GRPO, with SARS and TDW.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app)

Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="a recipe's YAML file, or the name of a shipped one")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key.sub=value]", help="change any key of the recipe")
]
# A value may begin with a dash, and '--key=value' is a habit from other tools.
_FREE: dict[str, Any] = {"ignore_unknown_options": True}


def _version(wanted: bool) -> bool:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Settings of every command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.command(context_settings=_FREE)
def train(config: Config, overrides: Overrides = None) -> None:
    """Train a recipe: roll out, score, shape, update, evaluate. Ctrl-C saves and leaves; run.resume=latest goes on."""
    from customized_grpo.recipe.loading import load_recipe

    recipe = load_recipe(config, overrides or [])
    from customized_grpo.training.trainer import train as run

    hush_libraries()
    folder = run(recipe)
    say(f"{folder}\nlook at it: customized-grpo report {folder}")


@app.command(context_settings=_FREE)
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
    save: Annotated[
        Path | None, typer.Option("--out", help="with --compare: a JSON file to write, too")
    ] = None,
) -> None:
    """Generate held-out images by the base, and by an adapter (lora=RUN), score and report them; or compare runs."""
    if compare:
        return _compare([config, *(overrides or [])], save)
    if save is not None:
        raise ValueError("--out: it goes with --compare; an evaluation writes into run.dir")
    from customized_grpo.recipe.config import EvaluateRecipe
    from customized_grpo.recipe.loading import load_recipe

    recipe = load_recipe(config, overrides or [], EvaluateRecipe)
    from customized_grpo.evaluation.evaluator import evaluate as run

    hush_libraries()
    from rich.progress import Progress

    with Progress(console=err, disable=not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def show(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label)
            bar.update(tasks[label], completed=done, total=total)

        folder = run(recipe, progress=show)
    say(str(folder / "evaluation" / "summary.md"))
    if RANK == 0:
        from customized_grpo.report.write import write_report

        say(str(write_report([folder])))
    return None


def _compare(runs: list[str], save: Path | None) -> None:
    from customized_grpo.evaluation.summary import write_json
    from customized_grpo.report.compare import compare_runs

    found = compare_runs([Path(run) for run in runs])
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
        _print_rows(f"{entry['of']} − {entry['to']}", columns, rows)
        for note in entry["notes"]:
            say(note)
    if save is not None:
        write_json(save, found)
        say(str(save))


app.command()(generate)
app.command(context_settings=_FREE)(score)
app.command(context_settings=_FREE)(serve)
app.command()(export)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="folders of runs; several are compared")],
    page: Annotated[Path | None, typer.Option("--out", help="the HTML file")] = None,
) -> None:
    """Write one self-contained HTML page about one run, or several side by side."""
    from customized_grpo.report.write import write_report

    say(str(write_report(runs, page)))


@app.command(context_settings=_FREE)
def validate(config: Config, overrides: Overrides = None, memory_gb: MemoryGb = None) -> None:
    """Check a recipe, show what a step of it amounts to, and estimate its memory; loads no weights."""
    from customized_grpo.evaluation.costs import announced
    from customized_grpo.recipe.config import Recipe
    from customized_grpo.recipe.loading import is_server, load_any, load_recipe
    from customized_grpo.recipe.server import ServerConfig

    given = overrides or []
    recipe = load_recipe(config, given, ServerConfig) if is_server(config) else load_any(config, given)
    say(f"{config}: a valid recipe", style="green")
    for line in [] if isinstance(recipe, ServerConfig) else announced(recipe):
        say(line)
    if isinstance(recipe, Recipe):
        _show_geometry(recipe)
        if not show_memory(recipe, memory_gb) and memory_gb is not None:
            raise typer.Exit(1)


def _show_geometry(recipe: Any) -> None:
    from customized_grpo.memory.geometry import step_geometry

    world = int(os.environ.get("WORLD_SIZE", "1"))
    g = step_geometry(recipe, world=world, latent_shape=recipe.policy.latent_shape())
    train = recipe.train
    memory = "unknown: the policy doesn't say its latent shape"
    if g.trajectory_bytes is not None:
        memory = f"{g.trajectory_bytes / 2**20:.1f} MiB a process"
    levels = "unknown: the policy doesn't say its latent shape"
    if g.sigmas is not None:
        shown = [f"{sigma:.3f}" for sigma in g.sigmas]
        levels = ", ".join(shown if len(shown) < 8 else [*shown[:3], "...", *shown[-3:]])
    rows = {
        "groups": f"{g.groups} ({g.groups_rank} on each of {world} processes)",
        "samples": f"{g.samples} = {g.groups} groups x {train.group_size}",
        "trained steps": f"K = {len(g.trained)} of T = {g.steps}, for instance {', '.join(map(str, g.trained))}",
        "stochastic steps": f"{len(g.stochastic)} of {g.steps}",
        "noise levels": levels,
        "rollout": f"{g.rollout_forwards} forwards of one sample",
        "replay": f"{g.replay_forwards} forwards and backwards, in {g.backwards_rank} micro-batches a process",
        "base, for the KL": f"{g.reference_forwards} forwards"
        if g.reference_forwards
        else "none (objective.kl is 0)",
        "updates": f"{g.updates} a step, {g.total_updates} in {train.steps} steps",
        "stored trajectories": memory,
        "rewards": ", ".join(f"{name} ({spec.axis})" for name, spec in recipe.rewards.items()),
    }
    _print_rows("One GRPO step", ("", ""), [*rows.items()])
    weights = [(steps, *(f"{value:.2f}" for value in values)) for steps, values in g.weights]
    _print_rows("Time weights", ("sampler steps", "prompt", "identity"), weights)


@app.command()
def plugins(
    kind: Annotated[str | None, typer.Argument(help="show one kind only: rewards, policies, ...")] = None,
) -> None:
    """List every plug-in: built-in, and of other installed packages."""
    from customized_grpo.commands.plugins import KINDS, describe

    if kind is not None and kind not in KINDS:
        raise ValueError(f"KIND: given {kind!r}; allowed: {', '.join(KINDS)}")
    for one in KINDS if kind is None else (kind,):
        rows = [(found.name, found.package, found.purpose, found.options) for found in describe(one)]
        _print_rows(one, ("type", "package", "what it is", "options (defaults)"), rows)


@app.command(context_settings=_FREE)
def doctor(
    config: Annotated[str | None, typer.Argument(help="a training recipe: will it fit?")] = None,
    overrides: Overrides = None,
    memory_gb: MemoryGb = None,
) -> None:
    """Look at Python, libraries, devices, memory, disk and the embedded models, and say what to do."""
    from customized_grpo.commands.doctor import examine
    from customized_grpo.recipe.loading import load_recipe

    recipe = load_recipe(config, overrides or []) if config is not None else None
    findings = examine(Path.cwd())
    _print_rows("", ("", "found", "what to do"), [(f.name, f.value, f.advice) for f in findings])
    fits = recipe is None or show_memory(recipe, memory_gb)
    if not fits or any(finding.advice for finding in findings):
        raise typer.Exit(1)
    out.print("nothing to do", style="green")


@app.command()
def schema(
    evaluation: Annotated[bool, typer.Option("--evaluation", help="of the recipes of 'evaluate'")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    from customized_grpo.recipe.config import EvaluateRecipe, Recipe
    from customized_grpo.recipe.loading import recipe_schema

    typer.echo(json.dumps(recipe_schema(EvaluateRecipe if evaluation else Recipe), indent=2))


@app.command(context_settings=_FREE)
def demo(overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]")] = None) -> None:
    """Train the embedded miniature in a new folder runs/demo and write its report: minutes on a laptop."""
    from customized_grpo.recipe.loading import load_recipe

    taken = (Path("runs") / name for name in ("demo", *(f"demo-{n}" for n in range(2, 10_000))))
    folder = next(path for path in taken if not path.exists())
    recipe = load_recipe("mini_customized", [f"run.dir={folder}", *(overrides or [])])
    from customized_grpo.report.write import write_report
    from customized_grpo.training.trainer import train as run

    hush_libraries()
    say(f"training the embedded miniature into {recipe.run.dir}", on=err)
    page = write_report([run(recipe)], None)
    say(f"open {page} in a browser", style="green")


def _print_rows(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(title=title or None, title_justify="left", show_header=any(columns))
    for position, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    out.print(table)
