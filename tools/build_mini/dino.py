"""Stages `dino` and `judge-dino`: a miniature DINOv2 whose class token identifies a subject in any scene.

Cosines of class tokens are trained towards the similarity of subjects plus, with less weight, of scenes: as with the
real DINOv2, the background counts, so a copy of the reference scores above the same subject in another scene.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from build_mini.common import Context
from build_mini.encoder import (
    Asset,
    AttributeReader,
    EncoderRecipe,
    Lesson,
    noisy,
    processor,
    train_encoder,
    under,
)
from build_mini.gallery import SLOTS, Gallery, load_gallery
from build_mini.oracle import attribute_loss

SUBJECTS_A_BATCH: Final = 16
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DinoRecipe(EncoderRecipe):
    """A DINOv2, with the target of its cosines."""

    subject_share: float
    """Weight of the subject in the target cosine; the rest is the scene's."""


REWARD: Final = DinoRecipe(
    title="Miniature DINOv2", folder="dino", seed=21, hidden=96, layers=4, steps=11_000, subject_share=0.90
)
JUDGE: Final = DinoRecipe(
    title="Miniature DINOv2 (held-out judge)",
    folder="judges/dino",
    seed=5021,
    hidden=128,
    layers=3,
    steps=8_000,
    subject_share=0.75,
)


def new_dino(recipe: DinoRecipe) -> Dinov2Model:
    """An untrained encoder: 64 x 64 pixels, patches of 8, heads of 32."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.hidden // 32,
            mlp_ratio=3,
            image_size=64,
            patch_size=8,
            layerscale_value=1.0,
            attn_implementation="eager",
        )
    )


def _near(a: Tensor, width: float) -> Tensor:
    """Similarity of hues (n,) on the circle: 1 if equal, falling with the squared distance."""
    apart = (a[:, None] - a[None]).abs()
    apart = torch.minimum(apart, 1 - apart)
    return torch.exp(-((apart / width) ** 2))


def target_cosines(truth: dict[str, Tensor], subject_share: float) -> Tensor:
    """Target cosines (n, n) of n pictures."""

    def same(name: str) -> Tensor:
        return (truth[name][:, None] == truth[name][None]).float()

    subject = 0.10 * same("cls") + 0.22 * same("pattern") + 0.20 * same("ears") + 0.10 * same("face")
    subject = subject + 0.18 * _near(truth["hue"], 0.10) + 0.14 * _near(truth["pattern_hue"], 0.10)
    subject = subject + 0.06 * _near(truth["value"], 0.15)
    scene = 0.70 * same("place") + 0.12 * same("position") + 0.08 * same("size") + 0.10 * same("hat")
    return subject_share * subject + (1 - subject_share) * scene


def standardise(images: Tensor) -> Tensor:
    """uint8 (n, 64, 64, 3) to the processor's output: ImageNet mean and deviation."""
    return ((images.float() / 255 - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(0, 3, 1, 2)


class _Student(nn.Module):
    """The encoder with a linear head for all attributes, used only in training."""

    def __init__(self, encoder: Dinov2Model) -> None:
        super().__init__()
        self.encoder = encoder
        self.reader = AttributeReader(encoder.config.hidden_size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        token = self.encoder(pixel_values=pixels).last_hidden_state[:, 0]
        attributes = self.reader.read(token)
        return F.normalize(token.float(), dim=1), attributes


def _batch(gallery: Gallery, step: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Subjects in three pictures each; every second batch has a single class, so that class alone doesn't suffice."""
    generator = torch.Generator().manual_seed(step * 31 + seed)
    rows = torch.randperm(len(gallery), generator=generator)[: SUBJECTS_A_BATCH * 8]
    if step % 2:
        cls = gallery.truth["cls"][rows, 0]
        rows = rows[cls == cls[0]]
    rows = rows[:SUBJECTS_A_BATCH].repeat_interleave(3)
    slots = torch.randint(len(SLOTS), (len(rows),), generator=generator)
    truth = {name: value[rows, slots] for name, value in gallery.truth.items()}
    return noisy(gallery.images[rows, slots], generator), truth


def train_dino(context: Context, recipe: DinoRecipe) -> None:
    """Trains, measures and writes one encoder."""

    def learn(student: _Student) -> Lesson:
        gallery = load_gallery(context, "train")
        fast = torch.compile(student)

        def loss_of(step: int) -> Tensor:
            images, truth = _batch(gallery, step, recipe.seed)
            with torch.autocast("cpu", torch.bfloat16):
                tokens: Tensor
                tokens, attributes = fast(standardise(images))
            wanted = target_cosines(truth, recipe.subject_share)
            gram = (tokens @ tokens.T - wanted).square()
            gram = gram * (1 - torch.eye(len(gram)))
            return 20 * gram.mean() + 0.5 * attribute_loss(attributes, truth)

        def asset(average: Mapping[str, Tensor]) -> Asset:
            encoder = new_dino(recipe)
            encoder.load_state_dict(under("encoder", average))
            metrics = measure_dino(context, encoder)
            return Asset(
                parts=(encoder.half(), processor(BitImageProcessorPil, _MEAN, _STD)),
                metrics=metrics,
                data=f"{len(gallery)} training subjects in four pictures each (rendered, and decoded with noise)",
                recipe=f"{3 * SUBJECTS_A_BATCH}; cosines of class tokens towards "
                f"{recipe.subject_share} x similarity of subjects +  {1 - recipe.subject_share:.2f} x similarity of "
                "scenes, with an auxiliary attribute head; bf16 autocast, AdamW 1.5e-3 cosine, averaged weights",
            )

        return loss_of, asset

    train_encoder(context, recipe, lambda: _Student(new_dino(recipe)), learn)


@torch.no_grad()
def measure_dino(context: Context, encoder: Dinov2Model) -> dict[str, float]:
    """Mean cosines with the reference on unseen subjects: of a copy, the subject elsewhere, others of the class."""
    gallery = load_gallery(context, "test")
    encoder.eval()

    def tokens(slot: str) -> Tensor:
        pixels = standardise(gallery.images[:, SLOTS.index(slot)])
        states = torch.cat([encoder(pixel_values=c).last_hidden_state[:, 0] for c in pixels.split(100)])
        return F.normalize(states.float(), dim=1)

    reference, prompted, decoded = tokens("reference"), tokens("prompted"), tokens("decoded")
    cosines = prompted @ reference.T
    same_class = gallery.truth["cls"][:, 0][:, None] == gallery.truth["cls"][:, 0][None]
    others = same_class & ~torch.eye(len(cosines), dtype=torch.bool)
    own = cosines.diagonal()
    beaten = torch.where(others, cosines, -1.0).max(1).values
    return {
        "cosine_subject_in_prompted_scene": float(own.mean()),
        "cosine_same_decoded_with_noise": float((decoded * reference).sum(1).mean()),
        "cosine_other_subject_of_the_class": float(cosines[others].mean()),
        "subject_above_every_other_of_its_class": float((own > beaten).float().mean()),
        "cosine_same_place_other_subject": float(
            cosines[(gallery.truth["place"][:, 0][:, None] == gallery.truth["place"][:, 1][None])].mean()
        ),
    }


def train_dino_reward(context: Context) -> None:
    """Trains the encoder that the `dino` reward loads as `mini`."""
    train_dino(context, REWARD)


def train_dino_judge(context: Context) -> None:
    """Trains the encoder that only evaluation loads, as `mini-judge`."""
    train_dino(context, JUDGE)
