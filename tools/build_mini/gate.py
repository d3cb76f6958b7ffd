"""Stage `gate`: quality of the base policy, and conflict of the rewards within its groups. Tuning subjects only.

Dimensions: G samples of one prompt (shared initial noise), P prompts.
"""

from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, Dinov2Model

from build_mini import clip as clip_stage
from build_mini import dino as dino_stage
from build_mini.common import LOG, Context, replace_folder, write_card
from build_mini.export import newest_vae, newest_weights
from build_mini.pictures import Pairs, draw_pairs, render_many
from build_mini.policy import BATCH, PHASES, new_transformer, weights_after
from build_mini.sample import sample
from build_mini.text import all_prompts, clip_tokenizer, prompt_table, scene_row, token_ids
from customized_grpo.mini.oracle import IDENTITY, Oracle, judge
from customized_grpo.mini.world import Split

GROUP: Final = 12
PROMPTS: Final = 32
DRAWS: Final = 256


def truth_of(pairs: Pairs) -> dict[str, Tensor]:
    """Ground truth of each pair as tensors (n,), by the oracle's attribute names."""
    truth = {name: getattr(pairs.subjects, name) for name in ("cls", *IDENTITY)}
    truth |= {name: getattr(pairs.scenes, name) for name in ("place", "position", "size", "hat")}
    return {**truth, "reference_place": pairs.reference_scenes.place}


def repeat(pairs: Pairs, times: int) -> Pairs:
    """Repeats each pair `times` times in a row."""
    rows = torch.arange(len(pairs)).repeat_interleave(times)
    return Pairs(
        subjects=pairs.subjects.take(rows),
        scenes=pairs.scenes.take(rows),
        reference_scenes=pairs.reference_scenes.take(rows),
    )


@torch.no_grad()
def rewards(context: Context, images: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(prompt, identity): cosines by the miniature CLIP and DINOv2, (n,)."""
    dino = Dinov2Model.from_pretrained(context.out / "dino", dtype=torch.float32).eval()
    clip = CLIPModel.from_pretrained(context.out / "clip", dtype=torch.float32).eval()

    def tokens(pictures: Tensor) -> Tensor:
        return F.normalize(dino(pixel_values=dino_stage.standardise(pictures)).last_hidden_state[:, 0], dim=1)

    identity = (tokens(images) * tokens(render_many(pairs.subjects, pairs.reference_scenes))).sum(1)
    scenes = pairs.scenes
    rows = scene_row(pairs.subjects.cls, scenes.place, scenes.position, scenes.size, scenes.hat)
    ids = token_ids(clip_tokenizer(), all_prompts())[rows]
    pooled = clip.vision_model(pixel_values=clip_stage.standardise(images)).pooler_output
    image = F.normalize(clip.visual_projection(pooled), dim=1)
    text = F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output), dim=1)
    return (image * text).sum(1), identity


def _correlation(a: Tensor, b: Tensor) -> float:
    """Mean over groups of the correlation within a group; a, b: (P, G)."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-9)).mean())


def _tokens(n: int, channels: int, seed: int) -> Tensor:
    return torch.randn(n, 16, channels, generator=torch.Generator().manual_seed(seed))


def measure_policy(context: Context, weights: Path, *, picture: Path | None = None) -> dict[str, float]:
    """Metrics of a policy by oracle and rewards: deterministic samples, then groups as in RL."""
    oracle = Oracle.load(context.out / "oracle")
    transformer = new_transformer()
    transformer.load_state_dict(load_file(weights))
    vae = AutoencoderKL.from_pretrained(newest_vae(context), dtype=torch.float32).eval()
    table = prompt_table(context)
    channels = transformer.config.in_channels
    metrics: dict[str, float] = {}
    draws: tuple[tuple[Split, int], ...] = (("tune", 501), ("test", 502))
    for split, seed in draws:
        pairs = draw_pairs(DRAWS, split, seed)
        images = sample(transformer, vae, pairs, table, noise=_tokens(DRAWS, channels, seed), noise_level=0.0)
        found = judge(oracle(images), truth_of(pairs))
        metrics |= {f"{split}/{name}": float(value.mean()) for name, value in found.items()}
        if picture is not None:
            save_grid(picture.with_name(f"{picture.stem}-{split}.png"), images, pairs)
    pairs = repeat(draw_pairs(PROMPTS, "tune", 503), GROUP)
    noise = _tokens(PROMPTS, channels, 503).repeat_interleave(GROUP, 0)
    images = sample(transformer, vae, pairs, table, noise=noise, noise_level=0.8, seed=503)
    found = judge(oracle(images), truth_of(pairs))
    rest = found["copy"] == 0
    prompt, identity = (r.view(PROMPTS, GROUP) for r in rewards(context, images, pairs))
    if picture is not None:
        save_grid(picture.with_name(f"{picture.stem}-groups.png"), images, pairs)
    return metrics | {
        "rl/copy": float(found["copy"].mean()),
        "rl/both": float(found["both"].mean()),
        "rl/both_among_other_than_copies": float(found["both"][rest].mean()) if bool(rest.any()) else 0.0,
        "rl/identity_accuracy": float(found["identity_accuracy"].mean()),
        "rl/prompt_accuracy": float(found["prompt_accuracy"].mean()),
        "rl/correlation_of_rewards_in_group": _correlation(prompt, identity),
        "rl/std_of_prompt_reward_in_group": float(prompt.std(1).mean()),
        "rl/std_of_identity_reward_in_group": float(identity.std(1).mean()),
        "rl/groups_with_copies_and_right_ones": float(
            (
                (found["copy"].view(PROMPTS, GROUP).max(1).values > 0)
                & (found["both"].view(PROMPTS, GROUP).max(1).values > 0)
            )
            .float()
            .mean()
        ),
    }


def save_grid(path: Path, images: Tensor, pairs: Pairs, *, columns: int = 12, rows: int = 8) -> None:
    """Saves references above the pictures made from them, enlarged twice."""
    n = columns * rows
    both = torch.stack([render_many(pairs.subjects, pairs.reference_scenes)[:n], images[:n]], dim=1)
    sheet = both.view(rows, columns, 2, 64, 64, 3).permute(0, 2, 3, 1, 4, 5).reshape(rows * 128, columns * 64, 3)
    Image.fromarray(sheet.numpy()).resize((columns * 128, rows * 256), Image.Resampling.NEAREST).save(path)


def gate(context: Context) -> None:
    """Measures the latest policy and writes its card to `work/policy-card`, for the export."""
    weights = newest_weights(context)
    metrics = measure_policy(context, weights, picture=context.work / f"grid-{weights.stem}.png")
    for name, value in metrics.items():
        LOG.info("gate: %-42s %.3f", name, value)
    seconds = 0.0
    for done in (weights_after(context, phase) for phase in PHASES):
        if done.exists():
            with safe_open(done, "pt") as file:
                seconds += float(file.metadata()["seconds"])
    phases = "; ".join(
        f"{one.steps} steps at {one.lr:g} with {one.leaks:.0%} of the targets in the reference's place and "
        f"{one.generic:.0%} of another subject"
        for one in PHASES
    )
    with replace_folder(context.work / "policy-card") as aside:
        write_card(
            aside,
            "Miniature FLUX",
            data="pairs of a prompted picture and a reference of the same training subject, as latents",
            recipe=f"rectified flow, shift-3 times, batches of {BATCH}, bf16 autocast, AdamW, averaged weights. "
            f"{phases}. Figures: tune and test by the deterministic flow in 10 steps; rl by flow SDE, noise 0.8, "
            f"10 steps, {PROMPTS} x {GROUP} with shared initial noise",
            seconds=seconds,
            metrics=metrics,
        )
