"""Answers of judges as numbers: no text gives a number that it doesn't clearly state. Whole replies: judge_cases."""

import contextlib
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.rewards.judge.answer import Answer, Unscorable, read
from customized_grpo.rewards.judge.logprobs import Alternative, expected_score

SCORES = st.integers(0, 4)
WORDS = st.text(st.characters(blacklist_characters="{}", blacklist_categories=("Cs",)), max_size=60)
NO_NUMBERS = st.text(st.characters(blacklist_characters="{}", blacklist_categories=("Cs", "Nd")), max_size=60)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 0", 0),
        ("score: [3]", 3),
        ("**Score:** 3", 3),
        ("Score: **3**", 3),
        ("**Score: 3**", 3),
        ("- Score = 2.", 2),
        ("## Final score: 4", 4),
        ("Overall score: 3 out of 4", 3),
        ("Score: Excellent (4)", 4),
        ("Score: Very poor (0)", 0),
        ("The score follows.\nScore is 2\n", 2),
        ("Score: 1 would be too low for this.\nScore: 4", 4),
        ("Score: 2\nThis is because the strap is missing.", 2),
        ('<think>Score: 1</think>\n\nScore: 3', 3),
        ('{"analysis": "the \\"score\\": 1 of others", "score": 3}', 3),
        ('{"score": 3, "analysis": "Score: 1"}', 3),
        ('{"wrapped": 1} {"score": 2}', 2),
        ("Score: 3.0", 3),
        ("Score: 3.0/4.0", 3),
        ("Score: 3 (Good)", 3),
        ("Score: 3 - good", 3),
        ("Score: 3 (out of 4)", 3),
        ("Score (0-4): 3", 3),
        ("Score: <3>", 3),
        ('Score: "3";', 3),
        ("Score: \\boxed{3}", 3),
        ("<score>3</score>", 3),
        ("<answer>Score: 3</answer>", 3),
        ("Score: <|begin_of_box|>3<|end_of_box|>", 3),
        ("### Score\n\n**3**\nIt lacks the strap.", 3),
        ("\ufeffScore: 3", 3),
        ("Score: 3\nScore: 3.0", 3),
        ("Score: 2\nFinal score: 3", 3),
        ("Final score: 3\nScore: 2", 3),
        ('{"score": 3.0}', 3),
        ('{"Score": 3}', 3),
        ('{"final_score": "3/4"}', 3),
        ('{"answer": {"analysis": "red", "score": 3}}', 3),
        ('[{"score": 3}]', 3),
        ('{"analysis": "first\nScore: 1\nsecond", "score": 3}', 3),
        ('{"analysis": "the <think> sign", "score": 3}', 3),
        ('{"analysis": "it\'s red", "score": 3,}', 3),
        ("{'analysis': 'red', 'score': 3}", 3),
        ('{"score": 3 // of 4, not "score": 1\n}', 3),
        ('{"score": 3} # 3 of 4', 3),
        ('Score: 2 would be too low\n{"score": 3}', 3),
        ("The pattern {a is odd.\nScore: 3", 3),
        ('The pattern {a is odd. {"score": 3}', 3),
        ('{{"score": 3}}', 3),
        ("Score: 1</think>Score: 3", 3),
        ("<think>a <think>b</think> Score: 1</think> Score: 3", 3),
        ("<thinking>Score: 1</thinking>Score: 3", 3),
        ("<reasoning>Score: 1</reasoning>\n{\"score\": 3}", 3),
        ("<THINK >Score: 1</THINK>Score: 3", 3),
        ("<seed:think>Score: 1</seed:think>Score: 3", 3),
        ("\u25c1think\u25b7Score: 1\u25c1/think\u25b7Score: 3", 3),
        ("[THINK]Score: 1[/THINK]Score: 3", 3),
        ("<|begin_of_thought|>Score: 1<|end_of_thought|>Score: 3", 3),
        ("<|START_THINKING|>Score: 1<|END_THINKING|>Score: 3", 3),
        ("<|channel>thought\nScore: 1<channel|>Score: 3", 3),
        ("<|channel|>commentary<|message|>x<|channel|>analysis<|message|>Score: 1<|end|><|start|>assistant"
         "<|channel|>final<|message|>Score: 3<|return|>", 3),
        ("analysisHm.\nScore: 1\nassistantfinalScore: 3", 3),
        ('first {"score": 2}, again {"score": 2}', 2),
        *((one, 3) for one in ("3", " 3.\n", "3.0", "```\n3\n```", '"3"', "**3**", "\\boxed{3}",
          "$\\boxed{3}$", "3/4", "3 out of 4", "<answer>3</answer>", "<|begin_of_box|>3<|end_of_box|>", "Good (3)",
          "<think>2?</think>\n\n3<|im_end|>")),
        *((one, 3) for one in ('"score": 3', '"Score: 3"', "Score: <b>3</b>", "Score: 3\u200b",
          "Score \u2013 3", "| Score | 3 |", "<rating>3</rating>", "Rating: 3",
          "My grade: 3", "Final answer: 3", "**Answer:**\n\n3")),
        *((one, 3) for one in ('{"rating": 3}', '{"answer": "3"}', '{"answer": "red", "score": 3}', "{'grade': 3,}")),
        *((one, 3) for one in ("Score: 3\n(Score range: 0 to 4)", "Score: 3\n**Score scale:** 0\u20134",
          "Score range: 0-4\nScore: 3", "Score: 3 (scale 0-4)", "Score: 3, on a scale from 0 to 4",
          "Score on a scale of 0 to 4: 3", "Score (out of 4): 3")),
        ("Score: 3\nFinal answer: 3/4", 3),
        ("Score: 2\nFinal score: 3\nAnswer: 3", 3),
        ("Score: 3\nThere are small differences between the two.", 3),
        ("Score: 3\nThe 3D look is right; 3 of 4 straps are there.", 3),
        ('Answer:\n{"score": 3}\n\nIt lacks a strap.', 3),
    ],
)  # fmt: skip
def test_what_is_clear_is_read(text: str, score: int) -> None:
    answer = read(text)
    assert answer.score == score
    assert text[answer.at] == str(score)


NUMBERS = (
    *(
        "3",
        "3.0",
        "3.00",
        "3.",
        "+3",
        "+3.0",
        "3,0",
        "3,00",
        "\uff13",
        "\uff13.\uff10",
        "\uff13\uff0e\uff10",
        "\uff0b\uff13",
    ),
    *("3/4", "3.0/4", "3.0/4.0", "3 / 4.00", "3.0 out of 4", "3 points", "3.0 points", "3/4 points", "3\u5206"),
)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("form", ["{}", "Score: {}", "**Score:** {}", "{{'score': \"{}\"}}", '{{"Score": "{}"}}'])
def test_a_whole_number_is_read_however_it_is_written(form: str, number: str) -> None:
    text = form.format(number)
    assert read(text).score == 3
    assert int(text[read(text).at]) in (0, 3)


@pytest.mark.parametrize("number", ["3", "3.0", "3.00", "+3", "3,0", "\uff13", "\uff13.\uff10", "3e0"])
def test_a_whole_number_of_json_is_read_however_it_is_written(number: str) -> None:
    for text in (f'{{"score": {number}}}', f'{{"analysis": "red", "score": {number}, "sure": true}}'):
        assert read(text).score == 3


@pytest.mark.parametrize("answer", ["Score: 3", "**3**\n\nScore: 3", '{"score": 3}', '```json\n{"score": 3}\n```'])
@pytest.mark.parametrize(
    "words",
    [
        "Actually, 2.", "Wait, I made an error. The score should be 1.", "I would lower it to 2.", "Better: **2**",
        "2\u70b9", "Score: 2 would be fairer", "Score: lower", "Answer: see above", "not Score: 1 or 2",
        "It has 2 straps of 3.",
        "On second thought, no.", "Make that two.", "No, two.", "It deserves a two", "Or rather less.",
        "That was too generous.", "2/4", "2.5", "I would revise this.", "I made a mistake.", "\u66f4\u6b63",
    ],
)  # fmt: skip
def test_what_follows_an_answer_may_take_it_back(answer: str, words: str) -> None:
    for between in ("\n", "\n\n"):
        with pytest.raises(Unscorable, match=r"may take it back|can't be read|several scores"):
            read(answer + between + words)


@pytest.mark.parametrize(
    "text",
    [
        "Score\uff1a\uff13",
        "Score: \uff13\uff0e\uff10",
        "\uff5b\uff02score\uff02\uff1a3\uff5d",
        "{\u201cscore\u201d: 3}",
        "{score: 3}",
        '{"score": 3e0}',
        '{"score": 03}',
        '{"\\u0073core": "\\u0033"}',
        '{\\"score\\": 3}',
        '"{\\"analysis\\": \\"red\\", \\"score\\": 3}"',
    ],
)
def test_what_is_written_oddly_is_read_and_has_no_expectation_of_another_digit(text: str) -> None:
    answer = read(text)
    assert answer.score == 3
    assert answer.at == -1 or int(text[answer.at]) in (0, 3)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Score: 2\nScore: 3", "several scores"),
        ("Reference image 1\nScore: 3\nReference image 2\nScore: 1", "several scores"),
        ('Score: 1\n{"score": 3}', "several scores"),
        ('{"score": 3}\nFinal score: 2', "several scores"),
        ('{"score": 3, "Score": 4}', "several scores"),
        ("Score: 3\nFinal answer: 2", "several scores"),
        ("Score: 3\nAnswer:\n\n**2**", "several scores"),
        ("Final score: 3\nFinal answer: 2", "several scores"),
        ("Rating: 2\nScore: 3", "several scores"),
        ('{"score": 3, "rating": 2}', "several scores"),
        ('{"score": 3, "answer": "2"}', "several scores"),
        ('{"score": 3} {"grade": 2}', "several scores"),
        ('{"prompt_following": 3}', "there is no score"),
        ('{"rating": 3', "JSON is not whole"),
        ("10", "the score 10 is outside 0 to 4"),
        ("-1", "the score -1 is outside 0 to 4"),
        ("2.5", "not a whole number"),
        ("Score range: 0 to 4", "there is no score"),
        ("{'score': 3, 'score': 4}", "several scores"),
        ("Score: 4\nThe scale:\nScore: 0 - nothing\nScore: 1 - a little", "can't be read"),
        ("Score: 3,5", "not a whole number"),
        ('{"score": "3,5"}', "not a whole number"),
        ('{"score": 3,5}', "not a whole number"),
        ('{"score": 3, 5}', "JSON can't be read"),
        ('{"score": 3,5.0}', "JSON can't be read"),
        ("{'a': 'x',5, 'score': 3}", "JSON can't be read"),
        ("Score: 3,000", "can't be read"),
        ("Score: 3.5 points", "not a whole number"),
        ("Score: 2.9999999", "not a whole number"),
        ("Score: 75%", "can't be read"),
        ("Score: 4/5", "can't be read"),
        ("Score: 3.5", "not a whole number"),
        ("Score: \u22121", "the score -1 is outside 0 to 4"),
        ('{"score": "4 out of 5"}', "not a whole number"),
        ('{"score": NaN}', "not a whole number"),
        ('{"score": {"value": 3}}', "not a whole number"),
        (f'{{"score": {"9" * 5000}}}', "is outside 0 to 4"),
        ('{"score": 1e999999999}', "is outside 0 to 4"),
        ('{"analysis": "red", "score": 3', "JSON is not whole"),
        ('{"parts": {"score": 3}, "of": 2}', "there is no score"),
        ('{"parts": {"score": 3}, "score": ', "JSON is not whole"),
        ("{'score': 3, 'a': &x {'b': *x}}", "JSON can't be read"),
        ("{'score': 3, 'a': [}", "JSON can't be read"),
        ("<think>Score: 1", "thoughts are not closed"),
        ('<think>{"score": 1}', "thoughts are not closed"),
        ('<think>a <think>b</think> {"score": 1}', "thoughts are not closed"),
        ("Score: 3 <think>or rather\nScore: 1", "thoughts are not closed"),
        ("\u25c1think\u25b7Score: 1", "thoughts are not closed"),
        ("<|channel|>analysis<|message|>\nScore: 1", "thoughts are not closed"),
        ("Score: 3</think>", "there is no score"),
    ],
)  # fmt: skip
def test_a_reply_has_one_meaning_or_none(text: str, why: str) -> None:
    with pytest.raises(Unscorable, match=why):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        *("2 3", "2\n3", "3, 2", "2-3", "0-4", "0 to 4", "3/5", "75%", "3%", "3,5", "3/4/2024", "not 3", "#3", "three"),
        '{"count": 2} 3',
        "| Score | 3 | 2 |",
        "Score \u2014 not 3",
        "Score: 0-4",
        "The score would be 3.",
        "Score: 3\nScore: n/a",
        "Score: three",
        "Score: not 3",
        "Score: less than 3",
        "Score: at most a 3",
        "Score: better (4)",
        "Score:" + " " * 20_000 + "x",
        "Score: -1",
        "Score: 3.0.1",
        "Score: 3, or rather 4",
        "Score: 1 or 2",
        "Score: 3/10",
        "Score: 3 out of 5",
        "Scores: 3",
        '{"score": 3.5}',
        '{"score": "good"}',
        '{"score": [3]}',
        '{"score": 99999999999999999999}',
        '{"score": 3',
        "[" * 10_000,
        '{"a":' * 10_000,
        "{" * 10_000,
        '{"score" ' * 2_000,
    ],
)  # fmt: skip
def test_what_is_not_clear_is_no_score(text: str) -> None:
    with pytest.raises(Unscorable):
        read(text)


@given(SCORES, WORDS, NO_NUMBERS)
def test_a_json_object_is_found_among_any_words(score: int, before: str, after: str) -> None:
    assert read(f'{before}{{"analysis": {json.dumps(after)}, "score": {score}}}{after}').score == score


@given(st.integers().filter(lambda value: not 0 <= value <= 4))
def test_no_number_outside_the_scale_is_a_score(value: int) -> None:
    for text in (f"Score: {value}", f'{{"score": {value}}}', f'{{"score": "{value}"}}'):
        with pytest.raises(Unscorable):
            read(text)


@given(st.text(max_size=200))
def test_any_text_is_a_score_of_the_scale_or_none(text: str) -> None:
    with contextlib.suppress(Unscorable):
        assert read(text).score in range(5)


def tokens(*pieces: str, digit: dict[str, float]) -> list[Any]:
    """Tokens as the SDK gives them; those that are a digit have these alternatives."""
    return [
        SimpleNamespace(
            token=piece,
            bytes=None,
            top_logprobs=[Alternative(t, math.log(p)) for t, p in digit.items()] if piece.strip().isdigit() else [],
        )
        for piece in pieces
    ]


PIECES = ('{"', "score", '":', " 3", "}")


@pytest.mark.parametrize(
    ("digit", "expected"),
    [
        ({" 3": 1.0}, 3.0),
        ({" 3": 0.5, " 4": 0.5}, 3.5),
        ({" 3": 0.4, "3": 0.2, " 2": 0.2, " 1": 0.2}, 2.4),
        ({" 3": 0.6, " 9": 0.2, "x": 0.2}, 3.0),  # what is no score has no say
        ({" 3": 0.3, " 0": 0.3, "!": 0.4}, 1.5),
    ],
)
def test_the_expectation_is_over_scores_alone(digit: dict[str, float], expected: float) -> None:
    text = "".join(PIECES)
    assert expected_score(text, read(text), tokens(*PIECES, digit=digit)) == pytest.approx(expected)


@pytest.mark.parametrize("spelling", ["3", " 3", "\uff13", "+3", "3.0", '"3', "3\n"])
def test_the_expectation_counts_every_spelling_of_a_score_once(spelling: str) -> None:
    listed = [Alternative(spelling, math.log(0.4)), Alternative("3", math.log(0.2)), Alternative("2", math.log(0.4))]
    token = SimpleNamespace(token=spelling, bytes=None, top_logprobs=[*listed, listed[0]])
    text = "Score: " + spelling.strip('"')
    given = [SimpleNamespace(token="Score: ", bytes=None, top_logprobs=[]), token]
    if spelling == '"3':
        text = "Score: " + spelling
    assert expected_score(text, read(text), given) == pytest.approx(2.6)


@given(st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5), SCORES)
def test_the_expectation_lies_on_the_scale_and_is_the_score_where_sure(weights: list[float], score: int) -> None:
    pieces = ("Score", ": ", str(score))
    mass = sum(weights)
    spread = tokens(*pieces, digit={str(s): weight / mass for s, weight in enumerate(weights)})
    value = expected_score("".join(pieces), Answer(score, 7), spread)
    assert value == pytest.approx(sum(s * weight for s, weight in enumerate(weights)) / mass)
    assert 0.0 <= value <= 4.0
    assert expected_score("".join(pieces), Answer(score, 7), tokens(*pieces, digit={str(score): 1.0})) == score


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        tokens('{"', "score", '":', digit={}),  # the answer goes on without log-probabilities
        tokens('{"score":', " 3}", digit={}),
        tokens(*PIECES, digit={}),
        tokens(*PIECES, digit={" 2": 0.9}),  # not of the digit that was written
        tokens(*PIECES, digit={" 3": 0.2, "x": 0.8}),
    ],
)
def test_without_log_probabilities_of_the_score_there_is_none(logprobs: Any) -> None:
    text = "".join(PIECES)
    with pytest.raises(Unscorable, match="log-probabilities"):
        expected_score(text, read(text), logprobs)


def in_bytes(*pieces: bytes) -> list[Any]:
    """Tokens of text as OpenAI gives it where a token is no whole character: escapes in words, and the bytes."""
    return [SimpleNamespace(token=str(piece)[2:-1], bytes=list(piece), top_logprobs=[]) for piece in pieces]


SMILE = "😀".encode()
DIGIT = tokens(" 3", digit={" 3": 0.5, " 4": 0.5})


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("\U0001f600\nScore: 3", [*in_bytes(SMILE[:2], SMILE[2:], b"\nScore:"), *DIGIT]),
        ("Score: 3", [*tokens("Hm, Score", ": 1", "</think>", "\n\n", "Score", ":", digit={}), *DIGIT]),
        ("Score: 3", [*tokens("Score", ":", digit={}), *DIGIT, *tokens("<|im_end|>", digit={})]),
        ("Score: 3", [*tokens("Score", ":", digit={}), *DIGIT, *tokens("</s>", "", digit={})]),
        ("Score: 3", [*tokens("Score", ":", digit={}), *DIGIT, *tokens("\n", digit={})]),
        ("Score: 3\n\n", [*tokens("Score", ":", digit={}), *DIGIT, *tokens("\n\n", "<end_of_turn>", digit={})]),
        ("Score: 3\nIt is \U0001f600", [*DIGIT, *in_bytes(b"\nIt is ", SMILE[:1], SMILE[1:])]),
        ("Score: 3\n</s>", [*DIGIT, *tokens("\n", "</s>", digit={})]),
    ],
)  # fmt: skip
def test_the_digits_token_is_found_from_the_end(text: str, given: list[Any]) -> None:
    assert expected_score(text, read(text), given) == pytest.approx(3.5)


@pytest.mark.parametrize(
    "given",
    [
        [*DIGIT, *tokens(" and more", digit={})],
        [*DIGIT, *tokens("<|im_end|>", "x", digit={})],
        tokens("}", digit={}),
        tokens("<|im_end|>", digit={}),
    ],
)
def test_log_probabilities_of_another_text_are_none(given: list[Any]) -> None:
    with pytest.raises(Unscorable, match="don't cover the score"):
        expected_score("Score: 3", Answer(3, 7), given)
