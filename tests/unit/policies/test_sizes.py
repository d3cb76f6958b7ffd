"""A policy that draws at another size than it was opened at: the bits of one that was opened at that size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.policies.flux import UNOConfig
from customized_grpo.recipe.drawn import at_size
from pipeline_cases import CASES, PROMPT, adapted, noise, pictures, shrink_constants
from tiny import make_tiny_flux, tiny_kontext, tiny_policy

LARGE = (128, 96)
ALL = ["uno", "flux-kontext", *CASES]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Any, int]]:
    """A policy of a tiny model with an adapter, and the fewest references that it takes."""
    shrink_constants(monkeypatch)

    def open_(name: str) -> tuple[Any, int]:
        if name == "uno":
            return adapted(tiny_policy(make_tiny_flux(tmp_path / "flux"))), 1
        if name == "flux-kontext":
            return adapted(tiny_kontext(make_tiny_flux(tmp_path / "flux", kontext=True))), 1
        case = CASES[name]
        small = {"max_references": 2} if name == "qwen-2.1" else {}
        return adapted(case.load(case.make(tmp_path / "model", **case.options), **small)), max(1, case.least)

    return open_


def all_of(policy: Any, references: tuple[Image.Image, ...]) -> dict[str, Tensor]:
    """What a policy encodes, draws with and without kept keys, and decodes."""
    x = noise(policy, 2)
    with torch.no_grad():
        cond = policy.on_grid(policy.encode(PROMPT, references), torch.tensor([1.0, 0.7, 0.0]))
        velocity = policy.velocity(x, torch.tensor(0.7), cond)
        kept = policy.velocity(x, torch.tensor(0.7), policy.prefill(cond))
    return {**cond.tensors, "velocity": velocity, "by kept keys": kept, "images": policy.decode(x)}


def agree(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ALL)
def test_another_size_of_an_opened_policy(opened: Callable[[str], tuple[Any, int]], name: str) -> None:
    policy, least = opened(name)
    references = pictures()[:least]
    before = all_of(policy, references)
    section = at_size(policy.config, *LARGE)
    assert section.resizes
    view = policy.resized(section)
    found = all_of(view, references)
    assert found["images"].shape == (2, *LARGE, 3)
    assert view.latent_shape == section.latent_shape() != policy.latent_shape
    fresh = adapted(type(policy).load(section, device=policy.device, dtype=policy.dtype))
    assert agree(found, all_of(fresh, references))
    assert agree(before, all_of(policy, references)), "the policy itself draws as it did"
    assert view.transformer is policy.transformer


def test_a_view_sees_what_is_trained_and_wrapped_afterwards(tmp_path: Path) -> None:
    policy = adapted(tiny_policy(make_tiny_flux(tmp_path / "flux")))
    section = at_size(policy.config, *LARGE)
    first = all_of(policy.resized(section), pictures()[:1])["velocity"]
    for name, parameter in policy.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(2)
    assert not torch.equal(all_of(policy.resized(section), pictures()[:1])["velocity"], first)
    policy.transformer = wrapped = torch.nn.Sequential(policy.transformer)
    assert policy.resized(section).transformer is wrapped


def test_a_size_is_checked_as_the_policys_own() -> None:
    uno = UNOConfig(model="mini", height=512, width=512)
    assert at_size(uno, None, None) is uno
    assert at_size(uno, 512, None) is uno
    wide = at_size(uno, None, 1024)
    assert (wide.height, wide.width) == (512, 1024)
    with pytest.raises(
        ValueError, match=r"^evaluate.width: given 1000; this model needs a multiple of 16: use 992 or 1008"
    ):
        at_size(uno, None, 1000)
