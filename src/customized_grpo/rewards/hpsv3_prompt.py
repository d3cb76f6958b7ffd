"""Prompt template of HPSv3, as in its training. It is part of the model: even one more space changes the score.

The instruction is that of HPSv3 (https://github.com/MizzenAI/HPSv3, MIT licence, copyright 2024 HPSv3 Team), in the
chat template of Qwen2-VL with one image before the text.
"""

from typing import Final

REWARD_TOKEN: Final = "<|Reward|>"
IMAGE_TOKEN: Final = "<|image_pad|>"

INSTRUCTION: Final = (
    "\n"
    "You are tasked with evaluating a generated image based on Visual Quality and Text Alignment "
    "and give a overall score to estimate the human preference. Please provide a rating from 0 "
    "to 10, with 0 being the worst and 10 being the best. \n"
    "\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be "
    "considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical "
    "errors, such as abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be "
    "clear and easy to interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and "
    "other visual elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the "
    "color scheme, composition, atmosphere, depth of field, and the overall creative appeal. The "
    "scene should convey a sense of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as "
    "political, violent, or adult material. If such content is present, the image quality and "
    "satisfaction score should be the lowest possible. \n"
    "\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, "
    "animal, object) align with the textual description. The subject should match the "
    "description in terms of number, appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, "
    "evaluate how well the image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding "
    "elements in the image logically fit the scenario described in the prompt. The environment "
    "should support and enhance the subject without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., "
    "colors, clothing, accessories, expressions, actions) are faithfully represented in the "
    "image. Minor deviations may be acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are "
    "captured in the image. The generated content should not introduce elements that conflict "
    "with or distort the original description.\n"
    "Textual prompt - {text_prompt}\n"
    "\n"
    "\n"
    "\n"
    "Please provide the overall ratings of this image: <|Reward|>\n"
    "\n"
    "END\n"
)
"""Instruction; ``{text_prompt}`` is replaced by the prompt."""

_BEFORE: Final = (
    "<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>"
)
_AFTER: Final = "<|im_end|>\n<|im_start|>assistant\n"


def chat(prompt: str) -> str:
    """The whole input for one image, with one ``IMAGE_TOKEN`` as its placeholder.

    Raises:
        ValueError: the prompt holds the beginning of a special token.
    """
    if "<|" in prompt:
        raise ValueError(f"the prompt {prompt!r} holds '<|', which begins a special token of the model; remove it")
    return _BEFORE + INSTRUCTION.format(text_prompt=prompt) + _AFTER
