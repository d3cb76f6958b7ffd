"""How the mistakes of a command's user are shown: one message on stderr, exit code 2, no traceback."""

import os
import traceback
from typing import Any, Final, final

import typer
from rich.console import Console
from typer.core import TyperGroup

from customized_grpo.console import RANK, err
from customized_grpo.registry import BUILTIN, UnknownPluginError, third_party

_PACKAGE: Final = "customized_grpo"


@final
class UserErrors(TyperGroup):
    """Commands whose user's mistakes are one clean message; what is no mistake of theirs keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print(
                "stopped; a training run goes on from its last checkpoint with run.resume=latest",
                style="yellow",
            )
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of the output has left, as in '... | head'
            raise
        except Exception as error:
            if os.environ.get("CUSTOMIZED_GRPO_TRACEBACK") or not is_users(error):
                raise
            show(error)
            raise typer.Exit(2 if isinstance(error, ValueError | OSError) else 1) from None


def is_users(error: Exception) -> bool:
    """Whether the message alone tells the user what to do.

    So it is with our own classes of errors, with what files and folders cause, and with a ValueError that this package
    or a plug-in of another package raised itself; one from inside a library is a defect and keeps its traceback.
    """
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] == _PACKAGE:
        return True
    if not isinstance(error, ValueError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    others = {entry.value.split(".")[0].split(":")[0] for kind in BUILTIN for entry in third_party(kind)}
    return frame.f_globals.get("__name__", "").split(".")[0] in {_PACKAGE, *others}


def show(error: Exception) -> None:
    """The message on stderr. A mistake in a recipe is said by the main rank alone; with others a rank may be alone."""
    if RANK != 0 and (type(error).__name__ == "RecipeError" or isinstance(error, UnknownPluginError)):
        return
    prefix = "error: " if RANK == 0 else f"error on rank {RANK}: "
    console = Console(stderr=True)
    console.print(prefix, style="bold red", end="", highlight=False)
    console.print(_message(error), style="red", markup=False, highlight=False, soft_wrap=True)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
