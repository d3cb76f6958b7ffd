"""The built-in rubrics, all in our own words: DreamBench++'s two, their pairwise forms, and those of trained judges.

*Concept preservation* looks at the subject alone, *prompt following* at everything but the subject's identity, after
DreamBench++'s definitions (arXiv 2406.16855). Judges that were trained on one form of question are asked in that form:
which pictures in which order, with which marks, and what the answer holds (docs/how-to/judges.md).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

from customized_grpo.rewards.judge.rubrics import Rubric
from customized_grpo.types import Example


@final
@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A rubric with a name.

    Attributes:
        version: part of every cache key; increase it with any change of wording.
        any_axis: whether it may judge for another axis than its own.
        says: what of the example stands beneath its text, where the example has it.
    """

    rubric: Rubric
    version: int = 1
    says: Literal["prompt", "subject", ""] = ""
    any_axis: bool = False

    def facts(self, example: Example) -> list[str]:
        """What is said of the example."""
        text = {"prompt": example.prompt, "subject": example.subject, "": ""}[self.says]
        return [f"The {self.says}: {json.dumps(text, ensure_ascii=False)}"] if text or self.says == "prompt" else []


_SUBJECT: Final = """\
- shape: outline, proportions, parts and how they are joined;
- colour: main colours and where on the subject they are;
- surface: material, texture, patterns, markings, lettering;
- face: for people, animals and characters, the features by which one tells an individual from its kind.
Background, pose, viewpoint, light, added clothes or objects, and the picture's quality or style don't count, unless
they hide the subject or change one of the points above."""
_PROMPT: Final = """\
- relevance: the picture is about what the prompt is about;
- accuracy: things, attributes, actions, counts and relations are as the prompt says;
- completeness: nothing that the prompt names is missing;
- context: place, style and mood fit it.
Whether the main subject looks like any particular individual doesn't count, nor does beauty."""
_CONCEPT_PRESERVATION: Final = f"""\
Is the subject of the generated image the very subject that the reference shows? Compare, as far as they apply:
{_SUBJECT}
Scale:
0 - another thing, or the subject is missing.
1 - the same kind of thing, but hardly anything of this one.
2 - some of its features are there; others are plainly different.
3 - the same at first sight; a closer look finds small differences.
4 - the same subject in every point that can be seen."""
_PROMPT_FOLLOWING: Final = f"""\
Does the generated image show what the prompt asks for? Look at:
{_PROMPT}
Scale:
0 - it has nothing to do with the prompt.
1 - little of the prompt is there, or its main point is wrong.
2 - about half: some of what was asked for is there, and something important is missing or wrong.
3 - nearly all of it; a minor detail is missing or off.
4 - everything that the prompt asks for, and nothing against it."""
_SAME_SUBJECT: Final = f"""\
Two generated images are to show the very subject that the reference shows. In which of them is the subject more like
the reference's? Compare, as far as they apply:
{_SUBJECT}
If neither is more like it, it is a tie. The order in which the images are shown means nothing."""
_BETTER_FOLLOWING: Final = f"""\
Two images were generated for one prompt. Which of them shows more exactly what it asks for? Look at:
{_PROMPT}
If neither is better, it is a tie. The order in which the images are shown means nothing."""
_LIST: Final = """\
Answer by one JSON object, with a short reasoning first:
{"reasoning": "...", "score": [...]}
"""
_EDIT: Final = f"""\
You are an expert for pictures and rate how well an instruction was carried out.
{_LIST}
The first picture is the original. The second one was made from it by the instruction, and may have been left as it was.
Give two whole numbers from 0 to 25:
- the first for success: 0 if nothing of the instruction can be seen, 25 if all of it was carried out perfectly;
- the second for what was kept: 0 if the second picture has nothing more to do with the original, 25 if nothing was
changed beyond the instruction.
Answer with both as a list, "score": [success, kept].

The instruction: {{bare_prompt}}"""
_CONSISTENT: Final = """\
The first picture is the original, the second one was made from it by the instruction: '{bare_prompt}'. Apart from what
the instruction changes, does the second picture stay consistent with the first one in style, logic and identity? Answer
Yes or No first, then give your reasons."""
_FOLLOWED: Final = """\
The first picture is the original, the second one was made from it by the instruction: '{bare_prompt}'. Does the second
picture do exactly what the instruction says? Answer Yes or No first, then give your reasons."""


def _edit(axis: str, take: int, captions: Literal["numbers", "none"]) -> BuiltIn:
    return BuiltIn(
        Rubric(
            axis=axis,
            text=_EDIT,
            scale=(0, 25),
            scores=2,
            take=take,
            references="first",
            captions=captions,
            system=None,
            reply="text",
        )
    )


def _yes_no(axis: str, text: str) -> BuiltIn:
    return BuiltIn(
        Rubric(axis=axis, text=text, asks="yes_no", references="first", captions="none", system=None, reply="text")
    )


RUBRICS: Final[Mapping[str, BuiltIn]] = {
    "concept_preservation": BuiltIn(Rubric(axis="identity", text=_CONCEPT_PRESERVATION), says="subject", any_axis=True),
    "prompt_following": BuiltIn(
        Rubric(axis="prompt", text=_PROMPT_FOLLOWING, references="hidden"), says="prompt", any_axis=True
    ),
    "editscore_consistency": _edit("identity", 2, "numbers"),
    "editscore_prompt": _edit("prompt", 1, "numbers"),
    "unifiedreward_consistency": _edit("identity", 2, "none"),
    "unifiedreward_prompt": _edit("prompt", 1, "none"),
    "paco_consistency": _yes_no("identity", _CONSISTENT),
    "paco_prompt": _yes_no("prompt", _FOLLOWED),
}
PAIRWISE: Final[Mapping[str, BuiltIn]] = {
    "concept_preservation": BuiltIn(Rubric(axis="identity", text=_SAME_SUBJECT, asks="better"), says="subject"),
    "prompt_following": BuiltIn(
        Rubric(axis="prompt", text=_BETTER_FOLLOWING, asks="better", references="hidden"), says="prompt"
    ),
}
