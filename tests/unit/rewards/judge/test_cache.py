"""The judge's file: shared by processes, whole after a kill, and a budget that nobody overdraws."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.cache import Cache


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
        assert cache.get("a") == 2.5
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
        (b"not a database at all, but long enough to be read as a header of one.", "is no cache of a judge"),
        (None, "can't be opened"),
        ("CREATE TABLE mine (x)", "is no cache of this version"),
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


WRITER = """
import sys, time
from pathlib import Path
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.cache import Cache
path, name, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
cache = Cache(path, "judge", budget_requests=limit, budget_tokens=None)
done = 0
try:
    while True:
        cache.reserve()
        cache.put(f"{name}-{done}", 1.0, "x" * 2000, prompt_tokens=1, answer_tokens=1)
        done += 1
        print(done, flush=True)
        time.sleep(0.005)  # others have their turn
except RewardFailure:
    pass
"""


def writer(path: Path, name: str, limit: int) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[4]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(limit)],
        env={**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_share_it_and_a_killed_one_costs_nothing_that_was_said(tmp_path: Path) -> None:
    path, limit = tmp_path / "judge.sqlite", 200
    victim = writer(path, "victim", limit)
    assert victim.stdout is not None
    said = [victim.stdout.readline() for _ in range(5)]
    with opened(path, budget_requests=limit) as cache:
        for at in range(20):  # beside the victim, which is killed in the middle of its work
            cache.reserve()
            cache.put(f"here-{at}", 1.0, "x", prompt_tokens=1, answer_tokens=1)
    os.kill(victim.pid, signal.SIGKILL)
    survivor = writer(path, "survivor", limit)
    rest, _ = victim.communicate(timeout=120)
    told, _ = survivor.communicate(timeout=120)
    assert survivor.returncode == 0
    counts = {"victim": [*said, *rest.splitlines()], "survivor": told.splitlines()}
    done = {"here": 20} | {name: int(lines[-1]) if lines else 0 for name, lines in counts.items()}
    with opened(path, budget_requests=limit) as cache:
        assert cache.spent() == (limit, 0), "the budget is neither overdrawn nor lost"
        for name, count in done.items():
            assert all(cache.get(f"{name}-{at}") == 1.0 for at in range(count))
        with pytest.raises(RewardFailure):
            cache.reserve()
    # Of what the victim reserved, one answer at most was under way.
    assert limit - 2 <= sum(done.values()) <= limit
