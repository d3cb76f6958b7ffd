"""``customized-grpo data``: download, import, check and split data sets."""

import typer

from customized_grpo.commands.arguments import FREE
from customized_grpo.commands.data.cache import cache
from customized_grpo.commands.data.check import check
from customized_grpo.commands.data.download import download
from customized_grpo.commands.data.import_ import import_
from customized_grpo.commands.data.masks import masks
from customized_grpo.commands.data.split import split

data_app = typer.Typer(
    name="data",
    help="Download, import, check and split data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
data_app.command()(masks)
data_app.command(context_settings=FREE)(cache)
data_app.command("import", context_settings=FREE)(import_)
data_app.command()(check)
data_app.command()(split)
data_app.command()(download)
