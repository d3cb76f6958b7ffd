import math

import pytest
import torch
from evaluation_fakes import Bright, Channels, Flaky, TinyData

from customized_grpo.config import Evaluate
from customized_grpo.evaluation.metrics import build_metrics, score

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
