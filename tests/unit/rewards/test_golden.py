"""DINOv2, DINO, CLIP and DINOv3's preprocessing against numbers recorded from their authors' own code.

How they were recorded: the folders of ``golden.py`` were written; their weights were renamed, loaded with strict=True
into ``DinoVisionTransformer`` (facebookresearch/dinov2, init_values=1), ``VisionTransformer`` (facebookresearch/dino)
and ``CLIP`` (openai/CLIP) under torch 2.13.0; images went through torchvision 0.28.0's transforms as in their
evaluation code (Resize bicubic on PIL, CenterCrop, ToTensor, Normalize); cosines were taken in float64, x 100, mean
over the references. PickScore is CLIP's cosine x exp(4.6), the logit scale. DINOv3 is ``DINOv3ViTImageProcessor`` of
transformers 5.23.0 on that torchvision. None of that code is needed here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo import registry
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.vision import _float_resize
from golden import save_golden_clip, save_golden_dino, save_golden_dinov2
from tiny_rewards import example, pictures

GROUPS = {"square": (96, 96), "wide": (80, 128)}
SHORT, LONG = "a red dog", "a red dog in the snow"  # the latter is over CLIP's limit here, and is cut

CASES = [
    ("dino", save_golden_dinov2, SHORT, "square", (83.751712, 87.492765, 84.476012, 82.080875)),
    ("dino", save_golden_dinov2, SHORT, "wide", (80.747099, 83.514901, 76.995553, 85.090091)),
    ("dino", save_golden_dino, SHORT, "square", (81.134971, 83.702595, 78.243123, 76.979977)),
    ("dino", save_golden_dino, SHORT, "wide", (72.938360, 86.069781, 68.149952, 81.004572)),
    ("clip_t", save_golden_clip, SHORT, "square", (9.866920, 8.273964, 13.929107, 11.429700)),
    ("clip_t", save_golden_clip, LONG, "wide", (-9.164081, 0.658895, -4.514829, -5.648569)),
    ("pickscore", save_golden_clip, SHORT, "square", (9.816037, 8.231295, 13.857276, 11.370758)),
    ("pickscore", save_golden_clip, LONG, "wide", (-9.116822, 0.655497, -4.491546, -5.619440)),
    ("clip_i", save_golden_clip, SHORT, "square", (92.139052, 91.023056, 91.028152, 90.370549)),
    ("clip_i", save_golden_clip, SHORT, "wide", (88.393867, 88.411586, 88.350350, 90.270525)),
]


@pytest.mark.parametrize(("name", "save", "prompt", "group", "expected"), CASES)
def test_scores_are_those_of_the_authors_code(
    tmp_path: Path,
    name: str,
    save: Callable[[Path], Path],
    prompt: str,
    group: str,
    expected: tuple[float, ...],
) -> None:
    reward_class = registry.resolve("rewards", name)
    folder = str(save(tmp_path))
    section = {"type": name, "axis": "identity", "model": folder}
    if name == "pickscore":
        section["processor"] = folder
    reward: Reward = reward_class(reward_class.Config.model_validate(section), device=torch.device("cpu"))
    one = example(2, prompt=prompt)
    if name == "clip_i":
        # torchvision and transformers place a crop of odd margin one pixel apart; these have an even one.
        even = pictures(2, 100, height=40, width=30).numpy()
        one = replace(one, references=tuple(Image.fromarray(image) for image in even))
    scores = reward(one, pictures(4, 21, *GROUPS[group]))
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=2e-4)


def test_dinov3_is_prepared_as_by_transformers_with_torchvision() -> None:
    settings = {"size": {"height": 56, "width": 56}, "resample": 2}
    images = [Image.fromarray(image) for image in pictures(4, 21, 96, 96).numpy()]
    pixels = _float_resize(settings)(images)
    assert pixels.shape == (4, 3, 56, 56)
    assert pixels[0, :, 7, 9].tolist() == pytest.approx([0.053755, 1.192545, -0.568024], abs=1e-5)
    assert pixels.double().sum().item() == pytest.approx(14093.8057, abs=0.05)
    assert pixels.double().abs().sum().item() == pytest.approx(32133.7685, abs=0.05)


@pytest.mark.parametrize(
    "settings", [{"size": {"shortest_edge": 56}}, {"size": {"height": 8, "width": 8}, "resample": 1}]
)
def test_other_preparations_of_dinov3_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a size of height and width, resized bilinearly"):
        _float_resize(settings)


def test_an_example_of_the_golden_pictures_is_what_it_was() -> None:
    """If these change, every number above does, and not because of the rewards."""
    assert int(pictures(4, 21, 96, 96).long().sum()) == 15045229
    assert int(np.asarray(example(2).references[1]).astype(int).sum()) == 443389
