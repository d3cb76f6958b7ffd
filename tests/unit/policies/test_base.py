from pathlib import Path

import pytest
import torch
from PIL import Image

from customized_grpo.policies.base import load_policy, stack
from customized_grpo.policies.flux import UNO, UNOConfig


def test_a_stack_of_prompts_is_each_prompt_on_its_own(policy: UNO, references: tuple[Image.Image, ...]) -> None:
    square, _ = references
    conds = [policy.encode("a red dog", [square]), policy.encode("a blue cat", [square.rotate(90)])]
    together = stack(policy, conds, 2)
    assert together is not None
    x = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(0.6)
    with torch.no_grad():
        given = policy.velocity(x, sigma, together)
        first, second = (policy.velocity(rows, sigma, cond) for rows, cond in zip(x.split(2), conds, strict=True))
        swapped = policy.velocity(x[:2], sigma, conds[1])
    torch.testing.assert_close(given, torch.cat([first, second]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first, swapped, atol=1e-3)  # the prompts do matter


@pytest.mark.parametrize("other", ["another shape", "the same number of tokens"])
def test_references_of_other_geometry_are_not_stacked(policy: UNO, other: str) -> None:
    tall, wide = Image.new("RGB", (32, 64)), Image.new("RGB", (64, 32))
    second = wide if other == "the same number of tokens" else Image.new("RGB", (64, 64))
    conds = [policy.encode("a dog", [tall]), policy.encode("a dog", [second])]
    assert stack(policy, conds, 1) is None


def test_an_explicit_device_is_opened_as_any_other(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's attention, which computes wrong gradients, is off then too; a GPU that isn't there is said."""
    config = UNOConfig(model=str(tiny_flux), height=64, width=48)
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert load_policy(config, device=torch.device("cpu"), precision="no").device == torch.device("cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^device: 'cuda:1' was asked for but torch finds no GPU"):
        load_policy(config, device=torch.device("cuda", 1))
