"""``customized-grpo data split``. Heavy imports are inside."""

from typing import Annotated, Literal

import typer

from customized_grpo.commands.arguments import Manifest, quoted, say_next
from customized_grpo.console import err, say


def split(
    manifest: Manifest,
    share: Annotated[float, typer.Option(help="share of the rows to hold out")] = 0.1,
    hold_out: Annotated[
        list[str] | None, typer.Option(help="hold out this subject, class or prompt; may be given several times")
    ] = None,
    by: Annotated[
        Literal["individual", "class", "prompt"],
        typer.Option(help="extra.subject_id; the class word as well; or prompts, where there is one subject"),
    ] = "individual",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Hold subjects out: no individual and no picture is in both parts; or prompts of one subject."""
    from customized_grpo.prepare.split import split_manifest, split_of

    for earlier in split_of(manifest):
        if earlier.exists():
            say(f"{earlier} was there, and is replaced", style="yellow", on=err)
    train, test = split_manifest(manifest, share=share, names=hold_out or [], by=by, seed=seed)
    what, rows = "prompts" if by == "prompt" else "subjects", train.rows + test.rows
    for part in (train, test):
        say(f"{part.path}: {part.rows:,} rows of {part.groups:,} {what}, {part.rows / rows:.0%}")
    if not hold_out and abs(test.rows / rows - share) > 0.02:
        say(f"--share {share:g} was asked for, and {test.rows / rows:.2f} is the nearest of whole {what}", on=err)
    parts = f"data.path={quoted(train.path)} evaluate.data.path={quoted(test.path)}"
    say_next(f"validate one_gpu_24gb {parts}", "time, memory and disk of a run; or another recipe")
