"""Progress of a run as people see it: what it does now, its newest rewards, and how long the rest will take."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, ParamSpec, Self, TypeVar, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from customized_grpo.console import Heartbeat, remaining
from customized_grpo.evaluation.costs import evaluations, fixed
from customized_grpo.recipe.config import Recipe

T = TypeVar("T")
P = ParamSpec("P")
Kind = Literal["step", "evaluation", "samples", "checkpoint", "kept evaluation"]
"""Parts of a run that take time; rows of a kept evaluation are only read, so its time says nothing of others."""
_RECENT = 50
"""Steps whose mean stands for the next ones."""


@final
class Pace:
    """Time that is left, by the durations of this process's own steps, evaluations and checkpoints.

    Loading is in none of them, and the first step, in which memory is found and code compiled, counts only as long as
    it is the only one.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._first: float | None = None
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._last: dict[Kind, float] = {}

    def note(self, kind: Kind, seconds: float) -> None:
        """A part of the run took this long."""
        if kind != "step":
            self._last[kind] = seconds
        elif self._first is None:
            self._first = seconds
        else:
            self._steps.append(seconds)

    def left(self, done: int) -> str:
        """The rest of the run after ``done`` steps, for people; empty before anything is known, and at the end.

        Evaluations and checkpoints that are to come count by the last of their kind; of evaluations of which none was
        made yet the number is told.
        """
        train = self._recipe.train
        steps, judged = train.steps - done, evaluations(self._recipe, done) if done else 0
        if steps <= 0 or self._first is None:
            return ""
        every = train.checkpoint_every
        saves = (train.steps // every - done // every if every else 0) + (not every or train.steps % every > 0)
        a_step = sum(self._steps) / len(self._steps) if self._steps else self._first
        seconds = steps * a_step + saves * self._last.get("checkpoint", 0.0)
        seconds += fixed(self._recipe, done) // self._recipe.samples.count * self._last.get("samples", 0.0)
        more = ""
        if "evaluation" in self._last:
            seconds += judged * self._last["evaluation"]
        elif judged:
            more = f" and {judged} evaluation{'s' if judged > 1 else ''}"
        return f"{'about' if self._steps else 'at most about'} {remaining(seconds)}{more} left"


@final
class Shown:
    """One live line in a terminal; lines of text elsewhere, at least every minute."""

    def __init__(
        self, console: Console, recipe: Recipe, start: int, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._now = console, now
        self._pace, self._total, self._done = Pace(recipe), recipe.train.steps, start
        self._doing = self._headline = ""
        self._heart = Heartbeat(self._line, self.say, now=now)
        self._bar: Progress | None = None
        if console.is_terminal and not (console.is_dumb_terminal or console.quiet):
            whole = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"), BarColumn(bar_width=10), whole, console=console
            )
            self._task = self._bar.add_task("", total=self._total, completed=start)

    def __enter__(self) -> Self:
        (self._heart if self._bar is None else self._bar).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._heart if self._bar is None else self._bar).__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Print a line."""
        self._heart.heard()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def timed(self, kind: Kind, work: Callable[P, T], *args: P.args, **keys: P.kwargs) -> T:
        """Call a part of the run, and keep how long it took."""
        began = self._now()
        self._do("" if kind == "step" else kind)
        made = work(*args, **keys)
        self._pace.note(kind, self._now() - began)
        self._done += kind == "step"
        self._do("")
        return made

    def each(self, what: str, groups: Sequence[T]) -> Iterator[T]:
        """The groups of a step, with a word when each is ``what``: sampled, replayed."""
        for number, group in enumerate(groups, 1):
            yield group
            self._do(f"group {number} of {len(groups)} {what}")

    def tell(self, task: str, done: int, total: int) -> None:
        """Progress within an evaluation; an ``OnProgress``."""
        self._do(f"evaluation: {done} of {total} examples")

    def stepped(self, done: int, headline: str) -> None:
        """A step, or an evaluation before the first one, is done; ``headline`` has its rewards."""
        self._done, self._headline = done, headline
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            self._do("")
        elif done % max(1, self._total // 20) == 0 or done in (1, self._total) or self._heart.is_due:
            self.say("  ".join(filter(None, [f"step {done}/{self._total}", headline, self._pace.left(done)])))

    def _do(self, what: str) -> None:
        self._doing = what
        if self._bar is not None:
            parts = filter(None, [what, self._pace.left(self._done), self._headline])
            self._bar.update(self._task, description="  ".join(parts))

    def _line(self) -> str:
        """What a run does now, where no step has ended for a minute."""
        left = self._pace.left(self._done)
        doing = self._doing or "goes on"
        at = f"step {min(self._done + 1, self._total)}/{self._total}: {doing}"
        return f"{at}  {left}" if left else at
