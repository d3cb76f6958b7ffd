"""What goes to a reward server and back: nothing is lost on the way, and nothing else is taken."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from customized_grpo.data.images import read_image
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.hpsv3 import HPSv3
from customized_grpo.rewards.wire import Png, ScoreRequest, ScoreResponse, fingerprint, png, request_body
from customized_grpo.types import Example
from tiny_rewards import example, pictures


@given(
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    mode=st.sampled_from(["RGB", "L"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_pixels_come_as_they_went(width: int, height: int, mode: str, seed: int) -> None:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = TypeAdapter(Png).validate_python(png(Image.fromarray(pixels)))
    image = read_image(content, "image")
    assert np.array_equal(np.asarray(image.convert(mode)), pixels)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_score_comes_bit_for_bit(score: float) -> None:
    given_score = torch.tensor([score], dtype=torch.float32)
    sent = ScoreResponse(scores=tuple(given_score.tolist()), fingerprint="0", batch=1).model_dump_json()
    (arrived,) = ScoreResponse.model_validate_json(sent).scores
    assert torch.equal(torch.tensor([arrived], dtype=torch.float32), given_score)


def test_a_request_has_all_that_a_reward_reads() -> None:
    mask = Image.new("L", (30, 36), 255)
    one = Example(
        key="dog-1",
        prompt='a "red" dog\nin Zürich',
        references=example(2).references,
        subject="dog",
        masks=(mask, None),
        extra={"subjects": ["dog", "cat"], "truth": object(), "share": math.nan},
    )
    request = ScoreRequest.model_validate_json(request_body(one, to_pil(pictures(3))))
    message = request.example
    assert (message.key, message.prompt, message.subject) == (one.key, one.prompt, one.subject)
    assert message.extra == {"subjects": ["dog", "cat"]}, "what is no plain JSON stays here"
    assert [read_image(content, "").tobytes() for content in message.references] == [
        image.tobytes() for image in one.references
    ]
    assert message.masks[1] is None
    assert len(request.images) == 3
    assert not request.shared


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("no base64!", "is not base64"),
        (7, "is not base64"),
        ("/9j/4AAQ", "is not a PNG"),
        ("", "is not a PNG"),
    ],
)
def test_what_is_no_png_is_refused(image: object, words: str) -> None:
    body = {"example": {"key": "a", "prompt": "b"}, "images": [image]}
    with pytest.raises(ValidationError, match=words):
        ScoreRequest.model_validate_json(json.dumps(body))


def test_unknown_fields_and_no_images_are_refused() -> None:
    for body in ({"images": []}, {"images": [png(Image.new("RGB", (1, 1)))], "promt": "x"}):
        with pytest.raises(ValidationError):
            ScoreRequest.model_validate({"example": {"key": "a", "prompt": "b"}, **body})


def test_a_fingerprint_is_of_the_options_alone() -> None:
    def of(**options: object) -> str:
        return fingerprint(Dino.Config.model_validate({"type": "dino", **options}), FileHashes())

    assert of() == of(axis="identity") == of(weight=2.0) == of(model="facebook/dinov2-base")
    others = [
        of(model="other"),
        of(batch_size=4),
        of(dtype="bfloat16"),
        fingerprint(HPSv3.Config(type="hpsv3"), FileHashes()),
    ]
    assert len({of(), *others}) == 5
    assert len(of()) == 16


def test_a_fingerprint_is_of_a_folder_s_content_and_not_of_its_path(tmp_path: Path) -> None:
    def of(folder: Path) -> str:
        return fingerprint(Dino.Config.model_validate({"type": "dino", "model": str(folder)}), FileHashes())

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    first = of(tmp_path / "one")
    assert of(tmp_path / "two") == first
    (tmp_path / "two" / "model.safetensors").write_bytes(b"others!")
    assert of(tmp_path / "two") != first


def test_a_path_in_extra_is_left_out() -> None:
    one = Example(key="a", prompt="b", references=(), extra={"views": (Path("/secret"),), "run": 3})
    request = ScoreRequest.model_validate_json(request_body(one, to_pil(pictures(1))))
    assert request.example.extra == {"run": 3}
