"""Latents of pictures are those that the policy's own references have, and what ``decode`` undoes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo.policies.base import Policy, load_policy
from customized_grpo.policies.flux import KontextConfig, UNOConfig
from pipeline_cases import CASES, shrink_constants
from tiny import make_tiny_flux

SIDE = 64
"""Of output and reference, so that neither is scaled."""


def pictures() -> list[Image.Image]:
    ramps = [Image.linear_gradient("L").rotate(90 * k).resize((SIDE, SIDE)) for k in range(3)]
    return [Image.merge("RGB", ramps), Image.merge("RGB", ramps[::-1])]


def check(policy: Any) -> None:
    found = policy.latents(pictures())
    assert found.dtype == torch.float32
    assert found.shape == (2, *policy.latent_shape)
    assert not torch.equal(found[0], found[1])
    for number, picture in enumerate(pictures()):
        own = policy.encode("a dog", [picture]).tensors["references"]
        # of a few tokens each: 1e-5 is the rounding of convolutions over other batches
        assert torch.allclose(found[number], own[0].float(), atol=1e-5)
    assert policy.decode(found).shape == (2, SIDE, SIDE, 3)


@pytest.mark.parametrize("name", CASES)
def test_of_pipelines(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)
    case = CASES[name]
    folder = case.make(tmp_path / "model", **case.options)
    check(case.load(folder, height=SIDE, width=SIDE, reference_size=SIDE))


@pytest.mark.parametrize("config", [UNOConfig, KontextConfig])
def test_of_flux1(config: Any, tmp_path: Path) -> None:
    folder = make_tiny_flux(tmp_path / "flux")
    section = config(model=str(folder), height=SIDE, width=SIDE, max_sequence_length=32)
    check(load_policy(section.model_copy(update={"reference_size": SIDE}), device=torch.device("cpu"), precision="no"))


def test_a_policy_without_is_refused_by_name() -> None:
    class Own:
        latents = Policy.latents

    with pytest.raises(ValueError, match=r"policy Own has no method latents\(images\)"):
        Own().latents(pictures())  # type: ignore[misc]
