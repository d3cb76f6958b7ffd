"""``customized-grpo train``. Heavy imports are inside."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from customized_grpo.commands.arguments import Config, Overrides
from customized_grpo.commands.cost import say_expected, steps_in
from customized_grpo.console import err, hush_libraries, say
from customized_grpo.identity.runs import goes_on

if TYPE_CHECKING:
    from customized_grpo.recipe.config import Recipe


def train(config: Config, overrides: Overrides = None) -> None:
    """Train a recipe: roll out, score, shape, update, evaluate. Ctrl-C saves and leaves; run.resume=latest goes on."""
    from customized_grpo.recipe.loading import load_recipe

    run_to_end(load_recipe(config, overrides or []))


def run_to_end(recipe: "Recipe") -> Path:
    """Train a recipe, from what it is expected to take to what can be done next; gives the run's folder."""
    say_expected(recipe)
    folder = run_or_leave(recipe)
    from customized_grpo.training.resumable import more_steps

    say(f"{folder}\nlook at it: customized-grpo report {folder}")
    if (done := steps_in(folder)) >= recipe.train.steps:
        say(more_steps(recipe, done))
    return folder


def run_or_leave(recipe: "Recipe") -> Path:
    """Train a recipe; where it is interrupted at once, say how it goes on, and exit with 130."""
    from customized_grpo.training.trainer import train as run

    hush_libraries()
    try:
        return run(recipe)
    except KeyboardInterrupt:
        say(left(Path(recipe.run.dir)), style="yellow", on=err)
        raise typer.Exit(130) from None


def left(folder: Path) -> str:
    """What is said where a second Ctrl-C, or one while a run was loading, ended it at once."""
    if done := steps_in(folder):
        return f"stopped; its checkpoint of step {done} is whole, go on by: {goes_on(folder)}"
    return "stopped before its first checkpoint; the same command begins again" + (
        f", or: {goes_on(folder)}" if (folder / "config.yaml").is_file() else ""
    )
