"""User errors of commands: one message on stderr, exit code 2, no traceback; and options that are given twice."""

import os
import re
import traceback
from pathlib import Path
from typing import Any, Final, final

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup, TyperOption

from customized_grpo.console import RANK, err
from customized_grpo.registry import BUILTIN, UnknownPluginError, third_party
from customized_grpo.web.proxies import unusable

_PACKAGE: Final = "customized_grpo"
_HOME: Final = re.compile(r"^(--[\w-]+=)~(?=/|$)")


class WholeSummaries(TyperGroup):
    """Command group whose list of commands has whole summaries, on as many lines as they need."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list."""
        helps = {name: getattr(self.get_command(ctx, name), "help", None) or "" for name in self.list_commands(ctx)}
        rows = [(name, " ".join(text.split("\n\n")[0].split())) for name, text in helps.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@final
class UserErrors(WholeSummaries):
    """Command group that shows user errors as one message; other errors keep their traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; ``--out=~/x`` means the home folder, which no shell replaces behind an equals sign."""
        return super().parse_args(ctx, [_HOME.sub(lambda found: found[1] + str(Path.home()), arg) for arg in args])

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print(
                "stopped; what was finished is kept, and the same command goes on with an evaluation",
                style="yellow",
            )
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of the output has closed it, as in '... | head'
            raise
        except Exception as error:
            proxies = _proxies_of(error)
            if os.environ.get("CUSTOMIZED_GRPO_TRACEBACK") or not (proxies or is_users(error)):
                raise
            show(proxies or error)
            raise typer.Exit(2 if isinstance(proxies or error, ValueError | OSError) else 1) from None


def _proxies_of(error: BaseException | None) -> ValueError | None:
    """The meaning of an error of an HTTP client at its start, before it asks: it can't read a proxy variable."""
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        client = frames and frames[-1].f_globals.get("__name__", "").split(".")[0] in {"httpx2", "httpx"}
        if client and isinstance(error, ValueError | ImportError) and (problems := unusable(os.environ)):
            return ValueError(f"the hub can't be asked: {'; '.join(problems)}; correct or unset it")
        error = error.__cause__ or error.__context__
    return None


@final
class Once(TyperCommand):
    """Command that refuses an option given twice where it takes one value; the first would be dropped in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in (one for one in self.params if isinstance(one, TyperOption)):
            single = not (option.multiple or option.count or (option.is_flag and not option.secondary_opts))
            if single and order.count(option) > 1:
                raise ValueError(f"{option.opts[0]}: given {order.count(option)} times; it takes one value")
        return super().parse_args(ctx, args)


def is_users(error: Exception) -> bool:
    """True if the message alone tells the user what to do.

    This holds for the package's own error classes, for errors of files and folders, and for a ValueError raised by this
    package or by a plug-in; one from inside a library is a bug and keeps its traceback.
    """
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] == _PACKAGE:
        return True
    if not isinstance(error, ValueError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    others = {entry.value.split(".")[0].split(":")[0] for kind in BUILTIN for entry in third_party(kind)}
    return frame.f_globals.get("__name__", "").split(".")[0] in {_PACKAGE, *others}


def show(error: Exception) -> None:
    """Print the message on stderr: recipe errors only on the main rank, others on any, since only one may have them."""
    if RANK != 0 and (type(error).__name__ == "RecipeError" or isinstance(error, UnknownPluginError)):
        return
    prefix = "error: " if RANK == 0 else f"error on rank {RANK}: "
    console = Console(stderr=True, emoji=False)
    console.print(prefix, style="bold red", end="", highlight=False)
    console.print(_message(error), style="red", markup=False, highlight=False, soft_wrap=True)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
