"""Rewards and metrics in the estimate of memory: what is counted, what is elsewhere, what isn't known."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from customized_grpo.memory.fitting import changes, exact, fits, served_elsewhere
from customized_grpo.memory.footprint import GIB, of_recipe
from customized_grpo.memory.known_models import SCORERS
from customized_grpo.memory.scorers import known_scorer, memory_of_scorers
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.recipe.scorers import HeldModel
from forward_memory import forward_bytes


def dinov2(width: int, layers: int, heads: int, *, swiglu: bool = False) -> Any:
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, use_swiglu_ffn=swiglu, image_size=518
    )
    return transformers.Dinov2Model(config)


def vit(width: int, heads: int, patch: int) -> Any:
    config = transformers.ViTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, patch_size=patch
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def clip(text: tuple[int, int, int], vision: tuple[int, int, int], patch: int, size: int = 224) -> Any:
    def tower(width: int, layers: int, heads: int) -> dict[str, int]:
        return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
                "num_attention_heads": heads}  # fmt: skip

    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=tower(*text),
            projection_dim=text[0],
            vision_config=tower(*vision) | {"patch_size": patch, "image_size": size},
        )
    )


def sam(width: int, layers: int, heads: int) -> Any:
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_dim": 4 * width}
    return transformers.SamModel(transformers.SamConfig(vision_config=vision))


def grounding_dino() -> Any:
    swin = transformers.SwinConfig(
        image_size=384, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig(backbone_config=swin))


def hpsv3() -> Any:
    """Qwen2-VL 7B with one more token, without its language head, and the reward's head."""
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 151658}  # fmt: skip
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    trunk = transformers.Qwen2VLModel(transformers.Qwen2VLConfig(text_config=text, vision_config=vision))
    head = [torch.nn.Linear(3584, 1024), torch.nn.Linear(1024, 16), torch.nn.Linear(16, 2)]
    return torch.nn.ModuleList([trunk, *head])


PUBLISHED = {
    "MizzenAI/HPSv3": hpsv3,
    "facebook/dinov2-small": lambda: dinov2(384, 12, 6),
    "facebook/dinov2-base": lambda: dinov2(768, 12, 12),
    "facebook/dinov2-large": lambda: dinov2(1024, 24, 16),
    "facebook/dinov2-giant": lambda: dinov2(1536, 40, 24, swiglu=True),
    "facebook/dino-vits16": lambda: vit(384, 6, 16),
    "facebook/dino-vits8": lambda: vit(384, 6, 8),
    "facebook/dino-vitb16": lambda: vit(768, 12, 16),
    "facebook/dino-vitb8": lambda: vit(768, 12, 8),
    "openai/clip-vit-base-patch32": lambda: clip((512, 12, 8), (768, 12, 12), 32),
    "openai/clip-vit-base-patch16": lambda: clip((512, 12, 8), (768, 12, 12), 16),
    "openai/clip-vit-large-patch14": lambda: clip((768, 12, 12), (1024, 24, 16), 14),
    "openai/clip-vit-large-patch14-336": lambda: clip((768, 12, 12), (1024, 24, 16), 14, 336),
    "yuvalkirstain/PickScore_v1": lambda: clip((1024, 24, 16), (1280, 32, 16), 14),
    "google/siglip2-base-patch16-224": lambda: transformers.SiglipModel(
        transformers.SiglipConfig(text_config={"vocab_size": 256000}, vision_config={})
    ),
    "IDEA-Research/grounding-dino-base": grounding_dino,
    "facebook/sam-vit-base": lambda: sam(768, 12, 12),
    "facebook/sam-vit-large": lambda: sam(1024, 24, 16),
    "facebook/sam-vit-huge": lambda: sam(1280, 32, 16),
}


def test_the_table_has_the_published_sizes() -> None:
    """Each configuration is built again, without memory for its weights."""
    assert PUBLISHED.keys() == SCORERS.keys()
    for name, build in PUBLISHED.items():
        with torch.device("meta"):
            found = sum(parameter.numel() for parameter in build().parameters())
        assert SCORERS[name].parameters == found, name


def pixels(side: int) -> torch.Tensor:
    return torch.zeros(1, 3, side, side)


def language(hpsv3: Any) -> None:
    """HPSv3's largest part; its 900 tokens are of a picture and a prompt of usual length."""
    hpsv3[0].language_model(
        inputs_embeds=torch.zeros(1, 900, 3584, dtype=torch.bfloat16),
        attention_mask=torch.ones(1, 900, dtype=torch.long),
        position_ids=torch.arange(900).expand(3, 1, 900),
        use_cache=False,
    )


FORWARDS: dict[str, Callable[[Any], Any]] = {
    "MizzenAI/HPSv3": language,
    "facebook/dinov2-base": lambda model: model(pixel_values=pixels(224)),
    "openai/clip-vit-large-patch14": lambda model: model.get_image_features(pixel_values=pixels(224)),
    "facebook/sam-vit-base": lambda model: model(pixel_values=pixels(1024), input_boxes=torch.zeros(1, 1, 4)),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_is_estimated_at_what_it_holds_or_more(name: str) -> None:
    """At the published shapes, by what is alive at once; never below, and not above twice."""
    dtype, b = (torch.bfloat16, 2) if "HPSv3" in name else (torch.float32, 4)
    held = forward_bytes(PUBLISHED[name], FORWARDS[name], dtype)
    assert 1.0 <= SCORERS[name].working * b / held < 2.0


def resident(recipe: Recipe) -> dict[str, int]:
    return {line.name: line.bytes for line in of_recipe(recipe).resident}


def test_the_largest_reward_is_counted_as_it_is_loaded() -> None:
    """It was "not counted", beside "it fits"."""
    recipe = load_recipe("uno_customized_grpo")
    found = of_recipe(recipe)
    assert (found.unknown, found.elsewhere) == ((), ())
    assert round(resident(recipe)["rewards.hpsv3"] / GIB, 1) == 14.4
    half = resident(load_recipe("uno_customized_grpo", ["rewards.dino.dtype=bfloat16", "rewards.hpsv3.dtype=float32"]))
    assert half["rewards.dino"] * 2 == resident(recipe)["rewards.dino"] == 4 * 86_580_480
    assert half["rewards.hpsv3"] == 2 * resident(recipe)["rewards.hpsv3"]


def test_forwards_of_rewards_are_beside_the_rollout() -> None:
    """In batches of their own, the largest counts: they score one after the other."""

    def working(*overrides: str) -> int:
        return memory_of_scorers(load_recipe("uno_customized_grpo", overrides)).working

    assert working("rewards.hpsv3.batch_size=8") == 2 * working()
    assert working("rewards.hpsv3.batch_size=99") == 3 * working(), "a group has twelve"
    assert working("rewards.dino.batch_size=1") == working()
    assert 0.2 < working() / GIB < 2


@pytest.mark.parametrize("name", ["customized_grpo_dino_hpsv3_remote", "customized_grpo_vlm"])
def test_what_a_server_or_a_judge_computes_is_elsewhere(name: str) -> None:
    found = of_recipe(load_recipe(name))
    assert found.unknown == ()
    assert found.elsewhere
    assert not [key for key in found.elsewhere if "dino" in key]


def test_each_of_a_rewards_models_is_counted() -> None:
    segmenter = "{detector: IDEA-Research/grounding-dino-base, sam: facebook/sam-vit-base}"
    both = ["rewards.dino.segment=both", f"rewards.dino.segmenter={segmenter}"]
    more = resident(load_recipe("uno_customized_grpo", both))["rewards.dino"]
    assert more == 4 * (86_580_480 + 232_315_264 + 93_735_728)
    structure = "rewards.dino={type: structure_diversity, axis: identity}"
    assert resident(load_recipe("uno_customized_grpo", [structure]))["rewards.dino"] == 4 * 86_580_480
    several = "rewards.dino={type: subjects, axis: identity"
    boxes = resident(load_recipe("uno_customized_grpo", [several + "}"]))["rewards.dino"]
    assert boxes == 4 * (86_580_480 + 232_315_264)
    cut = resident(load_recipe("uno_customized_grpo", [several + ", segment: both, sam: facebook/sam-vit-base}"]))
    assert cut["rewards.dino"] == more


def test_metrics_are_counted_where_training_loads_them() -> None:
    evaluate = (
        "evaluate={data: {type: dreambench, path: d}, protocol: p, metrics: {c: {type: clip_i, model: "
        "openai/clip-vit-base-patch32}, d: {type: dino, model: facebook/dinov2-base}}}"
    )
    often = resident(load_recipe("uno_customized_grpo", [evaluate, "train.evaluate_every=5"]))
    assert often["evaluate.metrics.c"] == 4 * 151_277_313
    assert often["evaluate.metrics.d"] == often["rewards.dino"], "each loads its own"
    assert "evaluate.metrics.c" not in resident(load_recipe("uno_customized_grpo", [evaluate]))


def test_files_folders_and_the_hubs_cache_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("folder", "cache/models--org--name/snapshots/abc"):
        (tmp_path / place).mkdir(parents=True)
        save_file({"a": torch.zeros(30), "lm_head.weight": torch.zeros(70)}, tmp_path / place / "HPSv3.safetensors")
    (tmp_path / "cache/models--org--name/refs").mkdir()
    (tmp_path / "cache/models--org--name/refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for model in (str(tmp_path / "folder"), str(tmp_path / "folder/HPSv3.safetensors"), "org/name"):
        found = known_scorer(HeldModel(model))
        assert found is not None
        assert found.parameters == 100
        less = known_scorer(HeldModel(model, unused=frozenset({"lm_head.weight"})))
        assert less is not None
        assert less.parameters == 30
    assert known_scorer(HeldModel("org/name", revision="abc")) is not None
    for missing in ("org/other", str(tmp_path / "none"), ""):
        assert known_scorer(HeldModel(missing)) is None
    assert known_scorer(HeldModel("mini", "dino")) is not None


def test_what_a_plug_in_loads_is_unknown_unless_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_reward_of_memory.py").write_text("def score(example, images):\n    return [0.0 for _ in images]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "rewards.own={type: 'own_reward_of_memory:score', axis: prompt}"
    found = of_recipe(load_recipe("uno_customized_grpo", [own]))
    assert found.unknown == ("rewards.own (its section doesn't say what it loads)",)


@pytest.mark.parametrize("name", ["uno_customized_grpo", "kontext_customized_grpo", "qwen_edit_customized_grpo"])
def test_moving_the_large_reward_is_advised_as_it_can_be_typed(name: str) -> None:
    """With HPSv3 nothing fits 24 GB; without it 8 or 4 bits do."""
    recipe = load_recipe(name)
    assert not fits(changes(recipe, 24 * GIB)[1], 24 * GIB)
    moved, lighter = served_elsewhere(recipe)
    overrides, after = changes(lighter, 24 * GIB)
    assert fits(after, 24 * GIB)
    (typed,) = shlex.split(f"'{moved[0]}'")
    again = load_recipe(name, [typed, *overrides])
    assert of_recipe(again).total == after.total
    assert of_recipe(again).elsewhere == ("rewards.hpsv3 (remote)",)
    assert json.loads(typed.partition("=")[2])["axis"] == "prompt"
    assert not exact(overrides)
    assert exact(["run.cache=cache", "train.microbatch=2"])


def test_nothing_small_is_moved() -> None:
    assert served_elsewhere(load_recipe("customized_grpo_dino_hpsv3_remote"))[0] == []


def test_what_stays_on_the_cpu_takes_nothing_of_the_card() -> None:
    face = "{type: face, axis: identity, model: sface.onnx, detector: yunet.onnx, normalization: sface}"
    plain, more = (
        of_recipe(load_recipe("uno_customized_grpo")),
        of_recipe(load_recipe("uno_customized_grpo", [f"rewards.face={face}"])),
    )
    assert (more.total, more.unknown, more.elsewhere) == (plain.total, (), ())
    assert (plain.on_cpu, more.on_cpu) == ((), ("rewards.face (face)",))
