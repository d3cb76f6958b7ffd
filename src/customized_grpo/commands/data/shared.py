"""Shared parts of the commands of ``customized-grpo data``: an option, a path, a table of prompts."""

from typing import TYPE_CHECKING, Final

from customized_grpo.commands.tables import print_rows

if TYPE_CHECKING:
    from customized_grpo.data.prompts import PromptSurvey

PAIR: Final = ("", "")
"""Columns of a table of names and values."""


def show_prompts(prompts: "PromptSurvey | None", rows: int) -> None:
    """Print the survey of the prompts of ``rows`` rows."""
    if prompts is None or not rows:
        return
    lines = [
        ("words", f"{prompts.mean_words:.1f} on average, {prompts.max_words} at most"),
        ("noisy", f"{prompts.noisy:,} of {rows:,}"),
    ]
    for name, count in prompts.problems.items():
        lines.append((f"  {name}", f"{count:,}, for instance {prompts.examples[name][0][:100]!r}"))
    print_rows("prompts", PAIR, lines)
