"""Stage `gallery`: labelled pictures of subjects in several scenes, rendered and decoded, for encoders and oracle."""

from typing import Final, final

import torch
from diffusers import AutoencoderKL
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor

from build_mini.common import LOG, Context, save_tensors
from build_mini.pictures import as_uint8, render_many
from build_mini.pool import decode, encode
from build_mini.text import scene_row
from customized_grpo.mini.world import Scenes, Split, sample_reference_scenes, sample_scenes, sample_subjects

SUBJECTS: Final = 4_000
TEST_SUBJECTS: Final = 300
SLOTS: Final = ("prompted", "reference", "other", "decoded")
"""Pictures of each subject: two prompted scenes, the reference, and the first one through the noisy autoencoder."""

ATTRIBUTES: Final = (
    "cls",
    "pattern",
    "ears",
    "face",
    "hue",
    "value",
    "pattern_hue",
    "place",
    "position",
    "size",
    "hat",
)


@final
class Gallery:
    """`images` (n, 4, 64, 64, 3) and `truth`: attribute to (n, 4), `prompt`: row of the prompt table (n, 4) or -1."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.images: UInt8[Tensor, "n 4 h w 3"] = tensors["images"]
        self.truth = {name: tensors[name] for name in ATTRIBUTES}
        self.prompt = tensors["prompt"]

    def __len__(self) -> int:
        return len(self.images)


@torch.no_grad()
def _draw(vae: AutoencoderKL, n: int, split: Split, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    subjects = sample_subjects(n, split, generator)
    held_out = split == "test"
    first = sample_scenes(subjects.cls, generator, held_out=held_out)
    other = sample_scenes(subjects.cls, generator, held_out=held_out)
    reference = sample_reference_scenes(first.place, generator)
    scenes: tuple[Scenes, ...] = (first, reference, other)
    pictures = [render_many(subjects, scene) for scene in scenes]
    tokens = encode(vae, pictures[0])
    strength = 0.35 * torch.rand(n, 1, 1, generator=generator)
    noisy = tokens + strength * torch.randn(tokens.shape, generator=generator)
    pictures.append(torch.cat([as_uint8(decode(vae, chunk)) for chunk in noisy.split(64)]))
    truth = {
        name: getattr(subjects, name)[:, None].expand(-1, 4).clone()
        for name in ("cls", "pattern", "ears", "face", "hue", "value", "pattern_hue")
    }
    for name in ("place", "position", "size", "hat"):
        truth[name] = torch.stack([getattr(s, name) for s in (*scenes, first)], dim=1)
    rows = scene_row(truth["cls"], truth["place"], truth["position"], truth["size"].clamp_max(1), truth["hat"])
    rows[:, SLOTS.index("reference")] = -1  # no prompt has the reference's size
    return {"images": torch.stack(pictures, dim=1), "prompt": rows, **truth}


def make_gallery(context: Context) -> None:
    """Writes `work/gallery-{train,test}.safetensors`."""
    vae = AutoencoderKL.from_pretrained(context.work / "vae", dtype=torch.float32).eval()
    jobs: tuple[tuple[Split, int, int], ...] = (("test", TEST_SUBJECTS, 31), ("train", SUBJECTS, 30))
    for split, n, seed in jobs:
        path = context.work / f"gallery-{split}.safetensors"
        if not path.exists():
            save_tensors(path, _draw(vae, n, split, seed + 1000 * context.seed))
            LOG.info("gallery: %s written", path.name)


def load_gallery(context: Context, split: Split) -> Gallery:
    """Loads the pictures of a split (train or test)."""
    return Gallery(load_file(context.work / f"gallery-{split}.safetensors"))
