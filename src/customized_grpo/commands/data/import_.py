"""``customized-grpo data import``. Heavy imports are inside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from customized_grpo.commands.arguments import Workers, quoted, say_next, say_undone
from customized_grpo.commands.tables import PAIR, print_rows, show_prompts
from customized_grpo.console import err, say

if TYPE_CHECKING:
    from customized_grpo.prepare.importers.base import Importer
    from customized_grpo.prepare.importers.report import Report

_NAMED: Final = 10
"""Pictures that can't be used and are named on the screen; ``import.json`` has all."""


def import_(
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="the source's layout: see 'plugins importers'")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="a folder, a file, or a hub id")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[key=value]", help="options of the importer")] = None,
    folder: Annotated[Path, typer.Option("--out", help="the folder to write manifest.jsonl to")] = Path("data"),
    images: Annotated[
        Literal["link", "copy"],
        typer.Option(help="use the images where they are, or copy them as PNG without metadata"),
    ] = "link",
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="read every pixel, or the heads of files only")
    ] = True,
    noisy: Annotated[Literal["keep", "drop"], typer.Option(help="rows whose prompt looks noisy")] = "keep",
    limit: Annotated[int | None, typer.Option(min=1, help="stop after so many rows")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a manifest that is there")] = False,
    workers: Workers = None,
) -> None:
    """Make a manifest of a data set. What can't be used is listed in rejected.jsonl, and never stops the rest."""
    importer = _importer(kind, say_undone(options))
    from customized_grpo.prepare.importers.writer import MANIFEST, REJECTED, Options, import_data
    from customized_grpo.prepare.inspection import default_workers
    from customized_grpo.prepare.split import split_of

    wanted = Options(
        images=images,
        decode=decode,
        noisy=noisy,
        limit=limit,
        workers=workers or default_workers(),
        overwrite=overwrite,
    )
    with err.status("reading") as status:

        def show(report: "Report") -> None:
            status.update(f"{report.rows:,} rows, {report.rejected:,} rejected, {report.images:,} images")

        report = import_data(importer, source, folder, wanted, show)
    for part in split_of(folder / MANIFEST):
        if part.exists():  # recipes would go on reading it
            part.unlink()
            say(f"{part}: was split from the manifest before, and is removed; split again", style="yellow", on=err)
    _show_import(report)
    if report.rejected or report.masks_dropped or report.views_dropped:
        say(f"what was left out, and why: {folder / REJECTED}")
    say(str(folder / MANIFEST))
    say_next(f"data check {quoted(folder)}", "what is doubtful, and a contact sheet")


def _importer(kind: str, options: list[str]) -> "Importer":
    from customized_grpo import registry
    from customized_grpo.recipe.loading import recipe_of

    if wrong := next((option for option in options if "=" not in option), None):
        raise ValueError(f"option {wrong!r}: write it as key=value, for example pairs=one")
    made: Importer = recipe_of({"type": kind}, options, registry.resolve("importers", kind))
    return made


def _show_import(report: "Report") -> None:
    rows = [("rows", f"{report.rows:,}"), ("distinct images", f"{report.images:,}")]
    for reason, count in report.skipped.items():
        rows.append((f"left out: {reason}", f"{count:,}{_named(report.examples.get(reason, []), count)}"))
    rows += [("rejected", f"{report.rejected:,}")] if report.rejected else []
    rows += [(f"  {kind}", f"{count:,}") for kind, count in report.problems.items()]
    rows += [("masks dropped", f"{report.masks_dropped:,}")] if report.masks_dropped else []
    rows += [("views dropped", f"{report.views_dropped:,}")] if report.views_dropped else []
    print_rows("import", PAIR, rows)
    lost = list(report.lost.items())
    for what, cost in lost[:_NAMED]:
        say(f"left out: {what} ({cost})", style="yellow")
    if len(lost) > _NAMED:
        say(f"left out: {len(lost) - _NAMED:,} more pictures", style="yellow")
    for kind in (*report.problems, "mask", "view"):
        for line in report.examples.get(kind, []):
            if not any(what in line for what in report.lost):
                say(f"left out: {line}", style="yellow")
    if report.subjects:
        more = report.num_subjects - len(report.subjects)
        lines = [
            (one.name, one.word or "none", f"{one.photos:,}", f"{one.rows:,}", one.prompt) for one in report.subjects
        ]
        lines += [(f"and {more:,} more", "", "", "", "")] if more else []
        print_rows("subjects", ("subject", "class word", "photos", "rows", "a prompt"), lines)
    for remark in report.remarks:
        say(remark)
    show_prompts(report.prompts, report.rows)


def _named(names: list[str], count: int) -> str:
    return f" ({', '.join(names)}{', ...' if count > len(names) else ''})" if names else ""
