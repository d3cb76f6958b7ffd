"""Arguments that several commands share."""

import shlex
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from customized_grpo.console import err, say


def say_undone(overrides: list[str] | None) -> list[str]:
    """The overrides, after a line on stderr for each that a later one makes void."""
    given = overrides or []
    if len(given) > 1:
        from customized_grpo.recipe.loading import undone

        for line in undone(given):
            say(line, style="yellow", on=err)
    return given


def quoted(path: str | Path) -> str:
    """A path or a value as a shell takes it."""
    return shlex.quote(str(path))


def say_next(command: str, why: str) -> None:
    """A command's last line: what is typed next, and what for."""
    say(f"next: customized-grpo {command}   # {why}")


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="a recipe's YAML file, or the name of a shipped one")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(callback=say_undone, metavar="[key.sub=value]", help="change any key of the recipe"),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="WHERE[=SCALE]",
        help="a run, a checkpoint, an adapter's folder or file, or a LoRA's hub id, with a factor if need be: "
        "style.safetensors=0.8; may be given several times, and all add up; without it, the recipe's base",
    ),
]
Balance = Annotated[
    float | None,
    typer.Option(
        min=-1.0, max=1.0, help="b of a balanced adapter, from the prompt's side to the identity's; by default 0"
    ),
]
MemoryGb = Annotated[
    float | None,
    typer.Option("--memory-gb", min=0.1, help="GiB of the device to judge by; else the GPU here"),
]


def _known_card(name: str | None) -> str | None:
    if name is not None:
        from customized_grpo.cost.cards import asked_card

        asked_card(name)
    return name


Card = Annotated[
    str | None,
    typer.Option(
        callback=_known_card,
        help="GPU whose time to guess by its published peak, such as A100; else the GPU here, or an H200",
    ),
]
HourPrice = Annotated[float | None, typer.Option(min=0.0, help="of one card, in your currency: what the run costs")]
TokenPrice = Annotated[
    float | None, typer.Option(min=0.0, help="of a million tokens of the judges, in your currency: what they cost")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one")]


def _manifest_in(path: Path) -> Path:
    return path / "manifest.jsonl" if path.is_dir() else path


Manifest = Annotated[
    Path, typer.Argument(callback=_manifest_in, help="the .jsonl file, or the folder of manifest.jsonl")
]
Workers = Annotated[int | None, typer.Option(min=1, help="processes that read images; by default one per core")]
FREE: Final = {"ignore_unknown_options": True}
"""Settings of a command with overrides: a value may begin with a dash, and '--key=value' is a habit of other tools."""
