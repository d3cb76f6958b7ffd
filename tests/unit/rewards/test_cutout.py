"""Subjects cut out by masks: what is kept, what is covered, and where the square lies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.rewards.cutout import Box, binary, cut_out, is_empty, square_around

PINK = (250, 100, 150)


def rectangle(size: tuple[int, int], box: Box, value: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(value, tuple(box))
    return mask


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8))


def test_outside_the_mask_is_background_and_inside_untouched() -> None:
    image, box = noise(30, 20), Box(4, 5, 14, 9)
    cut = cut_out(image, rectangle(image.size, box), background=PINK, crop=False, padding=0.0)
    assert cut.size == image.size
    inside = np.asarray(rectangle(image.size, box)) > 0
    assert (np.asarray(cut)[inside] == np.asarray(image)[inside]).all()
    assert (np.asarray(cut)[~inside] == PINK).all()


def test_the_square_shows_the_whole_subject_also_at_the_edge() -> None:
    image, box = noise(30, 20), Box(0, 0, 6, 20)
    cut = cut_out(image, rectangle(image.size, box), background=PINK, crop=True, padding=0.25)
    assert cut.size == (30, 30)  # 20 and a quarter of it on both sides
    kept = (np.asarray(cut) != PINK).any(axis=2)
    assert kept.sum() == 6 * 20
    assert np.asarray(cut)[5:25, 12:18].tolist() == np.asarray(image)[:, :6].tolist()


@given(
    left=st.integers(0, 50), top=st.integers(0, 50), width=st.integers(1, 60), height=st.integers(1, 60),
    padding=st.floats(0, 1),
)  # fmt: skip
def test_a_square_is_square_and_around(left: int, top: int, width: int, height: int, padding: float) -> None:
    box = Box(left, top, left + width, top + height)
    square = square_around(box, padding)
    side = square.right - square.left
    assert side == square.bottom - square.top
    assert side >= max(width, height)
    assert square.left <= box.left
    assert square.top <= box.top
    assert square.right >= box.right
    assert square.bottom >= box.bottom
    assert abs((square.left + square.right) - (box.left + box.right)) <= 1


@pytest.mark.parametrize(("value", "empty"), [(0, True), (127, True), (128, False), (255, False)])
def test_a_mask_counts_from_the_middle_on(value: int, empty: bool) -> None:
    mask = rectangle((8, 8), Box(2, 2, 5, 5), value)
    assert is_empty(mask) == empty
    assert set(np.unique(np.asarray(binary(mask)))) <= {0, 255}
