"""``customized-grpo train``. Heavy imports are inside."""

from customized_grpo.commands.arguments import Config, Overrides
from customized_grpo.commands.cost import say_expected
from customized_grpo.console import hush_libraries, say


def train(config: Config, overrides: Overrides = None) -> None:
    """Train a recipe: roll out, score, shape, update, evaluate. Ctrl-C saves and leaves; run.resume=latest goes on."""
    from customized_grpo.recipe.loading import load_recipe

    recipe = load_recipe(config, overrides or [])
    say_expected(recipe)
    from customized_grpo.training.trainer import train as run

    hush_libraries()
    folder = run(recipe)
    say(f"{folder}\nlook at it: customized-grpo report {folder}")
