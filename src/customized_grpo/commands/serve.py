"""``customized-grpo serve``: the command around ``serve``. Heavy imports are inside."""

from importlib.util import find_spec
from typing import Annotated

import typer

from customized_grpo.commands.arguments import Overrides
from customized_grpo.console import say


def serve(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="a server's YAML file, or the name of a shipped one")],
    overrides: Overrides = None,
) -> None:
    """Serve rewards over HTTP from a GPU or machine of their own; recipes use them by type: remote."""
    from customized_grpo.recipe.loading import find_recipe, load_recipe
    from customized_grpo.recipe.server import ServerConfig
    from customized_grpo.recipe.yaml_source import read_yaml

    given = {"policy", "train", "evaluate"} & read_yaml(find_recipe(config))[0].keys()
    if given:
        raise ValueError(
            f"{config}: has the section {min(given)!r} of a run; serve takes a configuration of rewards, such as the "
            "shipped 'hpsv3' (docs/how-to/reward-server.md)"
        )
    settings = load_recipe(config, overrides or [], ServerConfig)
    if find_spec("litserve") is None:
        raise ValueError("serving needs LitServe: pip install 'customized-grpo[serve]'")
    from customized_grpo.serve.server import serve as run

    run(settings, say)
