"""The judge's file: shared by processes, whole after a kill, and a budget that nobody overdraws."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.cache import Cache, balance
from forked import exit_code, forked


@contextmanager
def opened(path: Path | None, judge: str = "judge", **limits: int | None) -> Iterator[Cache]:
    cache = Cache(path, judge, **({"budget_requests": None, "budget_tokens": None} | limits))  # type: ignore[arg-type]
    try:
        yield cache
    finally:
        cache.close()


def test_answers_outlive_the_process_and_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "judge.sqlite"
    with opened(path) as cache:
        assert cache.get("a") is None
        cache.put("a", 2.5, "Score: 3", prompt_tokens=300, answer_tokens=8)
    with opened(path, "another") as cache:
        assert cache.get("a") == (2.5, "Score: 3")
        assert cache.get("b") is None
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT judge, reply FROM answers").fetchall() == [("judge", "Score: 3")]
    db.close()


def test_a_budget_of_requests_is_kept_over_restarts_and_for_each_judge(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    for _ in range(3):
        with opened(path, budget_requests=3) as cache:
            cache.reserve()
    with opened(path, budget_requests=3) as cache, opened(path, "another", budget_requests=1) as another:
        with pytest.raises(
            RewardFailure, match=r"budget of judge is spent: 3 requests and 0 tokens \(budget_requests: 3,"
        ):
            cache.reserve()
        assert cache.spent() == (3, 0)
        another.reserve()
    with opened(path, budget_requests=4) as cache:
        cache.reserve()


def test_each_account_has_the_budget_and_the_balance_is_what_a_request_meets(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    budgets = {"budget_requests": (3, 2), "budget_tokens": (None, 9)}
    for account in ("first", "second"):
        assert balance(path, "judge", account, budgets) == ""
        for _ in range(2):  # starts of one run
            with opened(path, budget_requests=3) as cache:
                cache.begin(account)
                cache.reserve()
        said = balance(path, "judge", account, budgets)
        assert said == "; of budget_requests (3) 2 are spent and 1 are left; more than is left: the run will stop there"
    with opened(path, budget_requests=3) as cache:
        cache.begin("first")
        cache.reserve()
        with pytest.raises(RewardFailure, match=r"budget of judge, first is spent: 3 requests"):
            cache.reserve()
        cache.begin("third")
        cache.reserve()
    new = balance(path, "judge", None, {"budget_requests": (3, 4), "budget_tokens": (5, 5)})
    assert new == "; more than budget_requests (3): the run will stop there"
    assert balance(None, "judge", "first", budgets).startswith("; without a cache each process has that budget")
    assert balance(None, "judge", "first", {"budget_requests": (None, 4), "budget_tokens": (None, 4)}) == ""
    (tmp_path / "text").write_text("no cache at all, but long enough to be read as a header")
    with pytest.raises(ValueError, match="is not a cache of a judge"):
        balance(tmp_path / "text", "judge", "first", budgets)


def test_a_budget_of_tokens_stops_the_next_request() -> None:
    with opened(None, budget_tokens=500) as cache:
        cache.reserve()
        cache.spend(499)
        cache.reserve()
        cache.spend(300)
        with pytest.raises(RewardFailure, match=r"799 tokens \(.* budget_tokens: 500\)"):
            cache.reserve()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"not a database at all, but long enough to be read as a header of one.",
            "is not a cache of a judge",
        ),
        (None, "can't be opened"),
        ("CREATE TABLE mine (x)", "is not a cache of this version"),
        ("PRAGMA user_version = 7", "its number is 7"),
    ],
)
def test_what_is_no_cache_is_refused_and_left_alone(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "judge.sqlite"
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        db = sqlite3.connect(path)
        db.execute(content)
        db.close()
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=message), opened(path):
        pass
    assert before is None or path.read_bytes() == before


def write_on(path: Path, name: str, limit: int) -> None:
    """Pay for one answer after the other until the budget is spent, and say how many are written."""
    cache, done = Cache(path, "judge", budget_requests=limit, budget_tokens=None), 0
    with suppress(RewardFailure):
        while True:
            cache.reserve()
            cache.put(f"{name}-{done}", 1.0, "x" * 2000, prompt_tokens=1, answer_tokens=1)
            done += 1
            os.write(1, f"{done}\n".encode())
            time.sleep(0.005)  # others have their turn


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads
def test_processes_share_it_and_a_killed_one_costs_nothing_that_was_said(tmp_path: Path) -> None:
    path, limit = tmp_path / "judge.sqlite", 200
    logs = {name: tmp_path / f"{name}.log" for name in ("victim", "survivor")}
    victim = forked(logs["victim"], partial(write_on, path, "victim", limit))
    while not logs["victim"].is_file() or logs["victim"].read_text().count("\n") < 5:
        time.sleep(0.005)
    with opened(path, budget_requests=limit) as cache:
        for at in range(20):  # beside the victim, which is killed in the middle of its work
            cache.reserve()
            cache.put(f"here-{at}", 1.0, "x", prompt_tokens=1, answer_tokens=1)
    os.kill(victim, signal.SIGKILL)
    assert exit_code(victim) == -signal.SIGKILL
    assert exit_code(forked(logs["survivor"], partial(write_on, path, "survivor", limit))) == 0
    counts = {name: log.read_text().splitlines() for name, log in logs.items()}
    done = {"here": 20} | {name: int(lines[-1]) if lines else 0 for name, lines in counts.items()}
    with opened(path, budget_requests=limit) as cache:
        assert cache.spent() == (limit, 0), "the budget is neither overdrawn nor lost"
        for name, count in done.items():
            assert all(cache.get(f"{name}-{at}") is not None for at in range(count))
        with pytest.raises(RewardFailure):
            cache.reserve()
    # Of what the victim reserved, one answer at most was under way.
    assert limit - 2 <= sum(done.values()) <= limit
