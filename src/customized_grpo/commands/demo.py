"""``customized-grpo demo``: a training of the embedded miniature. Heavy imports are inside."""

from pathlib import Path

from customized_grpo.commands.arguments import Overrides
from customized_grpo.commands.train import run_or_leave
from customized_grpo.console import err, say


def demo(overrides: Overrides = None) -> None:
    """Train the embedded miniature in a new folder runs/demo and write its report: minutes on a laptop."""
    from customized_grpo.recipe.loading import load_recipe

    taken = (Path("runs") / name for name in ("demo", *(f"demo-{n}" for n in range(2, 10_000))))
    folder = next(path for path in taken if not path.exists())
    recipe = load_recipe("mini_customized", [f"run.dir={folder}", *(overrides or [])])
    from customized_grpo.report.write import write_report

    say(f"training the embedded miniature into {recipe.run.dir}", on=err)
    page = write_report([run_or_leave(recipe)], None)
    say(f"open {page} in a browser", style="green")
