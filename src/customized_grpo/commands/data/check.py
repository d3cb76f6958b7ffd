"""``customized-grpo data check``. Heavy imports are inside."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.commands.arguments import Manifest, Workers, quoted, say_next
from customized_grpo.commands.brief import brief
from customized_grpo.commands.tables import PAIR, print_rows, show_prompts
from customized_grpo.console import bars, out, say

if TYPE_CHECKING:
    from customized_grpo.conditioning.outlines import Outline
    from customized_grpo.conditioning.precheck import Findings
    from customized_grpo.prepare.check import Broken, Check


@brief()
def check(
    manifest: Manifest,
    sheet: Annotated[
        Path | None, typer.Option(help="the contact sheet; by default contact_sheet.jpg beside the manifest")
    ] = None,
    cards: Annotated[int, typer.Option(min=1, max=400, help="rows on the contact sheet")] = 24,
    facts: Annotated[Path | None, typer.Option("--json", help="write the findings there, too")] = None,
    usable: Annotated[
        Path | None, typer.Option(help="write the usable lines to this file in the manifest's folder")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="a recipe: also find rows that its policy, rewards or metrics can't use"),
    ] = None,
    workers: Workers = None,
) -> None:
    """Read every image, report what is broken, doubtful or twice, draw a contact sheet; exit code 1 if one is bad."""
    from customized_grpo.prepare.check import check_manifest, write_usable
    from customized_grpo.prepare.inspection import default_workers
    from customized_grpo.prepare.sheet import contact_sheet

    with bars() as show:
        report, rows, seen = check_manifest(
            manifest, workers=workers or default_workers(), progress=partial(show, "images")
        )
    if config is not None:
        _check_for_recipe(report, manifest, config)
    _show_check(report)
    sheet = sheet or manifest.parent / "contact_sheet.jpg"
    subtitle = f"{report.rows:,} rows, {report.subjects:,} subjects, {report.images:,} images"
    subtitle += f", {len(report.broken):,} broken files" if report.broken else ""
    contact_sheet(sheet, rows, seen, manifest.parent, title=str(manifest), subtitle=subtitle, num=cards)
    if facts is not None:
        found = asdict(report) | {"usable": len(report.usable), "ok": report.ok}
        facts.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if usable is not None:
        write_usable(manifest, report, usable)
        say(f"{len(report.usable):,} usable rows: {usable}")
    say(f"contact sheet: {sheet}")
    _say_next(report, manifest, usable)
    if not report.ok:
        raise typer.Exit(1)


def _check_for_recipe(report: "Check", manifest: Path, config: str) -> None:
    """Add to a report what a recipe makes of the usable rows."""
    from customized_grpo.conditioning.outlines import outline
    from customized_grpo.data.manifest import sources
    from customized_grpo.data.rows import Row, read_rows

    rows = [(at, row) for at, row in read_rows(manifest) if isinstance(row, Row) and at in report.usable]
    found = _of_recipe(config, manifest)(outline(sources(manifest, at, row)) for at, row in rows)
    report.misfits = [f"{one.place}: {one.reason}" for one in found.misfits]
    report.notices = list(found.notices)
    bad = {one.place for one in found.misfits}
    report.usable = frozenset(at for at in report.usable if f"{manifest}:{at}" not in bad)


def _of_recipe(config: str, manifest: Path) -> "Callable[[Iterable[Outline]], Findings]":
    """The check of a recipe's examples: as its held-out ones if the manifest is that, else as its training data."""
    from customized_grpo.conditioning.precheck import check_examples
    from customized_grpo.evaluation.precheck import lacking_of
    from customized_grpo.recipe.config import Recipe
    from customized_grpo.recipe.loading import load_any

    recipe = load_any(config)
    held_out = recipe.evaluate and recipe.evaluate.data.model_dump().get("path")
    is_held_out = isinstance(held_out, str) and Path(held_out).expanduser().resolve() == manifest.resolve()
    if isinstance(recipe, Recipe) and not (is_held_out and recipe.evaluate):
        return partial(check_examples, policy=recipe.policy, measures=recipe.rewards)
    spec = recipe.evaluate
    assert spec is not None
    return partial(check_examples, policy=recipe.policy, measures=spec.metrics, lacking=lacking_of(spec), views=True)


def _show_check(report: "Check") -> None:
    counts = [("rows", f"{report.rows:,}"), ("subjects", f"{report.subjects:,}")]
    counts += [(f"rows with {n} reference{'s' * (n > 1)}", f"{count:,}") for n, count in report.references.items()]
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
    print_rows("what there is", PAIR, counts)
    show_prompts(report.prompts, report.rows)
    _list("lines that can't be read", report.bad_lines)
    _list("broken files", [f"{one.path}: {one.reason} ({_cost(one)})" for one in report.broken])
    _list("masks of another shape", report.mask_problems)
    _list("rows that the recipe can't use", report.misfits)
    _list("what the recipe doesn't use as it is written", report.notices)
    _list("equal pictures in several files", [", ".join(names) for names in report.same_pictures])
    _list("rows with equal prompt and images", [", ".join(names) for names in report.same_rows])
    _list("rows whose target is their reference", report.copies)
    _list("rows with a reference twice", report.repeated)
    _list("files of which the first frame or page alone is read", report.frames)
    style = "green" if report.ok else "red"
    out.print(f"{len(report.usable):,} of {report.rows + len(report.bad_lines):,} rows can be used", style=style)


def _cost(one: "Broken") -> str:
    """What a broken file costs."""
    rows = f"{one.rows} row{'s' * (one.rows != 1)}"
    views = f"left out of the views of {one.views} row{'s' * (one.views != 1)}"
    return ", ".join([rows] * (one.rows > 0) + [views] * (one.views > 0))


def _say_next(report: "Check", manifest: Path, usable: Path | None) -> None:
    """The command after this one, with the names that it needs."""
    if not report.usable:
        return
    good = usable or manifest
    if not report.ok and usable is None:
        good = manifest.with_suffix(".usable.jsonl")
        command, why = f"data check {quoted(manifest)} --usable {quoted(good)}", "writes the rows that can be used"
    elif _is_benchmark(manifest):
        data = quoted(f"evaluate.data={{type: manifest, path: {good}}}")
        command, why = f"evaluate dreambench_plus {data} --lora RUN", "measure a run by it; it is for no training"
    elif {".train", ".test"} & set(good.suffixes):
        train, test = (quoted(_part(good, name)) for name in ("train", "test"))
        command = f"validate one_gpu_24gb data.path={train} evaluate.data.path={test}"
        why = "time, memory and disk of a run; or another recipe"
    elif report.subjects < 2:
        command, why = f"data split {quoted(good)} --by prompt --share 0.2", "hold prompts out, to measure by"
    else:
        command, why = f"data split {quoted(good)}", "hold subjects out, to measure by"
    say_next(command, why)


def _part(one: Path, name: str) -> Path:
    """The part of a split, ``train`` or ``test``, that goes with another; of its usable lines, if they are there."""
    part = one.with_name(re.sub(r"\.(train|test)\.", f".{name}.", one.name))
    return part if part == one or part.is_file() else part.with_name(part.name.replace(f"{name}.usable.", f"{name}."))


def _is_benchmark(manifest: Path) -> bool:
    """True for the import of a set that is for evaluation alone."""
    try:
        facts = json.loads((manifest.parent / "import.json").read_text(encoding="utf-8"))
        return str(facts["importer"]["type"]).startswith("dreambench")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _list(title: str, lines: list[str], most: int = 10) -> None:
    if lines:
        more = [f"... and {len(lines) - most:,} more (--json FILE writes all)"] if len(lines) > most else []
        print_rows(f"{title}: {len(lines):,}", PAIR, [("", line) for line in (*lines[:most], *more)])
