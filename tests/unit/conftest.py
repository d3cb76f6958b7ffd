"""Policies on tiny random FLUX weights, written once a session."""

from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.policies.flux import UNO
from tiny import make_tiny_flux, tiny_policy


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="session")
def references() -> tuple[Image.Image, ...]:
    """Two of different shapes: 4 x 4 and, after UNO's crop, 2 x 4 tokens at a long side of 64."""
    square = Image.linear_gradient("L").convert("RGB")
    wide = Image.radial_gradient("L").resize((100, 55)).convert("RGB")
    return square, wide


@pytest.fixture
def policy(tiny_flux: Path) -> UNO:
    """A new one each test: adapters change the transformer in place."""
    return tiny_policy(tiny_flux)
