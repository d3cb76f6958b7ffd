"""What an endpoint can do to a judge, and what comes of it: the table of docs/judges.md.

Each case is one image of a group of three that meets the trouble, through the real scorer, SDK and sockets; its
neighbours get good answers at the same time and must keep their scores.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
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


def _parts(*parts: dict[str, Any]) -> Reply:
    return completion(parts)


def _ended(by: str | None, text: str = '{"score": 3}', **more: Any) -> Reply:
    return completion(text, finish=by, **more)


def _google(*quotas: str, delay: str) -> Reply:
    """A 429 as Gemini sends it through its OpenAI-compatible address: a list, with the wait in the details."""
    kind = "type.googleapis.com/google.rpc."
    details = [
        {"@type": f"{kind}QuotaFailure", "violations": [{"quotaId": quota} for quota in quotas]},
        {"@type": f"{kind}RetryInfo", "retryDelay": delay},
    ]
    said = "You exceeded your current quota, please check your plan and billing details."
    inner = {"code": 429, "message": said, "status": "RESOURCE_EXHAUSTED", "details": details}
    return as_json([{"error": inner}], 429)


def _router(code: int, message: str, **metadata: Any) -> dict[str, Any]:
    """An error as OpenRouter words it, also in the body of a 200."""
    return {"error": {"code": code, "message": message, "metadata": metadata}}


def _in_two_seconds(request: Request) -> Reply:
    return error(429, "later", retry_after=formatdate(time.time() + 2, usegmt=True))


def _not_before(seconds: float) -> Callable[[Request], Reply]:
    """A server that means its Retry-After."""

    def reply(request: Request) -> Reply:
        return score(3) if request.seconds_since_last >= seconds else error(429, "I said later")

    return reply


OK = score(3)
ANSWERED, TWO = json.loads(OK.body), json.loads(score(2).body)
PER_DAY, PER_MINUTE = (f"GenerateRequestsPer{one}PerProjectPerModel-FreeTier" for one in ("Day", "Minute"))
TPM = "Limit 30000, Used 29900, Requested 700. Please try again in"
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
    scored("The score as 3.0", _text('{"score": 3.0}')),
    scored("The member in another case", _text('{"Score": 3}')),
    scored("A raw line break in a JSON string", _text('{"analysis": "first\nScore: 1\nsecond", "score": 3}')),
    scored("JSON as Python writes it", _text("{'score': 3,}")),
    scored("Full-width digit and colon", _text("Score\uff1a\uff13")),
    scored("A number and nothing else", _text("<|begin_of_box|>3<|end_of_box|>")),
    scored("A number as content", completion(3)),
    scored("A rating", _text('{"rating": 3}')),
    scored("The scale beneath the score", _text("Score: 3\n(Score range: 0 to 4)")),
    scored("A final score after another", _text("Score: 2\nFinal score: 3")),
    scored("Nested thoughts", _text("<think>a <think>b</think> Score: 1</think>Score: 3")),
    scored("Thoughts in other tags", _text("\u25c1think\u25b7Score: 1\u25c1/think\u25b7Score: 3")),
    scored("A final channel after an analysis", _text("<|channel|>analysis<|message|>Score: 1<|end|><|start|>assistant"
           "<|channel|>final<|message|>Score: 3")),
    scored("A list of parts", _parts({"type": "thinking", "thinking": "Score: 1"},
           {"type": "text", "text": "Score: 3"})),
    scored("JSON that a server took for thoughts", completion(None, reasoning_content='{"score": 3}')),
    *(scored(f"Ended by {by!r}", _ended(by))
      for by in (None, "", "eos", "end_turn", "STOP", "stop_sequence", "unknown")),
    scored("Broken off behind closed JSON", _ended("insufficient_system_resource")),
    masked("Broken off behind a line", _ended("abort", "Score: 3"), says="may not be whole"),
    masked("Two score lines", _text("Score: 2\nScore: 3"), says="several scores"),
    masked("A final answer that is not the score", _text("Score: 3\nFinal answer: 2"), says="several scores"),
    masked("A score that is taken back", _text("Score: 3\nActually, 2."), says="may take it back"),
    masked("JSON that is taken back", _text('```json\n{"score": 3}\n```\nI would lower it to 2.'),
           says="may take it back"),
    masked("Two choices that differ", as_json(ANSWERED | {"choices": ANSWERED["choices"] + TWO["choices"]}),
           says="2 answers with several scores: 3, 2"),
    scored("Two choices that agree", as_json(ANSWERED | {"choices": ANSWERED["choices"] * 2})),
    masked("Two numbers", _text("2\n3"), says="there is no score"),
    masked("A draft in open thoughts", _text('<think>perhaps {"score": 1}'), says="thoughts are not closed"),
    masked("Thoughts alone", completion("", reasoning_content="Hm.\nScore: 1"),
           says="in 'reasoning_content': 'Hm. Score: 1'"),
    masked("JSON cut off, with no ending", _ended(None, '{"analysis": "red", "score": 3'), says="JSON is not whole"),
    *(masked(f"Ended by {by!r}", _ended(by), says=says) for by, says in (("MAX_TOKENS", "raise answer_tokens"),
      ("SAFETY", "content filter"), ("RECITATION", "content filter"), ("sensitive", "content filter"),
      ("tool_use", "calls a tool"))),
    masked("A decimal comma", _text("Score: 3,5"), says="not a whole number"),
    masked("A decimal comma in JSON", _text('{"score": 3,5}'), says="not a whole number"),
    scored("A whole number with a decimal comma", _text("Score: 3,0")),
    masked("Chatty, without a score line", _text("I would give it a 3, all in all."), says="there is no score"),
    masked("No JSON", _text("a lovely picture"), says="there is no score"),
    masked("Out of range", score(7), says="the score 7 is outside 0 to 4"),
    masked("Out of range, in a line", _text("Score: 40"), says="the score 40 is outside"),
    masked("Negative", score(-1), says="the score -1 is outside 0 to 4"),
    masked("A fraction", _text("Score: 3.5"), says="not a whole number"),
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
    scored("A passing error with status 200", as_json(_router(429, "busy")), OK, **TWICE),
    scored("A provider's error in the choice", _ended("error", "", error={"code": 502, "message": "lost"}), OK,
           **TWICE),
    stopped("An empty account with status 200", as_json(_router(402, "Insufficient credits")), says="account is empty"),
    scored("An empty error beside an answer", as_json(ANSWERED | {"error": {"message": "", "code": None}})),
    scored("A byte order mark, and text/plain", Reply(200, b"\xef\xbb\xbf" + OK.body, {"content-type": "text/plain"})),
    masked("429 that is not to be asked again", error(429, "later", x_should_retry="false"), says="not to be asked"),
    masked("No choices", as_json({"choices": []}), says="no choices"),
    masked("No choices, with a reason", as_json({"choices": None, "blockReason": "PROHIBITED_CONTENT"}),
           says="PROHIBITED_CONTENT"),
    masked("HTML with status 200", Reply(200, b"<html>proxy</html>", {"content-type": "text/html"}), says="proxy"),
    masked("Broken JSON with status 200", Reply(200, b"{", {"content-type": "application/json"}), says="can't be read"),
    stopped("400", error(400, "'max_tokens' is not supported"), says="HTTP 400: 'max_tokens' is not supported"),
    masked("400 of a content filter", error(400, "unsafe", "content_policy_violation"), says="content filter"),
    masked("400 of a safety system, in words", error(400, "Your request was rejected by our safety system.", "1301"),
           says="content filter"),
    masked("403 of a router's moderation", as_json(_router(403, "flagged", flagged_input="a bag"), 403),
           says="content filter"),
    stopped("301 to another address", Reply(301, b"", {"location": "https://host/v1/chat/completions"}),
            says="sends on to https://host/v1/chat/completions"),
    scored("307 to the same server", Reply(307, b"", {"location": "/v1/chat/completions"}), OK, **TWICE),
    stopped("401", error(401, f"Incorrect API key provided: {KEY}"), says="Incorrect API key provided: ***"),
    stopped("402", error(402, "no credit"), says="HTTP 402: no credit"),
    stopped("403", error(403, "not your region"), says="HTTP 403: not your region"),
    stopped("404", error(404, "no model 'judge'"), says="HTTP 404: no model 'judge'"),
    stopped("422", as_json({"detail": "Unsupported fields"}, 422), says="HTTP 422"),
    stopped("429 of an empty account", error(429, "no quota", "insufficient_quota"), says="account is empty"),
    stopped("429 of a day's quota at Google", _google(PER_DAY, PER_MINUTE, delay="1s"),
            says="quota for the day is used up"),
    stopped("429 of a day's quota at OpenRouter", as_json(_router(429, "Rate limit exceeded: free-models-per-day. Add "
            "10 credits to unlock 1000 free model requests per day"), 429), says="quota for the day is used up"),
    stopped("429 of a day's quota at OpenAI", error(429, "Rate limit reached for gpt-4o on requests per day (RPD): "
            "Limit 200, Used 200. Please try again in 7m12s."), says="quota for the day is used up"),
    stopped("400 of an account in arrears", error(400, "Access denied", "Arrearage"), says="account is empty"),
    stopped("403 of a used-up free quota", error(403, "The free quota is exhausted.", "AllocationQuota.FreeTierOnly"),
            says="account is empty"),
    scored("429 of DashScope's limit for a minute", error(429, "Allocated quota exceeded, please increase your quota "
           "limit.", "insufficient_quota"), OK, **TWICE),
    scored("408 once", error(408, "slow"), OK, **TWICE),
    masked("408 always", error(408, "slow"), says="HTTP 408: slow", **TWICE),
    scored("409 once", error(409, "locked"), OK, **TWICE),
    scored("429 with Retry-After: 1", error(429, "later", retry_after="1"), _not_before(1.0), **TWICE),
    scored("429 with retry-after-ms: 800", error(429, "later", retry_after_ms="800"), _not_before(0.8), **TWICE),
    scored("429 with a date in Retry-After", _in_two_seconds, _not_before(0.9), **TWICE),
    scored("429 with Google's retryDelay", _google(PER_MINUTE, delay="1.2s"), _not_before(1.2), **TWICE),
    scored("429 that says 'retry in 1.1s'", error(429, "Please retry in 1.1s."), _not_before(1.1), **TWICE),
    scored("429 that says 'try again in 850ms'", error(429, f"{TPM} 850ms."), _not_before(0.85), **TWICE),
    scored("429 with the reset of a used-up limit", error(429, "later", x_ratelimit_remaining_tokens="0",
           x_ratelimit_reset_tokens="1s", x_ratelimit_remaining_requests="9", x_ratelimit_reset_requests="1h"),
           _not_before(1.0), **TWICE),
    scored("503 with estimated_time: 1.1", as_json({"error": "Model is currently loading", "estimated_time": 1.1}, 503),
           _not_before(1.1), **TWICE),
    scored("A wait beside an error with status 200", as_json(_router(503, "loading") | {"estimated_time": 1.1}),
           _not_before(1.1), **TWICE),
    scored("429 that says '1 秒后重试'", error(429, "请求过于频繁, 请在 1 秒后重试"), _not_before(1.0), **TWICE),
    masked("429 that says 'try again in a minute'", error(429, "try again in a minute"), says="asks to wait 60 s"),
    masked("429 that says 'resets at 2100-01-01T00:00:00Z'", error(429, "the limit resets at 2100-01-01T00:00:00Z"),
           says="it asks to wait a day or more, longer"),
    masked("429 that says 'try again in 6m0s'", error(429, f"{TPM} 6m0s."), says="it asks to wait 360 s, longer"),
    masked("429 with retryDelay: 3600s", _google(PER_MINUTE, delay="3600s"), says="asks to wait 3600 s"),
    masked("429 always", error(429, "later"), says="HTTP 429: later, at every attempt", **TWICE),
    masked("429 with Retry-After: 3600", error(429, "later", retry_after="3600"), says="asks to wait 3600 s"),
    scored("500 once", error(500, "oops"), OK, **TWICE),
    masked("500 always", error(500, "oops"), says="HTTP 500: oops, at every attempt", **TWICE),
    scored("502 of a proxy, once", Reply(502, b"<html>Bad gateway</html>", {"content-type": "text/html"}), OK, **TWICE),
    masked("503 always", error(503, "loading"), says="HTTP 503: loading", **TWICE),
    scored("Silence, once", Reply(how="hang"), OK, **TWICE, **IMPATIENT),
    masked("Silence always", Reply(how="hang"), says="silent, at every attempt", **TWICE, **IMPATIENT),
    scored("Connection reset, once", Reply(how="reset"), OK, **TWICE),
    masked("Connection reset always", Reply(how="reset"), says="no connection: ReadError, at every", **TWICE),
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
    return Result(outcome, scores, asked, message.replace(server.url, "http://host:8000/v1"))


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
