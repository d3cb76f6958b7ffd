"""How an answer ended and where its words stand: any ending is taken that does not say that the answer is not whole."""

from typing import Any

import pytest

from customized_grpo.rewards.judge.choice import read_choice, read_choices
from customized_grpo.rewards.judge.unscorable import Unscorable

JSON = '{"score": 3}'


def choice(content: Any, ending: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"finish_reason": ending, "message": {"role": "assistant", "content": content, **message}}


@pytest.mark.parametrize(
    "ending",
    ["stop", "STOP", None, "", "eos", "eos_token", "end_turn", "stop_sequence", "unknown", "FINISH_REASON_UNSPECIFIED",
     "end_of_turn", "COMPLETE", "done", "<|im_end|>", 0, {"stop": "</s>"}],
)  # fmt: skip
@pytest.mark.parametrize("content", [JSON, "Score: 3"])
def test_any_ending_of_a_whole_answer_is_taken(ending: Any, content: str) -> None:
    assert read_choice(choice(content, ending))[1].score == 3
    assert read_choice({"message": {"content": content}})[1].score == 3


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        *((one, "raise answer_tokens") for one in ("length", "max_tokens", "MAX_TOKENS", "max_output_tokens",
          "max_length", "model_length", "model_context_window_exceeded", "token_limit")),
        *((one, "content filter") for one in ("content_filter", "SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII",
          "BLOCKLIST", "IMAGE_SAFETY", "sensitive", "refusal", "content_filter: RECITATION", "guardrail_intervened")),
        *((one, "calls a tool") for one in ("tool_calls", "function_call", "tool_use", "MALFORMED_FUNCTION_CALL")),
    ],
)  # fmt: skip
def test_what_is_cut_filtered_or_a_call_is_no_answer(ending: str, why: str) -> None:
    with pytest.raises(Unscorable, match=why) as refused:
        read_choice(choice(JSON, ending))
    assert repr(ending) in str(refused.value)
    with pytest.raises(Unscorable, match=why):
        read_choice({**choice(JSON, None), "native_finish_reason": ending})


@pytest.mark.parametrize("ending", ["error", "abort", "insufficient_system_resource", "network_error", "pause_turn"])
def test_what_was_broken_off_counts_only_if_it_is_closed(ending: str) -> None:
    assert read_choice(choice(JSON, ending))[1].score == 3
    with pytest.raises(Unscorable, match="may not be whole"):
        read_choice(choice("Score: 3", ending))


def test_a_list_of_parts_is_its_text_without_thoughts() -> None:
    parts = [
        {"type": "thinking", "thinking": "Score: 1"},
        {"type": "reasoning", "text": "Score: 1"},
        {"type": "text", "text": '{"sco'},
        {"type": "output_text", "text": 're": 3}'},
    ]
    assert read_choice(choice(parts)) == read_choice(choice(JSON))
    assert read_choice(choice({"score": 3}))[1].score == 3
    assert [read_choice(choice(number))[1].score for number in (3, 3.0, 0)] == [3, 3, 0]
    with pytest.raises(Unscorable, match="refused: 'no faces'"):
        read_choice(choice([{"type": "refusal", "refusal": "no faces"}]))


def test_several_choices_agree_or_there_is_no_score() -> None:
    assert read_choices([choice(JSON), choice("Score: 3")]) == read_choice(choice(JSON))
    with pytest.raises(Unscorable, match=r"2 answers with several scores: 2, 3; in a new run ask for one \(n: 1\)"):
        read_choices([choice("Score: 2"), choice(JSON)])
    with pytest.raises(Unscorable, match="the answer is empty"):
        read_choices([choice(JSON), choice("")])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "reasoning_details"])
@pytest.mark.parametrize("content", ["", None, " \n", []])
def test_thoughts_alone_are_said(field: str, content: Any) -> None:
    thoughts: Any = "It has the strap.\nScore: 3"
    if field == "reasoning_details":
        thoughts = [{"type": "reasoning.text", "text": thoughts}]
    with pytest.raises(
        Unscorable, match=rf"the answer is empty.*in '{field}': 'It has the strap. Score: 3'.*extra_body"
    ):
        read_choice(choice(content, **{field: thoughts}))


def test_an_object_that_a_server_took_for_thoughts_is_the_answer() -> None:
    assert read_choice(choice(None, reasoning_content=f" {JSON}\n"))[1].score == 3
    assert read_choice(choice(JSON, reasoning_content="Score: 1"))[1].score == 3, (
        "thoughts beside an answer don't count"
    )
    for draft in (f"or rather {JSON}", '{"idea": 1}', f"{JSON}, but"):
        with pytest.raises(Unscorable, match="'reasoning_content'"):
            read_choice(choice(None, reasoning_content=draft))
    with pytest.raises(Unscorable, match="cut off"):
        read_choice(choice(None, "length", reasoning_content=JSON))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (None, "no message"),
        ({}, "no message"),
        ({"message": None}, "no message"),
        ({"message": "Score: 3"}, "no message"),
        (choice(None), "the answer is empty"),
        (choice({"parts": 3}), "there is no score"),
        (choice(7), "the score 7 is outside"),
        (choice(True), "there is no score"),
        (choice(None, None, tool_calls=[{"id": "1"}]), "calls a tool"),
        (choice(JSON, refusal="I can't grade people."), "refused: \"I can't"),
    ],
)
def test_what_holds_no_answer_is_said(wrong: Any, why: str) -> None:
    with pytest.raises(Unscorable, match=why):
        read_choice(wrong)
