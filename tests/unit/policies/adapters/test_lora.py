"""The adapter: first weights, targets, files that diffusers loads to the same velocity, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import FluxPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from customized_grpo.policies.adapters.lora import (
    WEIGHTS_NAME,
    adapter_state,
    attach,
    reference,
    save_adapter,
    trainable_parameters,
)
from customized_grpo.policies.adapters.lora_files import find_adapter
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.adapters.tuning import load_tuned
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.flux import UNO
from frozen_weights import frozen_hash
from one_rank import data_parallel
from tiny import make_tiny_flux, tiny_policy

SIGMA = torch.tensor(0.7)


def trained(folder: Path, settings: LoraSettings | None = None, dtype: torch.dtype = torch.float32) -> UNO:
    """A policy whose adapter is no longer its start."""
    policy = tiny_policy(folder, dtype)
    attach(policy, settings or LoraSettings(rank=4), seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return policy


def velocity(policy: UNO) -> Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.velocity(x, SIGMA, policy.encode("a red cube", [Image.linear_gradient("L")]))


def test_the_first_weights_leave_the_base_as_it_is(tiny_flux: Path) -> None:
    policy = tiny_policy(tiny_flux)
    before = velocity(policy)
    attach(policy, LoraSettings(rank=4), seed=0)
    assert torch.equal(velocity(policy), before)
    named = trainable_parameters(policy)
    assert all(bool((p == 0).all()) == (".lora_B." in name) for name, p in named.items())


@pytest.mark.parametrize(("init", "std"), [("gaussian", 1 / 4), ("kaiming", 64**-0.5 * 3**-0.5)])
def test_the_first_weights_are_a_function_of_the_seed_alone(tiny_flux: Path, init: str, std: float) -> None:
    states = []
    for seed, global_seed in ((0, 5), (0, 6), (1, 5)):
        policy = tiny_policy(tiny_flux)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        attach(policy, LoraSettings.model_validate({"rank": 4, "init": init}), seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(adapter_state(policy.transformer))
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == (".lora_B." in name) for name in first)
    narrow = torch.cat([t.flatten() for name, t in first.items() if ".lora_A." in name and t.shape[1] == 64])
    assert float(narrow.std()) == pytest.approx(std, rel=0.05)


def test_default_targets_are_the_blocks_and_not_the_last_layer(tiny_flux: Path) -> None:
    policy = trained(tiny_flux)
    modules = {name.split(".lora_")[0] for name in trainable_parameters(policy)}
    double = "transformer_blocks.0."
    single = "single_transformer_blocks.0."
    attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    assert modules == {
        *(f"{double}attn.{name}" for name in attention),
        *(f"{double}{stream}.net.{layer}" for stream in ("ff", "ff_context") for layer in ("0.proj", "2")),
        *(f"{single}{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")),
    }


def test_a_target_is_a_name_its_end_or_an_expression(tiny_flux: Path) -> None:
    policy = tiny_policy(tiny_flux)
    attach(policy, LoraSettings(rank=2, targets=("to_q", r"single_\w+\.0\.proj_(mlp|out)", "norm_out.linear")), 0)
    assert {name.split(".lora_")[0] for name in trainable_parameters(policy)} == {
        "transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
        "norm_out.linear",
    }


@pytest.mark.parametrize(
    ("target", "message"),
    [("to_qq", r"no linear layer matches 'to_qq'.*to_q"), ("to_(q", "not a regular expression")],
)
def test_bad_targets_are_refused(policy: UNO, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(policy, LoraSettings(targets=("to_k", target)), seed=0)


def test_the_adapter_is_float32_on_a_bf16_base(tiny_flux: Path) -> None:
    policy = trained(tiny_flux, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in policy.transformer.named_parameters()}
    assert {d for name, d in dtypes.items() if ".lora_" in name} == {torch.float32}
    assert {d for name, d in dtypes.items() if ".lora_" not in name} == {torch.bfloat16}
    assert velocity(policy).dtype == torch.float32


class CastBytes(TorchDispatchMode):
    """Counts what is read and written to change a dtype."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += out.nbytes + args[0].nbytes if func is torch.ops.aten._to_copy.default else 0
        return out


def test_half_inputs_of_the_adapter_are_not_made_float32_first(tiny_flux: Path) -> None:
    """As peft does by default: the same bits in forward and gradient, by more than half of the bytes more."""
    found = []
    for casting in (True, False):
        policy = tiny_policy(tiny_flux, torch.bfloat16)
        attach(policy, LoraSettings(rank=4, targets=("uno",)), seed=0)
        draw = torch.Generator().manual_seed(0)
        parameters = trainable_parameters(policy)
        for one in parameters.values():
            one.data = torch.randn(one.shape, generator=draw)
        for module in policy.transformer.modules():
            if isinstance(module, BaseTunerLayer):
                assert not module.cast_input_dtype_enabled
                module.cast_input_dtype_enabled = casting
                del module.forward  # that of lora_products
        x = torch.randn(3, *policy.latent_shape, generator=draw).bfloat16()
        cond = policy.encode("a dog", [Image.new("RGB", (64, 64), "red")])
        with CastBytes() as casts:
            velocity = policy.velocity(x, torch.tensor([0.7, 0.4, 0.1]), cond)
            velocity.square().sum().backward()
        found.append((casts.total, velocity, *(one.grad for one in parameters.values())))
    (more, *expected), (fewer, *tensors) = found
    assert more > 1.5 * fewer
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_only_the_adapter_is_trained(tiny_flux: Path) -> None:
    policy = trained(tiny_flux)
    grads = {name for name, p in policy.transformer.named_parameters() if p.requires_grad}
    assert grads == set(trainable_parameters(policy))


@pytest.mark.parametrize("alpha", [None, 4.0, 10.0, 2.5])
def test_flux_pipeline_loads_it_to_the_same_velocity(tiny_flux: Path, tmp_path: Path, alpha: float | None) -> None:
    policy = trained(tiny_flux, LoraSettings(rank=4, alpha=alpha))
    save_adapter(policy, tmp_path, {"base": "tiny"})

    stock = tiny_policy(tiny_flux)
    base = velocity(stock)
    pipeline = FluxPipeline.from_pretrained(tiny_flux, transformer=stock.transformer)
    pipeline.load_lora_weights(tmp_path)
    loaded = velocity(stock)
    assert torch.equal(loaded, velocity(policy))
    assert (loaded - base).abs().max() > 1e-2


def test_a_mixed_target_adapter_loads_into_flux_pipeline(tiny_flux: Path, tmp_path: Path) -> None:
    """Top-level and block layers of the same name, where a suffix alone would hit too much."""
    policy = trained(tiny_flux, LoraSettings(rank=4, alpha=8, targets=(r"proj_out", "x_embedder")))
    save_adapter(policy, tmp_path, {})
    stock = tiny_policy(tiny_flux)
    FluxPipeline.from_pretrained(tiny_flux, transformer=stock.transformer).load_lora_weights(tmp_path)
    assert torch.equal(velocity(stock), velocity(policy))


def test_save_then_load_is_exact(tiny_flux: Path, tmp_path: Path) -> None:
    policy = trained(tiny_flux)
    path = save_adapter(policy, tmp_path / "new" / "folder", {})
    other = tiny_policy(tiny_flux)
    attach(other, LoraSettings(rank=4, path=str(path)), seed=9)
    assert torch.equal(velocity(other), velocity(policy))
    assert {p.requires_grad for p in trainable_parameters(other).values()} == {True}


def test_attach_starts_from_a_path(tiny_flux: Path, tmp_path: Path) -> None:
    policy = trained(tiny_flux)
    save_adapter(policy, tmp_path, {})
    other = tiny_policy(tiny_flux)
    attach(other, LoraSettings(rank=4, path=str(tmp_path)), seed=9)
    assert torch.equal(velocity(other), velocity(policy))


@pytest.mark.parametrize("targets", [("to_q", "proj_out"), ("^proj_out", r"transformer_blocks\.0\.attn\.to_k")])
def test_a_file_knows_its_own_settings(tiny_flux: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    policy = trained(tiny_flux, LoraSettings(rank=3, alpha=6, targets=targets))
    file = read_lora(save_adapter(policy, tmp_path, {"base": "tiny"}))
    assert {(one.rank, one.alpha) for one in file.factors.values()} == {(3, 6.0)}
    assert (file.metadata["base"], file.tool, file.aside) == ("tiny", "diffusers", {})
    other = tiny_policy(tiny_flux)
    load_tuned(other, tmp_path)
    assert torch.equal(velocity(other), velocity(policy))
    assert len(trainable_parameters(other)) == 2 * len(file.factors)


def test_the_same_weights_give_the_same_bytes(tiny_flux: Path, tmp_path: Path) -> None:
    metadata = {name: f"value of {name}" for name in ("base", "hash", "recipe", "step", "version", "time")}
    policies = [trained(tiny_flux), trained(tiny_flux)]
    written = set()
    for run in range(6):
        header = dict(sorted(metadata.items(), reverse=run % 2 == 0))
        written.add(save_adapter(policies[run % 2], tmp_path / str(run), header).read_bytes())
    assert len(written) == 1


def test_the_header_says_what_it_is(tiny_flux: Path, tmp_path: Path) -> None:
    path = save_adapter(trained(tiny_flux, LoraSettings(rank=4, alpha=8)), tmp_path, {"base_hash": "abc"})
    with safe_open(str(path), framework="pt") as opened:
        metadata = opened.metadata()
        keys = sorted(opened.keys())
    assert metadata["base_hash"] == "abc"
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (4, 8)
    assert keys == sorted(safetensors.torch.load_file(path))
    assert all(key.startswith("transformer.") for key in keys)


def test_saved_tensors_are_copies(tiny_flux: Path) -> None:
    policy = trained(tiny_flux)
    state = adapter_state(policy.transformer)
    before = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(1.0)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_missing_and_surplus_keys_are_named(tiny_flux: Path, tmp_path: Path) -> None:
    saved = save_adapter(trained(tiny_flux, LoraSettings(rank=4, targets=("to_q", "to_k"))), tmp_path, {})
    other = tiny_policy(tiny_flux)
    with pytest.raises(ValueError, match=r"missing: \S*to_v.*surplus: \S*to_k"):
        attach(other, LoraSettings(rank=4, targets=("to_q", "to_v"), path=str(saved)), seed=0)


@pytest.mark.parametrize("rank", [4, 8])
def test_another_rank_or_scale_is_refused(tiny_flux: Path, tmp_path: Path, rank: int) -> None:
    saved = save_adapter(trained(tiny_flux, LoraSettings(rank=4)), tmp_path, {})
    other = tiny_policy(tiny_flux)
    with pytest.raises(ValueError, match=r"policy\.lora\.rank=4 policy\.lora\.alpha=4"):
        attach(other, LoraSettings(rank=rank, alpha=8, path=str(saved)), seed=0)


def test_foreign_and_damaged_files_are_refused(policy: UNO, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"double_blocks.0.processor.qkv_lora1.down.weight": torch.zeros(2, 2)}, foreign)
    with pytest.raises(ValueError, match=r"not whole; the other factor is missing of double_blocks\.0"):
        attach(policy, LoraSettings(rank=4, path=str(foreign)), seed=0)
    short = tmp_path / "short.safetensors"
    short.write_bytes(foreign.read_bytes()[:40])
    with pytest.raises(ValueError, match="can't be read"):
        attach(policy, LoraSettings(rank=4, path=str(short)), seed=0)


def test_a_run_stands_for_its_newest_complete_checkpoint(tiny_flux: Path, tmp_path: Path) -> None:
    policy = trained(tiny_flux)
    for name, complete in (
        ("step-000009", True),
        ("step-000100", True),
        ("step-000200", False),
        ("step-000300.tmp", True),
    ):
        folder = tmp_path / "checkpoints" / name
        save_adapter(policy, folder, {})
        if complete:
            (folder / "manifest.json").write_text("{}")
    newest = tmp_path / "checkpoints" / "step-000100" / WEIGHTS_NAME
    assert find_adapter(tmp_path) == find_adapter(newest.parent) == find_adapter(newest) == newest


@pytest.mark.parametrize("what", ["nothing", "empty", "text.txt"])
def test_no_adapter_is_said_so(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no weights")
    with pytest.raises(ValueError, match=r"no adapter at .*; give a \.safetensors file"):
        find_adapter(tmp_path / what)


def test_reference_is_the_base(tiny_flux: Path) -> None:
    policy = trained(tiny_flux)
    with reference(policy):
        base = velocity(policy)
    assert torch.equal(base, velocity(tiny_policy(tiny_flux)))
    assert not torch.equal(base, velocity(policy))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_reference_between_forward_and_backward_keeps_the_gradient(
    tiny_flux: Path, gradient_checkpointing: bool
) -> None:
    """The KL's order of events: velocity with gradient, the base's velocity, then backward."""
    gradients = []
    for between in (False, True):
        policy = tiny_policy(tiny_flux, gradient_checkpointing=gradient_checkpointing)
        attach(policy, LoraSettings(rank=4), seed=0)
        x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
        cond = policy.encode("a red cube", [])
        output = policy.velocity(x, SIGMA, cond)
        if between:
            with torch.no_grad(), reference(policy):
                policy.velocity(x, SIGMA, cond)
        output.square().mean().backward()
        gradients.append({name: p.grad for name, p in trainable_parameters(policy).items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name])


def test_reference_restores_after_an_error(tiny_flux: Path) -> None:
    policy = trained(tiny_flux)
    before = velocity(policy)
    with pytest.raises(RuntimeError, match="stop"), reference(policy):
        raise RuntimeError("stop")
    assert torch.equal(velocity(policy), before)


def test_training_moves_the_adapter_and_nothing_else(tiny_flux: Path) -> None:
    policy = tiny_policy(tiny_flux)
    bare = frozen_hash(policy.transformer)
    attach(policy, LoraSettings(rank=4), seed=0)
    assert frozen_hash(policy.transformer) == bare
    start = adapter_state(policy.transformer)
    optimizer = torch.optim.AdamW(trainable_parameters(policy).values(), lr=1e-2)
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = policy.encode("a red cube", [])
    for _ in range(3):
        policy.velocity(x, SIGMA, cond).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    end = adapter_state(policy.transformer)
    assert all(not torch.equal(start[name], end[name]) for name in start)
    assert frozen_hash(policy.transformer) == bare


def test_the_hash_sees_every_weight(tiny_flux: Path, tmp_path: Path) -> None:
    policy = tiny_policy(tiny_flux)
    before = frozen_hash(policy.transformer)
    assert before != frozen_hash(tiny_policy(make_tiny_flux(tmp_path / "other", seed=1)).transformer)
    with torch.no_grad():
        policy.transformer.proj_out.bias[3] += 1e-3
    assert frozen_hash(policy.transformer) != before


def test_all_works_through_ddp(tiny_flux: Path, tmp_path: Path) -> None:
    """Wrapped for data parallelism (one gloo process): the same velocity, also under bf16, files and base."""
    for dtype in (torch.float32, torch.bfloat16):
        policy = trained(tiny_flux, dtype=dtype)
        bare = velocity(policy)
        plain = save_adapter(policy, tmp_path / "plain", {}).read_bytes()
        with reference(policy):
            base = velocity(policy)
        (tmp_path / str(dtype)).mkdir()
        with data_parallel(policy, tmp_path / str(dtype)):
            assert torch.equal(velocity(policy), bare)
            assert save_adapter(policy, tmp_path / "wrapped", {}).read_bytes() == plain
            with reference(policy):
                assert torch.equal(velocity(policy), base)
            x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
            policy.velocity(x, SIGMA, policy.encode("a", [])).square().mean().backward()
            assert all(p.grad is not None for p in trainable_parameters(policy).values())
