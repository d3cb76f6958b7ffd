"""TDW against the published table, its break points at any number of steps, and the static weights."""

import math

import pytest
import torch
from pydantic import ValidationError

from customized_grpo.advantages.time_weights import constant, table, tdw
from customized_grpo.registry import config_model

# The paper's schedule of 25 steps, worked out apart from the package and rounded to six places: 0.7 below step 6, then
# 0.3 + 0.4 (1 - sigmoid(0.8 (t - 10))) (0.684 at step 6, 0.30 at step 21), and 0.5 from step 22 on.
PUBLISHED = [
    *(0.7,) * 6,
    *(0.684334, 0.666731, 0.632807, 0.575990, 0.500000, 0.424010, 0.367193, 0.333269),
    *(0.315666, 0.307194, 0.303265, 0.301474, 0.300664, 0.300298, 0.300134, 0.300060),
    *(0.5,) * 3,
]


def test_at_25_steps_it_is_the_published_table() -> None:
    given = tdw(25)
    assert given.shape == (25, 2)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given[:, 0], torch.tensor(PUBLISHED), atol=1e-6, rtol=0)
    torch.testing.assert_close(given.sum(1), torch.ones(25), atol=1e-6, rtol=0)


def test_stages_begin_at_their_share_of_the_steps() -> None:
    for num_steps in (1, 2, 5, 10, 25, 28, 40, 50, 75, 100, 125, 200, 250, 1000):
        # in whole numbers, where nothing is rounded: u < 0.24 is 100 k < 24 T
        for k, given in enumerate(tdw(num_steps)[:, 0].tolist()):
            case = f"step {k} of {num_steps}"
            if 100 * k < 24 * num_steps:
                assert given == pytest.approx(0.7, abs=1e-7), case
            elif 100 * k >= 88 * num_steps:
                assert given == pytest.approx(0.5, abs=1e-7), case
            else:
                inside = 0.3 + 0.4 * (1 - 1 / (1 + math.exp(-20 * (k / num_steps - 0.4))))
                assert given == pytest.approx(inside, abs=1e-6), case
                assert given < 0.69, case


def test_a_break_point_on_a_whole_step_belongs_to_the_later_stage() -> None:
    for percent in range(1, 100):
        share = percent / 100
        prompt = tdw(100, start=share, stop=share, integrate=1.0)[:, 0]
        # 0.7, then the middle of the sigmoid
        assert prompt[percent - 1 : percent + 1].tolist() == pytest.approx([0.7, 0.5]), percent
        final = tdw(100, start=0.0, stop=0.0, integrate=share, final=0.9)[:, 0]
        assert final.eq(0.9).sum() == 100 - percent, percent


def test_prompt_first_then_identity() -> None:
    given = tdw(25)
    assert (given[:6, 0] > given[:6, 1]).all()
    assert (given[11:22, 0] < given[11:22, 1]).all()
    assert (given[6:22, 0].diff() < 0).all()


def test_own_levels_are_used() -> None:
    given = tdw(10, high=0.9, low=0.1, final=0.4, start=0.2, stop=0.6, integrate=0.8, slope=10.0)[:, 0]
    assert given[0] == given[1] == pytest.approx(0.9)
    assert given[4] == pytest.approx(0.5)
    assert given[7] == pytest.approx(0.1 + 0.8 * (1 - 1 / (1 + math.exp(-3))), abs=1e-6)
    assert given[8] == given[9] == pytest.approx(0.4)


def test_static_weights_are_taken_as_they_are() -> None:
    assert constant(3, prompt=0.4, identity=0.6).tolist() == torch.tensor([[0.4, 0.6]] * 3).tolist()
    assert torch.equal(constant(2), torch.full((2, 2), 0.5))


def test_a_table_has_a_row_a_step() -> None:
    rows = ((0.7, 0.3), (0.2, 0.8))
    assert torch.equal(table(2, rows=rows), torch.tensor(rows))
    with pytest.raises(ValueError, match="given 2 rows for 3 sampler steps"):
        table(3, rows=rows)


@pytest.mark.parametrize("section", [{"high": 1.2}, {"slope": 0.0}, {"strat": 0.1}])
def test_impossible_options_are_refused(section: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        config_model("time_weights", tdw).model_validate({"type": "tdw", **section})


@pytest.mark.parametrize("section", [{"start": 0.6}, {"integrate": 0.5}])
def test_break_points_are_in_order(section: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="start <= stop <= integrate is needed"):
        tdw(25, **section)
