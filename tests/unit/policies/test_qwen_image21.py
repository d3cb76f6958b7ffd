"""``qwen-image-2.1``: text and references pass once for all samples and steps, and nothing but time and memory changes.

That ``generate`` is diffusers' pipeline, which keeps keys and values in its own way, is in test_pipelines.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

from customized_grpo.data.images import load_image
from customized_grpo.policies.adapters.lora import trainable_parameters
from customized_grpo.policies.base import stack
from customized_grpo.policies.qwen_image21 import QwenImage21Config
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.sampling.dynamics import dance_sde
from customized_grpo.sampling.rollout import initial_noise, sample_group, sample_images, transition_noise
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas
from customized_grpo.sampling.solver import ode_steps
from customized_grpo.training.resumable import compare_recipes
from customized_grpo.types import Conditioning, Example, Trajectory
from one_rank import fully_sharded
from pipeline_cases import CASES, PROMPT, adapted, draw, noise, pictures
from tiny_qwen_image21 import make_tiny_qwen21, tiny_qwen21

SIGMA = torch.tensor(0.986)
REFERENCES = {"none": 0, "one": 1, "three": 3, "ten": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen21(tmp_path_factory.mktemp("qwen21"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return tiny_qwen21(folder)


@pytest.fixture
def policy(loaded: Any) -> Any:
    return copy.deepcopy(loaded)


def with_options(policy: Any, **changes: Any) -> Any:
    policy.config = policy.config.model_copy(update=changes)
    return policy


def at_once(policy: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    """diffusers' transformer called once, as the pipeline does without its cache: the prefix anew for each sample."""
    n, c = len(x), cond.tensors
    grids = [tuple(c[f"grid_{k}"].shape[1:3]) for k in range(sum(name.startswith("grid_") for name in c))]
    slots = torch.cat([c["slots"], torch.ones(1, x.shape[1] // 4, dtype=torch.bool)], dim=1)
    output: Tensor = policy.transformer(
        hidden_states=torch.cat([c["references"].expand(n, -1, -1), x], dim=1),
        encoder_hidden_states=c["text"].expand(n, -1, -1),
        timestep=sigma.expand(n),
        img_shapes=[[*((1, *grid) for grid in grids), (1, *policy.config.grid)]],
        img_mask=slots,
        return_dict=False,
    )[0]
    return output[:, -x.shape[1] :]


def references(count: int) -> Sequence[Image.Image]:
    return (pictures() * 4)[12 - count :]


@pytest.mark.parametrize("count", REFERENCES.values(), ids=REFERENCES)
def test_the_velocity_is_one_call_of_the_transformer(policy: Any, count: int) -> None:
    policy, x = adapted(policy), noise(policy, 3)
    cond = policy.encode(PROMPT, references(count))
    with torch.no_grad():
        ours, theirs = policy.velocity(x, SIGMA, cond), at_once(policy, x, SIGMA, cond)
        other = policy.velocity(x, SIGMA, policy.encode("a blue cat", references(count)))
    assert (ours - theirs).abs().max() <= 5e-6 * theirs.abs().max()
    assert (ours - other).abs().max() > 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("count", [0, 2])
def test_the_gradient_is_that_of_one_call(policy: Any, count: int, checkpointing: bool) -> None:
    """All of it: the adapter changes the keys of text and references too, and no sample's part is left out."""
    policy, x = adapted(policy), noise(policy, 3)
    cond, aim = policy.encode(PROMPT, references(count)), noise(policy, 3, seed=1)
    trained = trainable_parameters(policy)

    def gradient(velocity: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad((velocity - aim).square().mean(), list(trained.values()))
        return dict(zip(trained, found, strict=True))

    if checkpointing:
        policy.transformer.enable_gradient_checkpointing()
    ours, theirs = gradient(policy.velocity(x, SIGMA, cond)), gradient(at_once(policy, x, SIGMA, cond))
    for name, expected in theirs.items():
        assert (ours[name] - expected).norm() <= 2e-5 * expected.norm(), name
    if not checkpointing:
        cut = gradient(_without_the_keys_gradient(policy, x, cond))
        assert any((cut[name] - expected).norm() > 0.01 * expected.norm() for name, expected in theirs.items())


def _without_the_keys_gradient(policy: Any, x: Tensor, cond: Conditioning) -> Tensor:
    """What a replay would compute with the rollout's keys: the control of the test above."""
    real = policy._prefix

    def constant(cond: Conditioning, text: str) -> Any:
        with torch.no_grad():
            return real(cond, text)

    policy._prefix = constant
    found: Tensor = policy.velocity(x, SIGMA, cond)
    policy._prefix = real
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_are_there_when_the_prefix_is_differentiated(policy: Any, tmp_path: Path, checkpointing: bool) -> None:
    """Under FSDP2, which frees a block's weights after its backward pass and gathers them by its output's gradient."""
    policy, x = adapted(policy), noise(policy, 2)
    if checkpointing:
        policy.transformer.enable_gradient_checkpointing()
    cond, aim = policy.encode(PROMPT, references(1)), noise(policy, 2, seed=1)
    trained = trainable_parameters(policy)
    expected = torch.autograd.grad((policy.velocity(x, SIGMA, cond) - aim).square().mean(), list(trained.values()))
    with fully_sharded(policy, tmp_path):
        (policy.velocity(x, SIGMA, cond) - aim).square().mean().backward()
        sharded = dict(policy.transformer.named_parameters())
        for name, gradient in zip(trained, expected, strict=True):
            found = sharded[name].grad
            assert found is not None, name
            assert torch.equal(found.full_tensor(), gradient), name


def rollout(policy: Any, count: int) -> Trajectory:
    example = Example(key="1", prompt=PROMPT, references=tuple(references(count)))
    place = {"seed": 0, "step": 0, "group": 0}
    return sample_group(
        policy,
        example,
        policy.encode(example.prompt, example.references),
        sigmas=shifted_sigmas(4, 3.0),
        plan=StepPlan(4, (1, 2), (1, 2)),
        transition=dance_sde,
        noise=initial_noise(policy.latent_shape, 4, shared=True, **place),
        draws=transition_noise(policy.latent_shape, 4, 2, **place),
        shared_noise=True,
        batch=2,
    )


def forwards_of(policy: Any) -> list[str]:
    """Filled with the mode of each later forward."""
    modes: list[str] = []
    policy.transformer.register_forward_pre_hook(
        lambda _, args, given: modes.append(given["kv_cache_mode"]), with_kwargs=True
    )
    return modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("count", [0, 3])
def test_kept_keys_are_the_same_bits(folder: Path, guidance: float, count: int, dtype: torch.dtype) -> None:
    found = []
    for keep in (True, False):
        policy = adapted(tiny_qwen21(folder, dtype, guidance=guidance, keep_keys=keep))
        modes = forwards_of(policy)
        found.append(rollout(policy, count))
        # The first step has one sample for all, the three others two batches of two.
        texts, steps = (2 if guidance > 1 else 1), 7
        assert modes.count("cached") == texts * steps
        assert modes.count("extract") == texts * (1 if keep else steps)
    kept, anew = found
    for name in ("x", "x_next", "log_prob", "images"):
        assert torch.equal(getattr(kept, name), getattr(anew, name)), name
    assert kept.cond.tensors.keys() == anew.cond.tensors.keys(), "a trajectory holds no keys of old weights"


def test_images_of_an_evaluation_are_the_same_bits(policy: Any) -> None:
    """A stack of prompts has the keys of each."""
    policy, x = adapted(policy), noise(policy, 4)
    conds = [policy.encode(prompt, references(1)) for prompt in ("a red dog", "one cat ?")]
    together = stack(policy, conds, 2)
    assert together is not None
    kept = sample_images(policy, together, x, shifted_sigmas(3, 3.0))
    anew = sample_images(with_options(policy, keep_keys=False), together, x, shifted_sigmas(3, 3.0))
    assert torch.equal(kept, anew)


def test_a_resumed_run_may_keep_keys_or_not() -> None:
    keep, anew = (load_recipe("qwen_image_21_customized_nft", [f"policy.keep_keys={one}"]) for one in ("true", "false"))
    assert compare_recipes(keep, anew) == ["policy.keep_keys"]


def test_kept_keys_are_refused_where_they_would_be_constants(policy: Any) -> None:
    policy, x = adapted(policy), noise(policy, 1)
    kept = policy.prefill(policy.encode(PROMPT, references(1)))
    assert not any(one.requires_grad for one in kept.tensors.values())
    with pytest.raises(ValueError, match=r"carry no gradient; give the conditioning of encode, or torch\.no_grad"):
        policy.velocity(x, SIGMA, kept)


@pytest.mark.parametrize("count", [0, 2])
def test_guidance_is_the_pipelines(folder: Path, count: int) -> None:
    case, policy = CASES["qwen-2.1"], tiny_qwen21(folder, guidance=4.0)
    pipeline, start = case.stock(folder), noise(policy, 2)
    guided = replace(case, call=case.call | {"true_cfg_scale": 4.0, "negative_prompt": " "})
    drawn = draw(guided, pipeline, start, references(count))
    cond = policy.encode(PROMPT, references(count))
    with torch.no_grad():
        latents = ode_steps(lambda x, sigma: policy.velocity(x, sigma, cond), start, drawn.sigmas)
        alone = with_options(policy, guidance=1.0).encode(PROMPT, references(count))
        plain = ode_steps(lambda x, sigma: policy.velocity(x, sigma, alone), start, drawn.sigmas)
    assert (latents - drawn.latents).abs().max() <= 5e-6
    assert (latents - plain).abs().max() > 1e-3


def test_images_are_what_load_image_reads_of_the_pipelines(policy: Any, tmp_path: Path) -> None:
    """Its pictures have four channels; what is transparent is on white, as in every picture that is read."""
    x = noise(policy, 1)
    latents = x.transpose(1, 2).unflatten(2, policy.config.grid) * policy._std + policy._mean
    with torch.no_grad():
        decoded = policy._vae.decode(latents.unsqueeze(2), return_dict=False)[0][:, :, 0]
    (picture,) = VaeImageProcessor(vae_scale_factor=16).postprocess(decoded)
    assert picture.mode == "RGBA"
    assert picture.getchannel("A").getextrema()[0] < 200
    picture.save(tmp_path / "p.png")
    read = np.asarray(load_image(tmp_path / "p.png")).astype(int)
    assert np.abs(policy.decode(x)[0].numpy().astype(int) - read).max() <= 1


@pytest.mark.parametrize("least", [32 * 32, 256 * 256])
def test_slots_fit_the_tokens_whatever_the_processor_enlarges(folder: Path, tmp_path: Path, least: int) -> None:
    """The published processor enlarges what is under 256 x 256 pixels; the transformer has no tokens for that."""
    for one in folder.iterdir():
        (tmp_path / one.name).symlink_to(one)
    (tmp_path / "processor").unlink()
    (tmp_path / "processor").mkdir()
    for one in (folder / "processor").iterdir():
        (tmp_path / "processor" / one.name).write_bytes(one.read_bytes())
    size = {"shortest_edge": least, "longest_edge": 4096**2}
    Qwen2VLImageProcessorPil(patch_size=16, size=size).save_pretrained(tmp_path / "processor")
    policy = tiny_qwen21(tmp_path)
    cond = policy.encode(PROMPT, references(3)).tensors
    assert 4 * int(cond["slots"].sum()) == cond["references"].shape[1] == 44


def test_the_section_says_what_the_model_takes() -> None:
    section = QwenImage21Config(model="x", height=512, width=768)
    assert section.latent_shape() == (32 * 48, 64)
    assert section.reference_counts() == (0, 10)
    assert section.guidance == 1.0
    assert section.num_forwards() == 1
    with pytest.raises(ValueError, match="less than or equal to 10"):
        QwenImage21Config(model="x", max_references=11)
    with pytest.raises(ValueError, match=r"given 528; this model needs a multiple of 32: use 512 or 544"):
        QwenImage21Config(model="x", height=528)
    with pytest.raises(ValueError, match="negative_prompt has no effect with guidance 1"):
        QwenImage21Config(model="x", negative_prompt="blurry")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"causal_condition": False}, r"needs text and references modulated at time 0"),
        ("vae", {"patch_size": 2}, r"needs a VAE that shrinks by 16"),
        (None, {"sample_sigmas": [1.0, 0.5]}, r"needs no noise levels of its own \(sample_sigmas\)"),
    ],
)
def test_other_models_are_refused(
    folder: Path, tmp_path: Path, part: str | None, change: dict[str, Any], message: str
) -> None:
    for one in folder.rglob("*"):
        if one.is_file():
            (tmp_path / one.relative_to(folder)).parent.mkdir(exist_ok=True)
            (tmp_path / one.relative_to(folder)).write_bytes(one.read_bytes())
    file = tmp_path / "model_index.json" if part is None else tmp_path / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"policy\.model: .* {message}"):
        tiny_qwen21(tmp_path)
