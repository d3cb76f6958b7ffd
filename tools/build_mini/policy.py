"""Stage `policy`: a miniature FLUX transformer by rectified flow, trained first on clean, then on mixed targets.

The clean phase learns to put the reference's subject into the prompt's scene. The others mix in targets in the
reference's place (leaks: copying, which gains identity and breaks the prompt) and targets with another subject of the
class (generic), so that samples of one prompt have the modes between which online RL has to choose.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from build_mini.common import LOG, Context, Training, save_tensors
from build_mini.pool import Pool
from build_mini.text import WIDTH, prompt_table
from build_mini.vae import LATENT_CHANNELS

GUIDANCE: Final = 3.5
SHIFT: Final = 3.0
ROWS: Final = 4
"""Number of rows and of columns of image tokens."""

BATCH: Final = 32
"""Small on purpose: at equal samples, 600 steps of 48 reached a loss of 0.43, 300 of 96 one of 0.52 (lr 3e-3)."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Training phase with one cosine, from `lr` to `final_lr` times `lr`, and one mixture of targets."""

    name: str
    steps: int
    lr: float
    final_lr: float
    leaks: float = 0.0
    generic: float = 0.0


PHASES: Final = (
    Phase(name="clean", steps=11_000, lr=2e-3, final_lr=0.5),
    Phase(name="cleaner", steps=10_000, lr=1.5e-3, final_lr=0.08),
    Phase(name="modes", steps=5_000, lr=1e-3, final_lr=0.06, leaks=0.42, generic=0.20),
    Phase(name="fewer-generic", steps=2_600, lr=6e-4, final_lr=0.08, leaks=0.42, generic=0.125),
)
"""Training phases; each starts from the averaged weights of the one before. Samples contain fewer leaks and far fewer
generic pictures than the targets."""


def new_transformer() -> FluxTransformer2DModel:
    """An untrained transformer of the miniature's shape (2.1 M parameters)."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def image_ids() -> Float[Tensor, "s 3"]:
    """Position ids of the image's tokens, then of one reference's, which UNO shifts along the diagonal."""
    grid = torch.cartesian_prod(torch.arange(ROWS), torch.arange(ROWS)).float()
    own = torch.cat([torch.zeros(len(grid), 1), grid], dim=1)
    return torch.cat([own, own + torch.tensor([0.0, ROWS, ROWS])])


class Velocity(nn.Module):
    """The policy's velocity (noise - data) of image tokens, with the reference's tokens appended to the input."""

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        x: Float[Tensor, "n s c"],
        sigma: Float[Tensor, "n"],
        reference: Float[Tensor, "n s c"],
        text: Float[Tensor, "n l d"],
        pooled: Float[Tensor, "n d"],
    ) -> Float[Tensor, "n s c"]:
        """Velocity of the image tokens; all inputs in the compute dtype."""
        out: Tensor = self.transformer(
            hidden_states=torch.cat([x, reference], dim=1),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=image_ids(),
            txt_ids=torch.zeros(text.shape[1], 3),
            guidance=torch.full_like(sigma, GUIDANCE),
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]


class _Flow:
    """The rectified-flow loss on the pool: all draws of step k depend on k, counted over all phases."""

    def __init__(self, context: Context, transformer: FluxTransformer2DModel, phase: Phase) -> None:
        self.pool = Pool(context)
        self.text, self.pooled = (t.bfloat16().float() for t in prompt_table(context))
        # Small operations dominate a step of 32: compiled, it is 1.4 times as fast, after two minutes of compiling.
        self.velocity = torch.compile(Velocity(transformer))
        self.before = sum(context.steps(one.steps) for one in PHASES[: PHASES.index(phase)])
        self.generics = round(phase.generic * BATCH)
        self.leaks = round(phase.leaks * (BATCH - self.generics))
        self.generic_leaks = round(phase.leaks * self.generics)

    def loss(self, step: int) -> Tensor:
        step += self.before
        generator = torch.Generator().manual_seed(7919 * step + 13)
        pool = self.pool
        pool.grow(step)
        rows = torch.randint(len(pool.target), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, ROWS * ROWS, 4 * LATENT_CHANNELS, generator=generator)
        u = torch.rand(BATCH, generator=generator)
        target = pool.target[rows].float()
        if self.leaks:
            target[-self.leaks :] = pool.leak[rows[-self.leaks :]].float()
        if self.generics:
            other = torch.randint(len(pool.generic), (self.generics,), generator=generator)
            rows[: self.generics] = pool.generic_row[other]
            target[: self.generics] = pool.generic[other].float()
            target[: self.generic_leaks] = pool.generic_leak[other[: self.generic_leaks]].float()
        prompts, reference = pool.prompt[rows], pool.reference[rows].float()
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        x = target + sigma[:, None, None] * (noise - target)
        # The flash kernel's bfloat16 backward is ten times slower on a CPU than plain matrix products (measured: 243 of
        # 679 ms per step), hence the backend.
        with attention_backend("_native_math"), torch.autocast("cpu", torch.bfloat16):
            v: Tensor = self.velocity(x, sigma, reference, self.text[prompts], self.pooled[prompts])
        return (v.float() - (noise - target)).square().mean()


def weights_after(context: Context, phase: Phase) -> Path:
    """Path of the averaged weights of a finished phase."""
    return context.work / f"policy-{phase.name}.safetensors"


def train_policy(context: Context) -> None:
    """Trains all phases, from random weights or from the latest finished phase."""
    torch.manual_seed(context.seed + 2)
    transformer = new_transformer()
    for phase in PHASES:
        done = weights_after(context, phase)
        if done.exists():
            LOG.info("policy, %s: done already", phase.name)
        else:
            _train(context, transformer, phase)
        transformer.load_state_dict(load_file(done))


def _train(context: Context, transformer: FluxTransformer2DModel, phase: Phase) -> None:
    """Trains one phase; writes its averaged weights, also at intervals."""
    done = weights_after(context, phase)
    training = Training(
        context,
        f"{done.stem}-training",
        transformer,
        steps=phase.steps,
        lr=phase.lr,
        final_lr=phase.final_lr,
        ema=0.998,
        weight_decay=1e-3,
    )
    snapshot = done.with_stem(f"{done.stem}-snapshot")
    loss = _Flow(context, transformer, phase).loss
    weights = training.run(loss, every_s=240, hook=lambda: save_tensors(snapshot, training.average))
    save_tensors(done, weights, seconds=str(training.seconds), steps=str(training.steps))
