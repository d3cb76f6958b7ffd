"""``customized-grpo studio``: the command around ``studio``. Heavy imports are inside."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.console import hush_libraries, say

if TYPE_CHECKING:
    from fastapi import FastAPI


def studio(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="folders of runs, finished or in training; none: the base alone"),
    ] = None,
    config: Annotated[
        str, typer.Option(help="without a RUN: the recipe whose base draws; a recipe's file or name")
    ] = "mini_customized",
    host: Annotated[
        str, typer.Option(help="address to listen at; another than this machine's own takes a token, which is printed")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 7860,
) -> None:
    """Open a local page: draw by base and tuned side by side, watch a training, compare runs blind."""
    if find_spec("gradio") is None:
        raise ValueError("the studio needs Gradio: pip install 'customized-grpo[studio]'")
    from customized_grpo.recipe.loading import run_config
    from customized_grpo.report.folders import named
    from customized_grpo.studio.artist import BASE, Artist
    from customized_grpo.studio.data import dataset_of, examples_of
    from customized_grpo.studio.page import mount
    from customized_grpo.studio.parts import Studio
    from customized_grpo.studio.scores import Scores
    from customized_grpo.studio.server import serve

    hush_libraries()
    given = named(runs or [], taken=BASE)
    first = next(iter(given.values()), None)
    artist = Artist(config if first is None else run_config(first), given)
    scores = Scores(artist.recipe, artist.device)
    dataset, no_data = dataset_of(artist.recipe)
    examples = examples_of(dataset, 8)

    def make(app: "FastAPI", uploads: Path) -> "FastAPI":
        folder = Path("runs" if first is None else first) / "studio"
        return mount(app, Studio(artist, scores, folder, uploads, dataset, no_data, examples))

    try:
        serve(make, host, port, say)
    finally:
        scores.close()
