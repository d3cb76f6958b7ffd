"""Structural diversity against DivRL's published formula, on DINOv2's own class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Model

from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.structure import StructureDiversity, structure_diversity
from customized_grpo.testing import check_reward
from customized_grpo.types import Example
from golden import PATCH, SIDE, save_golden_dinov2
from tiny_rewards import check_batch, example, pictures

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_golden_dinov2(tmp_path_factory.mktemp("dinov2"))


def build(folder: Path, **options: Any) -> StructureDiversity:
    section = {"type": "structure_diversity", "axis": "prompt", "model": str(folder), **options}
    return StructureDiversity(StructureDiversity.Config.model_validate(section), device=CPU)


def subject(size: int = 64) -> Image.Image:
    """A mask of the middle rows of patches: the processor crops 56 of 64 pixels."""
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 4 + PATCH, size, 4 + 3 * PATCH))
    return mask


def masked(num_references: int = 1) -> Example:
    references = pictures(num_references, seed=100, height=64, width=64)
    return replace(
        example(1),
        references=tuple(to_pil(references)),
        masks=tuple(subject() for _ in references),
    )


def published(generated: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """DivRL's sums, pair by pair: both orders of each pair of patches inside the mask; unbiased deviations."""
    pairs = [(i, j) for i in range(len(mask)) for j in range(len(mask)) if i != j and mask[i] and mask[j]]
    one = np.array([generated[i] @ generated[j] for i, j in pairs])
    other = np.array([reference[i] @ reference[j] for i, j in pairs])
    covariance = ((one - one.mean()) * (other - other.mean())).mean()
    shrunk = covariance / (one.std(ddof=1) * other.std(ddof=1))
    return float(1.0 - shrunk * len(pairs) / (len(pairs) - 1))


def test_it_is_the_published_formula_on_the_models_own_patches(folder: Path) -> None:
    model, processor = Dinov2Model.from_pretrained(folder).eval(), BitImageProcessorPil.from_pretrained(folder)
    one, images = masked(2), pictures(4, height=64, width=64)

    def patches(picture: Image.Image) -> np.ndarray:
        with torch.no_grad():
            last = model(**processor(images=[picture], return_tensors="pt")).last_hidden_state[0, 1:].double()
        found: np.ndarray = (last / last.norm(dim=-1, keepdim=True)).numpy()
        return found

    across = SIDE // PATCH
    inside = np.repeat([False, True, True, False], across)
    references = [patches(image) for image in one.references]
    expected = [
        np.mean([published(patches(image), reference, inside) for reference in references]) for image in to_pil(images)
    ]
    scores = build(folder)(one, images)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-4)
    assert 0.05 < float(scores.min()) < float(scores.max()) < 2.0
    check_reward(build(folder), one, images)
    check_batch(build(folder, batch_size=12), one, pictures(12, height=64, width=64))


def test_a_copy_has_no_diversity_and_what_is_outside_the_mask_does_not_count(folder: Path) -> None:
    one = masked()
    copy = torch.from_numpy(np.asarray(one.references[0]).copy())[None]
    assert float(build(folder)(one, copy)[0]) == pytest.approx(0.0, abs=1e-6)
    whole = replace(one, masks=(Image.new("L", (64, 64), 255),))
    assert not torch.allclose(build(folder)(one, pictures(3)), build(folder)(whole, pictures(3)), atol=1e-3)


def test_looks_may_change_where_the_structure_stays() -> None:
    """Any rotation of the features, as another material would be, keeps all cosines."""
    draw = torch.Generator().manual_seed(0)
    reference = torch.randn(9, 8, generator=draw)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=draw))
    moved = reference[torch.randperm(9, generator=draw)]
    same, other, opposite = structure_diversity(
        torch.stack([3.0 * reference @ turn, moved, torch.randn(9, 8, generator=draw)]), reference
    )
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    assert 0.3 < float(other) < 2.0
    assert 0.3 < float(opposite) < 2.0


def test_no_structure_is_no_number() -> None:
    """A pair of patches has one cosine, which nothing correlates with; DivRL's code says 0."""
    pair = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert structure_diversity(pair[None], pair).isnan().all()
    flat = torch.ones(1, 5, 8)
    assert structure_diversity(flat, torch.randn(5, 8, generator=torch.Generator().manual_seed(1))).isnan().all()


def test_a_subject_of_no_patch_is_unscorable_and_says_so(folder: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (20, 20, 24, 24))
    reward = build(folder)
    assert reward(replace(masked(), masks=(mask,)), pictures(2)).isnan().all()
    assert "fewer than three patches" in reward.reason


def test_a_missing_mask_is_an_error_or_a_skip(folder: Path) -> None:
    with pytest.raises(ValueError, match="usable masks"):
        build(folder)(replace(masked(), masks=()), pictures(2))
    reward = build(folder, missing_mask="skip")
    assert reward(replace(masked(), masks=()), pictures(2)).isnan().all()
    assert build(folder)._config.needs() == {"reference", "mask"}
    assert reward._config.needs() == {"reference"}
