"""One prompt and its references, looked at before a policy draws them."""

from collections.abc import Sequence

from PIL.Image import Image

from customized_grpo.conditioning.miniature import strange_to
from customized_grpo.data.prompts import misread, text_problem
from customized_grpo.policies.prompt_tokens import read_prompts
from customized_grpo.recipe.sections import PolicySpec


def check_drawing(policy: PolicySpec, prompt: str, references: Sequence[Image]) -> list[str]:
    """Look at one prompt and its references.

    Returns:
        What of the prompt is not read, and what the policy doesn't know, for people.

    Raises:
        ValueError: the policy can't draw it with these references.
    """
    policy.check_references([image.size for image in references])
    if problem := text_problem(prompt):
        raise ValueError(problem)
    notices = strange_to(policy, {}, [image.size for image in references])
    for kind in policy.prompt_tokenizers():
        reading = read_prompts(kind, [prompt], download=True)
        if reading is None:  # where the model is loaded it is said why
            continue
        if reading.special[0]:
            raise ValueError(misread(reading.special[0]))
        if reading.most is not None and reading.tokens[0] > reading.most:
            notices.append(
                f"the prompt has {reading.tokens[0]} tokens, and the model's {kind.folder} reads {reading.most}: its "
                "end is cut off"
            )
        if reading.unknown:
            notices.append(f"the prompt holds signs that the model's {kind.folder} doesn't know; they are lost")
    return notices
