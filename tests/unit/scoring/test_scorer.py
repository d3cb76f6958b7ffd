"""The scorer: order, concurrency, failures. Network rewards are scripted by the image's first pixel."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, final

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from customized_grpo.rewards.base import AnyReward, AsyncGroupReward, AsyncReward, Reward, RewardFailure
from customized_grpo.scoring import requests
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.types import Example
from tiny_rewards import example

GROUP = 6


@final
class Local(Reward):
    def __init__(self, score: Callable[[Example, Tensor], Any]) -> None:
        self.score = score

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        return self.score(example, images)


@final
class Remote(AsyncReward):
    def __init__(
        self,
        score: Callable[[int], Awaitable[float]],
        max_concurrent: int | None = None,
        timeout_s: float | None = 5.0,
    ) -> None:
        self.score, self.max_concurrent, self.timeout_s = score, max_concurrent, timeout_s

    async def __call__(self, example: Example, image: Image) -> float:
        pixel = image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return await self.score(int(pixel[0]))


@final
class Server(AsyncGroupReward):
    def __init__(self, score: Callable[[list[int]], Awaitable[list[float]]]) -> None:
        self.score = score

    async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
        return await self.score([int(image.getpixel((0, 0))[0]) for image in images])  # type: ignore[index]


def group(*ids: int) -> Tensor:
    """Images that carry their id in every pixel."""
    return torch.tensor(ids, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3).contiguous()


def ids_of(images: Tensor) -> Tensor:
    return images[:, 0, 0, 0].float()


def scorer(max_failed_share: float = 1.0, **rewards: AnyReward) -> Scorer:
    return Scorer(rewards, max_failed_share=max_failed_share)


LOCAL = Local(lambda example, images: ids_of(images))


@pytest.mark.parametrize("seed", [0, 1])
def test_order_holds_whatever_finishes_first(seed: int) -> None:
    delays = torch.rand(100, generator=torch.Generator().manual_seed(seed)).tolist()

    async def score(image: int) -> float:
        await asyncio.sleep(0.03 * delays[image])
        return image + 0.5

    async def whole(ids: list[int]) -> list[float]:
        await asyncio.sleep(0.1 * delays[ids[0]])
        return [one - 0.5 for one in ids]

    with scorer(b=Remote(score), a=LOCAL, c=Server(whole)) as under_test:
        pending = [under_test.submit(example(), group(*range(at, at + GROUP))) for at in (0, 20, 40)]
        results = [one.result() for one in reversed(pending)][::-1]
    assert under_test.names == ("b", "a", "c")
    for at, result in zip((0, 20, 40), results, strict=True):
        ids = torch.arange(at, at + GROUP, dtype=torch.float32)
        assert torch.equal(result, torch.stack([ids + 0.5, ids, ids - 0.5], dim=1))


def test_network_rewards_overlap_the_local_one_and_each_other() -> None:
    started = threading.Event()

    async def first(image: int) -> float:
        started.set()
        return image

    def local(example: Example, images: Tensor) -> Tensor:
        assert started.wait(5.0), "the network reward must be in flight while a local one computes"
        return ids_of(images)

    barrier = asyncio.Barrier(GROUP)

    async def all_at_once(image: int) -> float:
        await barrier.wait()  # opens only when the whole group is in flight
        return image

    with scorer(local=Local(local), first=Remote(first), together=Remote(all_at_once)) as under_test:
        result = under_test.submit(example(), group(*range(GROUP))).result()
    assert torch.equal(result, torch.arange(GROUP, dtype=torch.float32)[:, None].expand(-1, 3))


def test_network_rewards_go_on_while_the_caller_does_something_else() -> None:
    judged, served = threading.Event(), threading.Event()

    async def judge(image: int) -> float:
        judged.set()
        return image

    async def serve(ids: list[int]) -> list[float]:
        served.set()
        return [float(one) for one in ids]

    with scorer(judge=Remote(judge), server=Server(serve)) as under_test:
        pending = under_test.submit(example(), group(1, 2))
        assert judged.wait(5.0), "nobody has asked for the result yet"
        assert served.wait(5.0)
        assert torch.equal(pending.result(), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))


def test_a_server_is_asked_once_a_group_and_has_its_own_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[int]] = []

    monkeypatch.setattr(requests, "TIMEOUT_S", 0.01)  # of a reward that is asked image by image

    async def serve(ids: list[int]) -> list[float]:
        calls.append(ids)
        await asyncio.sleep(0.2)
        return [float(one) for one in ids]

    with Scorer({"a": Server(serve)}, max_failed_share=0.0) as under_test:
        result = under_test.submit(example(), group(3, 1, 2)).result()
    assert calls == [[3, 1, 2]]
    assert result.flatten().tolist() == [3.0, 1.0, 2.0]


def test_a_failed_call_of_a_server_costs_its_group_alone() -> None:
    async def serve(ids: list[int]) -> list[float]:
        if 1 in ids:
            raise OSError("connection reset")
        return [math.nan if one == 4 else float(one) for one in ids]

    with scorer(server=Server(serve), a=LOCAL) as under_test:
        pending = [under_test.submit(example(), group(*ids)) for ids in ((0, 1), (2, 3), (4, 5))]
        first, second, third = (one.result() for one in pending)
        assert under_test.tally.failures == {"server": 3, "a": 0}
        assert under_test.drain()["reward/server/failed_share"] == 0.5
    assert first[:, 0].isnan().all()
    assert first[:, 1].isfinite().all()
    assert second.isfinite().all()
    assert third[:, 0].isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (RewardFailure("401 wrong token"), "'server' stopped the run on example 'dog-1': 401 wrong token"),
        ([1.0], "'server' stopped the run on example 'dog-1': it returned 1 scores for 2 images"),
    ],
)
def test_a_server_can_stop_the_run(score: object, words: str) -> None:
    async def serve(ids: list[int]) -> Any:
        if isinstance(score, Exception):
            raise score
        return score

    with scorer(server=Server(serve)) as under_test, pytest.raises(RewardFailure, match=words):
        under_test.submit(example(), group(0, 1)).result()


def test_failed_groups_stop_the_run_with_the_last_error() -> None:
    async def serve(ids: list[int]) -> list[float]:
        raise OSError(f"no route for {ids[0]}")

    with scorer(0.25, server=Server(serve)) as under_test:
        under_test.submit(example(), group(*range(6))).result()
        with pytest.raises(RewardFailure, match=r"failed on 12 of its last 12 samples.*OSError: no route for 6"):
            under_test.submit(example(), group(*range(6, 12))).result()


def test_concurrency_is_limited() -> None:
    now = most = 0

    async def score(image: int) -> float:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return image

    with Scorer({"a": Remote(score, max_concurrent=2)}, max_failed_share=1.0) as under_test:
        pending = [under_test.submit(example(), group(*range(GROUP))) for _ in range(3)]
        [one.result() for one in pending]
    assert most == 2


def test_failures_are_nan_and_counted_and_stay_in_their_sample() -> None:
    async def score(image: int) -> float:
        if image == 1:
            raise OSError("connection reset")
        if image == 2:
            await asyncio.sleep(60)
        return {3: math.nan, 4: -math.inf, 5: 1e300}.get(image, float(image))

    with Scorer({"net": Remote(score, timeout_s=0.05), "a": LOCAL}, max_failed_share=1.0) as under_test:
        bad = under_test.submit(example(), group(0, 1, 2, 3, 4, 5))
        good = under_test.submit(example(), group(6, 7))
        result, untouched = bad.result(), good.result()
    assert result[:, 0].isnan().tolist() == [False, True, True, True, True, True]
    assert result[0, 0] == 0.0
    assert torch.equal(result[:, 1], torch.arange(6, dtype=torch.float32)), "one reward's failures aren't another's"
    assert torch.equal(untouched, torch.tensor([[6.0, 6.0], [7.0, 7.0]]))
    assert under_test.tally.failures == {"net": 5, "a": 0}


def test_the_timeout_does_not_count_the_queue() -> None:
    async def score(image: int) -> float:
        await asyncio.sleep(0.05)
        return image

    with Scorer({"a": Remote(score, max_concurrent=1, timeout_s=0.2)}, max_failed_share=0.0) as under_test:
        result = under_test.submit(example(), group(*range(8))).result()  # 0.4 s in all
    assert result.isfinite().all()


def test_local_infinities_become_nan() -> None:
    values = torch.tensor([1.0, math.inf, -math.inf, math.nan])
    with scorer(a=Local(lambda example, images: values)) as under_test:
        result = under_test.submit(example(), group(0, 1, 2, 3)).result()
    assert result.isnan().flatten().tolist() == [False, True, True, True]
    assert under_test.tally.failures == {"a": 3}
    assert values.isinf().sum() == 2, "the reward's own tensor is left alone"


def test_a_local_exception_names_reward_and_example() -> None:
    def score(example: Example, images: Tensor) -> Tensor:
        raise KeyError("box")

    with (
        scorer(broken=Local(score)) as under_test,
        pytest.raises(RewardFailure, match="'broken' failed on example 'dog-1': KeyError: 'box'") as caught,
    ):
        under_test.submit(example(), group(1))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_local_exception_calls_its_groups_requests_back() -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def endless(image: int) -> float:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return 0.0

    def score(example: Example, images: Tensor) -> Tensor:
        assert started.wait(5.0)
        raise KeyError("box")

    with scorer(net=Remote(endless), broken=Local(score)) as under_test:
        with pytest.raises(RewardFailure, match="'broken' failed"):
            under_test.submit(example(), group(1))
        assert cancelled.wait(2.0), "long before its timeout"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), r"'a' returned torch.float32 of shape \(2,\) for 3 images"),
        (torch.zeros(3, 1), r"shape \(3, 1\)"),
        (torch.zeros(3, dtype=torch.float64), r"torch.float64 .* must return torch.float32 of shape \(3,\)"),
        ([0.0, 0.0, 0.0], "'a' returned list"),
    ],
)
def test_a_wrong_shape_or_type_names_the_reward(value: object, message: str) -> None:
    with (
        scorer(a=Local(lambda example, images: value)) as under_test,
        pytest.raises(RewardFailure, match=message),
    ):
        under_test.submit(example(), group(0, 1, 2))


def test_a_network_reward_can_stop_the_run() -> None:
    async def score(image: int) -> float:
        if image == 2:
            raise RewardFailure("401 wrong key")
        await asyncio.sleep(60)
        return 0.0

    start = time.perf_counter()
    with scorer(judge=Remote(score)) as under_test:
        pending = under_test.submit(example(), group(0, 1, 2, 3))
        with pytest.raises(RewardFailure, match="'judge' stopped the run on example 'dog-1': 401 wrong key"):
            pending.result()
    assert time.perf_counter() - start < 5.0, "the other samples of the group must not be waited for"


def test_too_many_failures_stop_the_run_with_the_last_error() -> None:
    async def score(image: int) -> float:
        if image % 2:
            raise OSError(f"no route to {image}")
        return image

    with scorer(0.25, fine=LOCAL, net=Remote(score)) as under_test:
        under_test.submit(example(), group(*range(16))).result()  # 8 of at least 32
        pending = under_test.submit(example(key="dog-2"), group(16, 17))  # 9 of at least 32
        with pytest.raises(
            RewardFailure,
            match=r"'net' failed on 9 of its last 18 samples.*0\.25.*OSError: no route to 17.*'dog-2'",
        ):
            pending.result()


def test_old_failures_are_forgotten() -> None:
    values = iter([math.nan] * 16 + [1.0] * 600)
    reward = Local(lambda example, images: torch.tensor([next(values) for _ in images]))
    with Scorer({"a": reward}, max_failed_share=0.5) as under_test:
        for _ in range(66):
            under_test.submit(example(), group(*range(8))).result()
        assert under_test.tally.failures == {"a": 16}
        assert sum(under_test.tally.state_dict()["a"]["recent"]) == 0


def test_zero_allowed_share_stops_at_the_first_failure() -> None:
    with scorer(0.0, a=Local(lambda example, images: torch.tensor([1.0, math.nan]))) as under_test:
        pending = under_test.submit(example(), group(0, 1))
        with pytest.raises(RewardFailure, match="the score was nan"):
            pending.result()


def test_a_second_result_counts_nothing_twice() -> None:
    with scorer(a=Local(lambda example, images: torch.tensor([1.0, math.nan]))) as under_test:
        pending = under_test.submit(example(), group(0, 1))
        assert pending.result() is pending.result()
        assert under_test.tally.failures == {"a": 1}


def test_resumed_state_stops_where_the_uninterrupted_run_does() -> None:
    def failing_every(period: int) -> Scorer:
        return scorer(0.25, a=Local(lambda e, images: torch.where(ids_of(images) % period == 0, math.nan, 1.0)))

    def steps_until_stop(under_test: Scorer, limit: int) -> int:
        for step in range(limit):
            try:
                under_test.submit(example(), group(*range(12))).result()
            except RewardFailure:
                return step
        return limit

    whole = failing_every(3)
    total = steps_until_stop(whole, 10)
    assert 1 < total < 10
    first = failing_every(3)
    assert steps_until_stop(first, total - 1) == total - 1
    second = failing_every(3)
    second.tally.load_state_dict(json.loads(json.dumps(first.tally.state_dict())))
    assert second.tally.failures == first.tally.failures
    assert steps_until_stop(second, 10) == 1


def test_the_state_of_other_rewards_is_refused() -> None:
    state = scorer(a=LOCAL).tally.state_dict()
    with pytest.raises(ValueError, match="checkpoint's rewards are a but the recipe's are a, b"):
        scorer(a=LOCAL, b=LOCAL).tally.load_state_dict(state)


def test_drain_gives_seconds_and_shares_once() -> None:
    def slow(example: Example, images: Tensor) -> Tensor:
        time.sleep(0.05)
        return torch.where(ids_of(images) == 0, math.nan, 1.0)

    async def quick(image: int) -> float:
        await asyncio.sleep(0.01)  # over before the local reward is: hidden
        return image

    with scorer(local=Local(slow), net=Remote(quick)) as under_test:
        under_test.submit(example(), group(0, 1, 2, 3)).result()
        metrics = under_test.drain()
        assert set(metrics) == {
            "time/reward/local",
            "time/reward/net",
            "reward/local/failed_share",
            "reward/net/failed_share",
        }
        assert metrics["reward/local/failed_share"] == 0.25
        assert metrics["reward/net/failed_share"] == 0.0
        assert 0.05 <= metrics["time/reward/local"] < 1.0
        assert metrics["time/reward/net"] < metrics["time/reward/local"]
        assert under_test.drain() == {"time/reward/local": 0.0, "time/reward/net": 0.0}


def test_no_gradient_and_no_inference_tensor() -> None:
    weight = torch.ones(2, requires_grad=True)
    with scorer(a=Local(lambda example, images: weight * 2)) as under_test:
        result = under_test.submit(example(), group(0, 1)).result()
    assert not result.requires_grad
    assert not result.is_inference(), "advantages are saved for backward, which inference tensors refuse"


def test_close_ends_the_thread_and_what_is_in_flight() -> None:
    cancelled = threading.Event()

    async def score(image: int) -> float:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 0.0

    before = threading.active_count()
    under_test = scorer(a=Remote(score))
    under_test.submit(example(), group(0))
    time.sleep(0.05)
    assert threading.active_count() == before + 1
    under_test.close()
    under_test.close()
    assert cancelled.is_set()
    assert threading.active_count() == before


def test_local_rewards_need_no_thread() -> None:
    before = threading.active_count()
    under_test = scorer(a=LOCAL)
    under_test.submit(example(), group(0)).result()
    assert threading.active_count() == before


def test_no_reward_scores_nothing() -> None:
    with Scorer({}, max_failed_share=0.1) as none, pytest.raises(AssertionError, match="without a reward"):
        none.submit(example(), group(0))


def test_a_strange_reward_is_refused_by_name() -> None:
    strange: Any = {"a": LOCAL, "mine": object()}
    with pytest.raises((ValueError, TypeError), match="mine"):
        Scorer(strange, max_failed_share=0.1)


def test_local_rewards_in_the_background_work_while_the_next_group_is_sampled() -> None:
    """The first group's reward ends only after the second was submitted: waiting for it in between would hang."""
    submitted = threading.Event()
    order: list[float] = []

    def score(example: Example, images: Tensor) -> Tensor:
        assert submitted.wait(20)
        order.append(float(ids_of(images)[0]))
        return ids_of(images)

    with Scorer({"a": Local(score), "b": Local(score)}, max_failed_share=0.0, background=torch.device("cpu")) as scorer:
        pending = [scorer.submit(example(1), group(1, 2)), scorer.submit(example(1), group(3, 4))]
        submitted.set()
        second, first = pending[1].result(), pending[0].result()
    assert first.tolist() == [[1, 1], [2, 2]]
    assert second.tolist() == [[3, 3], [4, 4]]
    assert order == [1, 1, 3, 3], "one after the other, as they came"


def test_a_failure_in_the_background_is_raised_by_the_result() -> None:
    def score(example: Example, images: Tensor) -> Tensor:
        raise KeyError("lost")

    with Scorer({"a": Local(score)}, max_failed_share=0.0, background=torch.device("cpu")) as scorer:
        pending = scorer.submit(example(1), group(1, 2))
        with pytest.raises(RewardFailure, match=r"reward 'a' failed on example .*lost"):
            pending.result()


def test_a_step_says_how_many_were_unscorable_and_why() -> None:
    async def score(image: int) -> float:
        if image % 2:
            raise OSError(f"no route to {image}")
        return image

    def local(example: Example, images: Tensor) -> Tensor:
        return torch.where(ids_of(images) < 2, math.nan, 1.0)

    silent = Local(local)
    with scorer(cp=Remote(score), fine=LOCAL, dino=silent) as under_test:
        first = under_test.submit(example(), group(0, 1, 2, 3))
        first.result()
        under_test.submit(example(key="dog-2"), group(4, 5)).result()
        assert under_test.tally.drain_news() == [], "one line a step, when it is over"
        under_test.drain()
        assert under_test.tally.drain_news() == [
            "reward cp: 3 of 6 unscorable, last: OSError: no route to 5 (example 'dog-2')",
            "reward dino: 2 of 6 unscorable, last: the score was nan (example 'dog-1')",
        ]
        assert under_test.tally.drain_news() == []
        under_test.drain()
        assert under_test.tally.drain_news() == []
    assert first.reasons == {
        "cp": ["", "OSError: no route to 1", "", "OSError: no route to 3"],
        "fine": [""] * 4,
        "dino": ["the score was nan", "the score was nan", "", ""],
    }


def test_a_local_rewards_own_reason_is_told_and_does_not_outlive_its_call() -> None:
    def score(example: Example, images: Tensor) -> Tensor:
        if example.key == "dog-1":
            reward.reason = "a mask is missing"
        return torch.full((len(images),), math.nan)

    reward = Local(score)
    with scorer(a=reward) as under_test:
        pending = [under_test.submit(example(key=key), group(0)) for key in ("dog-1", "dog-2")]
        for one in pending:
            one.result()
    assert [one.reasons["a"] for one in pending] == [["a mask is missing"], ["the score was nan"]]
    with scorer(0.0, a=reward) as under_test, pytest.raises(RewardFailure, match="a mask is missing"):
        under_test.submit(example(), group(0)).result()


def test_on_a_gpu_local_rewards_have_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: which stream is set in which thread, after it has waited for the one that loaded the models."""
    seen: list[object] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device == torch.device("cuda:1")

        def wait_stream(self, other: object) -> None:
            seen.append(("waits for", other))

    def set_stream(stream: object) -> None:
        assert isinstance(stream, Stream)
        seen.append(threading.current_thread())

    def score(example: Example, images: Tensor) -> Tensor:
        seen.append(threading.current_thread())
        return ids_of(images)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(torch.cuda, "set_stream", set_stream)
    with Scorer({"a": Local(score)}, max_failed_share=0.0, background=torch.device("cuda:1")) as under_test:
        under_test.submit(example(), group(1)).result()
    waits, thread, worker = seen
    assert waits == ("waits for", "the stream of cuda:1")
    assert thread is worker is not threading.current_thread()


def test_a_reward_that_changes_its_pictures_changes_no_others() -> None:
    """Pillow's thumbnail and paste work in place (HazyResearch/meerkat#290); the next reward saw what they left."""
    seen: list[tuple[tuple[int, int], int]] = []

    def look(example: Example, images: Tensor) -> Tensor:
        seen.append((example.references[0].size, int(images.sum())))
        example.references[0].thumbnail((2, 2))
        images.zero_()
        return torch.zeros(len(images))

    async def look_away(image: int) -> float:
        return float(image)

    given, images = example(), group(3, 5)
    with scorer(first=Local(look), second=Local(look), away=Remote(look_away)) as scores:
        assert scores.submit(given, images).result()[:, 2].tolist() == [3.0, 5.0]
    assert seen[0] == seen[1]
    assert given.references[0].size == seen[0][0] > (2, 2)
    assert int(images.sum()) == seen[0][1]
