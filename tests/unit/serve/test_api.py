"""What a worker makes of the requests that wait together, without LitServe's processes."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from time import monotonic
from typing import Any

import pytest
import torch
from fastapi.responses import Response
from litserve.transport.process_transport import MPQueueTransport as ProcessTransport
from PIL import Image

import tiny_hpsv3
from customized_grpo import registry
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.recipe.server import ServerConfig
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.wire import ScoreRequest, fingerprint, png, request_body
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.serve import api
from customized_grpo.serve.api import RewardAPI, WaitingLoop
from customized_grpo.types import Example
from tiny_rewards import example, pictures, save_dino

CALLS: list[tuple[str, int]] = []
"""Example and number of images of every call of ``reds``."""


def reds(one: Example, images: list[Image.Image]) -> list[float | None]:
    """The first pixel's red; 13 can't be scored, 66 is refused, 99 is a defect."""
    CALLS.append((one.key, len(images)))
    values = [image.getpixel((0, 0))[0] for image in images]  # type: ignore[index]
    if 66 in values:
        raise ValueError("66 is no red")
    if 99 in values:
        raise KeyError("box")
    return [None if value == 13 else float(value) for value in values]


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker watches the server that started it; here that would be whoever runs the tests."""
    monkeypatch.setattr(api, "_die_with_the_server", lambda: None)
    CALLS.clear()


def worker(reward: dict[str, Any], **config: Any) -> RewardAPI:
    settings = ServerConfig.model_validate({"rewards": {"mine": reward}, "device": "cpu", **config})
    made = RewardAPI("mine", settings.rewards["mine"], settings, FileHashes())
    made.setup("cpu")
    return made


@pytest.fixture
def red() -> RewardAPI:
    return worker({"type": f"{__name__}:reds"})


def request(*values: int, key: str = "a", shared: bool = True, size: int = 2) -> ScoreRequest:
    images = [png(Image.new("RGB", (size, size), (value, 0, 0))) for value in values]
    return ScoreRequest.model_validate({"example": {"key": key, "prompt": "p"}, "images": images, "shared": shared})


def ask(worker: RewardAPI, *requests: ScoreRequest) -> list[tuple[int, dict[str, Any]]]:
    answers = worker.predict(worker.batch([worker.decode_request(one) for one in requests]))
    assert all(isinstance(answer, Response) for answer in answers)
    return [(answer.status_code, json.loads(bytes(answer.body))) for answer in answers]


def dino(folder: Path) -> dict[str, Any]:
    return {"type": "dino", "model": str(save_dino(folder))}


def hpsv3(folder: Path) -> dict[str, Any]:
    tiny_hpsv3.save_checkpoint(tiny_hpsv3.save_base(folder) / "HPSv3.safetensors")
    return {"type": "hpsv3", "model": str(folder), "checkpoint": str(folder), "dtype": "float32"}


@pytest.mark.parametrize("reward", [dino, hpsv3])
def test_scores_through_the_server_are_the_local_ones(reward: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    section = reward(tmp_path)
    plugin = registry.resolve("rewards", section["type"])
    spec = registry.config_model("rewards", plugin).model_validate(section)
    images = pictures(5)
    body = request_body(example(2), to_pil(images))
    ((status, answer),) = ask(worker(section), ScoreRequest.model_validate_json(body))
    assert status == 200
    with Scorer({"local": plugin(spec, device=torch.device("cpu"))}, max_failed_share=0.0) as scorer:
        expected = scorer.submit(example(2), images).result()[:, 0]
    assert torch.equal(torch.tensor(answer["scores"]), expected)
    assert expected.std() > 0
    assert answer["fingerprint"] == fingerprint(spec, FileHashes())


def test_requests_that_share_are_one_call_and_get_their_own_scores(red: RewardAPI) -> None:
    answers = ask(red, request(1), request(2, 3), request(4, key="b"), request(5))
    assert [answer["scores"] for _, answer in answers] == [[1], [2, 3], [4], [5]]
    assert [answer["batch"] for _, answer in answers] == [4, 4, 1, 4]
    assert CALLS == [("a", 4), ("b", 1)]


def test_a_request_that_does_not_share_is_a_call_of_its_own(red: RewardAPI) -> None:
    alone = [request(1, shared=False), request(2, shared=False), request(3), request(4)]
    assert [answer["batch"] for _, answer in ask(red, *alone)] == [1, 1, 2, 2]
    assert sorted(CALLS) == [("a", 1), ("a", 1), ("a", 2)]


def test_sizes_are_not_mixed(red: RewardAPI) -> None:
    answers = ask(red, request(1, size=2), request(2, size=3))
    assert [answer["scores"] for _, answer in answers] == [[1], [2]]


def test_what_cant_be_scored_is_null_and_logged(red: RewardAPI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert ask(red, request(1, 13))[0][1]["scores"] == [1.0, None]
    assert "mine: 1 of 2 images unscorable, last: the score was nan (example 'a')" in caplog.text


def test_a_bad_request_spoils_no_other(red: RewardAPI) -> None:
    broken = request(1).model_copy(update={"images": (b"\x89PNG\r\n\x1a\nnothing",)})
    mixed = request(1).model_copy(update={"images": request(1).images + request(2, size=3).images})
    answers = ask(red, broken, mixed, request(7))
    assert [status for status, _ in answers] == [422, 422, 200]
    assert "images[0]" in answers[0][1]["detail"]
    assert "a group has one size" in answers[1][1]["detail"]


@pytest.mark.parametrize(
    ("value", "status", "words"), [(66, 422, "ValueError: 66 is no red"), (99, 500, "KeyError: 'box'")]
)
def test_a_reward_that_raises(red: RewardAPI, value: int, status: int, words: str) -> None:
    answers = ask(red, request(value), request(1, key="b"))
    assert [code for code, _ in answers] == [status, 200]
    assert words in answers[0][1]["detail"]


def test_the_pixels_of_a_request_are_limited_together() -> None:
    narrow = worker({"type": f"{__name__}:reds"}, limits={"pixels": 12})
    (first, second) = ask(narrow, request(1, 2, 3), request(1, 2, 3, 4))
    assert first[0] == 200
    assert second[0] == 422
    assert "images[3]" in second[1]["detail"]
    assert "over the limit" in second[1]["detail"]


def test_masks_are_grey_again() -> None:
    def saw(one: Example, images: list[Image.Image]) -> list[float]:
        return [float(sum(mask is not None and mask.mode == "L" for mask in one.masks))]

    globals()["saw"] = saw
    mask = png(Image.new("L", (2, 2), 255))
    one = request(1).model_copy(update={"example": ScoreRequest.model_validate(
        {"example": {"key": "a", "prompt": "p", "references": [mask, mask], "masks": [mask, None]},
         "images": [mask]}).example})  # fmt: skip
    assert ask(worker({"type": f"{__name__}:saw"}), one)[0][1]["scores"] == [1.0]


def test_a_judge_over_the_network_can_be_served_too() -> None:
    globals()["judge"] = judge
    assert ask(worker({"type": f"{__name__}:judge"}), request(3, 4))[0][1]["scores"] == [3.0, 4.0]


async def judge(one: Example, images: list[Image.Image]) -> list[float]:
    """One image a call."""
    return [float(image.getpixel((0, 0))[0]) for image in images]  # type: ignore[index]


def test_a_reward_that_cant_be_loaded_is_said_plainly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="can't be loaded"):
        worker({"type": "dino", "model": str(tmp_path)})
    assert "rewards.mine: reward model" in caplog.text
    logging.getLogger("litserve").setLevel(logging.INFO)


def test_the_loop_waits_for_a_first_request_and_then_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "IDLE_S", 0.01)
    loop: Callable[..., Any] = WaitingLoop().get_batch_requests  # type: ignore[no-untyped-call]
    mine = worker({"type": f"{__name__}:reds"}, batching={"max_requests": 3, "wait_ms": 20})
    mine.request_timeout = 100.0
    queue: Queue[Any] = Queue()
    for at in range(4):
        queue.put((0, f"uid-{at}", monotonic(), at))
    transport = ProcessTransport(None, [])
    batch, late = loop(mine, queue, transport)
    assert [payload for _, _, payload in batch] == [0, 1, 2]
    assert late == []
    assert [payload for _, _, payload in loop(mine, queue, transport)[0]] == [3]
    assert loop(mine, queue, transport) == ([], [])
