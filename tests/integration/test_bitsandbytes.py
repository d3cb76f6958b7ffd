"""Quantised weights and 8-bit moments, on bitsandbytes' CPU back end.

diffusers loads bitsandbytes weights on GPUs alone, so these tests lift its check and keep everything on the CPU; the
layers, the adapters on them, their gradients and the optimizer are the real ones.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo.memory.footprint import shapes
from customized_grpo.memory.parameters import optimizer_bytes, weight_bytes
from customized_grpo.policies import acceleration
from customized_grpo.policies.adapters import lora
from customized_grpo.policies.base import LoraSettings, load_policy
from customized_grpo.policies.flux import UNO
from customized_grpo.testing import check_policy
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.types import Example
from frozen_weights import frozen_hash
from runs import checkpoint_bytes, metrics_of, tiny_recipe

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -r requirements-dev.txt")
BITS = ["8bit", "4bit"]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.quantizers.bitsandbytes import bnb_quantizer

    for quantizer in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, given: given or {"": "cpu"})
    monkeypatch.setattr(acceleration, "_QUANTIZED_ON", ("cpu",))
    # Some CPUs repack 4-bit weights in the first forward without gradient, after which there is no gradient any more.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def test_settings() -> None:
    four, eight = (acceleration.bitsandbytes_config(bits, torch.bfloat16) for bits in ("4bit", "8bit"))
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert eight.llm_int8_threshold == 0, "outlier columns depend on the rest of a batch"
    assert four.llm_int8_skip_modules == eight.llm_int8_skip_modules == list(acceleration.NOT_QUANTIZED)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("quantization", BITS)
def test_a_quantised_policy(tiny_world: Path, tmp_path: Path, quantization: Any) -> None:
    """It conforms, is near the whole one, and takes as much memory as is estimated."""
    spec = tiny_recipe(tiny_world, tmp_path / "run", policy__quantization=quantization, run__precision="bf16").policy
    cpu, reference = torch.device("cpu"), Image.linear_gradient("L").convert("RGB")
    policy = load_policy(spec, device=cpu, precision="bf16")
    whole = load_policy(spec.model_copy(update={"quantization": "none"}), device=cpu, precision="bf16")
    assert acceleration.is_quantized(policy.transformer)
    assert not acceleration.is_quantized(whole.transformer)
    held = sum(one.nbytes for one in policy.transformer.parameters())
    for module in policy.transformer.modules():
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            held += module.weight.SCB.nbytes
        elif isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            tables = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            held += sum(table.nbytes for table in tables)
    bare = shapes(str(tiny_world / "flux"), UNO.encoders).transformer
    assert weight_bytes(bare, quantization, 2) == held
    x = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    cond = whole.encode("a red dog", [reference])
    with torch.no_grad():
        near, exact = (one.velocity(x, torch.tensor(0.7), cond) for one in (policy, whole))
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.05
    lora.attach(policy, LoraSettings(rank=4), seed=0)
    check_policy(policy, Example(key="one", prompt="a red dog", references=(reference,)))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("quantization", BITS)
def test_a_folder_that_is_quantised_already(tiny_world: Path, tmp_path: Path, quantization: Any) -> None:
    """Its absmax, codes and scales are no surplus."""
    spec = tiny_recipe(tiny_world, tmp_path / "run", policy__quantization=quantization, run__precision="bf16").policy
    cpu, folder = torch.device("cpu"), tmp_path / "quantised"
    policy = load_policy(spec, device=cpu, precision="bf16")
    shutil.copytree(tiny_world / "flux", folder, ignore=shutil.ignore_patterns("transformer"))
    policy.transformer.save_pretrained(folder / "transformer")
    again = spec.model_copy(update={"quantization": "none", "model": str(folder)})
    found = load_policy(again, device=cpu, precision="bf16")
    assert acceleration.is_quantized(found.transformer)
    assert frozen_hash(found.transformer) == frozen_hash(policy.transformer)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("quantization", BITS)
def test_a_run_on_a_quantised_base(tiny_world: Path, tmp_path: Path, quantization: Any) -> None:
    """Rollout and replay agree, and the quantised weights stay as they are."""
    recipe = tiny_recipe(
        tiny_world, tmp_path / "run", policy__quantization=quantization, run__precision="bf16", train__steps=2,
        train__optimizer="adamw_8bit",
    )  # fmt: skip
    trainer = Trainer(build(recipe))
    transformer = trainer.parts.policy.transformer
    frozen, start = frozen_hash(transformer), lora.adapter_state(transformer)
    trainer.run()
    assert frozen_hash(transformer) == frozen
    moved = lora.adapter_state(transformer)
    assert all(not torch.equal(moved[name], start[name]) for name in moved if ".lora_B." in name)
    assert [row["ratio/max_abs_log_first"] for row in metrics_of(tmp_path / "run")] == [0.0, 0.0]


def test_a_run_with_8_bit_moments_resumes_exactly(tiny_world: Path, tmp_path: Path) -> None:
    changes = {"train__optimizer": "adamw_8bit", "policy__lora": {"rank": 32}, "train__checkpoint_every": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer = Trainer(build(tiny_recipe(tiny_world, whole, **changes)))
    trainer.run()
    sizes = [one.numel() for one in trainer.parts.parameters.values()]
    assert min(sizes) < 4096 <= max(sizes), "both kinds of state should be there"
    state: Any = trainer.parts.optimizer.optimizer.state
    moments = sum(value.nbytes for entries in state.values() for name, value in entries.items() if name != "step")
    assert optimizer_bytes(sizes, "adamw_8bit") == moments
    Trainer(build(tiny_recipe(tiny_world, parts, **changes | {"train__steps": 2}))).run()
    Trainer(build(tiny_recipe(tiny_world, parts, **changes, run__resume="latest"))).run()
    assert checkpoint_bytes(whole, 4) == checkpoint_bytes(parts, 4)
