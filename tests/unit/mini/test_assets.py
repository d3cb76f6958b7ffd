"""The shipped miniature checkpoints open with the libraries' own classes and know what they should."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from customized_grpo.mini.oracle import IDENTITY, PROMPT, Oracle, correct, judge
from customized_grpo.mini.render import render
from customized_grpo.mini.world import sample_reference_scenes, sample_scenes, sample_subjects
from customized_grpo.paths import ASSETS


def _pictures(n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(11)
    subjects = sample_subjects(n, "test", generator)
    scenes = sample_scenes(subjects.cls, generator, held_out=True)
    reference = sample_reference_scenes(scenes.place, generator)
    truth = {name: getattr(subjects, name) for name in ("cls", *IDENTITY)}
    truth |= {name: getattr(scenes, name) for name in ("place", "position", "size", "hat")}
    return render(subjects, scenes), {**truth, "reference_place": reference.place}


def test_the_oracle_reads_unseen_subjects() -> None:
    images, truth = _pictures(200)
    found = Oracle.load(ASSETS / "oracle")(images)
    right = correct(found, truth)
    assert torch.stack([right[name] for name in IDENTITY]).mean() > 0.95
    assert torch.stack([right[name] for name in PROMPT]).mean() > 0.95
    # The control: the truths of other pictures.
    shuffled = {name: value.roll(1) for name, value in truth.items()}
    assert judge(found, shuffled)["both"].mean() < 0.1
    assert judge(found, truth)["copy"].mean() < 0.05


def test_judge_counts_what_is_right() -> None:
    truth = dict.fromkeys((*IDENTITY, *PROMPT), 0) | {
        "hue": 0.98,
        "pattern_hue": 0.5,
        "value": 0.7,
        "reference_place": 3,
    }
    found = {name: torch.zeros(2, dtype=torch.long) for name in (*IDENTITY, *PROMPT)}
    found |= {
        "hue": torch.tensor([0.02, 0.98]),
        "pattern_hue": torch.tensor([0.5, 0.7]),
        "value": torch.tensor([0.7, 0.7]),
    }
    found["place"] = torch.tensor([0, 3])
    got = judge(found, truth)
    assert got["identity_accuracy"].tolist() == pytest.approx([1, 5 / 6])
    assert got["prompt_accuracy"].tolist() == pytest.approx([1, 4 / 5])
    assert got["both"].tolist() == [1, 0]
    assert got["copy"].tolist() == [0, 1]


def test_the_flux_folder_opens_and_draws() -> None:
    pipeline = FluxPipeline.from_pretrained(ASSETS / "flux", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a small cube wearing a red hat in the snow on the left",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert image.size == (64, 64)


def test_everything_shipped_is_safe_and_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors", ".txt"}
    for folder in ("flux", "dino", "clip", "oracle", "judges/dino", "judges/clip"):
        assert "| metric | value |" in (ASSETS / folder / "README.md").read_text()
        assert json.loads((Path(ASSETS) / folder / "metrics.json").read_text())
