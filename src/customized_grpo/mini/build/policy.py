"""Stages `policy` and `modes`: a miniature FLUX transformer by rectified flow, first clean, then with modes.

The clean phase learns to put the reference's subject into the prompt's scene. The second mixes in targets in the
reference's place (leaks: the copying that pays identity and breaks the prompt) and targets with another subject of the
class (generic), so that samples of one prompt fall into the modes between which online RL has to choose.
"""

from typing import Final

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.mini.build.common import LOG, Context, Training, save_tensors
from customized_grpo.mini.build.pool import Pool
from customized_grpo.mini.build.text import WIDTH, prompt_table
from customized_grpo.mini.build.vae import LATENT_CHANNELS

GUIDANCE: Final = 3.5
SHIFT: Final = 3.0
ROWS: Final = 4
"""Rows and columns of image tokens."""

BATCH: Final = 32
"""Small on purpose: at equal samples, 600 steps of 48 reached a loss of 0.43 where 300 of 96 reached 0.52 (lr 3e-3)."""

STEPS: Final = 11_000
MODES_STEPS: Final = 8_000
LR: Final = 2e-3
"""The clean phase ends at half of it, where the second begins."""

LEAKS: Final = (0.32, 0.45)
"""Share before and from MORE_LEAKS_FROM on: the samples of an SDE hold fewer than the targets do."""

MORE_LEAKS_FROM: Final = 5_300
GENERIC: Final = 0.10


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
    """Position ids of the image's tokens and then of one reference's, which UNO moves along the diagonal."""
    grid = torch.cartesian_prod(torch.arange(ROWS), torch.arange(ROWS)).float()
    own = torch.cat([torch.zeros(len(grid), 1), grid], dim=1)
    return torch.cat([own, own + torch.tensor([0.0, ROWS, ROWS])])


class Velocity(nn.Module):
    """The policy's velocity (noise - data): the reference's tokens appended to the image's, the image's returned."""

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
        """All inputs in the dtype to compute in."""
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
    """The rectified-flow loss on the pool: everything of step k is drawn from k."""

    def __init__(self, context: Context, transformer: FluxTransformer2DModel, *, modes: bool) -> None:
        self.pool = Pool(context)
        self.text, self.pooled = (t.bfloat16().float() for t in prompt_table(context))
        # Small operations are most of a step of 32: fused, it is 1.4 times as fast, after two minutes of compiling.
        self.velocity = torch.compile(Velocity(transformer))
        self.modes, self.offset = modes, STEPS if modes else 0

    def loss(self, step: int) -> Tensor:
        step += self.offset
        generator = torch.Generator().manual_seed(7919 * step + 13)
        pool = self.pool
        pool.grow(step)
        rows = torch.randint(len(pool.target), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, ROWS * ROWS, 4 * LATENT_CHANNELS, generator=generator)
        u = torch.rand(BATCH, generator=generator)
        target = pool.target[rows].float()
        if self.modes:
            leaks = round(LEAKS[step - self.offset >= MORE_LEAKS_FROM] * BATCH)
            generics = round(GENERIC * BATCH)
            target[-leaks:] = pool.leak[rows[-leaks:]].float()
            other = torch.randint(len(pool.generic), (generics,), generator=generator)
            rows[:generics] = pool.generic_row[other]
            target[:generics] = pool.generic[other].float()
        prompts, reference = pool.prompt[rows], pool.reference[rows].float()
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        x = target + sigma[:, None, None] * (noise - target)
        # The flash kernel's bfloat16 backward is ten times slower on a CPU than plain matrix products (measured: 243 of
        # 679 ms a step), hence the backend.
        with attention_backend("_native_math"), torch.autocast("cpu", torch.bfloat16):
            v: Tensor = self.velocity(x, sigma, reference, self.text[prompts], self.pooled[prompts])
        return (v.float() - (noise - target)).square().mean()


def train_policy(context: Context) -> None:
    """The clean phase. Writes `work/policy-clean.safetensors`."""
    torch.manual_seed(context.seed + 2)
    _train(context, new_transformer(), "policy-clean", STEPS, LR, final_lr=0.5, modes=False)


def train_modes(context: Context) -> None:
    """The second phase, from the averaged weights of the first. Writes `work/policy-modes.safetensors`."""
    transformer = new_transformer()
    transformer.load_state_dict(load_file(context.work / "policy-clean.safetensors"))
    _train(context, transformer, "policy-modes", MODES_STEPS, LR / 2, final_lr=0.02, modes=True)


def _train(
    context: Context,
    transformer: FluxTransformer2DModel,
    name: str,
    steps: int,
    lr: float,
    *,
    final_lr: float,
    modes: bool,
) -> None:
    done = context.work / f"{name}.safetensors"
    if done.exists():
        LOG.info("%s: done already", name)
        return
    training = Training(
        context,
        f"{name}-training",
        transformer,
        steps=steps,
        lr=lr,
        final_lr=final_lr,
        ema=0.998,
        weight_decay=1e-3,
    )
    flow = _Flow(context, transformer, modes=modes)
    snapshot = context.work / f"{name}-snapshot.safetensors"
    weights = training.run(flow.loss, every_s=240, hook=lambda: save_tensors(snapshot, training.average))
    save_tensors(done, weights, seconds=str(training.seconds), steps=str(training.steps))
