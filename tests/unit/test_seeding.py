"""Every draw is a function of (seed, purpose, step, index)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from customized_grpo.seeding import generator

KEYS = st.tuples(st.integers(0, 2**40), st.text(max_size=8), st.integers(0, 10_000), st.integers(0, 10_000))


def draw(seed: int, purpose: str, step: int, index: int) -> torch.Tensor:
    return torch.randn(8, generator=generator(seed, purpose, step, index))


@settings(max_examples=50, deadline=None)
@given(key=KEYS, other=KEYS)
def test_equal_keys_give_equal_draws_and_other_keys_other_draws(
    key: tuple[int, str, int, int], other: tuple[int, str, int, int]
) -> None:
    assert torch.equal(draw(*key), draw(*key))
    assert torch.equal(draw(*key), draw(*other)) == (key == other)


def test_every_part_of_the_key_counts() -> None:
    keys = [(1, "a", 2, 3), (2, "a", 2, 3), (1, "b", 2, 3), (1, "a", 3, 3), (1, "a", 2, 4), (1, "a", 3, 2)]
    draws = {tuple(draw(*key).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_parts_do_not_run_together() -> None:
    assert not torch.equal(draw(1, "noise", 12, 3), draw(1, "noise", 1, 23))
    assert not torch.equal(draw(1, 'a", 1', 2, 3), draw(1, "a", 1, 2))


def test_the_stream_is_pinned() -> None:
    # blake2b of '[42, "noise", 7, 3]', 8 bytes, without the last bit. A change would break the resuming of old runs.
    assert generator(42, "noise", 7, 3).initial_seed() == 5483213172173648247


def test_global_randomness_is_neither_used_nor_touched() -> None:
    before = torch.get_rng_state()
    draw(0, "noise", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_lives_on_the_cpu() -> None:
    assert generator(0, "noise", 0, 0).device.type == "cpu"


def test_streams_of_a_run_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(4096, generator=generator(0, "noise", 0, index)) for index in range(12)])
    correlation = torch.corrcoef(draws) - torch.eye(12)
    assert correlation.abs().max() < 5 / 4096**0.5
