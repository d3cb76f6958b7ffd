"""Rubrics from files: what a file may say, what it makes of a question, and what stands on its content."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo.recipe.loading import RecipeError, load_recipe, save_recipe
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.builtin import RUBRICS
from customized_grpo.rewards.judge.rubrics import read_rubric
from customized_grpo.rewards.judge.vlm import Vlm
from customized_grpo.scoring.scorer import Scorer
from judge_cases import EXAMPLE, images
from judge_server import JudgeServer, Reply, Request, completion, score

TEXT = "Is the surface of {subject} the same? The picture was asked for as {prompt}; say it of '{bare_subject}'."


def written(folder: Path, name: str = "surface.yaml", **content: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps({"axis": "identity", "text": TEXT} | content), encoding="utf-8")
    return file


def judge(url: str, rubric: Any, **options: Any) -> Vlm:
    section = {"type": "vlm", "preset": "vllm", "model": "judge", "base_url": url, "rubric": str(rubric), **options}
    return Vlm(Vlm.Config.model_validate(section), device=torch.device("cpu"))


def ask(reward: Vlm, example: Any = EXAMPLE) -> float:
    try:
        return asyncio.run(reward(example, Image.new("RGB", (9, 9), "white")))
    finally:
        reward.close()


def test_a_file_is_asked_as_it_says(tmp_path: Path) -> None:
    file = written(tmp_path, scale=[1, 10], captions="numbers", system="Be strict.")
    with JudgeServer(lambda request: score(7)) as server:
        reward = judge(server.url, file)
        assert ask(reward, replace(EXAMPLE, prompt='a "bag"')) == 7.0, "on its own scale"
        assert ask(judge(server.url, file, best=1.0)) == 0.7
        (request, _) = server.requests
    said = 'Is the surface of "backpack" the same? The picture was asked for as "a \\"bag\\""; say it of \'backpack\'.'
    assert said in request.text
    assert "<a whole number from 1 to 10>" in request.text
    assert "<img1>: " in request.text
    assert "<img2>: " in request.text
    assert request.body["messages"][0] == {"role": "system", "content": "Be strict."}
    schema = request.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"]["enum"] == list(range(1, 11))
    assert (reward._config.axis, reward._config.needs()) == ("identity", {"reference", "subject"})


@pytest.mark.parametrize(
    ("content", "answer", "expected"),
    [
        ({"scale": [0, 25]}, '{"score": 25.0}', 25.0),
        ({"scale": [0, 25]}, "Score: 12/25", 12.0),
        ({"scale": [1, 5]}, "Score (1-5): 4", 4.0),
        ({"scale": [1, 5]}, "Score: 0", None),
        ({"scale": [0, 25]}, '{"score": 26}', None),
        ({"scale": [0, 25]}, '{"score": 12.5}', None),
        ({"scale": [0, 25]}, '{"score": [12, 20]}', None),
        ({"scale": [0, 25], "scores": 2, "take": 2, "reply": "text"}, '{"reasoning": "x", "score": [12, 20]}', 20.0),
        ({"scale": [0, 25], "scores": 2, "take": 1, "reply": "text"}, "{'score': [12.0, '20'],}", 12.0),
        ({"scale": [0, 25], "scores": 2, "reply": "text"}, '{"score": [12]}', None),
        ({"scale": [0, 25], "scores": 2, "reply": "text"}, '{"score": [12, 20, 5]}', None),
        ({"scale": [0, 25], "scores": 2, "reply": "text"}, '{"score": 12}', None),
        ({"scale": [0, 25], "scores": 2, "reply": "text"}, '{"score": [12, 26]}', None),
        ({"scale": [0, 25], "scores": 2, "reply": "text"}, "Score: 12", None),
    ],
)
def test_answers_are_read_on_the_scale_of_the_file(
    tmp_path: Path, content: dict[str, Any], answer: str, expected: float | None
) -> None:
    with JudgeServer(lambda request: completion(answer)) as server:
        reward = judge(server.url, written(tmp_path, **content))
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            (value,) = scorer.submit(EXAMPLE, images(9)).result()[:, 0].tolist()
        reward.close()
    assert value == expected or (expected is None and value != value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("axis: identity\ntext: Is it {promt}?\n", "text: given {promt}; did you mean 'prompt'? allowed: {prompt}"),
        ("axis: identity\n", "text: is missing"),
        ("text: Is it?\n", "axis: is missing"),
        ("axis: identity\ntext: a\nreference: shown\n", "reference: unknown key; did you mean 'references'?"),
        (
            "axis: identity\ntext: a\nreferences: some\n",
            "references: given 'some'; allowed: 'shown', 'first', 'hidden'",
        ),
        ("axis: identity\ntext: a\nscale: [4, 0]\n", "scale: given [4, 0]; allowed: the worst score and a higher one"),
        ("axis: identity\ntext: a\nscale: [0, 1000]\n", "scale.1: given 1000"),
        ("axis: identity\ntext: a\nscale: [0, 1.5]\n", "scale.1: given 1.5"),
        ("axis: identity\ntext: a\nscores: true\n", "scores: given true"),
        ("axis: identity\ntext: a\nscores: 2\n", "scores: a list takes reply: text"),
        ("axis: identity\ntext: a\ntake: 2\n", "take: given 2, of 1 (scores)"),
        ("axis: identity\ntext: a\nasks: yes_no\nscale: [0, 9]\n", "asks: yes_no has no scale"),
        ("axis: identity\ntext: a\ntext: b\n", "text: is given twice"),
        ("axis: identity\ntext: [\n", "is not YAML"),
        ("", "is empty"),
        ("axis: identity\ntext: a\nasks: better\n", "which type: vlm_pairwise does"),
    ],
)
def test_what_a_file_should_not_say_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe("mini_customized", [f"rewards.cp={{type: vlm, rubric: {file}, preset: vllm, model: m}}"])
    assert message in str(refused.value)
    assert "rewards.cp.rubric: " in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": "prompt"}, "axis: given 'prompt', and the rubric's is 'identity'"),
        ({"expected": True, "rubric": {"scale": [0, 10]}}, "expected: true takes one score of one digit"),
        ({"rubric": {"reply": "text"}, "reasoning": True}, "reasoning: has no effect here"),
        ({"rubric": {"reply": "text"}, "output": "json_schema"}, "output: json_schema would hold the judge to another"),
        ({"rubric": {"references": "first"}, "max_references": 2}, "max_references: has no effect here"),
        ({"rubric": {"references": "hidden"}, "segment": "reference"}, "segment: has no effect here"),
        ({"rubric": "gone.yaml"}, "there is no file 'gone.yaml'"),
        ({"rubric": 3}, "given 3; allowed: 'concept_preservation'"),
        ({"rubric": "paco_consistency", "axis": "prompt"}, "the rubric's is 'identity'"),
        ({"rubric": "paco_consistency", "logprobs": False}, "the probability of yes needs an endpoint"),
        ({"rubric": "paco_consistency", "output": "json_object"}, "output: json_object would hold the judge"),
        ({"rubric": "paco_consistency", "expected": True}, "a yes or no is a probability already"),
        ({"preset": "editreward"}, "EditReward answers by numbers of a head of its own"),
    ],
)
def test_what_does_not_fit_a_rubric_is_refused(options: dict[str, Any], message: str) -> None:
    rubric = options.get("rubric", {})
    if isinstance(rubric, dict):
        rubric = {"axis": "identity", "text": "Is it?"} | rubric
    with pytest.raises(ValueError, match="Value error") as refused:
        Vlm.Config.model_validate({"type": "vlm", "preset": "vllm", "model": "m"} | options | {"rubric": rubric})
    assert message in str(refused.value)


def test_a_run_stands_on_the_content_and_not_on_the_path(tmp_path: Path) -> None:
    """The saved recipe holds the rubric itself: the file may move, and another content is another reward."""
    cache = tmp_path / "judge.sqlite"
    file = written(tmp_path)
    with JudgeServer(lambda request: score(3)) as server:

        def options(rubric: Path) -> list[str]:
            section = {"type": "vlm", "preset": "vllm", "model": "m", "base_url": server.url, "rubric": str(rubric)}
            return [f"rewards.cp={json.dumps(section | {'cache': str(cache)})}"]

        recipe = load_recipe("mini_customized", options(file))
        save_recipe(recipe, tmp_path / "config.yaml")
        moved = tmp_path / "moved.yaml"
        file.rename(moved)
        again = load_recipe(tmp_path / "config.yaml", [])
        assert (
            again.rewards["cp"] == recipe.rewards["cp"] == load_recipe("mini_customized", options(moved)).rewards["cp"]
        )
        written(tmp_path, "moved.yaml", text="Is the colour the same?")
        other = load_recipe("mini_customized", options(moved))
        assert other.rewards["cp"] != recipe.rewards["cp"]
        for one, asked in ((recipe, 1), (again, 1), (other, 2), (other, 2)):
            ask(Vlm(one.rewards["cp"], device=torch.device("cpu")))
            assert len(server.requests) == asked


def test_an_example_without_the_subject_that_a_rubric_speaks_of_has_no_score(tmp_path: Path) -> None:
    with JudgeServer(lambda request: score(3)) as server:
        reward = judge(server.url, written(tmp_path))
        with pytest.raises(ValueError, match="example 'bag-1' has no subject, of which the rubric speaks"):
            ask(reward, replace(EXAMPLE, subject=""))
        assert server.requests == []


@pytest.mark.parametrize("name", [name for name in RUBRICS if name.startswith(("editscore", "unifiedreward"))])
def test_judges_of_edits_are_asked_in_their_form(name: str) -> None:
    """The original first, then the picture, then the text; no system; two numbers of 0 to 25."""

    def reply(request: Request) -> Reply:
        (message,) = request.body["messages"]
        kinds = [part["type"] for part in message["content"] if part.get("text", "").strip() or part["type"] != "text"]
        images = ["text", "image_url"] * 2 if name.startswith("editscore") else ["image_url"] * 2
        assert kinds == [*images, "text"]
        assert "response_format" not in request.body
        assert request.text.rstrip().endswith("The instruction: a bag")
        return completion('{"reasoning": "The bag is kept.", "score": [10, 25]}')

    preset = name.partition("_")[0]
    axis = "identity" if name.endswith("consistency") else "prompt"
    with JudgeServer(reply) as server:
        section = {"type": "vlm", "preset": preset, "model": "m", "base_url": server.url, "rubric": name, "axis": axis}
        reward = Vlm(Vlm.Config.model_validate(section), device=torch.device("cpu"))
        value = ask(reward, replace(EXAMPLE, references=EXAMPLE.references * 2))
        assert value == (25.0 if axis == "identity" else 10.0)
        assert len(server.requests[0].images) == 2, "they know one original"


def test_a_rubric_of_the_python_api_is_itself() -> None:
    rubric = RUBRICS["paco_prompt"].rubric
    assert read_rubric(rubric, RUBRICS) is rubric
    assert read_rubric(rubric.model_dump(mode="json"), RUBRICS) == rubric


@pytest.mark.parametrize("rubric", ["concept_preservation", "file"])
def test_a_restart_asks_only_what_is_open(tmp_path: Path, rubric: str) -> None:
    """Nothing is asked twice: at a spent budget what is in flight is answered, counted and kept."""

    def slowly(request: Request) -> Reply:
        time.sleep(0.05)
        return score(request.pixel[0] // 20)

    cache, values = str(tmp_path / "judge.sqlite"), range(0, 100, 8)
    given = rubric if rubric == "concept_preservation" else written(tmp_path)
    with JudgeServer(slowly) as server:
        for budget, total in ((4, 4), (9, 9), (None, len(values))):
            reward = judge(server.url, given, axis="identity", cache=cache, budget_requests=budget, concurrency=3)
            with Scorer({"cp": reward}, max_failed_share=0.0) as scorer:
                if budget is None:
                    scores = scorer.submit(EXAMPLE, images(*values)).result()[:, 0].tolist()
                    assert scores == [float(value // 20) for value in values]
                else:
                    with pytest.raises(RewardFailure, match=f"is spent: {budget} requests"):
                        scorer.submit(EXAMPLE, images(*values)).result()
            reward.close()
            assert len(server.requests) == total
        assert {request.pixel[0] for request in server.requests} == set(values)
