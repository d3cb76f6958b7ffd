"""Stage `vae`: a miniature FLUX autoencoder (AutoencoderKL, factor 8, 16 channels, no quant convolutions)."""

from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor

from build_mini.common import LOG, Context, Training, replace_folder, save_tensors, write_card
from build_mini.pictures import as_input, as_uint8, draw_pairs, render_many

POOL: Final = 5_000
BATCH: Final = 32
CROP: Final = 32
CROP_BATCH: Final = 96
FIRST_STEPS: Final = 1_700
CROP_STEPS: Final = 850
LAST_STEPS: Final = 1_000
DECODER_STEPS: Final = 1_400
FINE_BATCH: Final = 8
FINE_STEPS: Final = 11_000
LATENT_CHANNELS: Final = 16


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of the miniature's shape (1.7 M parameters)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def _edges(d: Tensor) -> Tensor:
    """Mean magnitude of an error's gradients, which keeps outlines crisp."""
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def _reconstruction(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Absolute error at full, half and quarter size (colours), squared error, and gradients (outlines)."""
    d = (y - x) * weight
    coarse = F.avg_pool2d(d, 2).abs().mean() + F.avg_pool2d(d, 4).abs().mean()
    return d.abs().mean() + coarse + 2 * d.square().mean() + 0.3 * _edges(d)


def _pictures(context: Context) -> tuple[Tensor, Tensor]:
    """Training pictures and, for each, the column (in pixels) of the critter's centre."""
    pairs = draw_pairs(POOL, "train", 100 + context.seed)
    images = torch.cat([render_many(pairs.subjects, pairs.scenes), render_many(pairs.subjects, pairs.reference_scenes)])
    position = torch.cat([pairs.scenes.position, pairs.reference_scenes.position])
    LOG.info("vae: %d pictures drawn", len(images))
    return images, 32 + 13 * (position - 1)


def _crops(images: Tensor, middles: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of CROP pixels around the critter, aligned to the latents' grid: the backdrops are soon learnt."""
    rows = torch.randint(len(images), (CROP_BATCH,), generator=generator)
    left = middles[rows] - CROP // 2 + torch.randint(-12, 13, (CROP_BATCH,), generator=generator)
    left = ((left / 8).round().long() * 8).clamp(0, 64 - CROP)
    top = 8 * torch.randint(1, 5, (CROP_BATCH,), generator=generator)
    offset = torch.arange(CROP)
    ys, xs = (top[:, None] + offset)[:, :, None], (left[:, None] + offset)[:, None, :]
    return images[rows[:, None, None], ys, xs]


def _whole(images: Tensor, middles: Tensor, step: int, size: int) -> tuple[Tensor, Tensor]:
    """Whole pictures and pixel weights: the backdrop, which is always the same, counts less."""
    generator = torch.Generator().manual_seed(step + 500_000)
    rows = torch.randint(len(images), (size,), generator=generator)
    apart = (torch.arange(64) - middles[rows, None]).abs()
    weight = torch.where(apart < 24, 1.0, 0.35)[:, None, None, :]
    return as_input(images[rows]), weight


def _phase(
    context: Context,
    vae: AutoencoderKL,
    images: Tensor,
    middles: Tensor,
    name: str,
    steps: int,
    lr: float,
    crops: bool,
) -> float:
    """Runs one phase of the joint training; returns its seconds."""
    training = Training(context, name, vae, steps=steps, lr=lr, ema=0.99, weight_decay=1e-4)

    def loss_of(step: int) -> Tensor:
        if crops and step % 4:
            x = as_input(_crops(images, middles, torch.Generator().manual_seed(step)))
            weight = torch.ones(())
        else:
            x, weight = _whole(images, middles, step, BATCH)
        y, kl = _through(vae, x, step)
        return _reconstruction(y, x, weight) + 2e-4 * kl

    vae.load_state_dict(training.run(loss_of))
    return training.seconds


def _through(vae: AutoencoderKL, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Reconstruction from a sampled latent, and the KL term per latent value."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step + 1))
        y = vae.decode(posterior.mean + posterior.std * noise).sample
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return y.float(), kl


def train_vae(context: Context) -> None:
    """Trains encoder and decoder together, measures and writes `work/vae`: from here on the latents are fixed."""
    folder = context.work / "vae"
    if folder.exists():
        LOG.info("vae: done already")
        return
    torch.manual_seed(context.seed)
    vae = new_vae()
    images, middles = _pictures(context)
    seconds = 0.0
    start = context.work / "vae-start.safetensors"
    if not start.exists():
        seconds += _phase(context, vae, images, middles, "vae-first", FIRST_STEPS, 2e-3, crops=False)
        seconds += _phase(context, vae, images, middles, "vae-crops", CROP_STEPS, 8e-4, crops=True)
        save_tensors(start, vae.state_dict(), seconds=str(seconds))
    with safe_open(start, "pt") as file:
        seconds = float(file.metadata()["seconds"])
        vae.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    seconds += _phase(context, vae, images, middles, "vae-last", LAST_STEPS, 1.2e-3, crops=False)
    vae.eval()
    _normalise(vae, images[torch.arange(0, len(images), 24)])
    metrics = measure(vae)
    LOG.info("vae: %s", metrics)
    _write(vae, folder, seconds, metrics, "before the decoder's own stage")


def train_decoder(context: Context) -> None:
    """Trains the decoder further on fixed, slightly noisy latents. Writes `work/vae-final`.

    First with the batch of the joint training, then with many more steps of a small one.
    """
    folder = context.work / "vae-final"
    if folder.exists():
        LOG.info("decoder: done already")
        return
    vae = AutoencoderKL.from_pretrained(context.work / "vae", dtype=torch.float32)
    vae.encoder.requires_grad_(False)
    images, middles = _pictures(context)
    seconds = 0.0
    for name, size, steps, lr, ema in (
        ("decoder-training", BATCH, DECODER_STEPS, 1.2e-3, 0.99),
        ("decoder-fine", FINE_BATCH, FINE_STEPS, 1e-3, 0.998),
    ):
        training = Training(context, name, vae, steps=steps, lr=lr, ema=ema, weight_decay=1e-4)

        def loss_of(step: int, size: int = size) -> Tensor:
            generator = torch.Generator().manual_seed(step + 900_000)
            x, weight = _whole(images, middles, step + 900_000, size)
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    z = vae.encode(x).latent_dist.mean
                strength = 0.35 * torch.rand(len(z), 1, 1, 1, generator=generator) / vae.config.scaling_factor
                y = vae.decode(z + strength * torch.randn(z.shape, generator=generator)).sample
            return _reconstruction(y.float(), x, weight)

        vae.load_state_dict(training.run(loss_of))
        seconds += training.seconds
    metrics = measure(vae.eval())
    LOG.info("decoder: %s", metrics)
    stage = f"and {DECODER_STEPS} steps of {BATCH} and {FINE_STEPS} of {FINE_BATCH} of the decoder alone"
    _write(vae, folder, seconds, metrics, stage)


def _write(vae: AutoencoderKL, folder: Path, seconds: float, metrics: dict[str, float], stage: str) -> None:
    with replace_folder(folder) as aside:
        vae.to(torch.float16).save_pretrained(aside)
        write_card(
            aside,
            "Miniature FLUX autoencoder",
            data=f"{2 * POOL} pictures of training subjects, in prompted and in reference scenes",
            recipe=f"{FIRST_STEPS} steps of {BATCH} whole pictures, {CROP_STEPS} mostly of {CROP_BATCH} crops around "
            f"the critter, {LAST_STEPS} whole, {stage}; absolute and squared error at three sizes, gradients, KL; bf16 "
            "autocast, AdamW cosine, averaged weights",
            seconds=seconds,
            metrics=metrics,
        )


@torch.no_grad()
def _normalise(vae: AutoencoderKL, images: Tensor) -> None:
    """Sets shift and scale so that (z - shift) * scale has mean 0 and variance 1."""
    means = torch.cat([vae.encode(as_input(chunk)).latent_dist.mean for chunk in images.split(100)])
    vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))


@torch.no_grad()
def measure(vae: AutoencoderKL) -> dict[str, float]:
    """PSNR on unseen subjects, exact and with noise 0.1 on the latents, and the latents' spread."""
    pairs = draw_pairs(256, "test", 7)
    x = as_input(render_many(pairs.subjects, pairs.scenes))
    latents = torch.cat([vae.encode(c).latent_dist.mean for c in x.split(64)])
    noisy = latents + 0.1 / vae.config.scaling_factor * torch.randn(
        latents.shape, generator=torch.Generator().manual_seed(0)
    )

    def psnr(z: Tensor) -> float:
        y = torch.cat([vae.decode(c).sample for c in z.split(64)])
        error = (as_uint8(y).float() - as_uint8(x).float()).square().mean() / 255**2
        return float(-10 * error.log10())

    unit = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    per_channel = unit.transpose(0, 1).flatten(1).std(1)
    return {
        "psnr_db": psnr(latents),
        "psnr_with_latent_noise_0.1_db": psnr(noisy),
        "latent_std_smallest_channel": float(per_channel.min()),
        "latent_std_largest_channel": float(per_channel.max()),
    }
