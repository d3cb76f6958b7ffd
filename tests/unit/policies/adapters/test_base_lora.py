"""A LoRA beneath the trained one, the shared A of q, k and v, and FLUX.1-dev's full size on the meta device."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.policies.adapters.flux_keys import from_original, to_original
from customized_grpo.policies.adapters.hashes import update_hash
from customized_grpo.policies.adapters.lora import (
    adapter_state,
    attach,
    reference,
    save_adapter,
    trainable_parameters,
)
from customized_grpo.policies.adapters.lora_files import write_update
from customized_grpo.policies.adapters.lora_layers import attach_frozen
from customized_grpo.policies.adapters.lora_names import factors_at, places
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.adapters.low_rank import Factors, linear_shapes, scaled
from customized_grpo.policies.adapters.tensor_files import read_metadata
from customized_grpo.policies.adapters.tuning import load_tuned
from customized_grpo.policies.adapters.uno_lora import layers
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.policies.flux_loading import original_keys
from customized_grpo.testing import check_policy
from customized_grpo.types import Example
from frozen_weights import frozen_hash
from one_rank import data_parallel
from tiny import make_tiny_flux
from uno_tiny import uno_file

SIGMA = torch.tensor(0.7)
SHARED = LoraSettings(rank=4, targets=("uno",), qkv="shared")


@pytest.fixture(scope="session")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uno_file(tmp_path_factory.mktemp("base"))


def about(base: Path | None) -> dict[str, str]:
    """A header's recipe, as far as it is read."""
    return {"recipe": json.dumps({"policy": {"base_lora": None if base is None else {"path": str(base)}}})}


def load(folder: Path, base: Path | None, mode: str = "adapter", **changes: Any) -> UNO:
    section = None if base is None else {"path": str(base), "mode": mode}
    settings = {"height": 64, "width": 48, "max_sequence_length": 16, "min_references": 0}
    config = UNOConfig.model_validate({"model": str(folder), "base_lora": section, **settings, **changes})
    return UNO.load(config, device=torch.device("cpu"), dtype=torch.float32)


def moved(policy: UNO, settings: LoraSettings = SHARED) -> UNO:
    """With an adapter that is no longer its start."""
    attach(policy, settings, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return policy


def velocity(policy: UNO, *, grad: bool = False) -> Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        return policy.velocity(x, SIGMA, policy.encode("a red cube", []))


@pytest.mark.parametrize("mode", ["adapter", "fuse"])
@pytest.mark.parametrize("targets", [("uno",), None], ids=["uno's layers", "more layers"])
def test_the_base_keeps_its_lora(tiny_flux: Path, base_file: Path, mode: str, targets: tuple[str, ...] | None) -> None:
    """Before training, while training, and in the KL's reference: with UNO's LoRA, which never moves."""
    bare, policy = load(tiny_flux, None), load(tiny_flux, base_file, mode)
    base = velocity(policy)
    assert (base - velocity(bare)).abs().max() > 1e-2
    frozen = frozen_hash(policy.transformer)
    attach(policy, LoraSettings(rank=2, targets=targets), seed=0)
    assert torch.equal(velocity(policy), base)
    assert all(".default." in name for name in trainable_parameters(policy))
    optimizer = torch.optim.SGD(trainable_parameters(policy).values(), lr=1.0)
    for _ in range(2):
        velocity(policy, grad=True).square().mean().backward()
        optimizer.step()
    assert (velocity(policy) - base).abs().max() > 1e-5
    with reference(policy):
        assert torch.equal(velocity(policy), base)
    assert (velocity(policy) - base).abs().max() > 1e-5
    assert {name for name, p in policy.transformer.named_parameters() if p.requires_grad} == set(
        trainable_parameters(policy)
    )
    assert frozen_hash(policy.transformer) == frozen


def test_conformance_with_a_lora_beneath(tiny_flux: Path, base_file: Path) -> None:
    check_policy(moved(load(tiny_flux, base_file)), Example(key="1", prompt="a red cube", references=()))


@pytest.mark.parametrize("mode", ["adapter", "fuse"])
def test_a_checkpoint_holds_ours_alone(tiny_flux: Path, base_file: Path, tmp_path: Path, mode: str) -> None:
    """``load_lora_weights`` on the base with UNO's LoRA gives the same velocity, and so does loading it here."""
    policy = moved(load(tiny_flux, base_file, mode))
    save_adapter(policy, tmp_path, {})
    stock = load(tiny_flux, base_file, "fuse")
    FluxPipeline.from_pretrained(tiny_flux, transformer=stock.transformer).load_lora_weights(tmp_path)
    torch.testing.assert_close(velocity(stock), velocity(policy), rtol=0, atol=1e-5)
    other = load(tiny_flux, base_file, mode)
    attach(other, SHARED.model_copy(update={"path": str(tmp_path)}), seed=9)
    assert torch.equal(velocity(other), velocity(policy))
    by_its_own_settings = load(tiny_flux, base_file, mode)
    load_tuned(by_its_own_settings, tmp_path)
    assert torch.equal(velocity(by_its_own_settings), velocity(policy))


def test_a_shared_a_is_one_parameter(tiny_flux: Path) -> None:
    """Forward and gradient of a LoRA on the fused projection: the gradient is the sum of the three separate ones."""
    shared = moved(load(tiny_flux, None))
    apart = load(tiny_flux, None)
    attach(apart, LoraSettings(rank=4, targets=("uno",)), seed=0)
    with torch.no_grad():
        state = adapter_state(shared.transformer)
        for name, parameter in trainable_parameters(apart).items():
            parameter.copy_(state[name.replace(".default.", ".")])
    for policy in (shared, apart):
        velocity(policy, grad=True).square().mean().backward()
    assert torch.equal(velocity(shared), velocity(apart))
    one, three = trainable_parameters(shared), trainable_parameters(apart)
    assert len(one) == len(three) - 2 * 3  # two streams of a double block and a single block share one A of three
    prefix = "transformer_blocks.0.attn."
    parts = [three[f"{prefix}{name}.lora_A.default.weight"].grad for name in ("to_q", "to_k", "to_v")]
    total = one[f"{prefix}to_q.lora_A.default.weight"].grad
    assert total is not None
    torch.testing.assert_close(total, sum(part for part in parts if part is not None), rtol=1e-5, atol=1e-8)


def test_separate_weights_do_not_load_into_a_shared_a(tiny_flux: Path, tmp_path: Path) -> None:
    save_adapter(moved(load(tiny_flux, None), LoraSettings(rank=4, targets=("uno",))), tmp_path, {})
    policy = load(tiny_flux, None)
    with pytest.raises(ValueError, match=r"A of its own.*set policy\.lora\.qkv=separate"):
        attach(policy, SHARED.model_copy(update={"path": str(tmp_path)}), seed=0)


def test_sharing_needs_all_three(tiny_flux: Path) -> None:
    settings = LoraSettings(rank=4, targets=("to_q", "to_out.0"), qkv="shared")
    with pytest.raises(ValueError, match=r"policy\.lora\.qkv: 'shared' needs to_q, to_k, to_v"):
        attach(load(tiny_flux, None), settings, seed=0)


def test_an_adapter_of_another_base_is_refused(tiny_flux: Path, tmp_path: Path) -> None:
    save_adapter(moved(load(tiny_flux, None)), tmp_path / "a", {"base_model": "first"})
    second = load(make_tiny_flux(tmp_path / "second", seed=1), None)
    with pytest.raises(ValueError, match=r"another base \('first', hash \w{16}\).*policy\.model") as caught:
        attach(second, SHARED.model_copy(update={"path": str(tmp_path / "a")}), seed=0)
    assert "\n" not in str(caught.value)


def start(policy: UNO, adapter: Path) -> None:
    """``policy.lora.path``."""
    attach(policy, SHARED.model_copy(update={"path": str(adapter)}), seed=0)


@pytest.mark.parametrize("load_it", [start, load_tuned], ids=["policy.lora.path", "--lora"])
def test_an_adapter_with_another_lora_beneath_is_refused(
    tiny_flux: Path, base_file: Path, tmp_path: Path, load_it: Callable[[UNO, Path], None]
) -> None:
    """Biases and norms are the same with and without it, so the base's own hash can't tell."""
    save_adapter(moved(load(tiny_flux, base_file)), tmp_path / "on-uno", about(base_file))
    save_adapter(moved(load(tiny_flux, None)), tmp_path / "bare", about(None))
    (tmp_path / "other").mkdir()
    other = uno_file(tmp_path / "other", seed=6)
    half = {"path": str(base_file), "scale": 0.5}
    for policy in (load(tiny_flux, None), load(tiny_flux, other), load(tiny_flux, None, base_lora=half)):
        with pytest.raises(ValueError, match=r"with a LoRA beneath \('.*dit_lora.safetensors', .*; give that LoRA as"):
            load_it(policy, tmp_path / "on-uno")
    with pytest.raises(ValueError, match=r"without policy\.base_lora, .* has one .*; use policy\.base_lora=null"):
        load_it(load(tiny_flux, base_file), tmp_path / "bare")
    load_it(load(tiny_flux, base_file, "fuse"), tmp_path / "on-uno")  # another way to the same base
    load_it(load(tiny_flux, None), tmp_path / "bare")


def test_a_base_lora_of_another_base_is_refused(tiny_flux: Path, base_file: Path, tmp_path: Path) -> None:
    save_adapter(moved(load(tiny_flux, base_file)), tmp_path / "on-uno", {})
    save_adapter(moved(load(make_tiny_flux(tmp_path / "second", seed=1), None)), tmp_path / "second-lora", {})
    for file, said in (("on-uno", "trained with a LoRA beneath"), ("second-lora", "trained on another base")):
        with pytest.raises(ValueError, match=rf"^policy\.base_lora: .*{said}"):
            load(tiny_flux, tmp_path / file)


def test_an_adapter_of_before_loads_and_what_its_recipe_tells_is_said(
    tiny_flux: Path, base_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, base in (("on-uno", base_file), ("bare", None)):
        save_adapter(moved(load(tiny_flux, base)), tmp_path / name, about(base))
        file = tmp_path / name / "pytorch_lora_weights.safetensors"
        header = read_metadata(file, "LoRA")
        save_file(load_file(file), file, {key: value for key, value in header.items() if key != "base_lora"})
    for name, base in (("on-uno", base_file), ("bare", None)):
        load_tuned(load(tiny_flux, base), tmp_path / name)
    assert "policy.base_lora" not in capsys.readouterr().err
    load_tuned(load(tiny_flux, None), tmp_path / "on-uno")
    assert f"had policy.base_lora {str(base_file)!r}, and this policy has none" in capsys.readouterr().err
    load_tuned(load(tiny_flux, base_file), tmp_path / "bare")
    assert "had no policy.base_lora, and this policy has one" in capsys.readouterr().err


def test_a_loras_identity_is_that_of_its_values(tiny_flux: Path, base_file: Path, tmp_path: Path) -> None:
    """Not of its file: another format, dtype or place of the scale is the same LoRA."""
    transformer = load(tiny_flux, None).transformer
    update = read_lora(base_file).update(transformer)
    half = {name: Factors(one.a, one.b * 0.5, one.alpha * 2) for name, one in update.items()}
    for number, given in enumerate((update, half)):
        write_update(tmp_path / f"{number}.safetensors", given, {})
        assert update_hash(read_lora(tmp_path / f"{number}.safetensors").update(transformer)) == update_hash(update)
    assert update_hash(scaled(update, 0.5)) != update_hash(update)
    name = next(iter(update))
    assert update_hash({**update, name: Factors(update[name].a * 1.1, update[name].b)}) != update_hash(update)


@pytest.mark.parametrize("mode", ["adapter", "fuse"])
def test_a_trained_adapter_may_lie_beneath(tiny_flux: Path, tmp_path: Path, mode: str) -> None:
    """Any LoRA in diffusers' format can be a base's; its alpha counts."""
    first = moved(load(tiny_flux, None), LoraSettings(rank=4, alpha=6))
    save_adapter(first, tmp_path, {})
    torch.testing.assert_close(velocity(load(tiny_flux, tmp_path, mode)), velocity(first), rtol=0, atol=1e-5)


DEV = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
"""FLUX.1-dev's and FLUX.1-Kontext-dev's transformer/config.json; they are the same."""


def test_every_key_of_the_full_size_maps() -> None:
    """UNO's rank-512 LoRA and the original weights, names and shapes, on the meta device: all map, none is left."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**DEV)
        names = {f"{place}.{side}.weight" for place in layers(19, 38) for side in ("down", "up")}
        assert len(names) == 2 * (19 * 4 + 38 * 2)
        state = {
            f"{place}.{side}.weight": torch.empty(
                (512, 15360 if place.endswith(".proj_lora") else 3072) if side == "down" else (3072 * len(modules), 512)
            )
            for place, modules in layers(19, 38).items()
            for side in ("down", "up")
        }
        known, sizes = places(transformer), linear_shapes(transformer)
        update = {}
        for place in layers(19, 38):
            one = Factors(state[f"{place}.down.weight"], state[f"{place}.up.weight"])
            update |= factors_at(known[place.replace(".", "_")], one, sizes)
        assert len(update) == 19 * 8 + 38 * 4
        assert sum(tensor.numel() for tensor in state.values()) == 956_301_312

        shapes = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
        keys = original_keys(transformer)
        original = to_original(transformer.state_dict(), keys)
        assert len(original) == 780
        again = from_original(original, keys, shapes)
        assert {name: tensor.shape for name, tensor in again.items()} == shapes

        attach_frozen(transformer, update, device=torch.device("meta"), dtype=torch.bfloat16)
    adapted = {name.split(".lora_")[0] for name, _ in transformer.named_parameters() if ".lora_" in name}
    assert adapted == set(update)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_through_ddp(tiny_flux: Path, base_file: Path, tmp_path: Path, gradient_checkpointing: bool) -> None:
    """A shared A above a frozen adapter, wrapped for data parallelism (one gloo process): the same gradients."""
    gradients = []
    for wrapped in (False, True):
        policy = moved(load(tiny_flux, base_file, gradient_checkpointing=gradient_checkpointing))
        with data_parallel(policy, tmp_path) if wrapped else contextlib.nullcontext():
            velocity(policy, grad=True).square().mean().backward()
        gradients.append({name: p.grad for name, p in trainable_parameters(policy).items()})
    plain, parallel = gradients
    assert plain.keys() == parallel.keys()
    for name, gradient in plain.items():
        assert gradient is not None
        torch.testing.assert_close(parallel[name], gradient, rtol=0, atol=0)
