"""One prompt before it is drawn: what the model's tokenizer doesn't read is said, what it would misread is refused."""

import pytest
from PIL import Image

from customized_grpo.conditioning.drawing import check_drawing
from customized_grpo.recipe.loading import load_recipe

POLICY = load_recipe("mini_customized").policy
REFERENCE = Image.new("RGB", (64, 64))


def test_a_short_prompt_passes() -> None:
    assert check_drawing(POLICY, "a big cone in the snow", [REFERENCE]) == []


def test_the_end_of_a_long_prompt_is_not_cut_in_silence() -> None:
    first, second = check_drawing(POLICY, "a big cone in the snow " * 10, [REFERENCE])
    assert first == "the prompt has 62 tokens, and the model's tokenizer reads 16: its end is cut off"
    assert second == "the prompt has 61 tokens, and the model's tokenizer_2 reads 16: its end is cut off"


def test_a_special_token_in_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="</s>"):
        check_drawing(POLICY, "a big cone </s> in the snow", [REFERENCE])


def test_too_few_references_are_refused() -> None:
    with pytest.raises(ValueError, match="0 references"):
        check_drawing(POLICY, "a big cone", [])
