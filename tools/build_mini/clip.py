"""Stages `clip` and `judge-clip`: a miniature CLIP, trained contrastively with negatives that differ in one word."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

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
from build_mini.gallery import SLOTS, load_gallery
from build_mini.oracle import attribute_loss
from build_mini.text import all_prompts, all_scenes, clip_tokenizer, scene_row, token_ids
from customized_grpo.mini.grammar import MAX_TOKENS
from customized_grpo.mini.world import CLASSES, HATS, PLACES, POSITIONS, SIZES

BATCH: Final = 64
_COUNTS: Final = (len(CLASSES), len(PLACES), len(POSITIONS), len(SIZES), len(HATS))
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecipe(EncoderRecipe):
    """A CLIP, with the depth of its text encoder."""

    text_layers: int


REWARD: Final = ClipRecipe(
    title="Miniature CLIP", folder="clip", seed=41, hidden=96, layers=4, text_layers=2, steps=1_300
)
JUDGE: Final = ClipRecipe(
    title="Miniature CLIP (held-out judge)",
    folder="judges/clip",
    seed=9041,
    hidden=128,
    layers=3,
    text_layers=1,
    steps=1_200,
)


def new_clip(recipe: ClipRecipe, vocabulary: int, end: int) -> CLIPModel:
    """An untrained CLIP: 64 x 64 pixels, patches of 8, prompts of 16 tokens."""
    return CLIPModel(
        CLIPConfig(
            projection_dim=64,
            text_config={
                "vocab_size": vocabulary,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": recipe.text_layers,
                "num_attention_heads": 4,
                "max_position_embeddings": MAX_TOKENS,
                "bos_token_id": 0,
                "eos_token_id": end,
                "pad_token_id": end,
            },
            vision_config={
                "hidden_size": recipe.hidden,
                "intermediate_size": 3 * recipe.hidden,
                "num_hidden_layers": recipe.layers,
                "num_attention_heads": recipe.hidden // 32,
                "image_size": 64,
                "patch_size": 8,
            },
            attn_implementation="eager",
        )
    )


def standardise(images: Tensor) -> Tensor:
    """uint8 or float (n, 64, 64, 3) in [0, 255] to the processor's output."""
    return ((images.float() / 255 - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(0, 3, 1, 2)


def _one_word_apart(rows: Tensor, generator: torch.Generator) -> Tensor:
    """For each prompt, another that differs in one attribute."""
    scene = all_scenes()[rows].clone()
    field = torch.randint(len(_COUNTS), (len(rows),), generator=generator)
    count = torch.tensor(_COUNTS)[field]
    shift = 1 + (torch.rand(len(rows), generator=generator) * (count - 1)).long()
    at = torch.arange(len(rows))
    scene[at, field] = (scene[at, field] + shift) % count
    return scene_row(*scene.T)


class _Student(nn.Module):
    """The model with a linear attribute head on the picture, used only in training."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.reader = AttributeReader(clip.config.vision_config.hidden_size)

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        pooled = self.clip.vision_model(pixel_values=pixels).pooler_output
        image = F.normalize(self.clip.visual_projection(pooled).float(), dim=1)
        text = self.clip.text_model(input_ids=ids).pooler_output
        text = F.normalize(self.clip.text_projection(text).float(), dim=1)
        return image, text, self.reader.read(pooled)


def train_clip(context: Context, recipe: ClipRecipe) -> None:
    """Trains, measures and writes one model."""
    tokenizer = clip_tokenizer()
    ids = token_ids(tokenizer, all_prompts())
    size, end = len(tokenizer), int(tokenizer.eos_token_id)

    def learn(student: _Student) -> Lesson:
        gallery = load_gallery(context, "train")
        with_prompt = torch.tensor([i for i, slot in enumerate(SLOTS) if slot != "reference"])

        def loss_of(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(step * 37 + recipe.seed)
            rows = torch.randint(len(gallery), (BATCH,), generator=generator)
            slots = with_prompt[torch.randint(len(with_prompt), (BATCH,), generator=generator)]
            images = noisy(gallery.images[rows, slots], generator)
            prompts = gallery.prompt[rows, slots]
            asked = torch.cat([prompts, *(_one_word_apart(prompts, generator) for _ in range(2))])
            with torch.autocast("cpu", torch.bfloat16):
                image, text, attributes = student(standardise(images), ids[asked])
            logits = student.clip.logit_scale.exp().clamp_max(50) * image @ text.T
            # Duplicate prompts in the batch are not negatives of each other.
            twin = prompts[:, None] == asked[None]
            own = torch.arange(BATCH)
            twin[own, own] = False
            logits = logits.masked_fill(twin, -1e4)
            contrast = F.cross_entropy(logits, own) + F.cross_entropy(logits[:, :BATCH].T, own)
            truth = {name: value[rows, slots] for name, value in gallery.truth.items()}
            return contrast + 0.1 * attribute_loss(attributes, truth)

        def asset(average: Mapping[str, Tensor]) -> Asset:
            clip = new_clip(recipe, size, end)
            clip.load_state_dict(under("clip", average))
            metrics = measure_clip(context, clip, ids)
            return Asset(
                parts=(clip.half(), tokenizer, processor(CLIPImageProcessorPil, _MEAN, _STD)),
                metrics=metrics,
                data=f"{len(gallery)} training subjects in three prompted pictures each (rendered or decoded)",
                recipe=f"{BATCH}; image-prompt contrast with two more negatives per prompt "
                "that differ in one word, and an auxiliary attribute head; bf16 autocast, AdamW 1.5e-3 cosine",
            )

        return loss_of, asset

    train_encoder(context, recipe, lambda: _Student(new_clip(recipe, size, end)), learn)


@torch.no_grad()
def measure_clip(context: Context, clip: CLIPModel, ids: Tensor) -> dict[str, float]:
    """Cosines with right and wrong prompts, and retrieval among all 1152, on unseen subjects and combinations."""
    gallery = load_gallery(context, "test")
    clip.eval()
    texts = F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output), dim=1)

    def features(slot: str) -> Tensor:
        pixels = standardise(gallery.images[:, SLOTS.index(slot)])
        pooled = torch.cat([clip.vision_model(pixel_values=c).pooler_output for c in pixels.split(100)])
        return F.normalize(clip.visual_projection(pooled), dim=1)

    prompts = gallery.prompt[:, 0]
    prompted, copy, decoded = features("prompted"), features("reference"), features("decoded")
    negatives = _one_word_apart(prompts, torch.Generator().manual_seed(0))
    own = (prompted * texts[prompts]).sum(1)
    return {
        "cosine_right": float(own.mean()),
        "cosine_right_decoded_with_noise": float((decoded * texts[prompts]).sum(1).mean()),
        "cosine_one_word_wrong": float((prompted * texts[negatives]).sum(1).mean()),
        "cosine_copy_of_the_reference": float((copy * texts[prompts]).sum(1).mean()),
        "right_above_one_word_wrong": float((own > (prompted * texts[negatives]).sum(1)).float().mean()),
        "retrieval_among_1152_prompts": float(((prompted @ texts.T).argmax(1) == prompts).float().mean()),
    }


def train_clip_reward(context: Context) -> None:
    """Trains the model that the `clip_t` reward loads as `mini`."""
    train_clip(context, REWARD)


def train_clip_judge(context: Context) -> None:
    """Trains the model that only evaluation loads, as `mini-judge`."""
    train_clip(context, JUDGE)
