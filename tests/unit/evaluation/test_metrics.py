import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import pytest
import torch
from PIL.Image import Image

from customized_grpo.evaluation.metrics import Metric, build_metrics, score
from customized_grpo.recipe.config import Evaluate
from customized_grpo.rewards.base import AsyncGroupReward, AsyncReward, Reward, RewardFailure
from customized_grpo.scoring import requests
from customized_grpo.types import Example
from evaluation_fakes import Bright, Channels, Flaky, TinyData

CPU = torch.device("cpu")
IMAGES = torch.stack([torch.zeros(2, 2, 3, dtype=torch.uint8), torch.full((2, 2, 3), 255, dtype=torch.uint8)])


def spec(metrics: dict[str, dict[str, str]]) -> Evaluate:
    return Evaluate.model_validate({"data": {"type": "evaluation_fakes:TinyData"}, "metrics": metrics})


def test_a_metric_gives_its_columns_and_a_reward_the_one_of_its_key() -> None:
    asked = {
        "channels": {"type": "evaluation_fakes:Channels"},
        "light": {"type": "evaluation_fakes:Bright", "axis": "prompt"},
        "judge": {"type": "evaluation_fakes:Flaky", "axis": "prompt"},
    }
    built = build_metrics(spec(asked).metrics, CPU)
    assert [type(metric) for metric in built.values()] == [Channels, Bright, Flaky]
    scores = score(built, TinyData(None)[0], IMAGES)
    columns = scores.values
    assert scores.runs == {}
    assert list(columns) == ["red", "blue", "light", "judge"]
    assert columns["red"] == columns["light"] == [0.0, 1.0]
    assert math.isnan(columns["blue"][0])
    assert columns["blue"][1] == 1.0
    assert math.isnan(columns["judge"][0])
    assert columns["judge"][1] == 0.5


def test_a_column_of_two_metrics_is_refused() -> None:
    built = build_metrics(
        spec(
            {
                "a": {"type": "evaluation_fakes:Channels"},
                "red": {"type": "evaluation_fakes:Bright", "axis": "prompt"},
            }
        ).metrics,
        CPU,
    )
    with pytest.raises(ValueError, match=r"metrics\.red: the column 'red' is already given"):
        score(built, TinyData(None)[0], IMAGES)


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metrics\.wrong: 'evaluation_fakes:TinyData' is a TinyData"):
        build_metrics({"wrong": Channels.Config(type="evaluation_fakes:TinyData")}, CPU)


MOODY = {"type": "evaluation_fakes:Moody"}


def test_a_stochastic_metric_is_asked_several_times_and_failed_runs_are_left_out() -> None:
    built = build_metrics(spec({"moody": MOODY}).metrics, CPU)
    scores = score(built, TinyData(None)[0], IMAGES, runs={"moody": 3})
    assert scores.runs["moody"][0] == [0.0, 1.0, 2.0]
    assert scores.runs["moody"][1][::2] == [1.0, 3.0]
    assert math.isnan(scores.runs["moody"][1][1])
    assert scores.values["moody"] == [1.0, 2.0]


def test_a_product_is_of_each_image_and_each_run() -> None:
    metrics = {"moody": MOODY, "light": {"type": "evaluation_fakes:Bright"}}
    built = build_metrics(spec(metrics).metrics, CPU)
    both = {"moody": 3, "light": 3}
    scores = score(built, TinyData(None)[0], IMAGES, runs=both, products={"cp_x_pf": ("moody", "light")})
    assert scores.runs["cp_x_pf"][0] == [0.0, 0.0, 0.0]
    assert scores.runs["cp_x_pf"][1][::2] == [1.0, 3.0]
    assert math.isnan(scores.runs["cp_x_pf"][1][1])
    assert scores.values["cp_x_pf"] == [0.0, 2.0]
    once = score(built, TinyData(None)[0], IMAGES, products={"square": ("light", "light")})
    assert once.values["square"] == [0.0, 1.0]
    assert once.runs == {}


def test_products_of_what_is_not_there_or_not_alike_are_refused() -> None:
    built = build_metrics(spec({"moody": MOODY, "light": {"type": "evaluation_fakes:Bright"}}).metrics, CPU)
    with pytest.raises(ValueError, match=r"products\.p: there is no column 'lihgt'; did you mean 'light'"):
        score(built, TinyData(None)[0], IMAGES, products={"p": ("moody", "lihgt")})
    with pytest.raises(ValueError, match="ran a different number of times"):
        score(built, TinyData(None)[0], IMAGES, runs={"moody": 2}, products={"p": ("moody", "light")})


def test_runs_of_no_metric_are_refused_in_the_recipe() -> None:
    with pytest.raises(ValueError, match=r"runs: there is no metric 'mody'; did you mean 'moody'"):
        Evaluate.model_validate(
            {"data": {"type": "evaluation_fakes:TinyData"}, "metrics": {"moody": MOODY}, "runs": {"mody": 3}}
        )


def test_a_judge_that_refuses_stops_the_evaluation() -> None:
    class Refusing(Flaky):  # type: ignore[misc]
        async def __call__(self, example: object, image: object) -> float:
            raise RewardFailure("wrong key")

    refusing = Refusing(None, device=CPU)
    with pytest.raises(RewardFailure, match="wrong key"):
        score({"judge": refusing}, TinyData(None)[0], IMAGES)


@pytest.mark.parametrize("error", [RewardFailure("wrong token"), OSError("reset"), None])
def test_a_server_is_asked_for_a_whole_group(error: Exception | None) -> None:
    class Server(AsyncGroupReward):
        def __init__(self) -> None:
            """Nothing to open."""

        async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
            if error is not None:
                raise error
            return [float(at) for at in range(len(images))]

    def found() -> Sequence[float]:
        return score({"server": Server()}, TinyData(None)[0], IMAGES).values["server"]

    if isinstance(error, RewardFailure):
        with pytest.raises(RewardFailure, match="wrong token"):
            found()
    elif error is not None:
        assert all(math.isnan(value) for value in found())
    else:
        assert found() == [float(at) for at in range(len(IMAGES))]


@final
class Slow(AsyncReward):
    """A function of five lines that never answers about black images, and counts who is asked at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __call__(self, example: Example, image: Image) -> float:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(60 if image.getpixel((0, 0)) == (0, 0, 0) else 0.01)
        self.now -= 1
        return 1.0


def test_a_judge_that_hangs_costs_its_image_and_no_more_are_asked_than_allowed() -> None:
    judge = Slow()
    judge.timeout_s, judge.max_concurrent = 0.1, 3
    images = torch.cat([IMAGES, IMAGES[1:].expand(6, -1, -1, -1)])
    scores = score({"judge": judge}, TinyData(None)[0], images)
    assert math.isnan(scores.values["judge"][0])
    assert scores.values["judge"][1:] == [1.0] * 7
    assert judge.most == 3
    assert scores.errors == {"judge": "no answer in 0.1 s"}


def test_a_judges_limits_are_the_scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(asyncio, "timeout", lambda s: asked.append(s) or contextlib.AsyncExitStack())
    judge = Slow()
    score({"judge": judge}, TinyData(None)[0], IMAGES[1:].expand(20, -1, -1, -1))
    assert set(asked) == {requests.TIMEOUT_S}
    assert judge.most == requests.MAX_CONCURRENT


def test_the_first_reason_is_kept() -> None:
    class Silent(Bright):  # type: ignore[misc]
        def __call__(self, example: Example, images: torch.Tensor) -> torch.Tensor:
            self.reason = f"no mask of {example.key}"
            return torch.full((len(images),), math.nan)

    class Down(AsyncGroupReward):
        def __init__(self) -> None:
            """Nothing to open."""

        async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
            raise OSError("reset")

    metrics = {"light": Bright(None, device=CPU), "silent": Silent(None, device=CPU), "server": Down()}
    scores = score(metrics, TinyData(None)[0], IMAGES)
    assert scores.errors == {"silent": "no mask of example-0", "server": "OSError: reset"}


class Wrong(Metric):
    """Whatever the test wants."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self.give = give

    def __call__(self, example: Example, images: torch.Tensor) -> Any:
        return self.give()


def missing() -> Any:
    return {}["caption"]


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (missing, r"evaluate\.metrics\.mine \(Wrong\) failed on example '.*': KeyError: 'caption'"),
        (lambda: {"x": torch.zeros(0)}, r"gave shape \(0,\) as 'x' for 2 images; it must give a tensor \(2,\)"),
        (lambda: {"x": torch.zeros(2, 1)}, r"gave shape \(2, 1\) as 'x'"),
        (lambda: {"x": [0.0, 0.0]}, "gave list as 'x'"),
    ],
)
def test_a_metrics_mistake_is_named(give: Callable[[], Any], said: str) -> None:
    """It was a bare traceback or an AssertionError without the metric."""
    with pytest.raises(RewardFailure, match=said):
        score({"mine": Wrong(give)}, TinyData(None)[0], IMAGES)


def test_a_rewards_mistake_as_a_metric_is_named() -> None:
    class Broken(Reward):
        def __init__(self) -> None:
            """Nothing to load."""

        def __call__(self, example: Example, images: torch.Tensor) -> torch.Tensor:
            raise KeyError("caption")

    with pytest.raises(RewardFailure, match=r"reward .mine. failed on example .*: KeyError: .caption."):
        score({"mine": Broken()}, TinyData(None)[0], IMAGES)
