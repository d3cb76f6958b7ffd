"""``customized-grpo data pairs``. Heavy imports are inside."""

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.commands.arguments import Manifest, quoted, say_next
from customized_grpo.console import err, say


def pairs(
    manifest: Manifest,
    scores: Annotated[Path, typer.Option(help="a table of customized-grpo score --out, or of people's votes")],
    images: Annotated[Path, typer.Option(help="the folder of pictures that was scored; inside the manifest's folder")],
    by: Annotated[list[str], typer.Option(help="a column, higher is better; of several the chosen is better on all")],
    out: Annotated[Path, typer.Option(help="the new manifest, beside the old one")],
) -> None:
    """Rank pictures by scores: a manifest with chosen and rejected, which customized-grpo dpo learns from."""
    from customized_grpo.prepare.pairs import write_pairs

    made = write_pairs(manifest, scores, images, by, out)
    say(f"{made.path}: {made.pairs:,} pairs")
    if made.unranked:
        shown = ", ".join(made.unranked[:3]) + (", ..." if len(made.unranked) > 3 else "")
        say(f"left out, as no picture is better than another on all columns: {len(made.unranked):,} ({shown})", on=err)
    say_next(f"dpo one_gpu_24gb data.path={quoted(made.path)}", "learn from them; or another recipe")
