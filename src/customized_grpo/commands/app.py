"""The command ``customized-grpo``; every heavy import is inside the command that needs it.

A user error (a recipe, a path, a folder) gives one message on stderr and exit code 2, without a traceback;
``CUSTOMIZED_GRPO_TRACEBACK=1`` shows it. On several processes only the main one prints.
"""

import logging
import os
import sys
from typing import Annotated

import typer

from customized_grpo import __version__
from customized_grpo.commands.arguments import FREE
from customized_grpo.commands.data.cache import cache
from customized_grpo.commands.data.check import check
from customized_grpo.commands.data.download import download
from customized_grpo.commands.data.import_ import import_
from customized_grpo.commands.data.masks import masks
from customized_grpo.commands.data.pairs import pairs
from customized_grpo.commands.data.split import split
from customized_grpo.commands.demo import demo
from customized_grpo.commands.doctor import doctor
from customized_grpo.commands.errors import Once, UserErrors, WholeSummaries
from customized_grpo.commands.evaluate import evaluate
from customized_grpo.commands.export import export
from customized_grpo.commands.generate import generate
from customized_grpo.commands.plugins import plugins
from customized_grpo.commands.publish import publish
from customized_grpo.commands.report import report
from customized_grpo.commands.schema import schema
from customized_grpo.commands.score import score
from customized_grpo.commands.serve import serve
from customized_grpo.commands.studio import studio
from customized_grpo.commands.supervised import dpo, sft
from customized_grpo.commands.train import train
from customized_grpo.commands.validate import validate
from customized_grpo.console import out
from customized_grpo.web.proxies import spare_private_hosts

app = typer.Typer(
    cls=UserErrors,
    name="customized-grpo",
    help="Online reinforcement learning for subject-driven image generation: Customized-GRPO, with SARS and TDW.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(
    cls=WholeSummaries,
    name="data",
    help="Download, import, check and split data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data)


def _version(wanted: bool) -> bool:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Settings of every command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # peft imports bitsandbytes, which warns on CPUs that a kernel for 4-bit products isn't there; nothing here uses it
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    spare_private_hosts(os.environ)
    if not sys.flags.safe_path and not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())  # as python -m does, but last: a plug-in may lie there, and no library


_FREE_FORM = (train, sft, dpo, evaluate, score, serve, validate, doctor, demo)
"""Commands with overrides."""
_COMMANDS = (
    *(train, sft, dpo, evaluate, generate, studio, score, serve, export),
    *(publish, report, validate, plugins, doctor, schema, demo),
)
EXAMPLES = {
    "train": "train mini_customized run.dir=runs/mine train.steps=50",
    "sft": "sft mini_customized run.dir=runs/warm",
    "dpo": "dpo mini_customized run.dir=runs/ranked data.path=pairs.jsonl",
    "evaluate": "evaluate dreambench --lora runs/mine run.dir=runs/mine-dreambench",
    "generate": "generate --lora runs/mine --reference cat.png --prompt 'a cat in the snow' --out cat-snow.png",
    "studio": "studio runs/mine",
    "score": "score pictures --manifest data/photos/manifest.jsonl --reward dino --reward clip_t",
    "serve": "serve hpsv3",
    "export": "export runs/mine --out exported",
    "publish": "publish runs/mine --out published",
    "report": "report runs/mine",
    "validate": "validate uno_customized_grpo --memory-gb 80",
    "plugins": "plugins",
    "doctor": "doctor uno_customized_grpo",
    "schema": "schema",
    "demo": "demo",
    "masks": "data masks data/photos",
    "cache": "data cache uno_customized_grpo run.cache=cache",
    "import": "data import dreambooth-folder photos --out data/photos",
    "check": "data check data/photos",
    "split": "data split data/photos",
    "pairs": "data pairs data/mine --scores scores.csv --images data/mine/drawn --by dino --out data/mine/pairs.jsonl",
    "download": "data download dreambench --out data/dreambench",
}
"""What stands below each command's options."""


def _example(name: str) -> str:
    return f"Example: customized-grpo {EXAMPLES[name]}"


for command in _COMMANDS:
    settings = FREE if command in _FREE_FORM else {}
    app.command(cls=Once, context_settings=settings, epilog=_example(command.__name__))(command)
data.command(cls=Once, epilog=_example("masks"))(masks)
data.command(cls=Once, epilog=_example("check"))(check)
data.command(cls=Once, epilog=_example("split"))(split)
data.command(cls=Once, epilog=_example("pairs"))(pairs)
data.command(cls=Once, epilog=_example("download"))(download)
data.command(cls=Once, context_settings=FREE, epilog=_example("cache"))(cache)
data.command("import", cls=Once, context_settings=FREE, epilog=_example("import"))(import_)
