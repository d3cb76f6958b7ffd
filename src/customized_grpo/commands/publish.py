"""``customized-grpo publish``: the command around ``publish``. Heavy imports are inside."""

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.commands.arguments import Balance
from customized_grpo.console import err, hush_libraries, say


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a training run's folder, or one of its checkpoints")],
    folder: Annotated[Path, typer.Option("--out", help="a new folder")],
    repo: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="USER/NAME", help="upload it to this repository of the hub, private if it is new"
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="with --push: anybody may see it")] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="ID", help="the base's hub id, where the recipe names a folder of this machine"),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="licence, where that of the base is not known or leaves the choice"
        ),
    ] = None,
    licence_link: Annotated[
        str | None, typer.Option("--license-link", metavar="URL", help="of a licence that is not in the hub's list")
    ] = None,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="held-out pictures and prompts; by default only those of data whose licence allows it",
        ),
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="one LoRA of policy.base_lora and the adapter, for the stock base")
    ] = False,
    balance: Balance = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="a folder of 'evaluate' of this run, whose numbers the card has too; may be given again"),
    ] = None,
) -> None:
    """Write a run as a folder for the hub: adapter, model card with held-out numbers, pictures; and upload it."""
    from customized_grpo.publish.folder import Options
    from customized_grpo.publish.folder import publish as write
    from customized_grpo.publish.upload import check_target, push

    if public and repo is None:
        raise ValueError("--public: it belongs to --push USER/NAME, which is missing")
    if repo is not None:
        check_target(repo)
    hush_libraries()
    options = Options(
        repo=repo,
        base=base,
        licence=licence,
        licence_link=licence_link,
        pictures=pictures,
        with_base=with_base,
        balance=balance,
        evaluations=tuple(evaluation or ()),
    )
    for line in write(run, folder, options):
        say(line, style="yellow", on=err)
    say(str(folder))
    if repo is not None:
        say(push(folder, repo, public=public))
        say(
            "anybody may see it" if public else "it is private; --public, or the repository's settings, change that",
            on=err,
        )
