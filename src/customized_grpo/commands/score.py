"""``customized-grpo score``: the command around ``scoring``. Heavy imports are inside."""

import secrets
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.commands.arguments import Device, say_undone
from customized_grpo.commands.tables import print_rows
from customized_grpo.console import bars, err, hush_libraries, say

_SHOWN = 50
"""Number of images up to which each is shown on screen; a written table has all of them."""


def score(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="a folder of images, or one image")],
    reward: Annotated[
        list[str],
        typer.Option(help="a type, such as dino or my_module:f, or name=type; may come several times"),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[name.key=value]", help="options: dino.model=mini")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="prompts and references by id: files are called <id> or <id>-<number>")
    ] = None,
    prompt: Annotated[str, typer.Option(help="one prompt for all, without a manifest")] = "",
    reference: Annotated[
        list[Path] | None, typer.Option(help="one subject for all; several images may be given")
    ] = None,
    subject: Annotated[str, typer.Option(help="its class word, for segmentation and judges")] = "",
    table: Annotated[Path | None, typer.Option("--out", help="a .csv or .jsonl file with one row per image")] = None,
    device: Device = "auto",
    ask_first: Annotated[
        bool, typer.Option(help="ask each judge and reward server one small question before a model is loaded")
    ] = True,
) -> None:
    """Score a folder of images with any rewards: against a manifest, or one prompt and one reference for all."""
    from customized_grpo.data.images import load_image
    from customized_grpo.devices import open_device
    from customized_grpo.rewards.base import costs
    from customized_grpo.scoring import folder, trial
    from customized_grpo.types import Example

    folder.check_table(table)
    specs = folder.read_rewards(reward, say_undone(options))
    if manifest is None:
        references = tuple(load_image(path) for path in reference or [])
        one = Example(key="all", prompt=prompt, references=references, subject=subject)
        jobs = folder.with_one_example(images, one)
    elif prompt or reference or subject:
        raise ValueError("--manifest holds prompts and references; give either it, or --prompt and --reference")
    else:
        jobs = folder.with_manifest(images, manifest)
        if absent := folder.without_image(jobs, manifest):
            named = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
            say(f"{len(absent)} examples of {manifest} have no image: {named}", style="yellow", on=err)
    left_out = folder.not_images(images)
    for line in left_out[:_SHOWN]:
        say(f"left out: {line}", style="yellow", on=err)
    if len(left_out) > _SHOWN:
        say(f"and {len(left_out) - _SHOWN} more", style="yellow", on=err)
    for name, said in costs(specs, dict.fromkeys(specs, len(jobs))).items():
        say(f"{name}: {said}", on=err)
    hush_libraries()
    name = secrets.token_hex(8)
    if ask_first:
        for line in trial.ask_first(specs, run=lambda: name, place=folder.PLACE, skip="--no-ask-first"):
            say(line, on=err)
    with bars() as show:
        tell = partial(show, "images")
        rows, failure = folder.run(jobs, specs, open_device(device, "--device"), tell, name)
    names = tuple(specs)
    if 0 < len(rows) <= _SHOWN:
        lines = [(row.image, *(folder.shown(row.scores[name]) for name in names)) for row in rows]
        print_rows("", ("image", *names), lines)
    if rows:
        print_rows("", ("reward", "scored", "mean", "std", "lowest", "highest"), folder.summary(rows, names))
        if table is not None:
            folder.write_table(table, rows, names)
            say(str(table))
    wrong = [row for row in rows if row.error]
    for row in wrong[:_SHOWN]:
        say(row.error if row.broken else f"{row.image}: {row.error}", style="yellow", on=err)
    if len(wrong) > _SHOWN:
        say(f"and {len(wrong) - _SHOWN} more; the table of --out has all", style="yellow", on=err)
    if failure is not None:
        err.print(f"stopped after {len(rows)} of {len(jobs)} images", style="red", highlight=False)
        raise failure
    silent = folder.silent(rows, names)
    if silent:
        say(f"scored no image: {', '.join(silent)}", style="red", on=err)
    if silent or any(row.broken for row in rows):
        raise typer.Exit(1)
