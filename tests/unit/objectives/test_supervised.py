"""Flow matching and Diffusion-DPO by numbers, and pictures at the output size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import logsigmoid, mse_loss

from customized_grpo.objectives.dpo import dpo_margin
from customized_grpo.objectives.per_pair import squared_error
from customized_grpo.objectives.supervised import fitted

SHAPE = (6, 5, 3)


def drawn(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]


def test_the_matching_error_is_that_of_the_path_from_picture_to_noise() -> None:
    x0, noise = drawn(0, 1)
    step = 1e-6  # the velocity is the path's derivative, here by a difference
    path = [(1 - sigma) * x0 + sigma * noise for sigma in (0.3, 0.3 + step)]
    assert float(squared_error((path[1] - path[0]) / step, noise - x0).max()) < 1e-9
    (velocity,) = drawn(2)
    for row in range(len(velocity)):
        by_hand = sum(
            (float(v) - float(e - x)) ** 2
            for v, e, x in zip(*(t[row].flatten() for t in (velocity, noise, x0)), strict=True)
        )
        assert float(squared_error(velocity, noise - x0)[row]) == pytest.approx(by_hand / x0[0].numel())


def test_half_precision_is_compared_in_float32() -> None:
    x0, noise, velocity = (one.bfloat16() for one in drawn(0, 1, 2))
    found = squared_error(velocity, noise - x0)
    assert found.dtype == torch.float32
    assert torch.allclose(found, squared_error(velocity.float(), (noise - x0).float()))


def test_dpo_is_diffusion_dpos_loss_in_the_form_of_its_code() -> None:
    """There the batch is all chosen, then all rejected, errors are means, and the scale is -beta / 2."""
    x0, noise, velocity, base = drawn(0, 1, 2, 3)
    noise[1::2] = noise[0::2]
    target = noise - x0
    chosen_first = torch.tensor([0, 2, 4, 1, 3, 5])

    def losses(given: torch.Tensor) -> torch.Tensor:
        return mse_loss(given[chosen_first], target[chosen_first], reduction="none").mean((1, 2))

    (w, l), (w_base, l_base) = losses(velocity).chunk(2), losses(base).chunk(2)
    inside = -0.5 * 7.0 * ((w - l) - (w_base - l_base))
    margin = dpo_margin(squared_error(velocity, noise - x0), squared_error(base, noise - x0), beta=7.0)
    assert torch.allclose(margin, inside)
    assert float(-logsigmoid(margin).mean()) == pytest.approx(float(-logsigmoid(inside).mean()))


def test_dpos_margin_is_zero_at_the_base_and_turns_with_the_ranking() -> None:
    error = torch.tensor([1.0, 2.0, 3.0, 1.5], requires_grad=True)
    base = torch.tensor([1.5, 2.5, 2.0, 2.0], requires_grad=True)
    assert not dpo_margin(base, base, beta=5.0).any()
    margin = dpo_margin(error, base, beta=5.0)
    swapped = dpo_margin(error[[1, 0, 3, 2]], base[[1, 0, 3, 2]], beta=5.0)
    assert torch.equal(swapped, -margin)
    (-logsigmoid(dpo_margin(error, error, beta=5.0))).mean().backward()
    assert error.grad is not None
    assert (error.grad[0::2] > 0).all()
    assert (error.grad[1::2] < 0).all()
    assert base.grad is None  # the base has none


def test_a_picture_is_scaled_to_cover_the_output_and_cut_at_the_centre() -> None:
    wide = Image.new("RGB", (400, 100), "red")
    wide.paste("blue", (150, 0, 250, 100))
    assert np.asarray(fitted(wide, 100, 100)).mean((0, 1)).round().tolist() == [0, 0, 255]
    assert fitted(wide, 32, 64).size == (64, 32)
    same = Image.effect_noise((64, 48), 50).convert("RGB")
    assert np.array_equal(np.asarray(fitted(same, 48, 64)), np.asarray(same))
