"""``customized-grpo schema``. Heavy imports are inside."""

import json
from typing import Annotated

import typer

from customized_grpo.commands.brief import brief


@brief()
def schema(
    evaluation: Annotated[bool, typer.Option("--evaluation", help="of the recipes of 'evaluate'")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    from customized_grpo.recipe.config import EvaluateRecipe, Recipe
    from customized_grpo.recipe.loading import recipe_schema

    typer.echo(json.dumps(recipe_schema(EvaluateRecipe if evaluation else Recipe), indent=2))
