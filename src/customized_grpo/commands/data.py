"""``customized-grpo data``: download, import, check and split data sets. Heavy imports are inside the commands."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from customized_grpo.commands.cache import cache
from customized_grpo.commands.masks import masks
from customized_grpo.console import err, out, say

if TYPE_CHECKING:
    from customized_grpo.prepare.check import Check
    from customized_grpo.prepare.importers.base import Importer
    from customized_grpo.prepare.importers.writer import Report

data_app = typer.Typer(
    name="data",
    help="Download, import, check and split data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
data_app.command()(masks)
data_app.command(context_settings={"ignore_unknown_options": True})(cache)
Workers = Annotated[int | None, typer.Option(min=1, help="processes that read images; by default one a core")]


@data_app.command("import", context_settings={"ignore_unknown_options": True})
def import_(
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="the source's layout: see 'plugins importers'")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="a folder, a file, or a hub id")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]", help="options of the importer")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="the folder to write manifest.jsonl to")] = Path(
        "data"
    ),
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
    importer = _importer(kind, options or [])
    from customized_grpo.prepare.importers.writer import MANIFEST, REJECTED, Options, import_data
    from customized_grpo.prepare.inspection import default_workers

    wanted = Options(
        images=images,
        decode=decode,
        noisy=noisy,
        limit=limit,
        workers=workers or default_workers(),
        overwrite=overwrite,
    )
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=err, disable=not err.is_terminal, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("reading")

        def show(report: "Report") -> None:
            text = f"{report.rows:,} rows, {report.rejected:,} rejected, {report.images:,} images"
            bar.update(task, description=text)

        report = import_data(importer, source, folder, wanted, show)
    _show_import(report)
    if report.rejected or report.masks_dropped:
        say(f"what was left out, and why: {folder / REJECTED}")
    say(f"{folder / MANIFEST}\nlook at it: customized-grpo data check {folder}")


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="the .jsonl file, or the folder of manifest.jsonl")],
    sheet: Annotated[
        Path | None, typer.Option(help="the contact sheet; by default contact_sheet.jpg beside the manifest")
    ] = None,
    cards: Annotated[int, typer.Option(min=1, max=400, help="rows on the contact sheet")] = 24,
    facts: Annotated[Path | None, typer.Option("--json", help="write the findings there, too")] = None,
    usable: Annotated[
        Path | None, typer.Option(help="write the usable lines to this file in the manifest's folder")
    ] = None,
    workers: Workers = None,
) -> None:
    """Read every image, report what is broken, doubtful or twice, draw a contact sheet; exit code 1 if one is bad."""
    from customized_grpo.prepare.check import check_manifest, write_usable
    from customized_grpo.prepare.inspection import default_workers
    from customized_grpo.prepare.sheet import contact_sheet

    path = _manifest_in(manifest)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("images")
        report, rows, seen = check_manifest(
            path,
            workers=workers or default_workers(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _show_check(report)
    sheet = sheet or path.parent / "contact_sheet.jpg"
    subtitle = f"{report.rows:,} rows, {report.subjects:,} subjects, {report.images:,} images"
    subtitle += f", {len(report.broken):,} broken files" if report.broken else ""
    contact_sheet(sheet, rows, seen, path.parent, title=str(path), subtitle=subtitle, num=cards)
    if facts is not None:
        found = asdict(report) | {"usable": len(report.usable), "ok": report.ok}
        facts.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if usable is not None:
        write_usable(path, report.usable, usable)
        say(f"{len(report.usable):,} usable rows: {usable}")
    say(f"contact sheet: {sheet}")
    if not report.ok:
        raise typer.Exit(1)


@data_app.command()
def split(
    manifest: Annotated[Path, typer.Argument(help="the .jsonl file, or the folder of manifest.jsonl")],
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

    done = split_manifest(_manifest_in(manifest), share=share, names=hold_out or [], by=by, seed=seed)
    for path, rows, groups in (
        (done.train, done.train_rows, done.train_groups),
        (done.test, done.test_rows, done.test_groups),
    ):
        say(f"{path}: {rows:,} rows of {groups:,} subjects")


@data_app.command()
def download(
    name: Annotated[
        str, typer.Argument(metavar="SET", help="dreambench, dreambench++, or a data set's hub id")
    ],
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
        fetched = fetch(
            files, folder, lambda one, size: bar.update(task, advance=size, description=one[-40:])
        )
    say(f"{folder}: {fetched:,} files fetched, all {len(files):,} checked")


def _manifest_in(path: Path) -> Path:
    return path / "manifest.jsonl" if path.is_dir() else path


def _importer(kind: str, options: list[str]) -> "Importer":
    import yaml
    from pydantic import ValidationError

    from customized_grpo import registry
    from customized_grpo.recipe.problems import RecipeError, dotted, explain

    model: Any = registry.resolve("importers", kind)
    data: dict[str, Any] = {"type": kind}
    for option in options:
        key, equals, value = option.removeprefix("--").partition("=")
        if not equals or not key:
            raise ValueError(f"option {option!r}: write it as key=value, for example pairs=one")
        try:
            data[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"option {option!r}: {value!r} is no YAML value") from error
    try:
        made: Importer = model.model_validate(data)
    except ValidationError as error:
        told = (explain(one, model, data) for one in error.errors(include_url=False))
        raise RecipeError("\n".join(f"{kind}: {dotted(place)}{text}" for place, text in told)) from error
    return made


def _show_import(report: "Report") -> None:
    rows = [("rows", f"{report.rows:,}"), ("distinct images", f"{report.images:,}")]
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in report.skipped.items()]
    rows += [("rejected", f"{report.rejected:,}")] if report.rejected else []
    rows += [(f"  {kind}", f"{count:,}") for kind, count in report.problems.items()]
    rows += [("masks dropped", f"{report.masks_dropped:,}")] if report.masks_dropped else []
    _print("import", rows)
    _show_prompts(report.prompts, report.rows)


def _show_check(report: "Check") -> None:
    counts = [("rows", f"{report.rows:,}"), ("subjects", f"{report.subjects:,}")]
    counts += [
        (f"rows with {n} reference{'s' * (n > 1)}", f"{count:,}") for n, count in report.references.items()
    ]
    counts += [("rows with a target", f"{report.targets:,}"), ("distinct images", f"{report.images:,}")]
    if report.sizes is not None:
        sizes = report.sizes
        for name, (width, height) in (
            ("smallest", sizes.smallest),
            ("median", sizes.median),
            ("largest", sizes.largest),
        ):
            counts.append((f"  {name}", f"{width} x {height}"))
        counts += [("  square", f"{sizes.square:,}"), ("  shorter side below 256", f"{sizes.small:,}")]
    counts += [("masks", f"{report.masks:,}")]
    counts += [(f"  {name}", f"{count:,}") for name, count in report.masks_doubtful.items() if count]
    _print("what there is", counts)
    _show_prompts(report.prompts, report.rows)
    _list("lines that can't be read", report.bad_lines)
    _list("broken files", [f"{one.path}: {one.reason} ({one.rows} rows)" for one in report.broken])
    _list("masks of another shape", report.mask_problems)
    _list("equal pictures in several files", [", ".join(names) for names in report.same_pictures])
    _list("rows with equal prompt and images", [", ".join(names) for names in report.same_rows])
    _list("rows whose target is their reference", report.copies)
    style = "green" if report.ok else "red"
    out.print(
        f"{len(report.usable):,} of {report.rows + len(report.bad_lines):,} rows can be used", style=style
    )


def _show_prompts(prompts: Any, rows: int) -> None:
    if prompts is None or not rows:
        return
    lines = [
        ("words", f"{prompts.mean_words:.1f} on average, {prompts.max_words} at most"),
        ("noisy", f"{prompts.noisy:,} of {rows:,}"),
    ]
    for name, count in prompts.problems.items():
        lines.append((f"  {name}", f"{count:,}, for instance {prompts.examples[name][0][:100]!r}"))
    _print("prompts", lines)


def _list(title: str, lines: list[str], most: int = 10) -> None:
    if lines:
        more = [f"... and {len(lines) - most:,} more (--json FILE writes all)"] if len(lines) > most else []
        _print(f"{title}: {len(lines):,}", [("", line) for line in (*lines[:most], *more)])


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    out.print(table)
