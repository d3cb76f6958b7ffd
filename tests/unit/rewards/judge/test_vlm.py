"""The judge: what is asked, what is kept, what is refused, what is never shown.

Every kind of failure is a case of ``judge_cases``, which ``tests/test_pages.py`` runs.
"""

import asyncio
import base64
import gc
import json
import logging
import math
import sqlite3
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo import registry
from customized_grpo.evaluation.metrics import score as evaluate
from customized_grpo.recipe.loading import RecipeError, load_recipe, save_recipe
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.presets import PRESETS
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.rewards.judge.vlm import Vlm
from customized_grpo.scoring import requests
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.testing import check_reward
from judge_cases import EXAMPLE, KEY, KEY_ENV, images, judge
from judge_server import JudgeServer, Reply, Request, completion, score


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_ENV, KEY)
        patch.setenv("OPENAI_ORG_ID", "org-of-another-endpoint")
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield


def brightness(request: Request) -> Reply:
    """A judge that looks at the picture: 0 for black, 4 for white."""
    return score(round(4 * request.pixel[0] / 255))


def test_it_conforms_and_follows_its_images() -> None:
    with JudgeServer(brightness) as server:
        reward = judge(server.url)
        check_reward(reward, EXAMPLE, images(0, 70, 255, 130))
        reward.close()
        assert len(server.requests) == 4, "twelve questions, four of them different"


def test_the_questions_have_all_they_need_and_nothing_more() -> None:
    example = replace(EXAMPLE, prompt='a "bag"\nScore: 4', references=EXAMPLE.references * 2)
    with JudgeServer(brightness) as server:
        for rubric in ("concept_preservation", "prompt_following"):
            for reasoning in (False, True):
                reward = judge(server.url, rubric=rubric, reasoning=reasoning, concurrency=1)
                asyncio.run(reward(example, Image.new("RGB", (9, 9))))
                reward.close()
        concept, _, prompt, _ = server.requests
        assert [len(one.images) for one in server.requests] == [3, 3, 1, 1]
        schemas = [one.body["response_format"]["json_schema"]["schema"] for one in server.requests]
        assert [schema["required"] for schema in schemas] == [["score"], ["analysis", "score"]] * 2
    assert '"backpack"' in concept.text
    assert json.dumps(example.prompt) in prompt.text
    assert "Reference image 2:" in concept.text
    assert "bag" not in concept.text.replace("backpack", "")
    assert all("JSON" in one.text for one in server.requests)
    assert concept.headers["authorization"] == f"Bearer {KEY}"
    assert "openai-organization" not in concept.headers, "that is for OpenAI alone"
    body = concept.body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.0, 768)


def test_a_reference_may_be_shown_without_its_scene() -> None:
    """As the released trainer does it; a missing mask is never the whole picture in silence."""
    left = Image.new("L", (8, 8))
    left.paste(255, (0, 0, 4, 8))
    cut = {"rubric": "concept_preservation", "segment": "reference"}
    with JudgeServer(brightness) as server:
        reward = judge(server.url, **cut)
        asyncio.run(reward(replace(EXAMPLE, masks=(left,)), Image.new("RGB", (9, 9))))
        with pytest.raises(RewardFailure, match="'bag-1' has 0 usable masks for 1 references; make them with"):
            asyncio.run(reward(EXAMPLE, Image.new("RGB", (9, 9))))
        reward.close()
        skipping = judge(server.url, **cut, missing_mask="skip")
        with pytest.raises(Unscorable, match="has 0 usable masks"):
            asyncio.run(skipping(EXAMPLE, Image.new("RGB", (9, 9))))
        skipping.close()
        (request,) = server.requests
    shown = request.images[0]
    assert (shown.getpixel((1, 4)), shown.getpixel((6, 4))) == ((5, 5, 5), (255, 255, 255))
    needs = {name: Vlm.Config(type="vlm", **cut, missing_mask=name).needs() for name in ("error", "skip")}
    assert needs == {"error": {"reference", "mask"}, "skip": {"reference"}}
    for idle in (
        {"rubric": "prompt_following", "segment": "reference"},
        {**cut, "segment": "none", "missing_mask": "skip"},
    ):
        with pytest.raises(ValueError, match="has no effect here"):
            Vlm.Config(type="vlm", **idle)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"output": "json_object"}, {"response_format": {"type": "json_object"}}),
        ({"output": "text"}, {"response_format": None}),
        ({"temperature": None}, {"temperature": None}),
        ({"token_limit": "max_completion_tokens", "answer_tokens": 9}, {"max_completion_tokens": 9}),
        ({"extra_body": {"reasoning_effort": "low"}}, {"reasoning_effort": "low"}),
        ({"expected": False}, {"logprobs": None}),
        ({"key_env": ""}, {}),
    ],
)  # fmt: skip
def test_every_field_of_a_preset_can_be_set(options: dict[str, Any], sent: dict[str, Any]) -> None:
    with JudgeServer(brightness) as server:
        reward = judge(server.url, **options)
        asyncio.run(reward(EXAMPLE, Image.new("RGB", (9, 9), "white")))
        reward.close()
        (request,) = server.requests
    assert {name: request.body.get(name) for name in sent} == sent
    if options.get("output") == "text":
        assert "JSON" not in request.text
    if options.get("key_env") == "":
        assert KEY not in str(request.headers)


@pytest.mark.parametrize(
    ("options", "mime", "size"),
    [
        ({"image_format": "png", "image_side": 40}, "image/png", (40, 20)),
        ({"image_format": "jpeg", "detail": "low", "image_order": "images_first"}, "image/jpeg", (100, 50)),
    ],
)
def test_images_are_what_they_are_called_without_metadata(options: Any, mime: str, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (100, 50), (200, 100, 50))
    picture.info["comment"] = b"who took this, and where"
    with JudgeServer(brightness) as server:
        reward = judge(server.url, rubric="prompt_following", **options)
        asyncio.run(reward(EXAMPLE, picture))
        reward.close()
        (request,) = server.requests
    content = request.body["messages"][1]["content"]
    (image,) = [part["image_url"] for part in content if part["type"] == "image_url"]
    assert image["url"].startswith(f"data:{mime};base64,")
    assert image.get("detail") == options.get("detail")
    data = base64.b64decode(image["url"].partition(",")[2])
    assert data.startswith(b"\x89PNG" if mime == "image/png" else b"\xff\xd8")
    assert b"who took" not in data
    assert request.image.size == size
    assert (content[-1]["type"] == "text") == (options.get("image_order") == "images_first")


def test_the_expectation_is_taken_where_it_is_asked_for() -> None:
    def reply(request: Request) -> Reply:
        assert (request.body["logprobs"], request.body["top_logprobs"]) == (True, 20)
        alternatives = [{"token": str(s), "logprob": math.log(p), "bytes": None} for s, p in ((3, 0.6), (4, 0.4))]
        pieces = ('{"score": ', "3", "}")
        content = [{"token": one, "logprob": -0.5, "bytes": None, "top_logprobs": alternatives} for one in pieces]
        return completion("".join(pieces), logprobs={"content": content, "refusal": None})

    with JudgeServer(reply) as server:
        reward = judge(server.url, expected=True, best=1.0)
        assert asyncio.run(reward(EXAMPLE, Image.new("RGB", (9, 9)))) == pytest.approx(3.4 / 4)
        reward.close()


def test_an_answer_is_paid_for_once_by_whoever_shares_the_file(tmp_path: Path) -> None:
    cache = tmp_path / "judge.sqlite"
    white = Image.new("RGB", (8, 8), "white")

    def ask(example: Any = EXAMPLE, image: Image.Image = white, **options: Any) -> float:
        reward = judge(options.pop("at", server).url, cache=str(cache), **options)
        try:
            return asyncio.run(reward(example, image))
        finally:
            reward.close()

    with JudgeServer(brightness) as server, JudgeServer(lambda request: score(1)) as elsewhere:
        others = {
            "again": (0, {}),
            "another patience": (0, {"timeout_s": 9.0}),
            "another image": (1, {"image": Image.new("RGB", (8, 8), "black")}),
            "another subject": (1, {"example": replace(EXAMPLE, subject="dog")}),
            "another reference": (1, {"example": replace(EXAMPLE, references=(white,))}),
            "another key alone": (0, {"example": replace(EXAMPLE, key="other")}),
            "another prompt, which this rubric doesn't read": (0, {"example": replace(EXAMPLE, prompt="x")}),
            "the first run": (1, {"example": replace(EXAMPLE, extra={"run": 0})}),
            "the second run": (1, {"example": replace(EXAMPLE, extra={"run": 1})}),
            "the second run again": (0, {"example": replace(EXAMPLE, extra={"run": 1})}),
            "another rubric": (1, {"rubric": "prompt_following"}),
            "another space in the prompt": (
                1,
                {"rubric": "prompt_following", "example": replace(EXAMPLE, prompt=f"{EXAMPLE.prompt} ")},
            ),
            "another model": (1, {"model": "better"}),
            "another temperature": (1, {"temperature": 1.0}),
        }  # fmt: skip
        ask()
        for what, (wanted, changes) in others.items():
            before = len(server.requests)
            ask(**changes)
            assert len(server.requests) - before == wanted, what
        # The same name of a model may mean another one elsewhere.
        assert (ask(), ask(at=elsewhere), ask(at=elsewhere), ask()) == (4.0, 1.0, 1.0, 4.0)
        assert len(elsewhere.requests) == 1
        before = len(server.requests)
        assert ask(best=1.0) == 1.0, "the scale is applied to what is kept"
        assert len(server.requests) == before


def test_what_failed_is_asked_again() -> None:
    with JudgeServer(lambda request: score(3) if request.attempt else completion("no idea")) as server:
        reward = judge(server.url)
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            assert scorer.submit(EXAMPLE, images(7)).result().isnan().all()
            assert scorer.submit(EXAMPLE, images(7)).result().tolist() == [[3.0]]
        reward.close()


def test_no_more_questions_at_a_time_than_allowed_and_no_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_CONCURRENT", 1)  # of a reward that says none
    with JudgeServer(lambda request: score(2)) as server:
        reward = judge(server.url, concurrency=3)
        with Scorer({"cp": reward}, max_failed_share=0.0) as scorer:
            assert scorer.submit(EXAMPLE, images(*range(40, 70))).result().eq(2.0).all()
        reward.close()
        assert server.most_at_once <= 3
        assert reward.max_concurrent == 3
    with JudgeServer(lambda request: Reply(how="hang") if request.attempt == 0 else score(1)) as server:
        reward = judge(server.url, concurrency=3, timeout_s=4.0, deadline_s=30.0)
        with Scorer({"cp": reward}, max_failed_share=0.0) as scorer:
            assert scorer.submit(EXAMPLE, images(1, 2, 3)).result().eq(1.0).all()
        reward.close()
        assert server.most_at_once >= 3, "all three waited side by side"


def test_a_spent_budget_stops_before_the_request_and_counts_retries(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer(lambda request: score(2) if request.attempt else Reply(500)) as server:
        reward = judge(server.url, cache=cache, budget_requests=3, retries=1)
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            assert scorer.submit(EXAMPLE, images(1)).result().tolist() == [[2.0]]
            with pytest.raises(RewardFailure, match=r"stopped the run .* 3 requests .*budget_requests: 3"):
                scorer.submit(EXAMPLE, images(2)).result()
        reward.close()
        assert len(server.requests) == 3
        reward = judge(server.url, cache=cache, budget_requests=5, retries=1)
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            assert scorer.submit(EXAMPLE, images(1, 2)).result().tolist() == [[2.0], [2.0]]
        reward.close()
    with sqlite3.connect(cache) as db:
        assert db.execute("SELECT requests, tokens FROM spent").fetchall() == [(4, 2 * 308)]
    db.close()


def failing(cache: Path, when: str) -> None:
    """Let the file refuse one kind of write, as a full disk does."""
    with sqlite3.connect(cache) as db:
        db.execute(f"CREATE TRIGGER full BEFORE {when} BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    db.close()


def test_an_answer_that_cant_be_kept_still_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "judge.sqlite"
    with JudgeServer(brightness) as server:
        reward = judge(server.url, cache=str(cache))
        failing(cache, "INSERT ON answers")
        with Scorer({"cp": reward}, max_failed_share=0.0) as scorer:
            assert scorer.submit(EXAMPLE, images(255, 0)).result().tolist() == [[4.0], [0.0]]
        reward.close()
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "can't be kept" in said.message
    assert "disk is full" in said.message


@pytest.mark.parametrize("column", ["tokens", "requests"])
def test_a_budget_that_cant_be_counted_stops(tmp_path: Path, column: str) -> None:
    cache = tmp_path / "judge.sqlite"
    with JudgeServer(brightness) as server:
        reward = judge(server.url, cache=str(cache))
        failing(cache, f"UPDATE OF {column} ON spent")
        said = r"stopped the run .* can't be counted in .*judge.sqlite \(disk is full\)"
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer, pytest.raises(RewardFailure, match=said):
            scorer.submit(EXAMPLE, images(255)).result()
        reward.close()


def test_an_outage_stops_by_the_failed_share_with_the_last_error() -> None:
    with JudgeServer(lambda request: completion("no idea")) as server:
        reward = judge(server.url)
        said = r"failed on 12 of its last 12 samples.*no score in the answer"
        with (
            Scorer({"cp": reward}, max_failed_share=0.25) as scorer,
            pytest.raises(RewardFailure, match=said),
        ):
            scorer.submit(EXAMPLE, images(*range(12))).result()
        reward.close()


def test_any_loop_may_ask_and_nothing_is_left_behind() -> None:
    before = set(threading.enumerate())
    with JudgeServer(brightness) as server:
        reward = judge(server.url)
        for at in range(3):  # as an evaluation does: a new loop a group
            assert asyncio.run(reward(EXAMPLE, Image.new("RGB", (8, 8), (at, at, at)))) == 0.0
        found = evaluate({"cp": reward}, EXAMPLE, images(255, 0), runs={"cp": 3}, products={"sq": ("cp", "cp")})
        assert found.runs["cp"] == [[4.0] * 3, [0.0] * 3]
        assert found.values["sq"] == [16.0, 0.0]
        del reward
        gc.collect()
    assert set(threading.enumerate()) <= before


def section(**options: Any) -> dict[str, Any]:
    return {"type": "vlm", "axis": "identity", "rubric": "concept_preservation", **options}


def test_presets_fill_what_the_recipe_leaves_open() -> None:
    for name in PRESETS:
        unnamed = PRESETS[name].get("model") == ""
        config = Vlm.Config.model_validate(section(preset=name, **({"model": "mine"} if unnamed else {})))
        for field, value in PRESETS[name].items():
            assert getattr(config, field) == ("mine" if field == "model" and unnamed else value)
        again = Vlm.Config.model_validate(config.model_dump())
        assert again == config, "a saved recipe holds every field"
    gemini = Vlm.Config.model_validate(section(preset="gemini-2.5-pro", answer_tokens=99))
    assert (gemini.answer_tokens, gemini.key_env) == (99, "GEMINI_API_KEY")
    assert registry.resolve("rewards", "vlm") is Vlm


def test_the_estimate_counts_the_references_that_are_shown() -> None:
    def tokens(**options: Any) -> float:
        config = Vlm.Config.model_validate(section(**options))
        return float(config.cost(1_000_000).split("about ")[1].split()[0]) / 1e6

    one, four = tokens(), tokens(max_references=4)
    assert tokens(max_references=1) == one
    image = Vlm.Config.model_validate(section()).image_tokens
    assert four - one == pytest.approx(3 * image, rel=0.1)
    prompt = {"rubric": "prompt_following"}
    assert tokens(**prompt) == tokens(**prompt, max_references=4), "it shows none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rewards.cp.preset=gpt4o", "did you mean 'gpt-4o'?"),
        ("rewards.cp.preset=vllm", "rewards.cp.model: is empty"),
        ("rewards.cp.rubric=concept", "allowed: 'concept_preservation', 'prompt_following'"),
        ("rewards.cp.expected=true", "needs an endpoint that gives log-probabilities"),
        ("rewards.cp.deadline_s=1", "rewards.cp.deadline_s: 1 is below timeout_s 60"),
        ("rewards.cp.base_url=localhost:8000", "give the endpoint's address"),
        (f"rewards.cp.base_url=https://me:{KEY}@host/v1", "a user, a password or a query"),
        (f"rewards.cp.base_url=https://host/v1?key={KEY}", "a user, a password or a query"),
        (f"rewards.cp.key_env={KEY}", "not the name of an environment variable"),
        (f"rewards.cp.api_key={KEY}", "rewards.cp.api_key: unknown key"),
        (f"rewards.cp={{type: vlm, key_env: {KEY}}}", "rubric: is missing"),
    ],
)
def test_wrong_sections_are_refused_without_repeating_a_key(options: str, message: str) -> None:
    whole = "rewards.cp={type: vlm, axis: identity, rubric: concept_preservation, preset: gemini-2.5-pro}"
    with pytest.raises(RecipeError) as refused:
        load_recipe("mini_customized", [whole, options])
    assert message in str(refused.value)
    assert KEY not in str(refused.value)


def test_the_key_is_in_no_log_file_or_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cache = tmp_path / "judge.sqlite"
    with JudgeServer(lambda r: score(3) if r.pixel[0] else Reply(401, f"bad key {KEY}".encode())) as server:
        recipe = load_recipe(
            "mini_customized",
            [f"rewards.cp={json.dumps(section(model='m', base_url=server.url, key_env=KEY_ENV, cache=str(cache)))}"],
        )
        save_recipe(recipe, tmp_path / "config.yaml")
        reward = Vlm(recipe.rewards["cp"], device=torch.device("cpu"))
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            scorer.submit(EXAMPLE, images(9)).result()
            with pytest.raises(RewardFailure, match=r"bad key \*\*\*") as failure:
                scorer.submit(EXAMPLE, images(0)).result()
        reward.close()
        assert KEY in server.requests[0].headers["authorization"]
    error: BaseException | None = failure.value
    while error is not None:
        assert KEY not in repr(error)
        error = error.__cause__ or error.__context__
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()
    assert KEY not in caplog.text
    assert KEY not in repr(vars(reward)["_config"])


def test_what_is_missing_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the environment variable NOT_SET is not set"):
        judge("http://localhost:1/v1", key_env="NOT_SET")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install 'customized-grpo\[judge\]'"):
        judge("http://localhost:1/v1")


def test_concept_preservation_needs_a_reference() -> None:
    with JudgeServer(brightness) as server:
        reward = judge(server.url, max_references=1)
        with pytest.raises(ValueError, match="has no reference"):
            asyncio.run(reward(replace(EXAMPLE, references=()), Image.new("RGB", (4, 4))))
        asyncio.run(reward(replace(EXAMPLE, references=EXAMPLE.references * 3), Image.new("RGB", (4, 4))))
        reward.close()
        assert [len(request.images) for request in server.requests] == [2]
