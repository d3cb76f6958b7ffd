"""Arguments that several commands share."""

from typing import Annotated, Final

import typer

Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="a recipe's YAML file, or the name of a shipped one")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key.sub=value]", help="change any key of the recipe")
]
MemoryGb = Annotated[
    float | None,
    typer.Option("--memory-gb", min=0.1, help="GiB of the device to judge by; else the GPU here"),
]
FREE: Final = {"ignore_unknown_options": True}
"""Settings of a command with overrides: a value may begin with a dash, and '--key=value' is a habit of other tools."""
