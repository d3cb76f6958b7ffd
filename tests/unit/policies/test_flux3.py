"""``flux3-klein``: what its index, its references and its flow map need beyond the tests of all pipelines."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor
from PIL import Image

from customized_grpo.conditioning.cache import ConditioningCache, model_identity
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.policies.flux2 import Flux2KleinConfig
from customized_grpo.policies.flux3 import Flux3KleinConfig
from customized_grpo.policies.flux3_tokens import scaled_size
from customized_grpo.policies.identity import base_identity
from customized_grpo.sampling.dynamics import dance_sde
from customized_grpo.sampling.rollout import initial_noise, sample_group, transition_noise
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas
from customized_grpo.sampling.solver import ode_steps
from customized_grpo.training.replay import micro_batches, replay
from customized_grpo.types import Example
from pipeline_cases import CASES, PROMPT, adapted, draw, noise, pictures
from tiny_flux3 import make_tiny_flux3, stock_flux3, tiny_flux3

INDEX = "modular_model_index.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux3(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux3(tmp_path_factory.mktemp("distilled"), distilled=True)


@pytest.mark.parametrize("form", ["base", "distilled"])
def test_ten_references(form: str, base: Path, distilled: Path) -> None:
    folder = base if form == "base" else distilled
    policy, references = tiny_flux3(folder), (pictures() * 4)[:10]
    start = noise(policy, 2)
    drawn = draw(CASES["flux3"], stock_flux3(folder), start, references)
    cond = policy.on_grid(policy.encode(PROMPT, references), drawn.sigmas)
    with torch.no_grad():
        latents = ode_steps(lambda x, sigma: policy.velocity(x, sigma, cond), start, drawn.sigmas)
    assert (latents - drawn.latents).abs().max() <= 5e-6
    assert cond.tensors["reference_ids"][0, :, 3].unique().tolist() == [float(-k) for k in range(10, 0, -1)]
    with pytest.raises(ValueError, match=r"11 references given, but policy\.type=flux3-klein takes 0 to 10"):
        policy.encode(PROMPT, [*references, references[0]])
    with pytest.raises(ValueError, match="less than or equal to 10"):
        Flux3KleinConfig(model="x", max_references=11)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "size", [(64, 64), (100, 70), (2049, 2047), (3000, 1999), (5000, 300), (17, 90), (1025, 1023), (9, 4100)]
)
def test_references_are_read_as_the_pipeline_reads_them(size: tuple[int, int], count: int) -> None:
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    theirs = Flux3ImageProcessor().preprocess(image, resize_mode="fill" if count == 1 else "crop")[0] if (
        count == 1 or min(scaled_size(size, count, 1024)) >= 16
    ) else None  # fmt: skip
    config = Flux3KleinConfig(model="x")
    if theirs is None:
        with pytest.raises(ValueError, match=r"short side is under 16; crop or enlarge it"):
            config.fitted_size(size, count)
    else:
        assert config.fitted_size(size, count) == (theirs.shape[3], theirs.shape[2])


def test_a_step_of_the_flow_map_goes_to_the_next_level(distilled: Path) -> None:
    policy = tiny_flux3(distilled, torch.bfloat16)
    seen: list[list[float]] = []
    policy.transformer.time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].tolist()))
    grid = shifted_sigmas(3, 6.93)
    cond = policy.encode(PROMPT, pictures()[:1])
    x = noise(policy, 2)
    with torch.no_grad():
        mean = policy.velocity(x, grid[1], policy.on_grid(cond, grid))
        policy.velocity(x, torch.tensor([0.999, 0.1]), policy.on_grid(cond, grid))
        own = policy.velocity(x, grid[1], cond)
    levels = [float(level * 1000) for level in grid]
    assert seen[:3] == [[levels[1]] * 2, [0.0, 0.0], [levels[2]] * 2]
    assert seen[5] == [levels[1], 0.0]
    assert seen[8] == seen[6] == [levels[1]] * 2, "without a grid it is the velocity at sigma itself"
    assert not torch.equal(mean, own)
    assert "negative" not in cond.tensors


def test_the_base_has_no_grid(base: Path) -> None:
    policy = tiny_flux3(base)
    cond = policy.encode(PROMPT, [])
    assert policy.on_grid(cond, shifted_sigmas(3, 6.93)) is cond
    assert "negative" not in tiny_flux3(base, guidance=1.0).encode(PROMPT, []).tensors


def test_the_first_replay_of_the_flow_map_is_exact(distilled: Path) -> None:
    """The trajectory's conditioning has the grid, so that a replay goes to the same levels."""
    policy, place = adapted(tiny_flux3(distilled)), {"seed": 0, "step": 0, "group": 0}
    example = Example(key="1", prompt=PROMPT, references=pictures()[:2])
    group = sample_group(
        policy,
        example,
        policy.encode(example.prompt, example.references),
        sigmas=shifted_sigmas(4, 3.0),
        plan=StepPlan(4, (0, 1, 2), (0, 2)),
        transition=dance_sde,
        noise=initial_noise(policy.latent_shape, 4, shared=True, **place),
        draws=transition_noise(policy.latent_shape, 4, 3, **place),
        shared_noise=True,
    )
    nothing = torch.zeros_like(group.log_prob)
    for size, bound in ((4, 0.0), (1, 1e-6), (8, 1e-6)):
        pairs = micro_batches([group], [nothing], range(4), size)
        ratios = torch.cat([replay(policy, dance_sde, one)[0].detach() - one.log_prob for one in pairs])
        assert ratios.abs().max() <= bound, f"micro-batch {size}"


def _changed(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    index = json.loads((to / INDEX).read_text())
    (to / INDEX).write_text(json.dumps(index | changes))
    return to


def test_parts_may_lie_elsewhere(base: Path, tmp_path: Path) -> None:
    place = {"pretrained_model_name_or_path": str(tmp_path / "texts"), "subfolder": "encoder"}
    moved = _changed(base, tmp_path / "moved", text_encoder=["transformers", "Qwen3VLForConditionalGeneration", place])
    (tmp_path / "texts").mkdir()
    (moved / "text_encoder").rename(tmp_path / "texts" / "encoder")
    ours, theirs = (tiny_flux3(folder).encode(PROMPT, []).tensors for folder in (moved, base))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    shutil.rmtree(tmp_path / "texts" / "encoder")
    with pytest.raises(ValueError, match=r"can't be loaded: .*there is no folder .*encoder"):
        tiny_flux3(moved)


def test_identity_has_the_content_of_parts_elsewhere(base: Path, tmp_path: Path) -> None:
    """A policy's is changed by each, a cached conditioning's by those that encode alone."""

    def split(name: str) -> tuple[Path, Path]:
        """A model of which text encoder and transformer lie elsewhere, and that other folder."""
        other, parts = tmp_path / f"{name}-parts", ("text_encoder", "transformer")
        places = {
            part: ["diffusers", "Any", {"pretrained_model_name_or_path": str(other), "subfolder": part}]
            for part in parts
        }
        folder = _changed(base, tmp_path / name, **places)
        other.mkdir()
        for part in parts:
            (folder / part).rename(other / part)
        return folder, other

    def identity(folder: Path) -> tuple[str, str]:
        section = Flux3KleinConfig(model=str(folder))
        cache = ConditioningCache(tmp_path / "cache", section, "no")
        return base_identity(section, FileHashes()), str(cache.path(PROMPT, []))

    # Both indices name the same parts.
    one, other = split("one")
    before = identity(one)
    shutil.copytree(one, tmp_path / "two")
    assert identity(tmp_path / "two") == before
    for part, changes_cache in (("transformer", False), ("text_encoder", True)):
        now = identity(one)
        (other / part / "more.json").write_text("{}")
        then = identity(one)
        assert then[0] != now[0]
        assert (then[1] != now[1]) is changes_cache


def test_identity_has_the_commit_of_parts_in_other_repositories(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"pretrained_model_name_or_path": "org/texts", "subfolder": "text_encoder", "revision": "v2"}
    folder = _changed(base, tmp_path / "model", text_encoder=["transformers", "Qwen3VLForConditionalGeneration", place])
    shutil.rmtree(folder / "text_encoder")
    repository = tmp_path / "hub" / "models--org--texts"
    for name in ("refs", *(f"snapshots/{letter * 40}/text_encoder" for letter in "ab")):
        (repository / name).mkdir(parents=True)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: None)
    found = set()
    for letter in "ab":
        (repository / "refs" / "v2").write_text(letter * 40)
        identity = model_identity(str(folder), None, FileHashes())
        assert identity["part text_encoder"] == f"org/texts/text_encoder {letter * 40}"
        found.add(base_identity(Flux3KleinConfig(model=str(folder)), FileHashes()))
    assert len(found) == 2

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"'org/texts' can't be looked up \(offline\)"):
        model_identity(str(folder), None, FileHashes())


def test_other_models_are_refused(base: Path, tmp_path: Path) -> None:
    for number, (changes, message) in enumerate(
        {
            "Flux3DistilledModularPipeline": r"its transformer has flow_map false: .* needs true",
            "Flux2KleinPipeline": r"holds a Flux2KleinPipeline, and .* reads a Flux3ModularPipeline or a "
            r"Flux3DistilledModularPipeline; use policy\.type=flux2-klein",
            "StrangePipeline": "give another model",
        }.items()
    ):
        with pytest.raises(ValueError, match=message) as caught:
            tiny_flux3(_changed(base, tmp_path / str(number), _class_name=changes))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"has no {INDEX}"):
        tiny_flux3(tmp_path)


def test_distilled_models_are_known(base: Path, distilled: Path) -> None:
    for model, expected in (
        (base, False),
        (distilled, True),
        ("black-forest-labs/flux-3-image-klein", True),
        ("black-forest-labs/flux-3-image-klein-base", False),
    ):
        assert Flux3KleinConfig(model=str(model)).step_distilled() == expected
    assert Flux2KleinConfig(model="black-forest-labs/FLUX.2-klein-9b-kv").step_distilled()
    assert not Flux2KleinConfig(model="black-forest-labs/FLUX.2-klein-base-4B").step_distilled()
