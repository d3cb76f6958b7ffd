"""Stages `policy` and `modes`: a miniature FLUX transformer by rectified flow, then copies and generic targets.

The clean phase learns to put the reference's subject into the prompt's scene. The second phase mixes in targets that
are the reference itself (copies) and other subjects of the class (generic), so that samples of one prompt fall into the
modes between which online RL has to choose.
"""

from typing import Final

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from customized_grpo.mini.build.common import LOG, Context, Training, save_tensors
from customized_grpo.mini.build.pool import Pool
from customized_grpo.mini.build.text import WIDTH, prompt_table
from customized_grpo.mini.build.vae import LATENT_CHANNELS

GUIDANCE: Final = 3.5
SHIFT: Final = 3.0
ROWS: Final = 4
"""Rows and columns of image tokens."""

BATCH: Final = 96
STEPS: Final = 5_000
MODES_STEPS: Final = 720
MODES_BATCH: Final = 96
COPIES: Final = 0.31
GENERIC: Final = 0.03


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

    def __init__(
        self, context: Context, transformer: FluxTransformer2DModel, *, copies: float, generic: float
    ) -> None:
        self.pool = Pool(context)
        self.text, self.pooled = (t.bfloat16().float() for t in prompt_table(context))
        self.offset = STEPS if copies else 0
        self.batch = MODES_BATCH if copies else BATCH
        self.module, self.copies, self.generic = Velocity(transformer), copies, generic

    def loss(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(7919 * step + 13)
        pool = self.pool
        pool.grow(step + self.offset)
        rows = torch.randint(len(pool.target), (self.batch,), generator=generator)
        target, reference = pool.target[rows].float(), pool.reference[rows].float()
        prompts = pool.prompt[rows]
        copies, generics = round(self.copies * self.batch), round(self.generic * self.batch)
        if generics:
            other = torch.randint(len(pool.generic), (generics,), generator=generator)
            source = pool.generic_row[other]
            target[:generics] = pool.generic[other].float()
            reference[:generics] = pool.reference[source].float()
            prompts[:generics] = pool.prompt[source]
        if copies:
            target[-copies:] = reference[-copies:]
        u = torch.rand(self.batch, generator=generator)
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        noise = torch.randn(target.shape, generator=generator)
        x = target + sigma[:, None, None] * (noise - target)
        # bfloat16 arithmetic on float32 weights. The flash kernel's bfloat16 backward is ten times slower on a CPU than
        # plain matrix products (measured: 243 of 679 ms a step), hence the backend.
        weights = {name: p.bfloat16() for name, p in self.module.named_parameters()}
        inputs = (x, sigma, reference, self.text[prompts], self.pooled[prompts])
        with attention_backend("_native_math"):
            v: Tensor = functional_call(self.module, weights, tuple(t.bfloat16() for t in inputs))
        return (v.float() - (noise - target)).square().mean()


def train_policy(context: Context) -> None:
    """The clean phase. Writes `work/policy-clean.safetensors`, and the averaged weights so far now and then."""
    done = context.work / "policy-clean.safetensors"
    if done.exists():
        LOG.info("policy: done already")
        return
    torch.manual_seed(context.seed + 2)
    transformer = new_transformer()
    training = Training(
        context, "policy-training", transformer, steps=STEPS, lr=1.5e-3, ema=0.998, weight_decay=1e-3
    )
    flow = _Flow(context, transformer, copies=0.0, generic=0.0)
    snapshot = context.work / "policy-snapshot.safetensors"
    weights = training.run(flow.loss, every_s=240, hook=lambda: save_tensors(snapshot, training.average))
    save_tensors(done, weights, seconds=str(training.seconds), steps=str(training.steps))


def train_modes(context: Context) -> None:
    """The second phase. Writes `work/policy-modes.safetensors`, which is what is shipped."""
    done = context.work / "policy-modes.safetensors"
    if done.exists():
        LOG.info("modes: done already")
        return
    torch.manual_seed(context.seed + 3)
    transformer = new_transformer()
    transformer.load_state_dict(load_file(context.work / "policy-clean.safetensors"))
    training = Training(context, "modes-training", transformer, steps=MODES_STEPS, lr=7e-4, ema=0.99)
    flow = _Flow(context, transformer, copies=COPIES, generic=GENERIC)
    snapshot = context.work / "modes-snapshot.safetensors"
    weights = training.run(flow.loss, every_s=100, hook=lambda: save_tensors(snapshot, training.average))
    save_tensors(done, weights, seconds=str(training.seconds), steps=str(training.steps))
