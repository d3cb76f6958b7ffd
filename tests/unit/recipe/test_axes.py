"""Axes by the names that a recipe gives: a typing mistake makes none, and each has its weight at every step."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from customized_grpo.advantages.time_weights import tdw
from customized_grpo.recipe.config import Evaluate, Recipe


def recipe(further: dict[str, str], /, **advantage: Any) -> Recipe:
    rewards = {"p": {"type": "clip_t", "axis": "prompt"}, "i": {"type": "dino", "axis": "identity"}}
    rewards |= {name: {"type": "clip_i", "axis": axis} for name, axis in further.items()}
    return Recipe.model_validate(
        {
            "run": {"dir": "runs/x"},
            "policy": {"type": "uno", "model": "mini"},
            "data": {"type": "mini"},
            "rewards": rewards,
            "advantage": advantage,
            "train": {"evaluate_every": 0},
        }
    )


def refused(further: dict[str, str], /, **advantage: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        recipe(further, **advantage)
    return str(caught.value)


def test_a_known_axis_exists_as_soon_as_a_reward_names_it() -> None:
    assert recipe({}).axes == ("prompt", "identity")
    assert torch.equal(recipe({}).time_weights(), tdw(25))
    one = recipe({"csd": "style"})
    assert one.axes == ("prompt", "identity", "style")
    torch.testing.assert_close(one.time_weights()[:, 2], torch.full((25,), 1 / 3))
    torch.testing.assert_close(one.time_weights()[:, :2], tdw(25) * 2 / 3)


def test_columns_stand_in_the_order_of_the_names_not_of_the_rewards() -> None:
    names = ("prompt", "identity", "style", "quality", "pose")
    for rewards in ({"a": "quality", "b": "style", "c": "pose"}, {"c": "pose", "b": "style", "a": "quality"}):
        assert recipe(rewards, axes={"pose": 0.1}).axes == names


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ("identiy", "rewards.x.axis: given 'identiy'; did you mean 'identity'? allowed: prompt, identity, style"),
        ("stlye", "did you mean 'style'?"),
        ("pose", "or one of your own that advantage.axes names, as in advantage.axes={pose: 0.2}"),
        ("", "rewards.x.axis: given ''; allowed: prompt"),
    ],
)
def test_a_typing_mistake_makes_no_axis(axis: str, said: str) -> None:
    assert said in refused({"x": axis})


def test_an_axis_of_ones_own_is_named_once() -> None:
    one = recipe({"x": "pose"}, axes={"pose": 0.2})
    torch.testing.assert_close(one.time_weights()[0], torch.tensor([0.56, 0.24, 0.2]))
    torch.testing.assert_close(
        recipe({"x": "pose"}, axes={"pose": None}).time_weights()[:, 2], torch.full((25,), 1 / 3)
    )
    assert "did you mean 'pose'?" in refused({"x": "pos"}, axes={"pose": 0.2})


@pytest.mark.parametrize(
    ("axes", "named", "said"),
    [
        ({}, {"style": 0.2}, "no reward feeds the axis 'style'"),
        ({}, {"prompt": 0.2}, "axes.prompt: its weights are those of advantage.time_weights"),
        ({"x": "style"}, {"style": 1.0}, "less than 1"),
        ({"x": "style"}, {"style": -0.1}, "greater than or equal to 0"),
        ({"x": "style", "y": "layout"}, {"style": 0.6, "layout": 0.4}, "(style 0.6, layout 0.4) leave nothing"),
        ({"x": "a/b"}, {"a/b": 0.1}, "String should match pattern"),
        ({"style": "style"}, {}, "rewards.style: the name means something else"),
    ],
)
def test_shares_that_mean_nothing_are_refused(axes: dict[str, str], named: dict[str, Any], said: str) -> None:
    assert said in refused(axes, axes=named)


def test_a_reward_may_have_the_name_of_an_axis_that_there_is_not() -> None:
    assert recipe({"quality": "prompt"}).axes == ("prompt", "identity")


ROWS = [[0.5, 0.3, 0.2]] * 25


def test_a_schedule_may_have_a_column_for_each_axis() -> None:
    table = {"type": "table", "rows": ROWS}
    torch.testing.assert_close(recipe({"x": "style"}, time_weights=table).time_weights(), torch.tensor(ROWS))
    said = refused({"x": "style"}, time_weights=table, axes={"style": 0.2})
    assert "advantage.axes.style: given 0.2, but advantage.time_weights has a column for each axis already" in said
    assert "given (25, 3); allowed: finite (T, Q) = (25, 2)" in refused({}, time_weights=table)
    four = {"x": "style", "y": "layout"}
    assert "allowed: finite (T, Q) = (25, 2), (25, 4)" in refused(four, time_weights=table)
    odd = {"type": "table", "rows": [*ROWS[:-1], [0.5, 0.5]]}
    assert "row 24 has 2 numbers and row 0 has 3" in refused({"x": "style"}, time_weights=odd)


def test_a_checkpoint_of_before_has_the_same_axes() -> None:
    """Its recipe lacks the key, and nothing about the run is another."""
    now = recipe({})
    before = now.model_dump(mode="json")
    del before["advantage"]["axes"]
    assert Recipe.model_validate(before) == now


def test_a_held_out_metric_may_have_an_axis_of_its_own_but_no_mistyped_one() -> None:
    def evaluate(axis: str) -> Evaluate:
        return Evaluate.model_validate({"data": {"type": "mini"}, "metrics": {"m": {"type": "clip_t", "axis": axis}}})

    for axis in ("", "prompt", "diversity", "pose"):
        assert evaluate(axis).metrics["m"].model_dump()["axis"] == axis
    with pytest.raises(ValidationError, match=r"metrics.m.axis: given 'identiy'; did you mean 'identity'\?"):
        evaluate("identiy")
