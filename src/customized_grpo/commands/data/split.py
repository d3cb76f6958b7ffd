"""``customized-grpo data split``. Heavy imports are inside."""

from typing import Annotated, Literal

import typer

from customized_grpo.commands.arguments import Manifest
from customized_grpo.console import say


def split(
    manifest: Manifest,
    share: Annotated[float, typer.Option(help="share of the rows to hold out")] = 0.1,
    hold_out: Annotated[
        list[str] | None, typer.Option(help="hold out this subject; may be given several times")
    ] = None,
    by: Annotated[
        Literal["individual", "class"], typer.Option(help="extra.subject_id, or the class word as well")
    ] = "individual",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Hold subjects out: no individual and no picture is in both parts."""
    from customized_grpo.prepare.split import split_manifest

    for part in split_manifest(manifest, share=share, names=hold_out or [], by=by, seed=seed):
        say(f"{part.path}: {part.rows:,} rows of {part.groups:,} subjects")
