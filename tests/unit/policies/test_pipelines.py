"""The policies on FLUX.2 and both Qwen-Images: what diffusers' pipelines compute, on tiny weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.adapters.lora import attach, save_adapter, trainable_parameters
from customized_grpo.policies.base import FullSettings, LoraSettings, load_policy, stack
from customized_grpo.policies.checkpointing import checkpoint_blocks
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import dance_sde
from customized_grpo.sampling.rollout import initial_noise, sample_group, sample_images, transition_noise
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas, sigma_grid
from customized_grpo.sampling.solver import ode_steps
from customized_grpo.testing import check_policy
from customized_grpo.training.replay import micro_batches, replay
from customized_grpo.types import Conditioning, Example
from one_rank import data_parallel
from pipeline_cases import CASES, PROMPT, Case, adapted, draw, noise, pictures, shrink_constants
from tiny_qwen_image import stock_pipeline

SIGMA = torch.tensor(0.986)


class World:
    """Folders, policies and pipelines of a case, each made once; what is handed out is a copy."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def folder(self, name: str) -> Path:
        case = CASES[name]
        folder: Path = self.once(name, lambda: case.make(self.root / name, **case.options))
        return folder

    def policy(self, name: str, dtype: torch.dtype = torch.float32) -> Any:
        made = self.once((name, dtype), lambda: CASES[name].load(self.folder(name), dtype))
        return copy.deepcopy(made)

    def stock(self, name: str) -> Any:
        return self.once((name, "stock"), lambda: CASES[name].stock(self.folder(name)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)


every = pytest.mark.parametrize("name", list(CASES))
each_policy = pytest.mark.parametrize("name", ["flux2", "klein-base", "klein-kv", "flux3", "qwen-2509", "qwen-2.1"])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("flux2", count) for count in range(4)),
        *(("klein-base", count) for count in range(3)),
        ("klein", 1),
        *(("klein-kv", count) for count in range(4)),
        *(("flux3", count) for count in range(4)),
        *(("flux3-distilled", count) for count in range(3)),
        *(("qwen-2509", count) for count in range(1, 4)),
        ("qwen-2511", 2),
        *(("qwen-2.1", count) for count in range(11)),
    ],
)
def test_generate_is_the_pipeline(world: World, name: str, count: int) -> None:
    """Text, references, positions, guidance, sampler and decoding together, on the pipeline's own schedule."""
    case: Case = CASES[name]
    policy, references = world.policy(name), (pictures() * 4)[12 - count :]
    start = noise(policy, 2)
    drawn = draw(case, world.stock(name), start, references)
    cond = policy.on_grid(policy.encode(PROMPT, references), drawn.sigmas)
    with torch.no_grad():
        latents = ode_steps(lambda x, sigma: policy.velocity(x, sigma, cond), start, drawn.sigmas)
    difference = float((latents - drawn.latents).abs().max())
    assert difference <= 5e-6, difference
    assert (latents - start).abs().max() > 0.1
    grid = sigma_grid(policy.config, "dynamic", 3, start.shape[1])
    torch.testing.assert_close(grid, drawn.sigmas, rtol=0, atol=2e-6)
    ours = sample_images(policy, cond, start, drawn.sigmas).numpy().astype(int)
    theirs = (drawn.images * 255).round().astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.999
    assert np.ptp(ours) > 20


@each_policy
def test_references_prompt_and_their_order_count(world: World, name: str) -> None:
    """The controls of the test above: each of these would be seen."""
    policy, (square, wide, tall) = world.policy(name), pictures()
    x = noise(policy, 2)

    def velocity(prompt: str, *references: Image.Image) -> Tensor:
        with torch.no_grad():
            result: Tensor = policy.velocity(x, SIGMA, policy.encode(prompt, references))
        return result

    whole = velocity(PROMPT, square, wide, tall)
    for other in (
        velocity("a blue cat", square, wide, tall),
        velocity(PROMPT, square, tall, wide),
        velocity(PROMPT, square, wide),
    ):
        assert (whole - other).abs().max() > 1e-4


@each_policy
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_replay_is_exact(world: World, name: str, checkpointing: bool) -> None:
    policy = adapted(world.policy(name))
    if checkpointing:
        checkpoint_blocks(policy.transformer, 1.0)
    example = Example(key="1", prompt=PROMPT, references=pictures()[:2])
    plan = StepPlan(4, (0, 1, 2), (0, 2))
    place = {"seed": 0, "step": 0, "group": 0}
    transition = dance_sde
    group = sample_group(
        policy,
        example,
        policy.encode(example.prompt, example.references),
        sigmas=shifted_sigmas(4, 3.0),
        plan=plan,
        transition=transition,
        noise=initial_noise(policy.latent_shape, 4, shared=True, **place),
        draws=transition_noise(policy.latent_shape, 4, 3, **place),
        shared_noise=True,
        clock=Clock(policy.device),
    )
    nothing = torch.zeros_like(group.log_prob)
    for size, bound in ((4, 0.0), (1, 1e-6), (8, 1e-6)):
        ratios = torch.cat(
            [
                replay(policy, transition, pairs)[0].detach() - pairs.log_prob
                for pairs in micro_batches([group], [nothing], range(4), size)
            ]
        )
        assert ratios.abs().max() <= bound, f"micro-batch {size}"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in CASES),
        ("flux2", torch.bfloat16),
        ("qwen-2511", torch.bfloat16),
    ],
)
def test_conformance(world: World, name: str, dtype: torch.dtype) -> None:
    example = Example(key="1", prompt=PROMPT, references=pictures()[1:2])
    check_policy(adapted(world.policy(name, dtype)), example)


@each_policy
def test_conformance_of_full_fine_tuning(world: World, name: str) -> None:
    """Gradients reach every weight but those that the policy calls idle, and the first weights come back."""
    policy = world.policy(name, torch.bfloat16)
    x, cond = noise(policy, 2).bfloat16(), policy.encode(PROMPT, pictures()[:1])
    with torch.no_grad():
        frozen = policy.velocity(x, SIGMA, cond)
    tuning.attach(policy, PolicySpec(type="own", model="own", full=FullSettings()), seed=0, keep_base=True)
    with torch.no_grad():
        assert torch.equal(policy.velocity(x, SIGMA, cond), frozen), "float32 weights of bfloat16 values"
    check_policy(policy, Example(key="1", prompt=PROMPT, references=pictures()[1:2]))
    left = {n for n, p in policy.transformer.named_parameters() if not p.requires_grad}
    assert all(".1." in one for one in left)
    assert len(left) == (9 if name == "qwen-2509" else 0)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_keys_change_no_bit(world: World, count: int, dtype: torch.dtype) -> None:
    """The same forward computes them in ``prefill`` and in ``velocity``, so a rollout with kept keys is one without."""
    policy = adapted(world.policy("klein-kv", dtype))
    cond = policy.encode(PROMPT, pictures()[3 - count :])
    x = noise(policy, 3).to(dtype)
    grid = shifted_sigmas(4, 3.0)
    with torch.no_grad():
        kept = policy.prefill(cond)
        rollouts = [ode_steps(lambda x, sigma, c=c: policy.velocity(x, sigma, c), x, grid) for c in (cond, kept)]
    assert torch.equal(*rollouts)
    added = kept.tensors.keys() - cond.tensors.keys()
    assert len(added) == (8 if count else 0)  # keys and values of 2 + 2 blocks
    assert policy.prefill(kept) is kept
    if count:  # the control: other keys would be seen, and keys of other weights are others
        wrong = Conditioning({**kept.tensors, "keys_0": kept.tensors["keys_0"] + 1})
        with torch.no_grad():
            assert not torch.equal(policy.velocity(x, SIGMA, wrong), policy.velocity(x, SIGMA, kept))
            other = adapted(world.policy("klein-kv", dtype), seed=2).prefill(cond)
        assert not torch.equal(other.tensors["keys_1"], kept.tensors["keys_1"])


def test_references_are_read_once_a_rollout(world: World) -> None:
    policy, example = world.policy("klein-kv"), Example(key="1", prompt=PROMPT, references=pictures()[:2])
    rows: list[int] = []
    policy.transformer.x_embedder.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    place = {"seed": 0, "step": 0, "group": 0}
    plan, cond = StepPlan(4, (0, 1, 2), (0, 2)), policy.encode(PROMPT, example.references)
    trajectory = sample_group(
        policy,
        example,
        cond,
        sigmas=shifted_sigmas(4, 3.0),
        plan=plan,
        transition=dance_sde,
        noise=initial_noise(policy.latent_shape, 3, shared=False, **place),
        draws=transition_noise(policy.latent_shape, 3, 3, **place),
        shared_noise=False,
        batch=2,
    )
    references = cond.tensors["references"].shape[1]
    assert rows == [references] + [12] * 8  # four steps, two parts of the batch in each
    assert trajectory.cond is cond, "a replay needs the gradient of the keys"


@each_policy
def test_checkpointing_changes_no_gradient(world: World, name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = adapted(world.policy(name))
        if checkpointing:
            checkpoint_blocks(policy.transformer, 1.0)
        policy.velocity(noise(policy, 2), SIGMA, policy.encode(PROMPT, pictures()[:1])).square().mean().backward()
        gradients.append({n: p.grad for n, p in policy.transformer.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert plain.keys() == again.keys()
    assert all(torch.equal(one, again[key]) for key, one in plain.items())


@every
def test_sigma_reaches_the_time_embedding_in_float32(world: World, name: str) -> None:
    policy = world.policy(name, torch.bfloat16)
    seen: list[Tensor] = []
    names = {"qwen": "time_text_embed", "flux3": "time_proj"}
    module = policy.transformer.get_submodule(names.get(name.split("-")[0], "time_guidance_embed"))
    module.register_forward_pre_hook(lambda _, args: seen.extend(args[:2]))
    sigmas = torch.tensor([0.986, 0.923])
    scale = 1 if name.startswith("qwen") else 1000  # where the multiplication is
    with torch.no_grad():
        policy.velocity(noise(policy, 2), sigmas, policy.encode(PROMPT, pictures()[:1]))
    if name == "klein-kv":  # the references' forward comes first, all of it at time 0
        assert [one.tolist() for one in seen[:-2:2]] == [[0.0], [0.0]]
        seen = seen[-2:]
    time = seen[2 if name == "qwen-2.1" else 0]  # behind the forward of text and references
    assert time.dtype == torch.float32
    expected = (sigmas * scale).tolist() + [0.0] * {"qwen-2511": 2, "qwen-2.1": 1}.get(name, 0)
    assert time.tolist() == expected
    assert (sigmas.bfloat16().float() != sigmas).all()
    if name == "flux2":
        assert seen[1].dtype == torch.float32
        assert seen[1].tolist() == [4000.0, 4000.0]


@each_policy
def test_the_pipeline_loads_a_saved_adapter_to_the_same_velocity(world: World, name: str, tmp_path: Path) -> None:
    policy = adapted(world.policy(name))
    save_adapter(policy, tmp_path, {})
    stock = copy.deepcopy(world.stock(name))
    other = type(policy)(stock, policy.config, device=policy.device, dtype=policy.dtype)
    x, cond = noise(policy, 2), policy.encode(PROMPT, pictures()[:1])
    with torch.no_grad():
        base = other.velocity(x, SIGMA, cond)
        stock.load_lora_weights(tmp_path)
        loaded = other.velocity(x, SIGMA, cond)
        assert torch.equal(loaded, policy.velocity(x, SIGMA, cond))
        assert (loaded - base).abs().max() > 1e-3
    added, ours = ([key for key, _ in one.transformer.named_parameters() if ".lora_" in key] for one in (stock, policy))
    assert len(added) == len(ours) > 10


@each_policy
def test_encoding_and_drawing_can_be_apart(world: World, name: str) -> None:
    """A cached conditioning needs no text encoder; to make it needs no transformer."""
    whole, references = world.policy(name), pictures()[:1]
    config, cpu = whole.config, torch.device("cpu")
    encoder = load_policy(config, device=cpu, precision="no", parts="encoders")
    drawer = load_policy(config, device=cpu, precision="no", parts="all but encoders")
    assert {p.device.type for p in encoder.transformer.parameters()} == {"meta"}
    cond, expected = encoder.encode(PROMPT, references), whole.encode(PROMPT, references)
    assert all(torch.equal(cond.tensors[key], tensor) for key, tensor in expected.tensors.items())
    x = noise(whole, 2)
    with torch.no_grad():
        assert torch.equal(drawer.velocity(x, SIGMA, cond), whole.velocity(x, SIGMA, cond))
    assert torch.equal(drawer.decode(x), whole.decode(x))
    with pytest.raises(ValueError, match="loaded without its text encoder"):
        drawer.encode(PROMPT, references)


@each_policy
def test_prompts_of_one_length_share_a_batch(world: World, name: str) -> None:
    policy, references = world.policy(name), pictures()[:1]
    conds = [policy.encode(prompt, references) for prompt in ("a red dog", "one cat ?")]
    together = stack(policy, conds, 1)
    assert together is not None
    x = noise(policy, 2)
    with torch.no_grad():
        given = policy.velocity(x, SIGMA, together)
        alone = torch.cat([policy.velocity(x[i : i + 1], SIGMA, cond) for i, cond in enumerate(conds)])
    torch.testing.assert_close(given, alone, atol=1e-5, rtol=1e-5)
    longer = policy.encode("a very red dog", references)
    apart = stack(policy, [conds[0], longer], 1) is None
    assert apart == name.startswith("qwen")  # the others pad their text
    assert stack(policy, [conds[0], policy.encode("a red dog", pictures()[1:2])], 1) is None


@pytest.mark.parametrize("name", ["flux2", "qwen-2509", "qwen-2.1"])
def test_wrong_numbers_of_references(world: World, name: str) -> None:
    policy = world.policy(name)
    most = policy.config.max_references
    with pytest.raises(ValueError, match=rf"{most + 1} references given, but policy\.type=.* takes . to {most} "):
        policy.encode(PROMPT, [pictures()[0]] * (most + 1))
    if name != "qwen-2509":
        channels = policy.config.channels
        assert policy.encode(PROMPT, []).tensors["references"].shape == (1, 0, channels)
    else:
        with pytest.raises(ValueError, match=r"0 references given, but policy\.type=qwen-image-edit-plus takes 1 to 3"):
            policy.encode(PROMPT, [])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("flux2", (63, 200), r"63 x 200 pixels: FLUX\.2 takes sides of at least 64"),
        ("flux2", (100, 900), r"none over 8 times the other"),
        ("qwen-2509", (1000, 10), r"1000 x 10 pixels is too narrow.*reference_size"),
        ("qwen-2.1", (1000, 10), r"1000 x 10 pixels is too narrow.*reference_size"),
    ],
)
def test_odd_references_are_refused(world: World, name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        world.policy(name).encode(PROMPT, [Image.new("RGB", size)])
    assert "\n" not in str(caught.value)


@each_policy
def test_sizes_are_whole_tokens(world: World, name: str) -> None:
    config = type(world.policy(name)).Config
    multiple, below = (32, 480) if name == "qwen-2.1" else (16, 496)
    with pytest.raises(ValueError, match=f"given 500; this model needs a multiple of {multiple}: use {below} or 512"):
        config.model_validate({"model": "x", "height": 500})


@pytest.mark.parametrize("name", ["flux2", "klein", "qwen-2509", "qwen-2.1"])
def test_bad_models_are_refused_in_one_line(world: World, name: str, tmp_path: Path) -> None:
    policy = type(world.policy(name))
    other = world.folder("qwen-2509" if name == "flux2" else "flux2")
    for model, message in (
        (str(tmp_path / "absent" / "model"), "no such folder"),
        (str(tmp_path), r"has no model_index\.json; give one in diffusers' layout"),
        (
            str(other),
            r"policy\.model: .* holds a .*Pipeline, and policy\.type .* reads a .*; "
            r"use policy\.type=(flux2|qwen-image-edit-plus)",
        ),
        ("nobody/nothing", r"policy\.model: 'nobody/nothing' can't be loaded: .*hf download nobody/nothing"),
        ("mini", r"there is no embedded miniature of .*; policy\.type uno has one"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            policy.load(policy.Config(model=model), device=torch.device("cpu"), dtype=torch.float32)
        assert "\n" not in str(caught.value)


@each_policy
def test_an_adapter_starts_as_the_base(world: World, name: str) -> None:
    policy = world.policy(name)
    x, cond = noise(policy, 2), policy.encode(PROMPT, pictures()[:1])
    with torch.no_grad():
        before = policy.velocity(x, SIGMA, cond)
        attach(policy, LoraSettings(rank=2), seed=0)
        assert torch.equal(policy.velocity(x, SIGMA, cond), before)


@pytest.mark.parametrize("name", ["klein-base", "qwen-2509", "qwen-2.1"])
def test_two_forwards_of_one_velocity_train_under_ddp(world: World, name: str, tmp_path: Path) -> None:
    """Guidance, or a forward of text and references alone, calls the wrapped transformer twice before one backward."""
    policy = adapted(world.policy(name))
    x, cond = noise(policy, 2), policy.encode(PROMPT, pictures()[:1])
    policy.velocity(x, SIGMA, cond).square().mean().backward()
    trained = trainable_parameters(policy)
    alone = {key: p.grad for key, p in trained.items() if p.grad is not None}
    assert alone.keys() == trained.keys()
    for p in trained.values():
        p.grad = None
    with data_parallel(policy, tmp_path):
        policy.velocity(x, SIGMA, cond).square().mean().backward()
    for key, p in trained.items():
        assert p.grad is not None
        assert torch.equal(p.grad, alone[key]), key


def test_the_last_block_of_qwen_drops_its_text(world: World) -> None:
    """Why the default targets leave most of the text stream out."""
    policy = world.policy("qwen-2509")
    attach(policy, LoraSettings(rank=2, targets=(*policy.lora_targets, "txt_mlp.net.2")), seed=0)
    example = Example(key="1", prompt=PROMPT, references=pictures()[:1])
    with pytest.raises(AssertionError, match=r"no gradient reaches transformer_blocks\.1\.txt_mlp"):
        check_policy(policy, example)


def test_qwen_sees_images_in_two_dimensions(world: World) -> None:
    """Which diffusers' pipeline leaves out with transformers 5; then positions are counted in a row."""

    def positions(pipeline: Any, encode: Callable[[], Any]) -> Tensor | None:
        seen: list[Any] = []
        model = pipeline.text_encoder.model.language_model
        handle = model.register_forward_pre_hook(
            lambda _, args, given: seen.append(given["position_ids"]), with_kwargs=True
        )
        encode()
        handle.remove()
        first: Tensor | None = seen[0]
        return first

    policy, references = world.policy("qwen-2509"), pictures()[:1]
    ours = positions(policy._pipeline, lambda: policy.encode(PROMPT, references))
    assert ours is not None
    time, row, column = ours[:, 0]
    assert len({tuple(axis.tolist()) for axis in (time, row, column)}) == 3
    assert torch.equal(time[:9], torch.arange(9))
    bare = stock_pipeline(world.folder("qwen-2509"), told=False)
    assert positions(bare, lambda: bare.encode_prompt(PROMPT, list(references))) is None


@pytest.mark.parametrize(("name", "calls"), [("flux2", 2), ("klein-base", 3), ("qwen-2509", 4), ("qwen-2.1", 2)])
def test_text_encoders_run_once_a_prompt(world: World, name: str, calls: int) -> None:
    """[klein]'s negative is one for all prompts; Qwen's sees the references, so that each example has its own."""
    policy, seen = world.policy(name), []
    policy._pipeline.text_encoder.register_forward_hook(lambda *_: seen.append(1))
    conds = [policy.encode(prompt, pictures()[:1]) for prompt in ("a red dog", "a cat")]
    with torch.no_grad():
        for cond in conds:
            policy.velocity(noise(policy, 2), SIGMA, cond)
    assert len(seen) == calls
