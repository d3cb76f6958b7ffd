"""Quantisation, attention backends and compiled blocks: what is refused, and what is handed to the libraries."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models import attention_dispatch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from customized_grpo.policies import acceleration
from customized_grpo.policies.acceleration import apply, transformer_options
from customized_grpo.policies.base import load_policy
from customized_grpo.policies.flux import UNOConfig
from customized_grpo.recipe.config import EvaluateRecipe, Recipe, Train
from customized_grpo.training.optimizers import build_optimizer
from runs import tiny_dict

CPU = torch.device("cpu")


def spec_of(folder: Path, **changes: Any) -> UNOConfig:
    given = {
        "model": str(folder),
        "height": 32,
        "width": 32,
        "max_sequence_length": 16,
        "reference_size": 32,
        "min_references": 0,
    }
    return UNOConfig.model_validate(given | changes)


def test_nothing_is_on_by_default(tiny_flux: Path) -> None:
    spec = spec_of(tiny_flux)
    assert (spec.quantization, spec.attention, spec.compile) == ("none", None, False)
    assert Train().optimizer == "adamw"
    assert transformer_options("none", torch.float32, CPU) == {}
    assert type(build_optimizer([nn.Parameter(torch.zeros(2))], Train())) is torch.optim.AdamW


def test_quantised_weights_need_a_gpu_and_a_library(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"policy.quantization: 4bit needs a GPU, and this runs on cpu"):
        load_policy(spec_of(tiny_flux, quantization="4bit"), device=CPU, precision="bf16")
    monkeypatch.setattr(acceleration, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"policy.quantization: 8bit needs bitsandbytes: pip install"):
        transformer_options("8bit", torch.bfloat16, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"train.optimizer: adamw_8bit needs bitsandbytes: pip install"):
        build_optimizer([nn.Parameter(torch.zeros(2))], Train(optimizer="adamw_8bit"))


def test_encoders_need_no_quantisation(tiny_flux: Path) -> None:
    """A cache can be made on a machine that the transformer doesn't fit."""
    spec = spec_of(tiny_flux, quantization="4bit")
    policy = load_policy(spec, device=CPU, precision="bf16", parts="encoders")
    assert policy.encode("a dog", [Image.new("RGB", (32, 32))]).tensors["text"].dtype == torch.bfloat16


def test_a_policy_that_ignores_quantisation_is_found_out() -> None:
    with pytest.raises(ValueError, match=r"given '4bit', but this policy doesn't read it"):
        apply(nn.Linear(2, 2), CPU, quantization="4bit", attention=None, compile_blocks=False)


@pytest.mark.parametrize("model", [Recipe, EvaluateRecipe])
def test_quantised_weights_with_float32_are_refused(model: Any, tmp_path: Path) -> None:
    given = tiny_dict(tmp_path, tmp_path / "run", policy__quantization="8bit")
    if model is EvaluateRecipe:
        metrics = {"bright": {"type": "runs:Brightness"}}
        given = {name: given[name] for name in ("run", "policy")}
        given["evaluate"] = {"data": {"type": "manifest", "path": "x.jsonl"}, "metrics": metrics}
    with pytest.raises(ValidationError, match=r"run.precision=no asks for float32; use run.precision=bf16"):
        model.model_validate(given)
    given["run"]["precision"] = "bf16"
    assert model.model_validate(given).policy.quantization == "8bit"


def test_attention_backends_are_diffusers_own(tiny_flux: Path) -> None:
    with pytest.raises(ValidationError, match=r"given 'natve'; did you mean 'native'\? allowed: flash, "):
        spec_of(tiny_flux, attention="natve")
    x = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for name in (None, "native", "_native_math", None):
        policy = load_policy(spec_of(tiny_flux, attention=name), device=CPU, precision="no")
        with torch.no_grad():
            found.append(policy.velocity(x, torch.tensor(0.7), policy.encode("a dog", ())))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[3]), "a backend reaches other policies of the process"
    assert not torch.equal(found[0], found[2]), "the backend was not used"
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize("name", ["flash", "sage", "xformers"])
def test_attention_that_cannot_run_here_is_refused(tiny_flux: Path, name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("some of them can run on this machine")
    with pytest.raises(ValueError, match=rf"policy.attention: '{name}' can't be used here \(.+\); use"):
        load_policy(spec_of(tiny_flux, attention=name), device=CPU, precision="no")


def test_attention_without_a_gradient_is_refused(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention_dispatch.dispatch_attention_fn
    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", lambda *given, **how: real(*given, **how).detach())
    with pytest.raises(ValueError, match=r"'native' can't be used here \(it has no gradient\)"):
        load_policy(spec_of(tiny_flux, attention="native"), device=CPU, precision="no")


def test_attention_that_is_only_near_is_refused(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention_dispatch.dispatch_attention_fn

    def rough(query: Any, key: Any, value: Any, backend: Any) -> Any:
        scale = 1.05 if backend.value == "_native_math" else 1.0
        return real(query, key, value * scale, backend=backend)

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", rough)
    with pytest.raises(ValueError, match=r"differ from torch's own by more than rounding"):
        load_policy(spec_of(tiny_flux, attention="_native_math"), device=CPU, precision="no")


def test_repeated_blocks_are_compiled(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, bool]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *, dynamic: compiled.append((type(self).__name__, dynamic)))
    load_policy(spec_of(tiny_flux, compile=True), device=CPU, precision="no")
    assert sorted(compiled) == [("FluxSingleTransformerBlock", False), ("FluxTransformerBlock", False)]
    with pytest.raises(ValueError, match=r"policy.compile: Linear names no repeated blocks"):
        apply(nn.Linear(2, 2), CPU, quantization="none", attention=None, compile_blocks=True)


def test_a_gradient_that_is_wrong_behind_a_slice_alone_is_refused(
    tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind the attention of single-stream blocks, whose output is a part of a wider tensor."""
    real = attention_dispatch.dispatch_attention_fn

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, out: Tensor) -> Tensor:
            return out.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient if gradient.is_contiguous() else gradient * torch.nan

    def given_back(*tensors: Any, backend: Any) -> Any:
        out = real(*tensors, backend=backend)
        return Wrong.apply(out) if backend.value == "_native_math" else out

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", given_back)
    with pytest.raises(ValueError, match=r"differ from torch's own by more than rounding"):
        load_policy(spec_of(tiny_flux, attention="_native_math"), device=CPU, precision="no")


def test_convolutions_in_channels_last_draw_the_same_image(tiny_flux: Path) -> None:
    plain, other = (
        load_policy(spec_of(tiny_flux, channels_last=last), device=CPU, precision="no") for last in (False, True)
    )
    latents = torch.randn(3, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    one, two = plain.decode(latents), other.decode(latents)
    assert (one.int() - two.int()).abs().max() <= 1
    vae: Any = other.pipeline.vae  # type: ignore[attr-defined]
    convolutions = [one.weight for one in vae.modules() if isinstance(one, nn.Conv2d) and one.kernel_size != (1, 1)]
    laid_out = [one for one in convolutions if one.shape[1] > 1]
    assert laid_out
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in laid_out)


@pytest.mark.parametrize(("asked", "graphs"), [(True, 3), ("dynamic", 2)])
def test_compiled_code_is_of_each_shape_or_of_all(
    tiny_flux: Path, asked: Any, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(module: Any, example: Any) -> Any:
        made.append(example)
        return module

    compile_blocks = FluxTransformer2DModel.compile_repeated_blocks
    monkeypatch.setattr(
        FluxTransformer2DModel,
        "compile_repeated_blocks",
        lambda self, **options: compile_blocks(self, backend=counted, **options),
    )
    torch._dynamo.reset()
    policy = load_policy(spec_of(tiny_flux, compile=asked), device=CPU, precision="no")
    cond = policy.encode("a dog", [])
    for n in (2, 3, 4):
        with torch.no_grad():
            policy.velocity(torch.zeros(n, *policy.latent_shape), torch.tensor(0.5), cond)
    transformer: Any = policy.transformer
    kinds = len({type(one) for one in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)})
    assert len(made) == graphs * kinds
    torch._dynamo.reset()


def test_compiled_code_is_kept_in_the_runs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    acceleration.keep_compiled(None)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    acceleration.keep_compiled(str(tmp_path))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path.resolve() / "compiled")
    acceleration.keep_compiled(str(tmp_path / "other"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path.resolve() / "compiled")
