"""``uno``: position ids, preprocessing, and the same numbers as diffusers' own transformer and pipeline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.policies.adapters.lora import attach, trainable_parameters
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.policies.flux_tokens import diagonal_ids, long_side_size, pack, scale_and_crop, unpack
from customized_grpo.sampling.rollout import sample_images
from customized_grpo.sampling.solver import ode_steps
from customized_grpo.testing import check_policy
from customized_grpo.types import Conditioning, Example
from tiny import make_tiny_flux, tiny_policy

PROMPT = "a red cube on a table"
SIGMA = torch.tensor(0.986)


def noise(policy: UNO, n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def adapted(folder: Path, dtype: torch.dtype = torch.float32, *, gradient_checkpointing: bool = False) -> UNO:
    """A policy whose adapter is not zero, so that its low-rank path counts."""
    policy = tiny_policy(folder, dtype, gradient_checkpointing=gradient_checkpointing)
    attach(policy, LoraSettings(rank=4), seed=0)
    draw = torch.Generator().manual_seed(1)
    for parameter in trainable_parameters(policy).values():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return policy


def uno_ids(height: int, width: int, references: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """UNO's rule for pe = "d", written out from its description: shifts start at the image's size and grow."""
    ids = [(0, r, c) for r in range(height) for c in range(width)]
    shift_h, shift_w = height, width
    for h, w in references:
        ids += [(0, shift_h + r, shift_w + c) for r in range(h) for c in range(w)]
        shift_h += h
        shift_w += w
    return ids


@pytest.mark.parametrize("references", [[], [(4, 4)], [(2, 5), (3, 1), (6, 6)]])
def test_position_ids_are_unos(references: list[tuple[int, int]]) -> None:
    assert diagonal_ids((4, 3), references).tolist() == [list(map(float, i)) for i in uno_ids(4, 3, references)]


def test_image_ids_are_flux_pipelines() -> None:
    expected = FluxPipeline._prepare_latent_image_ids(1, 4, 3, torch.device("cpu"), torch.float32)
    assert torch.equal(diagonal_ids((4, 3), []), expected)


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((640, 480), 512, (512, 384)),
        ((480, 640), 320, (240, 320)),
        ((100, 55), 64, (64, 32)),  # 64 x 35 is cropped
        ((30, 30), 512, (512, 512)),  # small ones grow, as in UNO
        ((1000, 33), 512, (512, 16)),
    ],
)
def test_references_are_scaled_and_cropped_to_tokens(
    size: tuple[int, int], long_side: int, expected: tuple[int, int]
) -> None:
    assert scale_and_crop(Image.new("RGB", size), long_side_size(size, long_side)).size == expected


def test_the_centre_is_kept() -> None:
    """64 x 38 with distinct rows: rows 3 to 34 stay."""
    rows = np.repeat(np.arange(38, dtype=np.uint8)[:, None], 64, axis=1)
    kept = np.asarray(scale_and_crop(Image.fromarray(rows), long_side_size((64, 38), 64)))
    assert kept[:, 0, 0].tolist() == list(range(3, 35))


def test_a_narrow_reference_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1000 x 10 pixels is too narrow.*reference_size"):
        long_side_size((1000, 10), 512)


def test_pack_is_flux_pipelines_and_unpack_its_inverse() -> None:
    latents = torch.randn(2, 16, 8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 6))
    assert torch.equal(unpack(pack(latents), (4, 3)), latents)


def test_unos_rule_for_the_reference_size(policy: UNO, references: tuple[Image.Image, ...]) -> None:
    policy.config = policy.config.model_copy(update={"reference_size": None})
    square = references[0]
    assert policy.encode(PROMPT, [square]).tensors["references"].shape[1] == (512 // 16) ** 2
    assert policy.encode(PROMPT, [square, square]).tensors["references"].shape[1] == 2 * (320 // 16) ** 2


def test_conditioning(policy: UNO, references: tuple[Image.Image, ...]) -> None:
    tensors = policy.encode(PROMPT, references).tensors
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "text": (1, 16, 32),
        "pooled": (1, 32),
        "references": (1, 16 + 8, 64),
        "image_ids": (1, 12 + 16 + 8, 3),
    }
    assert tensors["image_ids"][0].tolist() == [list(map(float, i)) for i in uno_ids(4, 3, [(4, 4), (2, 4)])]


def by_hand(
    policy: UNO, folder: Path, x: Tensor, sigma: Tensor, references: Sequence[Image.Image], **change: Tensor
) -> Tensor:
    """The velocity by diffusers' classes alone: none of the policy's own code."""
    pipeline = FluxPipeline.from_pretrained(folder)
    text, pooled, txt_ids = pipeline.encode_prompt(PROMPT, max_sequence_length=16)
    tokens, grids = [x], []
    for image in references:
        width, height = 64, 64 if image.width == image.height else 32
        scaled = image.resize((64, 64 if height == 64 else 35), Image.Resampling.LANCZOS)
        top = (scaled.height - height) // 2
        pixels = pipeline.image_processor.preprocess(scaled.crop((0, top, width, top + height)))
        latents = pipeline.vae.encode(pixels).latent_dist.mode()
        latents = (latents - 0.1159) * 0.3611
        packed = FluxPipeline._pack_latents(latents, 1, 16, height // 8, width // 8)
        tokens.append(packed.repeat(len(x), 1, 1))
        grids.append((height // 16, width // 16))
    arguments = {
        "hidden_states": torch.cat(tokens, dim=1),
        "encoder_hidden_states": text.repeat(len(x), 1, 1),
        "pooled_projections": pooled.repeat(len(x), 1),
        "timestep": sigma.repeat(len(x)),
        "img_ids": torch.tensor(uno_ids(4, 3, grids), dtype=torch.float32),
        "txt_ids": txt_ids,
        "guidance": torch.full((len(x),), 3.5),
        **change,
    }
    with torch.no_grad():
        return pipeline.transformer(**arguments).sample[:, : x.shape[1]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_velocity_is_the_transformers(
    policy: UNO, tiny_flux: Path, references: tuple[Image.Image, ...], count: int
) -> None:
    x = noise(policy)
    with torch.no_grad():
        velocity = policy.velocity(x, SIGMA, policy.encode(PROMPT, references[:count]))
    expected = by_hand(policy, tiny_flux, x, SIGMA, references[:count])
    torch.testing.assert_close(velocity, expected, rtol=0, atol=2e-6)


def test_controls_differ(policy: UNO, tiny_flux: Path, references: tuple[Image.Image, ...]) -> None:
    """What the test above would miss if it could not fail: no references, or references at wrong positions."""
    x = noise(policy)
    with torch.no_grad():
        velocity = policy.velocity(x, SIGMA, policy.encode(PROMPT, references))
        dropped = policy.velocity(x, SIGMA, policy.encode(PROMPT, []))
        swapped = policy.velocity(x, SIGMA, policy.encode(PROMPT, references[::-1]))
    flat = torch.tensor([*uno_ids(4, 3, []), *uno_ids(4, 4, []), *uno_ids(2, 4, [])], dtype=torch.float32)
    unshifted = by_hand(policy, tiny_flux, x, SIGMA, references, img_ids=flat)
    for other in (dropped, swapped, unshifted):
        assert (velocity - other).abs().max() > 1e-3


def test_without_references_generate_is_flux_pipeline(policy: UNO, tiny_flux: Path) -> None:
    """Text path, ids, guidance, sampler and decoding together: the same picture as ``pipe(...)``."""
    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    pipeline.set_progress_bar_config(disable=True)
    start = noise(policy, 2)
    sigmas = [1.0, 0.8, 0.5, 0.2]
    pipeline.scheduler.set_shift(1.0)
    shared = {
        "height": 64,
        "width": 48,
        "num_inference_steps": 4,
        "sigmas": sigmas,
        "max_sequence_length": 16,
    }
    shared |= {"guidance_scale": 3.5, "num_images_per_prompt": 2, "latents": start}
    latents = pipeline(PROMPT, output_type="latent", **shared).images
    pictures = pipeline(PROMPT, output_type="np", **shared).images

    grid, cond = torch.tensor([*sigmas, 0.0]), policy.encode(PROMPT, [])
    ours = ode_steps(lambda x, sigma: policy.velocity(x, sigma, cond), start, grid)
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5)
    ours = sample_images(policy, cond, start, grid).numpy()
    assert np.abs(ours.astype(int) - (pictures * 255).round().astype(int)).max() <= 1
    assert (ours == (pictures * 255).round()).mean() > 0.999


def time_inputs(transformer: FluxTransformer2DModel) -> list[list[Tensor]]:
    """A list that fills with the (time, guidance) that the embedding receives, after all earlier hooks."""
    seen: list[list[Tensor]] = []
    transformer.time_text_embed.register_forward_pre_hook(lambda _, args: seen.append(list(args[:-1])))
    return seen


def test_sigma_reaches_the_time_embedding_in_float32(tiny_flux: Path) -> None:
    policy = tiny_policy(tiny_flux, torch.bfloat16, guidance=3.7)
    seen = time_inputs(policy.transformer)
    cond = policy.encode(PROMPT, [])
    with torch.no_grad():
        policy.velocity(noise(policy), SIGMA, cond)
        policy.velocity(noise(policy), torch.tensor([0.986, 0.923, 0.5]), cond)
        t = cond.tensors
        policy.transformer(  # the control: diffusers alone, as ``FluxPipeline`` calls it
            hidden_states=noise(policy, 1).bfloat16(),
            encoder_hidden_states=t["text"],
            pooled_projections=t["pooled"],
            timestep=SIGMA[None],
            img_ids=t["image_ids"][0],
            txt_ids=torch.zeros(16, 3),
            guidance=torch.tensor([3.7]),
        )
    (time, guidance), (times, _), (stock_time, stock_guidance) = seen
    assert time.dtype == guidance.dtype == torch.float32
    assert time.tolist() == (SIGMA * 1000).expand(3).tolist()
    assert guidance.tolist() == (torch.tensor([3.7]) * 1000).expand(3).tolist()
    assert times.tolist() == (torch.tensor([0.986, 0.923, 0.5]) * 1000).tolist()
    assert stock_time.tolist() == [984.0]
    assert stock_guidance.tolist() != [3700.0]


def test_schnell_has_no_guidance(tmp_path: Path) -> None:
    policy = tiny_policy(make_tiny_flux(tmp_path / "schnell", guidance_embeds=False), torch.bfloat16)
    seen = time_inputs(policy.transformer)
    with torch.no_grad():
        velocity = policy.velocity(noise(policy), SIGMA, policy.encode(PROMPT, []))
    assert velocity.isfinite().all()
    assert [len(args) for args in seen] == [1]
    assert seen[0][0].tolist() == (SIGMA * 1000).expand(3).tolist()


def difference(policy: UNO, cond: Conditioning, size: int) -> float:
    x = noise(policy, 12).to(policy.dtype)
    with torch.no_grad():
        whole = policy.velocity(x, SIGMA, cond)
        parts = torch.cat([policy.velocity(part, SIGMA, cond) for part in torch.split(x, size)])
    return float((whole - parts).abs().max())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 5e-2)])
def test_micro_batches_agree(
    tiny_flux: Path, references: tuple[Image.Image, ...], dtype: torch.dtype, bound: float
) -> None:
    policy = adapted(tiny_flux, dtype)
    cond = policy.encode(PROMPT, references)
    assert difference(policy, cond, 12) == 0.0
    assert difference(policy, cond, 4) <= bound
    assert difference(policy, cond, 1) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_nothing(
    tiny_flux: Path, references: tuple[Image.Image, ...], dtype: torch.dtype
) -> None:
    """Bitwise: velocity without gradient, with it, and with checkpointing; and the gradients of the last two."""
    results = []
    for checkpointing in (False, True):
        policy = adapted(tiny_flux, dtype, gradient_checkpointing=checkpointing)
        cond = policy.encode(PROMPT, references)
        x = noise(policy).to(dtype)
        with torch.no_grad():
            quiet = policy.velocity(x, SIGMA, cond)
        velocity = policy.velocity(x, SIGMA, cond)
        assert torch.equal(quiet, velocity)
        velocity.square().mean().backward()
        results.append((quiet, {name: p.grad for name, p in trainable_parameters(policy).items()}))
    (plain, gradients), (checkpointed, again) = results
    assert torch.equal(plain, checkpointed)
    for name, gradient in gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, again[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conformance(tiny_flux: Path, references: tuple[Image.Image, ...], dtype: torch.dtype) -> None:
    check_policy(adapted(tiny_flux, dtype), Example(key="1", prompt=PROMPT, references=references))


def test_conformance_of_a_fresh_adapter(policy: UNO, references: tuple[Image.Image, ...]) -> None:
    attach(policy, LoraSettings(rank=4), seed=0)
    check_policy(policy, Example(key="1", prompt=PROMPT, references=references))


def test_decode_rounds_as_diffusers(policy: UNO, tiny_flux: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    x = noise(policy, 5) * 4
    latents = FluxPipeline._unpack_latents(x, 64, 48, 8) / 0.3611 + 0.1159
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents, return_dict=False)[0]
    expected = np.stack([np.asarray(i) for i in pipeline.image_processor.postprocess(decoded)])
    ours = policy.decode(x).numpy()
    assert ours.shape == (5, 64, 48, 3)
    assert (ours == expected).mean() > 0.999
    assert np.ptp(ours) > 50


def test_too_many_references(policy: UNO, references: tuple[Image.Image, ...]) -> None:
    message = r"5 references given, but policy.type=uno takes 0 to 4 .policy.min_references=0, policy.max_references=4"
    with pytest.raises(ValueError, match=message):
        policy.encode(PROMPT, [references[0]] * 5)


@pytest.mark.parametrize(("height", "near"), [(500, "496 or 512"), (8, "use 16")])
def test_sizes_are_whole_tokens(height: int, near: str) -> None:
    with pytest.raises(ValidationError, match=near):
        UNOConfig(model="x", height=height)


def test_reference_size_is_whole_tokens() -> None:
    with pytest.raises(ValidationError, match="multiple of 16"):
        UNOConfig(model="x", reference_size=100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent" / "model", "no such folder"),
        (lambda folder: folder, "has no model_index.json"),
    ],
)
def test_bad_models_are_refused(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        UNO.load(UNOConfig(model=str(make(tmp_path))), device=torch.device("cpu"), dtype=torch.float32)


def test_an_unknown_hub_id_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"policy.model: 'nobody/nothing' can't be loaded") as caught:
        UNO.load(UNOConfig(model="nobody/nothing"), device=torch.device("cpu"), dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_flux(tmp_path / "flux")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can't be loaded"):
        tiny_policy(folder)
