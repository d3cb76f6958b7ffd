"""What a policy says about references before a run is what ``encode`` does with them, on both sides of every edge."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.policies import qwen_image
from customized_grpo.policies.flux import UNO
from customized_grpo.recipe.limits import PolicyLimits
from pipeline_cases import CASES, PROMPT
from tiny import make_tiny_flux, tiny_kontext, tiny_policy


def _uno(folder: Path) -> UNO:
    policy = tiny_policy(make_tiny_flux(folder))
    policy.config = policy.config.model_copy(update={"min_references": 1, "max_references": 3})
    return policy


POLICIES: dict[str, Callable[[Path], Any]] = {
    "uno": _uno,
    "flux-kontext": lambda folder: tiny_kontext(make_tiny_flux(folder, kontext=True), min_references=1),
    "flux2": lambda folder: CASES["flux2"].load(CASES["flux2"].make(folder)),
    "flux2-klein": lambda folder: CASES["klein"].load(CASES["klein"].make(folder, **CASES["klein"].options)),
    "flux3-klein": lambda folder: CASES["flux3"].load(CASES["flux3"].make(folder), max_references=4, reference_size=64),
    "qwen-image-edit-plus": lambda folder: CASES["qwen-2509"].load(CASES["qwen-2509"].make(folder)),
    "qwen-image-2.1": lambda folder: CASES["qwen-2.1"].load(CASES["qwen-2.1"].make(folder)),
}
ORDINARY, WIDE = (100, 80), (130, 66)
GROUPS: list[Sequence[tuple[int, int]]] = [
    [], [ORDINARY], [ORDINARY, WIDE], [ORDINARY, WIDE, (70, 100)], [ORDINARY] * 4, [ORDINARY] * 5,
    [(1, 1)], [(63, 64)], [(64, 64)], [(64, 63)], [(512, 64)], [(513, 64)], [(64, 512)], [(64, 513)],
    [(256, 64)], [(260, 64)], [(257, 64)], [(400, 100)], [(401, 100)], [(100, 400)], [(100, 401)],
    [ORDINARY, (401, 100)],
    [(3600, 100)], [(4000, 10)], [(2000, 1)], [(1, 2000)], [(2250, 10)], [(640, 10)], [(10, 640)],
]  # fmt: skip
"""Sizes of an example's references."""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in POLICIES.items()}


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", list(POLICIES))
def test_encode_takes_what_the_check_lets_through(
    policies: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen_image, "_SEEN_SIZE", 96)
    policy = policies[name]
    seen = set()
    for sizes in GROUPS:
        problem = said(partial(policy.config.check_references, sizes))
        images = [Image.new("RGB", size) for size in sizes]
        assert said(partial(policy.encode, PROMPT, images)) == problem, sizes
        if not problem:
            encoded = policy.encode(PROMPT, images)
            fitted = [policy.config.fitted_size(size, len(sizes)) for size in sizes]
            assert encoded.tensors["references"].shape[1] == sum(w * h // 256 for w, h in fitted), sizes
        seen.add(bool(problem))
    assert seen == {True, False}


@pytest.mark.parametrize("name", list(POLICIES))
def test_what_is_refused_would_break(policies: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check, a shape that it refuses fails inside; so it doesn't refuse too much."""
    monkeypatch.setattr(qwen_image, "_SEEN_SIZE", 96)
    policy = policies[name]
    low, high = policy.config.reference_counts()
    counted = (sizes for sizes in GROUPS if low <= len(sizes) <= high)
    narrow = [sizes for sizes in counted if said(partial(policy.config.check_references, sizes))]
    monkeypatch.setattr(PolicyLimits, "check_references", lambda self, sizes: None)
    for sizes in narrow:
        images = [Image.new("RGB", size) for size in sizes]
        with pytest.raises((ValueError, RuntimeError, ZeroDivisionError)):
            policy.encode(PROMPT, images)
    assert narrow or name in {"flux-kontext", "flux3-klein"}


def test_numbers_are_declared(policies: dict[str, Any]) -> None:
    assert {name: policy.config.reference_counts() for name, policy in policies.items()} == {
        "uno": (1, 3), "flux-kontext": (1, 1), "flux2": (0, 4), "flux2-klein": (0, 4), "flux3-klein": (0, 4),
        "qwen-image-edit-plus": (1, 3), "qwen-image-2.1": (0, 10),
    }  # fmt: skip


def test_a_policy_without_limits_takes_everything() -> None:
    class Section(PolicyLimits):
        type = "mine"

    Section().check_references([(1, 1)] * 100)
    assert Section().fitted_size((7, 5), 1) == (7, 5)
