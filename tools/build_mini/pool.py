"""Stage `pool`: the policy's training pairs as normalised, packed latents, encoded once, in shards on disk."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Final, final

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from build_mini.common import LOG, Context, save_tensors
from build_mini.pictures import as_input, draw_pairs, render_many
from build_mini.text import scene_row
from customized_grpo.mini.world import sample_subjects

SHARDS: Final = 10
PAIRS: Final = 4_096
"""Number of pairs of target and reference per shard."""
PICTURES: Final = ("target", "reference", "leak", "generic", "generic_leak")


def pack(latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n s d"]:
    """FLUX's packing: each 2 x 2 block of latent positions becomes one token of 4 c channels."""
    n, c, h, w = latents.shape
    blocks = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(n, (h // 2) * (w // 2), c * 4)


def unpack(tokens: Float[Tensor, "n s d"], rows: int) -> Float[Tensor, "n c h w"]:
    """The inverse of `pack`, for `rows` rows of tokens."""
    n, s, d = tokens.shape
    columns = s // rows
    blocks = tokens.view(n, rows, columns, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(n, d // 4, rows * 2, columns * 2)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Float[Tensor, "n s d"]:
    """uint8 pictures as normalised, packed latents (the posterior's mode)."""
    means = torch.cat([vae.encode(as_input(chunk)).latent_dist.mode() for chunk in images.split(64)])
    return pack((means - vae.config.shift_factor) * vae.config.scaling_factor)


@torch.no_grad()
def decode(vae: AutoencoderKL, tokens: Float[Tensor, "n s d"]) -> Tensor:
    """The inverse of `encode`, as the decoder's output in about [-1, 1]."""
    z = unpack(tokens.float(), 4) / vae.config.scaling_factor + vae.config.shift_factor
    return torch.cat([vae.decode(chunk).sample for chunk in z.split(64)])


def _picture_path(context: Context, index: int) -> Path:
    return context.work / "pictures" / f"{index:03d}.safetensors"


def shard_path(context: Context, index: int) -> Path:
    """Path of a shard."""
    return context.work / "pool" / f"{index:03d}.safetensors"


def wait_for(path: Path) -> None:
    """Waits until another process has written `path`."""
    while not path.exists():
        time.sleep(0.5)


def draw_pictures(context: Context) -> None:
    """Renders the shards: targets, references, targets of the two modes and the prompt's row. Needs no other stage."""
    for index in range(SHARDS):
        path = _picture_path(context, index)
        if path.exists() or shard_path(context, index).exists():
            continue
        seed = 10_000 + 2 * index + 1_000_000 * context.seed
        pairs = draw_pairs(PAIRS, "train", seed)
        # A leak is the prompted scene but in the reference's place. A generic target is another subject of the same
        # class: the reference is ignored. Independent, as otherwise fewer leaks would mean fewer right subjects.
        rows = torch.arange(PAIRS // 8)
        other = sample_subjects(len(rows), "train", torch.Generator().manual_seed(seed + 1))
        other = replace(other, cls=pairs.subjects.cls[rows])
        scenes, leaked = pairs.scenes, replace(pairs.scenes, place=pairs.reference_scenes.place)
        save_tensors(
            path,
            {
                "target": render_many(pairs.subjects, scenes),
                "reference": render_many(pairs.subjects, pairs.reference_scenes),
                "leak": render_many(pairs.subjects, leaked),
                "generic": render_many(other, scenes.take(rows)),
                "generic_leak": render_many(other, leaked.take(rows)),
                "prompt": scene_row(pairs.subjects.cls, scenes.place, scenes.position, scenes.size, scenes.hat),
            },
        )
        LOG.info("pictures: %d of %d shards", index + 1, SHARDS)


def make_pool(context: Context) -> None:
    """Encodes the shards that are missing and removes their pictures."""
    vae = AutoencoderKL.from_pretrained(context.work / "vae", dtype=torch.float32).eval()
    for index in range(SHARDS):
        if shard_path(context, index).exists():
            continue
        wait_for(_picture_path(context, index))
        tensors = load_file(_picture_path(context, index))
        latents = {name: encode(vae, tensors[name]).half() for name in PICTURES}
        save_tensors(shard_path(context, index), {**latents, "prompt": tensors["prompt"]})
        _picture_path(context, index).unlink()
        LOG.info("pool: %d of %d shards", index + 1, SHARDS)


@final
class Pool:
    """Training data of a step: target, reference, leak (n, 16, 64) half, prompt (n,); an eighth as many generic ones.

    Training begins before all shards are encoded: step k uses the first FIRST + k // EVERY of them, waits for
    those, and so has the same data whenever it runs.
    """

    FIRST: Final = 3
    EVERY: Final = 300

    def __init__(self, context: Context) -> None:
        self.context = context
        self.shards: list[dict[str, Tensor]] = []
        self.target = self.reference = self.leak = self.generic = self.generic_leak = torch.zeros(0)
        self.prompt = self.generic_row = torch.zeros(0, dtype=torch.long)

    def grow(self, step: int) -> None:
        """Loads the shards for step `step`, waiting for those that another process is still writing."""
        wanted = min(SHARDS, self.FIRST + step // self.EVERY)
        if len(self.shards) == wanted:
            return
        while len(self.shards) < wanted:
            path = shard_path(self.context, len(self.shards))
            wait_for(path)
            self.shards.append(load_file(path))
        eighth = torch.arange(PAIRS // 8)
        self.generic_row = torch.cat([eighth + i * PAIRS for i in range(wanted)])
        for name in (*PICTURES, "prompt"):
            setattr(self, name, torch.cat([shard[name] for shard in self.shards]))
