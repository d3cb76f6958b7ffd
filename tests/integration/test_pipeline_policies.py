"""The whole path of each pipeline policy on tiny weights: train, checkpoint, evaluate, and draw with the adapter.

Two prompts of different lengths, with one and with two references of different shapes.
"""

import json
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from diffusers import DiffusionPipeline
from PIL import Image, ImageChops
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.data.images import load_image
from customized_grpo.policies.adapters.lora import adapter_state
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.recipe.loading import load_recipe, save_recipe
from customized_grpo.sampling import draw
from customized_grpo.sampling.rollout import sample_images
from customized_grpo.sampling.schedule import sigma_grid
from customized_grpo.seeding import generator
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from frozen_weights import frozen_hash
from pipeline_cases import CASES, pictures, shrink_constants
from runs import metrics_of, tiny_recipe, with_evaluation
from tiny_qwen_image21 import processor_of

POLICIES: dict[str, dict[str, Any]] = {
    "flux2": {"type": "flux2", "max_sequence_length": 40},
    "klein-base": {"type": "flux2-klein", "max_sequence_length": 40},
    "qwen-2509": {"type": "qwen-image-edit-plus", "reference_size": 64},
    "qwen-2.1": {"type": "qwen-image-2.1", "reference_size": 64},
}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    name: str
    world: Path
    trainer: Trainer
    frozen: str
    start: dict[str, torch.Tensor]

    @property
    def folder(self) -> Path:
        return self.world / "run"


@pytest.fixture(scope="module", params=list(POLICIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name: str = request.param
    case, world = CASES[name], tmp_path_factory.mktemp("world")
    case.make(world / "model", **case.options)
    for index, picture in enumerate(pictures()):
        picture.save(world / f"{index}.png")
    rows = [
        {"id": "short", "prompt": "a red dog", "references": ["0.png"], "subject": "dog"},
        {"id": "long", "prompt": "a cat on a blue mat", "references": ["1.png", "2.png"], "subject": "cat"},
    ]
    (world / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = {"model": str(world / "model"), "height": 32, "width": 32, "lora": {"rank": 2}, **POLICIES[name]}
    recipe = tiny_recipe(
        world,
        world / "run",
        policy=policy,
        sampling={"steps": 3},
        train__steps=2,
        train__group_size=3,
        train__microbatch=None,
        train__checkpoint_every=1,
        train__save_samples_every=1,
        **with_evaluation(world, 2),
    )
    save_recipe(recipe, world / "recipe.yaml")
    with pytest.MonkeyPatch.context() as patched:
        shrink_constants(patched)
        trainer = Trainer(build(load_recipe(world / "recipe.yaml")))
        transformer = trainer.parts.policy.transformer
        before, start = frozen_hash(transformer), adapter_state(transformer)
        trainer.run()
        yield Run(name, world, trainer, before, start)


def test_it_trains_checkpoints_and_evaluates(run: Run) -> None:
    rows = metrics_of(run.folder)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["ratio/max_abs_log_first"] for row in rows[1:]] == [0, 0]
    assert all(row["grad/norm"] > 0 for row in rows[1:])
    assert {path.name for path in (run.folder / "checkpoints").glob("step-*")} == {"step-000001", "step-000002"}
    summary = json.loads((run.folder / "evaluation" / "summary.json").read_text())
    assert [(row["name"], row["metrics"]["bright"]["n"]) for row in summary["rows"]] == [
        ("base", 2),
        ("tuned", 2),
    ]
    transformer = run.trainer.parts.policy.transformer
    assert frozen_hash(transformer) == run.frozen
    moved = adapter_state(transformer)
    assert all(not torch.equal(moved[name], one) for name, one in run.start.items() if ".lora_B." in name)


def test_diffusers_loads_the_checkpoint(run: Run) -> None:
    """By the class that the model's own index names."""
    saved = read_lora(run.folder)
    model, given = run.world / "model", dict[str, Any]()
    if run.name.startswith("qwen"):  # the processor's own class wants torchvision
        given = {"processor": processor_of(model) if run.name == "qwen-2.1" else None}
    pipeline: Any = DiffusionPipeline.from_pretrained(model, **given)
    assert type(pipeline) is type(run.trainer.parts.policy).pipeline_class
    pipeline.load_lora_weights(saved.path.parent, adapter_name="default")
    loaded = adapter_state(pipeline.transformer)
    assert loaded.keys() == {f"{name}.lora_{side}.weight" for name in saved.factors for side in "AB"}
    for name, one in saved.factors.items():
        assert torch.equal(loaded[f"{name}.lora_A.weight"], one.a)
        assert torch.equal(loaded[f"{name}.lora_B.weight"], one.b)


def command(*arguments: str) -> list[str]:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return done.stdout.split()


def test_generate_draws_with_the_adapter_and_with_the_base(run: Run, tmp_path: Path) -> None:
    given = ("generate", "--prompt", "a red dog", "--reference", str(run.world / "0.png"))
    given += ("--reference", str(run.world / "1.png"), "--steps", "2", "--num", "2", "--seed", "3")
    grid = tmp_path / "new" / "grid.png"
    tuned = command(*given, "--lora", str(run.folder), "--out", str(tmp_path / "t.png"), "--grid", str(grid))
    assert tuned == [str(tmp_path / "t-0.png"), str(tmp_path / "t-1.png"), str(grid)]
    recipe = str(run.world / "recipe.yaml")
    base = command(*given, "--config", recipe, "--out", str(tmp_path / "b.png"))
    again = command(*given, "--config", recipe, "--lora", str(run.folder), "--out", str(tmp_path / "a.png"))
    images = {name: load_image(name) for name in (*tuned, *base, *again)}
    assert {one.size for name, one in images.items() if name != str(grid)} == {(32, 32)}
    for k in (0, 1):
        assert ImageChops.difference(images[tuned[k]], images[again[k]]).getbbox() is None
        assert ImageChops.difference(images[tuned[k]], images[base[k]]).getbbox() is not None
    assert ImageChops.difference(images[base[0]], images[base[1]]).getbbox() is not None
    sheet, side, gap, label = images[str(grid)], 32, 4, 28
    above = sheet.height - 3 * (label + side + gap)  # the prompt's lines
    assert above > 0
    assert above % label == 0
    for row, names in enumerate((base, tuned[:2]), start=1):
        for column, name in enumerate(names):
            left, top = gap + (side + gap) * column, above + (label + side + gap) * row + label
            tile = sheet.crop((left, top, left + side, top + side))
            assert ImageChops.difference(tile, images[name]).getbbox() is None


def test_generate_never_holds_encoders_and_transformer_together(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And draws the bytes that a policy with all of its parts draws."""
    held: list[tuple[bool, bool]] = []
    alive: list[weakref.ref[Any]] = []
    real = draw.load_policy

    def spy(section: Any, **given: Any) -> Any:
        assert not [one for one in alive if one() is not None], "the encoders are still there"
        policy = real(section, **given)
        part: Any = policy
        encoder, weight = part._pipeline.text_encoder, next(policy.transformer.parameters())
        held.append((encoder is not None, not weight.is_meta))
        alive.extend([weakref.ref(encoder)] if encoder is not None else [])
        return policy

    monkeypatch.setattr(draw, "load_policy", spy)
    recipe = load_recipe(run.world / "recipe.yaml")
    references = [load_image(run.world / "0.png")]
    (file,) = draw.draw(recipe, None, references, "a red dog", tmp_path / "a.png", steps=2, seed=3, num=1, grid=None)
    assert held == [(True, False), (False, True)]
    whole = real(recipe.policy, device=torch.device("cpu"), precision="no")
    noise = torch.randn(whole.latent_shape, generator=generator(3, "generate", 0, 0))[None]
    sigmas = sigma_grid(recipe.policy, recipe.sampling.shift, 2, whole.latent_shape[0])
    image = sample_images(whole, whole.encode("a red dog", references), noise, sigmas)[0]
    assert Image.fromarray(image.numpy()).tobytes() == load_image(file).tobytes()


def test_generate_without_a_model_says_what_to_give(tmp_path: Path) -> None:
    assert isinstance(app, typer.Typer)
    done = CliRunner().invoke(app, ["generate", "--prompt", "x", "--out", str(tmp_path / "o.png")])
    assert done.exit_code == 2
    assert "give a run or an adapter, or --config RECIPE" in done.stderr
