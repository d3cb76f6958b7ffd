"""What an endpoint can do to a judge, and what comes of it: the table of docs/judges.md.

Each case is one image of a group of three that meets the trouble, through the real scorer, SDK and sockets; its
neighbours get good answers at the same time and must keep their scores.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from PIL import Image

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.vlm import Vlm
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.types import Example
from judge_server import JudgeServer, Reply, Request, as_json, completion, error, score

KEY = "sk-do-not-show-me-0123456789"
KEY_ENV = "TEST_JUDGE_KEY"
GOOD = {10: 1, 30: 4}
"""First pixel of the neighbours to their scores."""
TROUBLED = 20
EXAMPLE = Example(key="bag-1", prompt="a bag", references=(Image.new("RGB", (8, 8), (5, 5, 5)),), subject="backpack")


@dataclass(frozen=True)
class Case:
    """Replies by attempt (the last one repeats), and what must come of them: scored, masked or stopped; requests."""

    title: str
    replies: Sequence[Reply | Callable[[Request], Reply]]
    outcome: str
    requests: int = 1
    score: int | None = None
    says: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def _case(title: str, *replies: Any, **expected: Any) -> Case:
    return Case(title, replies, **expected)


def scored(title: str, *replies: Any, score: int = 3, **expected: Any) -> Case:
    return _case(title, *replies, outcome="scored", score=score, **expected)


def masked(title: str, *replies: Any, **expected: Any) -> Case:
    return _case(title, *replies, outcome="masked", **expected)


def stopped(title: str, *replies: Any, **expected: Any) -> Case:
    return _case(title, *replies, outcome="stopped", **expected)


def _text(words: str) -> Reply:
    return completion(words)


def _not_before(seconds: float) -> Callable[[Request], Reply]:
    """A server that means its Retry-After."""

    def reply(request: Request) -> Reply:
        return score(3) if request.seconds_since_last >= seconds else error(429, "I said later")

    return reply


OK = score(3)
TWICE: dict[str, Any] = {"requests": 2}  # the judge here has one retry
IMPATIENT: dict[str, Any] = {"options": {"timeout_s": 1.5}}
CASES = [
    scored("Good JSON", OK),
    scored("JSON with an analysis", _text('{"analysis": "the {strap} is red", "score": 3}')),
    scored("Fenced JSON", _text('```json\n{"score": 3}\n```')),
    scored("JSON among words", _text('Sure, here it is:\n{"score": 3}\nAnything else?')),
    scored("The score as a string", score("3")),
    scored("Chatty, with a last score line", _text("Score: 1 would be harsh.\nIt has the strap.\n\n**Score:** 3")),
    scored("A word before the number", _text("Score: Good (3)")),
    scored("Out of four", _text("Score: 3/4")),
    scored("Thoughts before the answer", _text('<think>maybe {"score": 1}?</think>{"score": 3}')),
    masked("Chatty, without a score line", _text("I would give it a 3, all in all."), says="there is no score"),
    masked("No JSON", _text("a lovely picture"), says="there is no score"),
    masked("Out of range", score(7), says="the score 7 is outside 0 to 4"),
    masked("Out of range, in a line", _text("Score: 40"), says="the score 40 is outside"),
    masked("Negative", score(-1), says="not a whole number"),
    masked("A fraction", _text("Score: 3.5"), says="can't be read"),
    masked("Out of five", _text("Score: 3/5"), says="can't be read"),
    masked("A range", _text("Score: 2-3"), says="can't be read"),
    masked("true for a score", score(True), says="not a whole number"),
    masked("null for a score", score(None), says="not a whole number"),
    masked("Two scores", _text('{"score": 1} or rather {"score": 4}'), says="several scores"),
    masked("A member twice", _text('{"score": 1, "score": 4}'), says="several scores"),
    masked("Empty", completion(""), says="the answer is empty"),
    masked("No content", completion(None), says="the answer is empty"),
    masked("Refused", completion(None, refusal="I can't grade people."), says="refused: \"I can't grade people.\""),
    masked("Stopped by a content filter", completion("", finish="content_filter"), says="content filter"),
    masked("Cut off", completion('{"analysis": "the', finish="length"), says="raise answer_tokens"),
    masked("Cut off behind a score", completion('{"score": 3}', finish="length"), says="ended by 'length'"),
    masked("Tool call", completion(None, finish="tool_calls"), says="ended by 'tool_calls'"),
    masked("An error with status 200", as_json({"error": {"message": "overloaded"}}), says="overloaded"),
    masked("No choices", as_json({"choices": []}), says="no choices"),
    masked("HTML with status 200", Reply(200, b"<html>proxy</html>", {"content-type": "text/html"}), says="proxy"),
    masked("Broken JSON with status 200", Reply(200, b"{", {"content-type": "application/json"}), says="can't be read"),
    stopped("400", error(400, "'max_tokens' is not supported"), says="HTTP 400: 'max_tokens' is not supported"),
    masked("400 of a content filter", error(400, "unsafe", "content_policy_violation"), says="content filter"),
    stopped("401", error(401, f"Incorrect API key provided: {KEY}"), says="Incorrect API key provided: ***"),
    stopped("402", error(402, "no credit"), says="HTTP 402: no credit"),
    stopped("403", error(403, "not your region"), says="HTTP 403: not your region"),
    stopped("404", error(404, "no model 'judge'"), says="HTTP 404: no model 'judge'"),
    stopped("422", as_json({"detail": "Unsupported fields"}, 422), says="HTTP 422"),
    stopped("429 of an empty account", error(429, "no quota", "insufficient_quota"), says="account is empty", **TWICE),
    scored("408 once", error(408, "slow"), OK, **TWICE),
    masked("408 always", error(408, "slow"), says="HTTP 408: slow", **TWICE),
    scored("409 once", error(409, "locked"), OK, **TWICE),
    scored("429 with Retry-After: 1", error(429, "later", retry_after="1"), _not_before(1.0), **TWICE),
    masked("429 always", error(429, "later"), says="HTTP 429: later, at every attempt", **TWICE),
    masked("429 with Retry-After: 3600", error(429, "later", retry_after="3600"), says="HTTP 429"),
    scored("500 once", error(500, "oops"), OK, **TWICE),
    masked("500 always", error(500, "oops"), says="HTTP 500: oops, at every attempt", **TWICE),
    scored("502 of a proxy, once", Reply(502, b"<html>Bad gateway</html>", {"content-type": "text/html"}), OK, **TWICE),
    masked("503 always", error(503, "loading"), says="HTTP 503: loading", **TWICE),
    scored("Silence, once", Reply(how="hang"), OK, **TWICE, **IMPATIENT),
    masked("Silence always", Reply(how="hang"), says="silent, at every attempt", **TWICE, **IMPATIENT),
    scored("Connection reset, once", Reply(how="reset"), OK, **TWICE),
    masked("Connection reset always", Reply(how="reset"), says="no connection, at every attempt", **TWICE),
    masked("A byte at a time, past the deadline", Reply(200, OK.body, OK.headers, "drip"), says="no whole answer in 3",
           options={"timeout_s": 3.0, "deadline_s": 3.0}),
]  # fmt: skip


def judge(url: str, **options: Any) -> Vlm:
    """A judge of the preset ``vllm`` at a scripted server, with a key."""
    section = {
        "type": "vlm",
        "axis": "identity",
        "preset": "vllm",
        "model": "judge",
        "base_url": url,
        "key_env": KEY_ENV,
        "rubric": "concept_preservation",
        **options,
    }
    return Vlm(Vlm.Config.model_validate(section), device=torch.device("cpu"))


def images(*values: int) -> torch.Tensor:
    """Grey images that carry their number in every pixel."""
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 16, 16, 3).contiguous()


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    outcome: str
    scores: tuple[float, ...]
    requests: int
    message: str


def run(case: Case) -> Result:
    """Meet the trouble."""

    def script(request: Request) -> Reply:
        number = request.pixel[0]
        if number in GOOD:
            return score(GOOD[number])
        reply = case.replies[min(request.attempt, len(case.replies) - 1)]
        return reply if isinstance(reply, Reply) else reply(request)

    with JudgeServer(script) as server:
        reward = judge(server.url, **{"timeout_s": 30.0, "deadline_s": 30.0, "retries": 1} | case.options)
        order = (10, TROUBLED, 30)
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            try:
                pending = scorer.submit(EXAMPLE, images(*order))
                column = pending.result()[:, 0]
            except RewardFailure as failure:
                outcome, scores, message = "stopped", (), str(failure)
            else:
                bad = bool(column.isnan()[1])
                outcome, scores = "masked" if bad else "scored", tuple(column.tolist())
                message = pending.reasons["cp"][1]
        reward.close()
        asked = sum(request.pixel[0] == TROUBLED for request in server.requests)
    return Result(outcome, scores, asked, message)


def _complaints(case: Case, result: Result) -> Iterator[str]:
    if result.outcome != case.outcome:
        yield f"it is {result.outcome}"
    if result.requests != case.requests:
        yield f"{result.requests} requests"
    if case.says not in result.message:
        yield f"it does not say {case.says!r}"
    if KEY in result.message:
        yield "it shows the key"
    if case.outcome != "stopped":
        first, own, last = result.scores or (math.nan,) * 3
        if (first, last) != (1.0, 4.0):
            yield f"its neighbours have {first} and {last}"
        if own != case.score and not (math.isnan(own) and case.score is None):
            yield f"its score is {own}"


def table() -> str:
    """What came of each case; an AssertionError where it is not what must come."""
    with mock.patch.dict(os.environ, {KEY_ENV: KEY}), ThreadPoolExecutor(12) as pool:
        results = list(pool.map(run, CASES))  # side by side: most of the time is waiting
    lines = ["| The endpoint | Outcome | Requests | Message |", "|---|---|---|---|"]
    complaints = []
    for case, result in zip(CASES, results, strict=True):
        complaints += [f"{case.title}: {one}: {result.message}" for one in _complaints(case, result)]
        said = result.message.removeprefix("Unscorable: ")
        said = said.removeprefix(f"reward 'cp' stopped the run on example {EXAMPLE.key!r}: ")
        said = said.replace("|", "\\|").replace("<", "&lt;")
        value = f" {result.scores[1]:g}" if result.outcome == "scored" else ""
        lines.append(f"| {case.title} | {result.outcome}{value} | {result.requests} | {said} |")
    assert not complaints, "\n".join(complaints)
    return "\n".join(lines) + "\n"
