"""Cache of a judge's answers and spending, in one SQLite file that several processes and runs may share.

Commits are atomic, so a killed process leaves a valid file; no question is paid for twice. Answers are everybody's, the
budget is a run's own: it is counted in the same file under the run's account, hence over the run's processes and
restarts, and before a request is sent. If the file can't be written any more, paid scores still count; but a budget
that can't be counted stops the run.
"""

import logging
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, final

from customized_grpo.rewards.base import RewardFailure

_log = logging.getLogger(__name__)
_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, score REAL NOT NULL, reply TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, time REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    judge TEXT PRIMARY KEY, requests INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
_WAIT_S: Final = 60.0


@final
class Cache:
    """Answers by key, and the spending of an account; to be used from one thread at a time.

    Args:
        path: the file; None keeps everything in memory, for this process.
        judge: model and rubric; its own account until ``begin`` names another.
        budget_requests: limit on HTTP requests, including retries.
        budget_tokens: limit on tokens as reported by the endpoint. Requests in flight may overshoot it.

    Raises:
        ValueError: the file can't be opened or is not a cache.
    """

    def __init__(
        self, path: Path | None, judge: str, *, budget_requests: int | None, budget_tokens: int | None
    ) -> None:
        self._path, self._judge, self._account = path, judge, judge
        self._budget_requests, self._budget_tokens = budget_requests, budget_tokens
        self._warned = False
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Transactions are explicit below; the judge's event loop uses a connection opened by another thread.
            self._db = sqlite3.connect(
                path or ":memory:", timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"cache: {path} can't be opened ({error}); give another file") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise ValueError(f"cache: {path} is not a cache of a judge ({error}); give another file") from error
        except ValueError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if found != _VERSION and (found or tables):
            self._db.execute("ROLLBACK")
            raise ValueError(
                f"cache: {self._path} is not a cache of this version (its number is {found}, not {_VERSION}); "
                "give another file"
            )
        for statement in filter(str.strip, _TABLES.split(";")):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {_VERSION}")
        self._db.execute("COMMIT")

    def begin(self, account: str) -> None:
        """Count what is spent from now on under this account of the judge."""
        self._account = _key(self._judge, account)

    def get(self, key: str) -> tuple[float, str] | None:
        """The cached score of ``key`` and the reply that it was read from, if any."""
        row = self._db.execute("SELECT score, reply FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else (float(row[0]), str(row[1]))

    def put(self, key: str, score: float, reply: str, *, prompt_tokens: int, answer_tokens: int) -> None:
        """Save a score with the reply, for people to read; if it can't be saved, warn once."""
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, self._judge, score, reply, prompt_tokens, answer_tokens, time.time()),
            )
        except sqlite3.Error as error:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "%s: answers can't be kept in %s (%s); they count, but will be asked for again",
                    self._judge,
                    self._path or "memory",
                    error,
                )

    def spend(self, tokens: int) -> None:
        """Count used tokens, whether or not the answer was usable.

        Raises:
            RewardFailure: they can't be counted.
        """
        self._count("UPDATE spent SET tokens = tokens + ? WHERE judge = ?", (tokens, self._account))

    def reserve(self) -> None:
        """Count one request, before it is sent.

        Raises:
            RewardFailure: the budget is spent, or can't be counted.
        """
        self._count("INSERT OR IGNORE INTO spent (judge) VALUES (?)", (self._account,))
        taken = self._count(
            "UPDATE spent SET requests = requests + 1 WHERE judge = ?"
            " AND (? IS NULL OR requests < ?) AND (? IS NULL OR tokens < ?)",
            (self._account, *[self._budget_requests] * 2, *[self._budget_tokens] * 2),
        )
        if taken.rowcount == 0:
            requests, tokens = self.spent()
            limits = f"budget_requests: {_limit(self._budget_requests)}, budget_tokens: {_limit(self._budget_tokens)}"
            raise RewardFailure(
                f"the budget of {self._account} is spent: {requests} requests and {tokens} tokens ({limits}), counted "
                f"in {self._path or 'this process'}; raise the limit and start again, a training run by "
                "run.resume=latest (answers are kept), or stop here"
            )

    def _count(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise RewardFailure(
                f"what {self._judge} spends can't be counted in {self._path or 'memory'} ({error}); make the file "
                "writable (is its disk full?) or give another cache, and go on: the answers in it are kept"
            ) from error

    def spent(self) -> tuple[int, int]:
        """Requests and tokens of this account so far."""
        return _row(self._db, self._account)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def balance(path: Path | None, judge: str, account: str | None, budgets: Mapping[str, tuple[int | None, int]]) -> str:
    """What an account has spent and has left, in words; the file is only read.

    Args:
        path: see ``Cache``.
        judge: see ``Cache``.
        account: see ``Cache.begin``; None: of a run that has not begun.
        budgets: limits on requests and on tokens by their names, each with what is still needed.

    Raises:
        ValueError: the file is not a cache.
    """
    spent, text = (0, 0), ""
    if path is not None and path.is_file() and account is not None:
        spent = _spent_in(path, _key(judge, account))
    for (name, (limit, needed)), used in zip(budgets.items(), spent, strict=True):
        if limit is not None:
            left = max(0, limit - used)
            text += f"; of {name} ({limit}) {used} are spent and {left} are left" if used else ""
            if needed > left:
                text += f"; more than {'is left' if used else f'{name} ({limit})'}: the run will stop there"
    if path is None and any(limit for limit, _ in budgets.values()):
        text += "; without a cache each process has that budget, anew with every start"
    return text


def _key(judge: str, account: str) -> str:
    return f"{judge}, {account}"


def _spent_in(path: Path, account: str) -> tuple[int, int]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=_WAIT_S, uri=True)) as db:
            return _row(db, account)
    except sqlite3.Error as error:
        raise ValueError(f"cache: {path} is not a cache of a judge ({error}); give another file") from error


def _row(db: sqlite3.Connection, account: str) -> tuple[int, int]:
    row = db.execute("SELECT requests, tokens FROM spent WHERE judge = ?", (account,)).fetchone() or (0, 0)
    return int(row[0]), int(row[1])


def _limit(value: int | None) -> str:
    return "none" if value is None else str(value)
