"""Time that is left, and what a run says of itself, by a clock that the tests move."""

import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from customized_grpo.console import Heartbeat, duration, remaining
from customized_grpo.recipe.config import Recipe
from customized_grpo.training.progress import Pace, Shown
from runs import tiny_recipe, with_evaluation

HERE = Path("nowhere")


class Time:
    """Seconds that pass where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds

        return work


def recipe_of(steps: int, **changes: Any) -> Recipe:
    return tiny_recipe(HERE, HERE, train__steps=steps, **changes)


def shown_of(recipe: Recipe, clock: Time, start: int = 0) -> tuple[Shown, StringIO]:
    stream = StringIO()
    return Shown(Console(file=stream, width=200), recipe, start, now=clock), stream


def test_nothing_is_said_before_a_step_is_known() -> None:
    assert Pace(recipe_of(10)).left(0) == ""


def test_the_first_step_counts_only_while_it_is_alone() -> None:
    pace = Pace(recipe_of(201))
    pace.note("step", 90.0)  # memory is found, code compiled
    assert pace.left(1) == "at most about 5 h 0 min left"
    pace.note("step", 2.0)
    assert pace.left(2) == "about 7 minutes left"  # 199 x 2 s
    pace.note("step", 4.0)
    assert pace.left(3) == f"about {remaining(198 * 3.0)} left"
    assert pace.left(201) == ""


def test_only_the_recent_steps_say_how_long_the_next_ones_take() -> None:
    pace = Pace(recipe_of(1000))
    for _ in range(100):
        pace.note("step", 100.0)
    for _ in range(50):
        pace.note("step", 1.0)
    assert pace.left(400) == "about 10 minutes left"


def test_evaluations_and_checkpoints_to_come_count_by_the_last_ones() -> None:
    changes = with_evaluation(HERE, 40) | {"train__checkpoint_every": 25}
    pace = Pace(recipe_of(100, **changes))
    for _ in range(11):
        pace.note("step", 1.0)
    # evaluations after 40, 80 and 100, checkpoints after 25, 50, 75 and 100
    assert pace.left(10) == "about 2 minutes and 3 evaluations left"
    pace.note("kept evaluation", 0.01)  # of a resumed run: its rows were read
    assert pace.left(10) == "about 2 minutes and 3 evaluations left"
    pace.note("evaluation", 100.0)
    assert pace.left(10) == "about 6 minutes left"  # 90 + 300
    pace.note("checkpoint", 30.0)
    assert pace.left(10) == f"about {remaining(90.0 + 300 + 4 * 30)} left"
    assert pace.left(80) == f"about {remaining(20.0 + 100 + 30)} left"


def test_a_run_that_saves_at_the_end_alone_saves_once() -> None:
    pace = Pace(recipe_of(10))
    for _ in range(2):
        pace.note("step", 1.0)
    pace.note("checkpoint", 50.0)
    assert pace.left(5) == "about 55 seconds left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 second"),
        (40.0, "40 seconds"),
        (360.0, "6 minutes"),
        (12_000.0, "3 h 20 min"),
        (183_600.0, "2 days 3 h"),
    ],
)
def test_what_is_left_is_said_in_words(seconds: float, said: str) -> None:
    assert remaining(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(31.8, "31.8 s"), (254.6, "4.2 minutes"), (12_600.0, "3.5 hours"), (792_704.0, "9.2 days")]
)
def test_durations_are_said_in_their_largest_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_first_time_that_a_run_prints_has_no_loading_and_no_evaluation_in_it() -> None:
    """It was said that 101:47 were left at the first of 200 steps that take 7 minutes."""
    clock = Time()
    clock.now += 600.0  # loading
    shown, stream = shown_of(recipe_of(200, **with_evaluation(HERE, 100)), clock)
    shown.timed("evaluation", clock.takes(30.0))
    shown.stepped(0, "evaluated after step 0")
    for step in (1, 2):
        shown.timed("step", clock.takes(2.1))
        shown.stepped(step, f"prompt 0.{step}")
    # 199 x 2.1 + 2 x 30; the second step is none of every twentieth, and no minute has passed
    assert stream.getvalue().splitlines()[1:] == ["step 1/200  prompt 0.1  at most about 8 minutes left"]


def test_a_step_is_said_at_least_every_minute() -> None:
    clock = Time()
    shown, stream = shown_of(recipe_of(1000), clock)
    for step in range(1, 6):
        shown.timed("step", clock.takes(61.0 if step == 4 else 20.0))
        shown.stepped(step, "")
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == ["step 1", "step 4"]


def test_within_a_long_step_the_groups_are_said() -> None:
    clock, groups = Time(), list("abcdefgh")
    shown, stream = shown_of(recipe_of(200), clock, start=2)
    for number, _ in enumerate(shown.each("sampled", groups), 1):
        clock.now += 13.0
        if number == 6:
            shown._heart.beat()
            shown._heart.beat()  # said just now
    assert stream.getvalue() == "step 3/200: group 5 of 8 sampled\n"
    shown.tell("step-000002", 7, 512)
    clock.now += 61.0
    shown._heart.beat()
    assert stream.getvalue().splitlines()[1:] == ["step 3/200: evaluation: 7 of 512 examples"]


def test_a_heart_beats_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with Heartbeat(lambda: "loading", said.append, every_s=0.05):
        time.sleep(1.0)
    assert 2 <= len(said) <= 20
    assert set(said) == {"loading"}
    monkeypatch.setattr("customized_grpo.console.RANK", 1)
    said.clear()
    with Heartbeat(lambda: "loading", said.append, every_s=0.05):
        time.sleep(0.3)
    assert said == [], "the main process alone prints"
