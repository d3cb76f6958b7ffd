"""The probability of a yes: the word, its spellings among the log-probabilities, and what is refused."""

import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.rewards.judge.vlm import Vlm
from customized_grpo.rewards.judge.yes_no import of_word, read_yes_no
from judge_cases import EXAMPLE
from judge_server import JudgeServer, Reply, Request, completion, error


def paco(url: str, **options: Any) -> Vlm:
    section = {"type": "vlm", "axis": "identity", "preset": "paco", "rubric": "paco_consistency", "base_url": url}
    return Vlm(Vlm.Config.model_validate(section | options), device=torch.device("cpu"))


def ask(reward: Vlm) -> float:
    try:
        return asyncio.run(reward(EXAMPLE, Image.new("RGB", (9, 9), "white")))
    finally:
        reward.close()


def answered(pieces: list[str], spread: Mapping[str, float], *, finish: str = "length", at: int = 0) -> Reply:
    """A completion as vLLM gives it, whose token ``at`` has these alternatives; the others have none but themselves."""

    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = []
    for index, piece in enumerate(pieces):
        listed = spread if index == at else {piece: 1.0}
        top = [entry(token, math.log(p)) for token, p in listed.items()]
        content.append({**entry(piece, math.log(listed.get(piece, 1.0))), "top_logprobs": top})
    return completion("".join(pieces), finish=finish, logprobs={"content": content})


@pytest.mark.parametrize(
    ("pieces", "spread", "expected"),
    [
        (["Yes"], {"Yes": 0.8, "No": 0.2}, 0.8),
        (["No"], {"Yes": 0.25, "No": 0.75}, 0.25),
        (["Yes"], {"Yes": 0.4, "yes": 0.1, " Yes": 0.1, "YES": 0.1, "No": 0.2, " no": 0.1}, 0.7),
        (["Yes", ",", " the"], {"Yes": 0.5, "No": 0.3, "The": 0.2}, 0.625),
        (["Yes"], {"Yes": 0.9, "Yesterday": 0.05, "None": 0.05}, 1.0),
        (["**", "No", "**"], {"Yes": 0.1, "No": 0.9}, 0.1),
        ([" Yes", "\n"], {" Yes": 0.6, "\u2581No": 0.4}, 0.6),
        (["Answer", ":", " no", "."], {" yes": 0.3, " no": 0.7}, 0.3),
    ],
)
def test_the_probability_is_over_all_spellings(pieces: list[str], spread: dict[str, float], expected: float) -> None:
    at = next(index for index, piece in enumerate(pieces) if of_word(piece) is not None)
    with JudgeServer(lambda request: answered(pieces, spread, at=at)) as server:
        assert ask(paco(server.url)) == pytest.approx(expected)
        assert ask(paco(server.url, best=4.0)) == pytest.approx(4 * expected)


def test_what_is_asked_is_one_word_and_its_log_probabilities() -> None:
    with JudgeServer(lambda request: answered(["Yes"], {"Yes": 0.9, "No": 0.1})) as server:
        ask(paco(server.url))
        (request,) = server.requests
    assert (request.body["logprobs"], request.body["top_logprobs"], request.body["max_tokens"]) == (True, 20, 4)
    assert request.body["temperature"] == 0.0
    assert "response_format" not in request.body
    (message,) = request.body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (completion("Yes"), "gave no log-probabilities"),
        (completion("Yes", logprobs={"content": []}), "gave no log-probabilities"),
        (answered(["Yes"], {"Yes": 0.2, "Well": 0.8}), "don't cover the score"),
        (answered(["Yes"], {"No": 0.9}), "don't cover the score"),
        (answered(["token_id:9454"], {"token_id:9454": 1.0}), "does not begin with yes or no"),
        (answered(["It ", "is"], {"It ": 1.0}), "does not begin with yes or no"),
        (answered(["Yes", " or", " no"], {"Yes": 0.9, "No": 0.1}), "does not begin with yes or no"),
        (answered(["<think>", "yes"], {"<think>": 1.0}), "thoughts are not closed"),
        (completion("", refusal="I can't."), "refused"),
        (completion("", finish="content_filter"), "content filter"),
    ],
)
def test_without_a_probability_there_is_no_score(reply: Reply, why: str) -> None:
    with JudgeServer(lambda request: reply) as server, pytest.raises(Unscorable, match=why):
        ask(paco(server.url))


def test_an_endpoint_that_refuses_log_probabilities_stops_with_its_words() -> None:
    said = "logprobs are not supported with this model"
    with JudgeServer(lambda request: error(400, said)) as server, pytest.raises(RewardFailure, match=said):
        ask(paco(server.url))


def test_thoughts_before_the_word_are_passed_over() -> None:
    pieces = ["<think>", "No?", "</think>", "\n\n", "Yes"]
    with JudgeServer(lambda request: answered(pieces, {"Yes": 0.7, "No": 0.3}, at=4, finish="stop")) as server:
        assert ask(paco(server.url, answer_tokens=99)) == pytest.approx(0.7)


def test_a_probability_is_kept_and_not_asked_for_again(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer(lambda request: answered(["No"], {"Yes": 0.25, "No": 0.75})) as server:
        assert [ask(paco(server.url, cache=cache)) for _ in range(2)] == pytest.approx([0.25, 0.25])
        assert len(server.requests) == 1


def test_a_rubric_of_ones_own_may_ask_yes_or_no(tmp_path: Path) -> None:
    file = tmp_path / "same.yaml"
    file.write_text(json.dumps({"axis": "identity", "text": "Is it the same bag?", "asks": "yes_no"}), encoding="utf-8")

    def reply(request: Request) -> Reply:
        assert "Reply with one word and nothing else: Yes or No." in request.text
        return answered(["Yes"], {"Yes": 0.6, "No": 0.2})

    with JudgeServer(reply) as server:
        section = {"type": "vlm", "preset": "vllm", "model": "m", "base_url": server.url, "rubric": str(file)}
        assert ask(Vlm(Vlm.Config.model_validate(section), device=torch.device("cpu"))) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "text", ["Yes", "yes.", "**Yes**", "Answer: yes", '"Yes", it is', "Yes - the strap", " \n Yes"]
)
def test_a_yes_is_read(text: str) -> None:
    answer = read_yes_no(text)
    assert (answer.score, text[answer.at : answer.at + 3].lower()) == (1, "yes")


@pytest.mark.parametrize(
    "text", ["", "Maybe", "Not really", "Nothing", "Yesterday", "I say yes", "No/Yes", "yes or no?"]
)
def test_what_is_neither_is_not_read(text: str) -> None:
    with pytest.raises(Unscorable):
        read_yes_no(text)
