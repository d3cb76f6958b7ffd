"""``customized-grpo data download``. Heavy imports are inside."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from customized_grpo.commands.arguments import quoted, say_next
from customized_grpo.console import err, say

_IMPORTERS: Final = {
    "dreambench": ("dreambench", ""),
    "dreambench++": ("dreambench++", "data.zip"),
    "nupurkmr9/syncd": ("syncd", ""),
    "Yuanshi/Subjects200K": ("subjects200k", ""),
}
"""Importer of a set, and what of its folder is the source."""


def download(
    name: Annotated[str, typer.Argument(metavar="SET", help="dreambench, dreambench++, or a data set's hub id")],
    folder: Annotated[Path, typer.Option("--out", help="the folder to download to")],
    include: Annotated[
        list[str] | None, typer.Option(help="only paths like this pattern; may be given several times")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="commit or tag on the hub")] = None,
    dry_run: Annotated[bool, typer.Option(help="say what would be downloaded, and how much")] = False,
) -> None:
    """Download a data set: resumed where it broke off, every file checked by size and checksum."""
    from customized_grpo.prepare.download import download as fetch
    from customized_grpo.prepare.download import listing

    files, licence = listing(name, include or [], revision)
    total = sum(file.size for file in files)
    told = f"{len(files):,} files, {total / 1e6:,.1f} MB; licence: {licence}"
    say(told, on=err)
    if dry_run:
        for file in files:
            say(f"{file.size:>14,}  {file.name}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=total)
        fetched = fetch(files, folder, lambda one, size: bar.update(task, advance=size, description=one[-40:]))
    say(f"{folder}: {fetched:,} files fetched, all {len(files):,} checked")
    kind, inner = _IMPORTERS.get(name, ("hub", ""))
    to = Path("data") / folder.name
    say_next(f"data import {kind} {quoted(folder / inner)} --out {quoted(to)}", "make a manifest of it")
