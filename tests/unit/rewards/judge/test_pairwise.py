"""The pairwise judge: verdicts, pairs, win rates, both orders, the budget, and what a restart asks."""

import asyncio
import json
import logging
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo import registry
from customized_grpo.evaluation.metrics import build_metrics
from customized_grpo.rewards.base import RewardFailure, begin
from customized_grpo.rewards.judge.pairs import agreed, ordered, round_robin, win_rates
from customized_grpo.rewards.judge.pairwise import Pairwise
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.rewards.judge.verdict import FIRST, SECOND, TIE, read_verdict
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.testing import check_reward
from judge_cases import EXAMPLE, KEY, KEY_ENV, images
from judge_server import JudgeServer, Reply, Request, completion, error

GREYS = (0, 40, 80, 120, 160, 200, 240, 250)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)


def section(url: str, **options: Any) -> dict[str, Any]:
    axis = "prompt" if options.get("rubric") == "prompt_following" else "identity"
    fixed = {"type": "vlm_pairwise", "axis": axis, "preset": "vllm", "model": "judge", "base_url": url}
    return fixed | {"key_env": KEY_ENV, "rubric": "concept_preservation", "retries": 0, **options}


def judge(url: str, **options: Any) -> Pairwise:
    return Pairwise(Pairwise.Config.model_validate(section(url, **options)), device=torch.device("cpu"))


def winner(value: Any) -> Reply:
    return completion(json.dumps({"winner": value}))


def greys(request: Request) -> tuple[int, int]:
    """First pixels of the two generated images, in the order in which they are shown."""
    first, second = (image.getpixel((0, 0)) for image in request.images[-2:])
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    return int(first[0]), int(second[0])


def brighter(request: Request) -> Reply:
    first, second = greys(request)
    return winner("1" if first > second else "2")


def score(reward: Pairwise, values: Sequence[int] = GREYS, example: Any = EXAMPLE) -> list[float]:
    with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
        rates: list[float] = scorer.submit(example, images(*values)).result()[:, 0].tolist()
    return rates


@pytest.mark.parametrize(
    ("text", "points"),
    [
        *((one, FIRST) for one in ('{"winner": "1"}', '{"winner": 1}', '{"analysis": "2 is dim", "winner": "Image 1"}',
          "Winner: 1", "**Winner:** Image 1", "Image 1 is better", "<answer>Image 1 is better</answer>", "1", "A",
          "<think>Image 2 is better</think>\nThe first image is better.", "The better image is image 1.", "first",
          '{"categories": [{"name": "A", "cat_winner": "Image 2"}], "reason": "Image 2 is dim", "winner": "Image 1"}',
          "```json\n{'winner': 'image 1',}\n```", "I looked at both.\nImage 1 wins.", "Final verdict: first image")),
        *((one, SECOND) for one in ('{"winner": "2"}', "Winner: B", "Image 2 is slightly better", "the second image",
          '{"preferred_image": "Picture 2"}', "Image 2 is the winner!", "Answer: 2")),
        *((one, TIE) for one in ('{"winner": "tie"}', "Winner: tie", "It's a tie.", "Neither", '{"winner": "equal"}',
          '{"winner": 0}', "Verdict: they are equally good")),
    ],
)  # fmt: skip
def test_a_clear_verdict_is_read(text: str, points: int) -> None:
    assert read_verdict(text).score == points


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no verdict"),
        ("Both have their merits.", "no verdict"),
        ("Image 1 shows a bag; image 2 shows a dog.", "no verdict"),
        ("3", "no verdict"),
        ('{"winner": "Image 1/2"}', "neither 1, 2 nor a tie"),
        ('{"winner": 3}', "neither 1, 2 nor a tie"),
        ('{"winner": null}', "neither 1, 2 nor a tie"),
        ('{"winner": "1"} {"winner": "2"}', "several verdicts"),
        ("Image 1 is better.\nImage 2 is better.", "several verdicts"),
        ("Winner: 1\nWinner: neither of them, I think", "can't be read"),
        ("Winner: 1\nActually, I made a mistake.", "take it back"),
        ('{"winner": "1"', "not whole"),
        ("<think>Image 1 is better", "thoughts are not closed"),
    ],
)
def test_an_unclear_verdict_is_none(text: str, why: str) -> None:
    with pytest.raises(Unscorable, match=why):
        read_verdict(text)


@given(st.integers(2, 17), st.integers(2, 20))
def test_every_image_meets_as_many_others_and_no_one_twice(count: int, rounds: int) -> None:
    pairs = round_robin(count, rounds)
    assert all(0 <= a < count and 0 <= b < count and a != b for a, b in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    met = Counter(at for pair in pairs for at in pair)
    assert set(met) == set(range(count)), "each is compared at least once"
    if rounds >= count - 1:
        assert len(pairs) == count * (count - 1) // 2
    else:
        assert max(met.values()) == rounds
        assert min(met.values()) >= rounds - count % 2


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8), st.integers(0, 5), st.randoms())
def test_the_order_depends_on_content_and_seed_alone(contents: list[str], seed: int, random: Any) -> None:
    shuffled = list(contents)
    random.shuffle(shuffled)
    assert ordered(contents, seed) == ordered(shuffled, seed)
    assert sorted(ordered(contents, seed)) == sorted(set(contents))


def test_another_seed_is_another_tournament() -> None:
    assert len({tuple(ordered("abcdefgh", seed)) for seed in range(5)}) > 1


@given(st.integers(2, 9), st.data())
def test_win_rates_are_shares_whose_mean_is_one_half(count: int, data: Any) -> None:
    pairs = round_robin(count, count)
    points = {pair: data.draw(st.sampled_from((0.0, 0.5, 1.0))) for pair in pairs}
    rates = win_rates(count, points)
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    assert sum(rates) / count == pytest.approx(0.5)
    assert math.isnan(win_rates(count + 1, points)[-1])


def test_two_orders_agree_or_are_a_tie() -> None:
    assert [agreed(a, b) for a, b in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))] == [1.0, 0.0, 0.5]
    assert [agreed(a, b) for a, b in ((1.0, 1.0), (0.0, 0.0), (1.0, 0.5), (0.5, 0.0))] == [0.5] * 4


def test_it_conforms_and_ranks_its_group() -> None:
    with JudgeServer(brighter) as server:
        reward = judge(server.url, comparisons=7)
        check_reward(reward, EXAMPLE, images(*GREYS), pairwise=True)
        assert score(reward) == pytest.approx([at / 7 for at in range(8)])
        reward.close()
        assert len(server.requests) == 8 * 7, "each pair in both orders, and no order twice"
        assert {greys(request) for request in server.requests} == {(a, b) for a in GREYS for b in GREYS if a != b}


def test_the_number_of_comparisons_is_the_budget_of_a_group() -> None:
    for comparisons in (2, 4, 6):
        with JudgeServer(brighter) as server:
            reward = judge(server.url, comparisons=comparisons)
            rates = score(reward)
            reward.close()
            met = Counter(grey for request in server.requests for grey in greys(request))
            assert set(met.values()) == {2 * comparisons}, "the same number of comparisons for each"
            assert len(server.requests) == 8 * comparisons
            assert reward._config.cost(8).startswith(f"{8 * comparisons} requests to judge")
        assert sum(rates) == pytest.approx(4.0)
        assert (rates[0], rates[-1]) == (0.0, 1.0)


def test_the_pairs_follow_the_images_and_not_their_places() -> None:
    asked = []
    for values in (GREYS, GREYS[::-1], GREYS):
        with JudgeServer(brighter) as server:
            reward = judge(server.url, comparisons=2)
            rates = score(reward, values)
            reward.close()
            asked.append(({greys(request) for request in server.requests}, dict(zip(values, rates, strict=True))))
    assert asked[0] == asked[1] == asked[2]
    with JudgeServer(brighter) as server:
        reward = judge(server.url, comparisons=2, seed=1)
        score(reward)
        reward.close()
        assert {greys(request) for request in server.requests} != asked[0][0]


def test_a_judge_that_favours_a_place_makes_ties_and_is_reported() -> None:
    with JudgeServer(lambda request: winner("1")) as server:
        reward = judge(server.url, comparisons=7)
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            assert scorer.submit(EXAMPLE, images(*GREYS)).result()[:, 0].tolist() == [0.5] * 8
            metrics = scorer.drain()
            again = scorer.drain()
        reward.close()
    shares = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.startswith("reward/cp/")}
    assert shares == {"failed_share": 0.0, "contradiction_share": 1.0, "tie_share": 0.0, "unanswered_share": 0.0}
    assert not [name for name in again if name.endswith(("tie_share", "contradiction_share", "unanswered_share"))]


def test_ties_and_contradictions_count_one_half() -> None:
    """0 loses to all; 40 and 80 tie in both orders; the order decides between 80 and 120, and one says tie, one 120."""

    def reply(request: Request) -> Reply:
        first, second = greys(request)
        if {first, second} == {40, 80}:
            return winner("tie")
        if {first, second} == {80, 120}:
            return winner("1")
        if (first, second) == (40, 120):
            return winner("tie")
        return brighter(request)

    with JudgeServer(reply) as server:
        reward = judge(server.url, comparisons=3)
        rates = score(reward, (0, 40, 80, 120))
        shares = reward.drain()
        reward.close()
    assert rates == pytest.approx([0.0, 2 / 3, 2 / 3, 2 / 3])
    assert shares == pytest.approx({"contradiction_share": 2 / 6, "tie_share": 1 / 6, "unanswered_share": 0.0})


def test_a_refused_order_leaves_its_pair_out_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def reply(request: Request) -> Reply:
        pair = greys(request)
        if 200 in pair or pair == (0, 40):
            return completion("", refusal="I can't compare people.")
        return brighter(request)

    with JudgeServer(reply) as server, caplog.at_level(logging.WARNING):
        reward = judge(server.url, comparisons=3)
        rates = score(reward, (0, 40, 80, 200))
        shares = reward.drain()
        reward.close()
    assert rates[:3] == pytest.approx([0.0, 0.0, 1.0]), "0 and 40 met no one but 80"
    assert math.isnan(rates[3]), "it met no one"
    assert shares["unanswered_share"] == pytest.approx(4 / 6)
    assert "I can't compare people." in caplog.text


def test_a_group_without_any_answer_has_no_scores_and_says_why() -> None:
    with JudgeServer(lambda request: completion("no idea")) as server:
        reward = judge(server.url)
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            pending = scorer.submit(EXAMPLE, images(*GREYS))
            assert pending.result().isnan().all()
        reward.close()
    assert set(pending.reasons["cp"]) == {"Unscorable: there is no verdict in the answer: 'no idea'"}


def test_equal_images_have_one_score_and_are_not_compared() -> None:
    with JudgeServer(brighter) as server:
        reward = judge(server.url, comparisons=7)
        assert score(reward, (10, 10, 10)) == [0.5] * 3
        assert server.requests == []
        assert score(reward, (10, 90, 10, 50)) == pytest.approx([0.0, 1.0, 0.0, 0.5])
        reward.close()
        assert len(server.requests) == 6


def test_a_single_image_has_no_win_rate() -> None:
    with JudgeServer(brighter) as server:
        reward = judge(server.url)
        with pytest.raises(ValueError, match="at least 2 images of an example; given 1"):
            asyncio.run(reward(EXAMPLE, [EXAMPLE.references[0]]))
        with pytest.raises(ValueError, match="has no reference"):
            score_directly(reward, replace(EXAMPLE, references=()))
        reward.close()
        assert server.requests == []


def score_directly(reward: Pairwise, example: Any) -> Sequence[float]:
    white = EXAMPLE.references[0].resize((9, 9))
    black = EXAMPLE.references[0].point(lambda value: 255 - value)
    return asyncio.run(reward(example, [white, black]))


def test_a_spent_budget_stops_and_a_restart_asks_only_what_is_open(tmp_path: Path) -> None:
    """Nothing is asked twice and nothing is lost: what was in flight at the stop is answered, paid for and kept."""
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer(brighter) as server:
        whole = judge(server.url, comparisons=7)
        expected = score(whole)
        whole.close()
        server.requests.clear()
        for budget, total in ((20, 20), (33, 33), (None, 56)):
            reward = judge(server.url, comparisons=7, cache=cache, budget_requests=budget)
            begin({"cp": reward}, "a-run", "rewards.")
            if budget is None:
                assert score(reward) == expected
            else:
                with pytest.raises(RewardFailure, match=f"rewards.cp of run a-run is spent: {budget} requests"):
                    score(reward)
            reward.close()
            assert len(server.requests) == total
        assert max(Counter(greys(request) for request in server.requests).values()) == 1
    with sqlite3.connect(cache) as db:
        assert db.execute("SELECT requests FROM spent").fetchall() == [(56,)]
    db.close()


def test_an_endpoint_that_breaks_off_stops_and_a_restart_goes_on(tmp_path: Path) -> None:
    cache, open_account = str(tmp_path / "judge.sqlite"), threading.Event()

    def reply(request: Request) -> Reply:
        if not open_account.is_set() and len(server.requests) > 30:
            return error(402, "no credit")
        return brighter(request)

    with JudgeServer(reply) as server:
        reward = judge(server.url, comparisons=7, cache=cache, concurrency=4)
        with pytest.raises(RewardFailure, match="no credit"):
            score(reward)
        reward.close()
        refused = len(server.requests) - 30
        assert 1 <= refused <= 4, "those that were in flight with the first refusal, and no more"
        open_account.set()
        reward = judge(server.url, comparisons=7, cache=cache)
        assert score(reward) == pytest.approx([at / 7 for at in range(8)])
        reward.close()
        assert len(server.requests) == 56 + refused


def test_kept_verdicts_serve_other_groups_with_the_same_pair(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer(brighter) as server:
        for values, asked in (((0, 90), 2), ((90, 0), 2), ((0, 90, 200), 6), ((200, 0, 90), 6)):
            reward = judge(server.url, comparisons=9, cache=cache)
            score(reward, values)
            reward.close()
            assert len(server.requests) == asked


@pytest.mark.parametrize("rubric", ["concept_preservation", "prompt_following"])
@pytest.mark.parametrize("output", ["json_schema", "text"])
def test_the_question_shows_both_images_and_asks_for_one(rubric: str, output: str) -> None:
    with JudgeServer(lambda request: completion('{"winner": "1"}')) as server:
        reward = judge(server.url, rubric=rubric, output=output, reasoning=True)
        score(reward, (0, 90))
        reward.close()
        request = server.requests[0]
    references = 1 if rubric == "concept_preservation" else 0
    assert len(request.images) == references + 2
    assert ("Reference image:" in request.text) == bool(references)
    assert "Image 1:" in request.text
    assert "Image 2:" in request.text
    if output == "json_schema":
        schema = request.body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["winner"]["enum"] == ["1", "2", "tie"]
        assert schema["required"] == ["analysis", "winner"]
    else:
        assert request.text.rstrip().endswith("Image 2:")
        assert "Winner: <1, 2 or tie>" in request.text


def test_a_rubric_of_ones_own_compares_too(tmp_path: Path) -> None:
    file = tmp_path / "flex.yaml"
    file.write_text(
        json.dumps({"axis": "identity", "text": "Which is better, {bare_prompt}?", "asks": "better", "reply": "text",
                    "captions": "none", "system": None}),
        encoding="utf-8",
    )  # fmt: skip
    with JudgeServer(lambda request: completion("<answer>Image 1 is better</answer>")) as server:
        reward = judge(server.url, rubric=str(file), axis="identity")
        assert score(reward, (0, 90)) == [0.5, 0.5]
        assert reward.drain()["contradiction_share"] == 1.0
        reward.close()
        assert "Which is better, a bag?" in server.requests[0].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rubric": "paco_consistency"}, "allowed: 'concept_preservation', 'prompt_following', or a rubric's file"),
        ({"rubric": {"axis": "identity", "text": "a"}}, "it asks for 'score', which type: vlm does"),
        ({"comparisons": 1}, "greater than or equal to 2"),
        ({"expected": True}, "Extra inputs are not permitted"),
        ({"best": 1.0}, "Extra inputs are not permitted"),
        ({"axis": "prompt"}, "given 'prompt', and the rubric's is 'identity'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairwise.Config.model_validate(section("http://localhost:1/v1", **options))


def test_it_is_no_metric() -> None:
    specs = {"cp": Pairwise.Config.model_validate(section("http://localhost:1/v1"))}
    with pytest.raises(ValueError, match=r"evaluate\.metrics\.cp: 'vlm_pairwise' compares the images of an example"):
        build_metrics(specs, torch.device("cpu"))
    assert registry.resolve("rewards", "vlm_pairwise") is Pairwise


def test_masks_and_references_are_as_a_judges_of_single_images() -> None:
    script: Callable[[Request], Reply] = brighter
    with JudgeServer(script) as server:
        reward = judge(server.url, segment="reference", missing_mask="skip")
        with Scorer({"cp": reward}, max_failed_share=1.0) as scorer:
            pending = scorer.submit(EXAMPLE, images(0, 90))
            assert pending.result().isnan().all()
        reward.close()
        assert "has 0 usable masks for 1 references" in pending.reasons["cp"][0]
        assert server.requests == []


def test_what_is_in_flight_when_a_run_ends_is_answered_and_kept(tmp_path: Path) -> None:
    """An interrupted run waits a little for the answers that it has paid for; what waits for its turn isn't sent."""
    cache, slow = str(tmp_path / "judge.sqlite"), threading.Event()

    def reply(request: Request) -> Reply:
        if len(server.requests) > 10:
            slow.set()
            time.sleep(0.3)
        return brighter(request)

    with JudgeServer(reply) as server:
        reward = judge(server.url, comparisons=7, cache=cache, concurrency=2)
        scorer = Scorer({"cp": reward}, max_failed_share=1.0)
        scorer.submit(EXAMPLE, images(*GREYS))
        assert slow.wait(20.0)
        scorer.close()
        reward.close()
        asked = len(server.requests)
        assert asked < 20
        with sqlite3.connect(cache) as db:
            assert db.execute("SELECT count(*) FROM answers").fetchall() == [(asked,)]
        db.close()
        reward = judge(server.url, comparisons=7, cache=cache)
        slow.clear()
        assert score(reward) == pytest.approx([at / 7 for at in range(8)])
        reward.close()
        assert len(server.requests) == 56
