"""The estimate of memory: counts are exact, and what is alive for a moment is held to what autograd really keeps.

Measured on a CPU by ``torch.autograd.graph.saved_tensors_hooks``; the error that is allowed here is the one that the
documents state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLQwenImage21
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from autograd_memory import kept_bytes
from customized_grpo.memory.estimate import Tokens, activations, prefix_bytes
from customized_grpo.memory.fitting import changes, faster
from customized_grpo.memory.footprint import GIB, UnknownModelError, of_recipe, shapes
from customized_grpo.memory.known_models import MODELS, UNO_LORA
from customized_grpo.memory.parameters import (
    adapted,
    adapter_parameters,
    optimizer_bytes,
    weight_bytes,
)
from customized_grpo.memory.scorers import memory_of_scorers
from customized_grpo.policies.adapters import lora, tuning
from customized_grpo.policies.base import FullSettings, LoraSettings, load_policy
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.recipe.sections import PolicySpec
from pipeline_cases import CASES, pictures, shrink_constants
from tiny import make_tiny_flux
from tiny_flux2 import make_tiny_flux2, tiny_flux2

DEV = "black-forest-labs/FLUX.1-dev"
SERVED = "rewards.hpsv3={type: remote, axis: prompt, urls: [http://gpu:8000], reward: hpsv3}"
STORED_ERROR = 0.17
"""Of stored activations, relative to what is measured; of FLUX.1's adapters the estimate is hardly ever below.

It is the largest in bf16, because a CPU's norms stay in bf16 and adapters share what they give; a GPU's are float32.
"""


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux"))


def policy_of(flux: Path, precision: Any, checkpointing: float = False) -> UNO:
    config = UNOConfig(
        model=str(flux), height=128, width=128, max_sequence_length=16, reference_size=128,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    policy = load_policy(config, device=torch.device("cpu"), precision=precision)
    assert isinstance(policy, UNO)
    return policy


def saved_bytes(policy: Any, n: int, reference: Image.Image | None = None) -> int:
    """Bytes of all storages that a forward of n samples keeps for its backward pass, weights left out."""
    cond = policy.encode("a dog", [reference or Image.linear_gradient("L").convert("RGB")])
    x = torch.randn(n, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.dtype)
    return kept_bytes(policy.transformer, lambda: policy.velocity(x, torch.tensor(0.7), cond))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, 0.5, True])
@pytest.mark.parametrize(("rank", "n"), [(4, 2), (16, 3)])
def test_stored_activations_are_what_autograd_keeps(
    flux: Path, precision: Any, checkpointing: float, rank: int, n: int
) -> None:
    policy = policy_of(flux, precision, checkpointing)
    b = 2 if precision == "bf16" else 4
    lora.attach(policy, LoraSettings(rank=rank), seed=0)
    measured = saved_bytes(policy, n)
    bare = shapes(str(flux), UNO.encoders).transformer
    tokens = Tokens(image=64 + 64, text=16)
    found = activations(
        bare, adapted(bare, UNO.lora_targets), rank, tokens, n=n, b=b, checkpointing=float(checkpointing)
    )
    assert -0.02 < found.stored / measured - 1 < STORED_ERROR, (found.stored, measured)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_stored_activations_of_full_fine_tuning(flux: Path, precision: Any, checkpointing: bool) -> None:
    policy = policy_of(flux, precision, checkpointing)
    b = 2 if precision == "bf16" else 4
    tuning.attach(policy, PolicySpec(type="own", model="own", full=FullSettings()), seed=0)
    # What autocast makes of the weights is counted as theirs; their sum is exact there.
    copies = sum(one.numel() * b for one in policy.transformer.parameters() if one.ndim == 2) if b == 2 else 0
    measured = saved_bytes(policy, 2) - (0 if checkpointing else copies)
    bare = shapes(str(flux), UNO.encoders).transformer
    tokens = Tokens(image=64 + 64, text=16)
    found = activations(bare, list(bare.whole.linears), 0, tokens, n=2, b=b, checkpointing=float(checkpointing))
    assert -0.1 < found.stored / measured - 1 < 0.2, (found.stored, measured)


def test_full_fine_tuning_is_counted_exactly() -> None:
    """Weights, gradients, two moments, and what else is asked for, of every parameter; nothing stays frozen."""
    count_of = shapes(DEV, UNO.encoders).transformer.whole.num_values
    given = ["policy.lora=null", "policy.full={}", "policy.base_lora=null", "run.cache=c"]
    lines = {line.name: line.bytes for line in estimate_of(*given).resident}
    assert lines["frozen weights of the transformer"] == 0
    assert lines["trained weights"] == count_of * (4 + 4 + 2)
    assert lines["optimizer"] == count_of * 8
    kept = {line.name: line.bytes for line in estimate_of(*given, "objective.kl=0.1", "train.ema=0.9").resident}
    assert kept["trained weights"] == count_of * (4 + 4 + 2 + 4 + 4)
    assert {line.name: line.bytes for line in estimate_of(*given).peaks}["update"] == count_of * 4
    part = [*given, r'policy.full.targets=["attn"]']
    held = {line.name: line.bytes for line in estimate_of(*part).resident}
    assert held["frozen weights of the transformer"] / 2 + held["trained weights"] / 10 == count_of
    advice, _ = changes(load_recipe("uno_customized_grpo", given), 24 * GIB)
    assert not [one for one in advice if "quantization" in one or "rank" in one]


def estimate_of(*overrides: str) -> Any:
    return of_recipe(load_recipe("uno_customized_grpo", list(overrides)))


def test_fewer_targets_store_less(flux: Path) -> None:
    """With an adapter on the queries alone, inputs of other layers aren't kept: on both sides of the comparison."""
    bare = shapes(str(flux), UNO.encoders).transformer
    targets = (r"attn\.to_q",)
    policy = policy_of(flux, "no")
    lora.attach(policy, LoraSettings(rank=4, targets=targets), seed=0)
    measured = saved_bytes(policy, 2)
    found = activations(bare, adapted(bare, targets), 4, Tokens(image=128, text=16), n=2, b=4, checkpointing=0.0)
    whole = activations(
        bare, adapted(bare, UNO.lora_targets), 4, Tokens(image=128, text=16), n=2, b=4, checkpointing=0.0
    )
    assert measured <= found.stored < whole.stored


@pytest.mark.parametrize("source", ["flux", DEV])
def test_parameters_are_counted_exactly(flux: Path, source: str) -> None:
    bare = shapes(str(flux) if source == "flux" else source, UNO.encoders).transformer
    assert weight_bytes(bare, "none", 2) == 2 * bare.whole.num_values
    assert weight_bytes(bare, "8bit", 2) < weight_bytes(bare, "none", 2)
    assert weight_bytes(bare, "4bit", 2) < weight_bytes(bare, "8bit", 2)


def test_parts_of_a_folder_are_counted_exactly(flux: Path) -> None:
    policy = policy_of(flux, "no")
    found = shapes(str(flux), UNO.encoders)
    assert found.encoders == {name: count(policy.pipeline.components[name]) for name in UNO.encoders}
    assert found.vae == count(policy._vae)
    assert found.vae_channels == (8, 8, 8, 8)
    assert found.transformer.whole.num_values == count(policy.transformer)


def test_adapter_is_counted_exactly(flux: Path) -> None:
    policy = policy_of(flux, "no")
    bare = shapes(str(flux), UNO.encoders).transformer
    lora.attach(policy, LoraSettings(rank=5), seed=0)
    sizes = adapter_parameters(adapted(bare, UNO.lora_targets), 5)
    assert sorted(sizes) == sorted(one.numel() for one in lora.trainable_parameters(policy).values())
    parameters = list(lora.trainable_parameters(policy).values())
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = sum(value.nbytes for state in optimizer.state.values() for name, value in state.items() if name != "step")
    assert optimizer_bytes(sizes, "adamw") == moments


def test_a_shared_adapter_is_counted_exactly(flux: Path) -> None:
    policy = policy_of(flux, "no")
    bare = shapes(str(flux), UNO.encoders).transformer
    lora.attach(policy, LoraSettings(rank=5, targets=("uno",), qkv="shared"), seed=0)
    sizes = adapter_parameters(adapted(bare, UNO.lora_presets["uno"]), 5, shared=True)
    assert sorted(sizes) == sorted(one.numel() for one in lora.trainable_parameters(policy).values())


def test_unos_lora_is_counted_exactly() -> None:
    bare = shapes(DEV, UNO.encoders).transformer
    assert sum(adapter_parameters(adapted(bare, UNO.lora_presets["uno"]), 512, shared=True)) == UNO_LORA


def text_models() -> dict[str, nn.Module]:
    """The published configurations on the meta device; generation is none of their business here."""
    qwen = {"vocab_size": 151936, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128}  # fmt: skip
    mistral = {
        "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    }  # fmt: skip
    pixtral = {
        "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "head_dim": 64, "patch_size": 14, "image_size": 1540,
    }  # fmt: skip
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "patch_size": 14,
    }  # fmt: skip
    seen = {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    }  # fmt: skip
    with torch.device("meta"):
        return {
            "t5": T5EncoderModel(
                T5Config(
                    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                    feed_forward_proj="gated-gelu",
                )
            ),
            "clip": CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                    max_position_embeddings=77,
                )
            ),
            "mistral": Mistral3ForConditionalGeneration(
                Mistral3Config(text_config=mistral, vision_config=pixtral, tie_word_embeddings=False)
            ),
            "qwen3-4b": Qwen3ForCausalLM(
                Qwen3Config(hidden_size=2560, intermediate_size=9728, tie_word_embeddings=True, **qwen)
            ),
            "qwen3-8b": Qwen3ForCausalLM(
                Qwen3Config(hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False, **qwen)
            ),
            "qwen3-vl-4b": Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(
                    text_config={"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True, **qwen},
                    vision_config={
                        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
                        "out_hidden_size": 2560, "num_position_embeddings": 2304,
                        "deepstack_visual_indexes": [5, 11, 17],
                    },
                    tie_word_embeddings=True,
                )
            ),
            "qwen2.5-vl": Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
            ),
            "qwen3-vl": Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(
                    text_config={"hidden_size": 4096, "intermediate_size": 12288, **qwen}, vision_config=seen,
                    tie_word_embeddings=False,
                )
            ),
        }  # fmt: skip


BFL = "black-forest-labs"
PUBLISHED: dict[str, tuple[float, tuple[str, ...], str]] = {
    f"{BFL}/FLUX.1-dev": (11.9, ("clip", "t5"), "flux"),
    f"{BFL}/FLUX.1-Kontext-dev": (11.9, ("clip", "t5"), "flux"),
    f"{BFL}/FLUX.1-Krea-dev": (11.9, ("clip", "t5"), "flux"),
    f"{BFL}/FLUX.1-schnell": (11.9, ("clip", "t5"), "flux"),
    f"{BFL}/FLUX.2-dev": (32.2, ("mistral",), "flux2"),
    f"{BFL}/FLUX.2-klein-4B": (3.9, ("qwen3-4b",), "flux2"),
    f"{BFL}/FLUX.2-klein-base-4B": (3.9, ("qwen3-4b",), "flux2"),
    f"{BFL}/FLUX.2-klein-9B": (9.1, ("qwen3-8b",), "flux2"),
    f"{BFL}/FLUX.2-klein-base-9B": (9.1, ("qwen3-8b",), "flux2"),
    f"{BFL}/FLUX.2-klein-9b-kv": (9.1, ("qwen3-8b",), "flux2"),
    f"{BFL}/flux-3-image-klein-base": (5.5, ("qwen3-vl-4b",), "flux2"),
    f"{BFL}/flux-3-image-klein": (5.5, ("qwen3-vl-4b",), "flux2"),
    "Qwen/Qwen-Image-Edit-2509": (20.4, ("qwen2.5-vl",), "qwen"),
    "Qwen/Qwen-Image-Edit-2511": (20.4, ("qwen2.5-vl",), "qwen"),
    "Qwen/Qwen-Image-2.1": (7.1, ("qwen3-vl",), "qwen-2.1"),
}
"""Billions of weights of the transformer, and what else each is made of."""


def test_known_models_are_the_published_ones() -> None:
    with torch.device("meta"):
        vaes: dict[str, Any] = {
            "flux": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=MODELS[DEV].vae_channels, layers_per_block=2, latent_channels=16,
                use_quant_conv=False, use_post_quant_conv=False,
            ),
            "flux2": AutoencoderKLFlux2(),
            "qwen": AutoencoderKLQwenImage(),
            "qwen-2.1": AutoencoderKLQwenImage21(),
        }  # fmt: skip
    texts = text_models()
    # Which the headers of the published files count, as others have read them.
    counted = {"mistral": 24_011_361_280, "qwen3-8b": 8_190_735_360, "qwen2.5-vl": 8_292_166_656}
    assert {name: count(texts[name]) for name in counted} == counted
    assert MODELS.keys() == PUBLISHED.keys()
    for name, (billions, encoders, vae) in PUBLISHED.items():
        known = MODELS[name]
        assert list(known.encoders.values()) == [count(texts[one]) for one in encoders], name
        assert known.vae == count(vaes[vae]), name
        found = shapes(name, tuple(known.encoders)).transformer.whole.num_values
        assert round(found / 1e9, 1) == billions, name
        if vae.startswith("qwen"):
            assert found == {"qwen": 20_430_401_088, "qwen-2.1": 7_115_124_736}[vae]
            config = vaes[vae].config
            base = config.decoder_base_dim if vae == "qwen-2.1" else config.base_dim
            assert known.vae_channels == tuple(base * factor for factor in config.dim_mult)
        else:
            assert known.vae_channels == tuple(vaes[vae].config.block_out_channels)


@pytest.mark.parametrize(
    "recipe",
    [
        "flux2_klein_customized_grpo",
        "flux3_klein_customized_grpo",
        "qwen_edit_customized_grpo",
        "qwen_image_21_customized_nft",
    ],
)
def test_the_newer_models_have_an_estimate(recipe: str) -> None:
    """Of weights exactly; with classifier-free guidance a replay stores two forwards."""
    guided, alone = (of_recipe(load_recipe(recipe, [f"policy.guidance={g}"])) for g in (4.0, 1.0))
    known = MODELS[load_recipe(recipe).policy.model]
    resident = {line.name: line.bytes for line in of_recipe(load_recipe(recipe, ["run.cache=null"])).resident}
    assert resident["transformer"] == 2 * shapes(load_recipe(recipe).policy.model, ()).transformer.whole.num_values
    assert resident["text encoders"] == 2 * sum(known.encoders.values())
    replays = [next(line.bytes for line in one.peaks if line.name == "replay") for one in (guided, alone)]
    assert alone.total < guided.total
    assert 1 < replays[0] / replays[1] < 2


def test_kept_keys_are_counted_exactly(tmp_path: Path) -> None:
    """And what passes once is stored once, with a copy of its keys and values beside each sample's."""
    case = CASES["qwen-2.1"]
    folder = case.make(tmp_path / "model")
    policy = case.load(folder)
    cond = policy.encode("a dog", pictures()[:1])
    kept = policy.prefill(cond).tensors
    once = cond.tensors["references"].shape[1] + int((~cond.tensors["slots"]).sum())
    bare = shapes(str(folder), type(policy).encoders).transformer
    assert sum(kept[name].nbytes for name in kept.keys() - cond.tensors.keys()) == prefix_bytes(
        bare.blocks, once, n=1, b=4
    )
    settings = {"policy.reference_size": 512, "run.cache": "c", "policy.gradient_checkpointing": "false"}
    given = [f"{key}={value}" for key, value in settings.items()]
    notes = {}
    for keep in ("true", "false"):
        found = of_recipe(load_recipe("qwen_image_21_customized_nft", [*given, f"policy.keep_keys={keep}"]))
        notes[keep] = next(line for line in found.peaks if line.name == "rollout")
    # 1024 tokens of a reference and 512 of text, 32 blocks of width 4096, in bfloat16
    assert notes["true"].bytes - notes["false"].bytes == 2 * 1536 * 32 * 4096 * 2
    assert "kept keys and values 0.8 GiB" in notes["true"].note
    assert "keys" not in notes["false"].note


@pytest.mark.parametrize("name", ["flux2", "klein", "flux3", "qwen-2509", "qwen-2.1"])
def test_stored_activations_of_the_newer_models(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    shrink_constants(monkeypatch)
    case = CASES[name]
    folder = case.make(tmp_path / "model", **case.options)
    policy = case.load(folder, torch.float32, **({"guidance": 1.0} if name in ("qwen-2509", "flux3") else {}))
    lora.attach(policy, LoraSettings(rank=4), seed=0)
    measured = saved_bytes(policy, 2, pictures()[0])
    bare = shapes(str(folder), type(policy).encoders).transformer
    cond = policy.encode("a dog", pictures()[:1])
    references = cond.tensors["references"].shape[1]
    tokens = Tokens(
        image=policy.latent_shape[0] + references, text=cond.tensors["text"].shape[1], references=references
    )
    if policy.config.prefix:
        tokens = Tokens(image=policy.latent_shape[0], text=0, once=references + int((~cond.tensors["slots"]).sum()))
    found = activations(bare, adapted(bare, policy.lora_targets), 4, tokens, n=2, b=4, checkpointing=0.0)
    assert -0.2 < found.stored / measured - 1 < STORED_ERROR, (found.stored, measured)


def test_kept_keys_of_references_are_counted(tmp_path: Path) -> None:
    """Two tensors of the model's width in each of 8 + 24 blocks, for each token of one reference."""
    plain, kept = (
        of_recipe(
            load_recipe("flux2_klein_customized_grpo", [f"policy.model={BFL}/FLUX.2-klein-{name}", "policy.guidance=1"])
        )
        for name in ("9B", "9b-kv")
    )
    rollouts = [next(line.bytes for line in one.peaks if line.name == "rollout") for one in (plain, kept)]
    assert rollouts[1] - rollouts[0] == 2 * 32 * 4096 * 1024 * 2
    folder = make_tiny_flux2(tmp_path, klein=True, keys_kept=True)
    policy = tiny_flux2(folder)
    found = policy.prefill(policy.encode("a dog", pictures()[:1])).tensors
    added = sum(tensor.nbytes for name, tensor in found.items() if name.startswith(("keys_", "values_")))
    references = found["references"].shape[1]
    assert policy.config.kept_tokens(references, 40) == references
    blocks = shapes(str(folder), type(policy).encoders).transformer.blocks
    assert prefix_bytes(blocks, references, n=1, b=4) == added
    # its pipeline has no guidance, whatever the section says
    assert policy.config.model_copy(update={"guidance": 4.0}).num_forwards() == 1


@given(sizes=st.lists(st.integers(1, 100_000), min_size=1, max_size=8))
def test_eight_bits_never_take_more(sizes: list[int]) -> None:
    large = [4096 * 3 + size for size in sizes]
    assert optimizer_bytes(sizes, "adamw_8bit") <= optimizer_bytes(sizes, "adamw") + 2 * 4 * 256 * len(sizes)
    assert optimizer_bytes(large, "adamw_8bit") < optimizer_bytes(large, "adamw") / 2.5


def total(*overrides: str) -> float:
    """GiB with HPSv3 elsewhere."""
    return of_recipe(load_recipe("uno_customized_grpo", [SERVED, *overrides])).total / GIB


def test_each_saving_saves() -> None:
    """One by one, in the order in which they are advised; the last is the recipe of a card of 24 GB."""
    apart = "policy.base_lora.mode=adapter"
    steps = ("run.cache=c", "train.microbatch=4", "train.optimizer=adamw_8bit", f"{apart} policy.quantization=8bit",
             "policy.quantization=4bit", "policy.lora.rank=16")  # fmt: skip
    sizes = [total(*" ".join(steps[:n]).split()) for n in range(len(steps) + 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert total("policy.gradient_checkpointing=false") > 2 * total()


def test_a_base_lora_is_one_file_of_its_folder(tmp_path: Path) -> None:
    """Not all that lie beside it."""
    for name, rows in (("lora", 2**20), ("other", 2**24)):
        save_file({"a": torch.zeros(rows, dtype=torch.int8)}, tmp_path / f"{name}.safetensors")
    given = ("policy.base_lora.mode=adapter", f"policy.base_lora.path={tmp_path / 'lora.safetensors'}")
    lines = {line.name: line.bytes for line in of_recipe(load_recipe("uno_customized_grpo", given)).resident}
    assert lines["base_lora"] == 2 * 2**20


def test_the_goal_of_48_and_24_gb() -> None:
    assert total("run.cache=c", "train.microbatch=4") < 45
    small = ("policy.base_lora.mode=adapter", "policy.quantization=4bit", "train.optimizer=adamw_8bit")
    assert total("run.cache=c", "train.microbatch=4", *small) < 22


@pytest.mark.parametrize(
    ("limit", "needs"), [(80, []), (48, ["run.cache"]), (24, ["run.cache", "policy.quantization"])]
)
def test_advice_makes_a_recipe_fit(limit: int, needs: Sequence[str]) -> None:
    recipe = load_recipe("uno_customized_grpo", [SERVED])
    overrides, after = changes(recipe, limit * GIB)
    assert after.total <= 0.95 * limit * GIB
    assert set(needs) <= {one.split("=")[0] for one in overrides}
    assert (overrides == []) == (limit == 80)
    assert of_recipe(load_recipe("uno_customized_grpo", [SERVED, *overrides])).total == after.total


def test_a_share_of_the_blocks_stores_less_the_larger_it_is() -> None:
    shares = ("false", "0.25", "0.5", "0.75", "true")
    sizes = [total(f"policy.gradient_checkpointing={share}", "train.microbatch=1") for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("limit", [36, 48, 60])
def test_no_more_is_computed_again_than_a_budget_needs(limit: int) -> None:
    """Both ways: from all blocks down, and from none up, to the same share."""
    small = (SERVED, "train.microbatch=2", "sampling.batch=2", "run.cache=c")
    (override,) = faster(load_recipe("uno_customized_grpo", small), limit * GIB)
    share = float(override.split("=")[1])
    assert 0 < share < 1
    assert total(*small, override) < 0.95 * limit < total(*small, f"policy.gradient_checkpointing={share - 0.1}")
    none = load_recipe("uno_customized_grpo", (*small, "policy.gradient_checkpointing=false"))
    assert override in changes(none, limit * GIB)[0]
    assert faster(load_recipe("uno_customized_grpo", (*small, override)), limit * GIB) == []


@pytest.mark.parametrize(("limit", "size"), [(80, 2), (141, 4)])
def test_nothing_is_computed_again_where_smaller_batches_fit(limit: int, size: int) -> None:
    """What was measured on an H200: 4 at a time without checkpointing take three quarters of 12 with it."""
    batches = [f"sampling.batch={size}", f"train.microbatch={size}"]
    recipe = load_recipe("uno_customized_grpo", [SERVED, "run.cache=c"])
    assert faster(recipe, limit * GIB) == ["policy.gradient_checkpointing=false", *batches]
    none = load_recipe("uno_customized_grpo", [SERVED, "run.cache=c", "policy.gradient_checkpointing=false"])
    assert changes(none, limit * GIB)[0] == batches


@pytest.mark.parametrize(("group", "advised"), [(12, 4), (9, 3), (10, 2)])
def test_advised_batches_divide_the_group(group: int, advised: int) -> None:
    """Else the replay's would straddle two steps, and be none of the rollout's."""
    recipe = load_recipe("uno_customized_grpo", [SERVED, "run.cache=c", f"train.group_size={group}"])
    assert f"train.microbatch={advised}" in faster(recipe, 141 * GIB)


def test_the_rollout_is_estimated_at_its_batch() -> None:
    """Beside the rewards' forward, which has a batch of its own."""

    def rollout(*overrides: str) -> int:
        recipe = load_recipe("uno_customized_grpo", overrides)
        found = next(line.bytes for line in of_recipe(recipe).peaks if line.name == "rollout")
        return found - memory_of_scorers(recipe).working

    whole = rollout()
    assert rollout("sampling.batch=6") * 2 == whole == rollout("sampling.batch=99")
    assert rollout("sampling.batch=auto") * 12 == whole


def test_advice_gives_up_where_nothing_helps() -> None:
    recipe = load_recipe("uno_customized_grpo")
    overrides, after = changes(recipe, GIB)
    assert after.total > GIB
    assert "policy.quantization=4bit" in overrides
    assert "policy.quantization=8bit" not in overrides, "one key, one value"


def test_unknown_models_say_so(tmp_path: Path) -> None:
    for source in ("org/unknown", str(tmp_path)):
        with pytest.raises(UnknownModelError, match=r"known offline|not a pipeline"):
            shapes(source, ())
    assert of_recipe(load_recipe("mini_customized")).total < 3 * GIB
    recipe = load_recipe("uno_customized_grpo", ["rewards.dino.model=org/other"])
    assert of_recipe(recipe).unknown == ("rewards.dino (org/other)",)
