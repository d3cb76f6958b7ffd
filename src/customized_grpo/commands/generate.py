"""``customized-grpo generate``: images of one reference set and one prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.commands.arguments import Balance, Loras
from customized_grpo.console import err, hush_libraries, say

if TYPE_CHECKING:
    from customized_grpo.recipe.config import EvaluateRecipe, Recipe

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def generate(
    prompt: Annotated[str, typer.Option(help="what to draw")],
    out_file: Annotated[
        Path, typer.Option("--out", help="the PNG to write; several get -0, -1, ... before the suffix")
    ],
    reference: Annotated[
        list[Path] | None, typer.Option(help="an image of the subject; may be given several times")
    ] = None,
    lora: Loras = None,
    config: Annotated[
        str | None, typer.Option(help="recipe that says the policy; by default the run's own config.yaml")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="sampler steps; by default the recipe's")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    num: Annotated[int, typer.Option(min=1, help="images, each of its own noise")] = 1,
    height: Annotated[int | None, typer.Option(min=1, help="of the images, in pixels; by default the recipe's")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="of the images, in pixels; by default the recipe's")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, help="how strongly the prompt is followed; by default the recipe's")
    ] = None,
    balance: Balance = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="another base of the same architecture (folder or hub id) to draw with on purpose, such as the "
            "distilled one of the base that was trained",
        ),
    ] = None,
    base_revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="branch, tag or commit of a --base from the hub")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="write this picture too: references, base and tuned, in rows under each other")
    ] = None,
) -> None:
    """Draw images with a trained adapter; without one as a recipe's training starts: base, and policy.lora.path."""
    from customized_grpo.data.images import load_image
    from customized_grpo.data.prompts import prompt_problems
    from customized_grpo.recipe.loading import load_any

    references = [load_image(path) for path in reference or ()]
    for option, path in {"--out": out_file, "--grid": grid}.items():
        if path is not None and path.suffix.lower() not in _ENDINGS:
            raise ValueError(f"{option}: given {str(path)!r}; end it in .png, .jpg or .webp")
    if not prompt.strip():
        raise ValueError("--prompt: it is empty; say what to draw")
    if "prompt-syntax" in prompt_problems(prompt):
        say(f"--prompt: {prompt!r} has signs of a web interface's syntax; they are drawn as words", on=err)
    if config is not None:
        recipe = load_any(config)
        start = recipe.policy.full or recipe.policy.lora
        if lora and start is not None and start.path is not None:
            say(f"--lora: it is drawn alone, without {start.path!r}, which the recipe's training starts from", on=err)
    elif lora:
        recipe = _recipe_of(lora)
    else:
        raise ValueError("--lora: missing; give a run or an adapter, or --config RECIPE to draw with its base")
    from customized_grpo.memory.needs import need_gpu
    from customized_grpo.recipe.config import Base
    from customized_grpo.sampling.draw import draw

    hush_libraries()
    need_gpu(recipe)
    if base is None and base_revision is not None:
        raise ValueError(f"--base-revision: given {base_revision!r} without --base, which it belongs to")
    other = None if base is None else Base(model=base, revision=base_revision)
    for file in draw(
        recipe,
        lora,
        references,
        prompt,
        out_file,
        steps=steps,
        seed=seed,
        num=num,
        grid=grid,
        base=other,
        balance=balance,
        height=height,
        width=width,
        guidance=guidance,
    ):
        say(str(file))


def _recipe_of(loras: list[str]) -> "Recipe | EvaluateRecipe":
    """The recipe of the one run that LoRAs are of; of several runs, and of none, it must be said.

    It stands in the run's config.yaml; of a file that was taken out of its run, in its header.
    """
    from customized_grpo.policies.adapters.lora_names import family_of
    from customized_grpo.policies.adapters.lora_reader import LoraFile
    from customized_grpo.policies.adapters.tuning import read_all, with_scale
    from customized_grpo.policies.hub_files import is_hub_id
    from customized_grpo.publish.fetched import carried_recipe, published_config
    from customized_grpo.recipe.loading import RecipeError, load_any, run_config

    found: dict[Path, str] = {}
    refused: list[RecipeError] = []
    for text in loras:
        where = with_scale(text)[0]
        try:
            found[published_config(where) if is_hub_id(where) and not Path(where).exists() else run_config(where)] = (
                text
            )
        except RecipeError as error:
            refused.append(error)
    if len(found) > 1:
        raise ValueError(f"--lora: {' and '.join(found.values())} are of different runs; say by --config which policy")
    if found:
        return load_any(next(iter(found)))
    carried = carried_recipe(with_scale(loras[0])[0]) if len(loras) == 1 else None
    if carried is None:
        # a file that can't be read is said first, and one that can by the names of its layers
        files = [text for text in loras if Path(with_scale(text)[0]).is_file()]
        families = {family_of(one.tuned.factors) for one in read_all(files) if isinstance(one.tuned, LoraFile)} - {None}
        told = f" (a LoRA of {' and '.join(sorted(map(str, families)))}, by its layers' names)" if families else ""
        raise RecipeError(f"{refused[0]}{told}")
    return carried
