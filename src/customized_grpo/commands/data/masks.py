"""``customized-grpo data masks``: the command around ``prepare.masks``. Heavy imports are inside."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.commands.arguments import Device, Manifest, quoted, say_next
from customized_grpo.console import bars, err, hush_libraries, say


def masks(
    manifest: Manifest,
    detector: Annotated[
        str, typer.Option(help="GroundingDINO: hub id or folder")
    ] = "IDEA-Research/grounding-dino-base",
    sam: Annotated[str, typer.Option(help="SAM: hub id or folder")] = "facebook/sam-vit-base",
    threshold: Annotated[float, typer.Option(help="least confidence of a box")] = 0.35,
    folder: Annotated[str, typer.Option(help="where masks go, inside the manifest's folder")] = "masks",
    beside: Annotated[bool, typer.Option("--beside", help="put them beside their pictures instead")] = False,
    target: Annotated[
        Path | None, typer.Option("--out", help="the new manifest; by default <name>-masks.jsonl")
    ] = None,
    device: Device = "auto",
) -> None:
    """Make the masks that a manifest's references lack, by GroundingDINO and SAM; may be stopped and started again."""
    from pydantic import ValidationError

    from customized_grpo.devices import open_device
    from customized_grpo.identity.hashes import FileHashes
    from customized_grpo.identity.sections import named
    from customized_grpo.prepare.masks import Segment, is_any_missing, make_masks
    from customized_grpo.recipe.loading import RecipeError
    from customized_grpo.rewards.segmenter import Segmenter, SegmenterConfig

    try:
        config = SegmenterConfig(detector=detector, sam=sam, threshold=threshold)
    except ValidationError as error:
        raise RecipeError(f"--threshold: given {threshold}; give a number between 0 and 1") from error
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such manifest; give the path of a .jsonl file")
    hush_libraries()
    where, on = (None if beside else folder), open_device(device, "--device")
    segment: Segment = lambda image, word: None  # noqa: E731 - never asked where every reference has its mask
    if is_any_missing(manifest, where, target):
        segment = Segmenter(config, device=on)
    hashes = FileHashes()
    content = {name: named(model, hashes) for name, model in (("detector", detector), ("sam", sam))}
    with bars() as show:
        report = make_masks(
            manifest,
            segment,
            settings={**config.model_dump(), "content": content},
            folder=where,
            target=target,
            progress=partial(show, "masks"),
        )
    for one, reason in report.problems.items():
        say(f"{one.reference}: {reason}", style="yellow", on=err)
    anew = f" ({report.anew} anew: another picture or word than before)" if report.anew else ""
    say(f"{report.manifest}\n{report.made} masks made{anew}, {report.kept} kept, {len(report.problems)} missing")
    say_next(f"data check {quoted(report.manifest)}", "look at the masks on the contact sheet")
    if report.problems:
        raise typer.Exit(1)
