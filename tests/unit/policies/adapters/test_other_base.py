"""An adapter of FLUX.2 [klein]'s base drawn on the distilled model, on purpose; and what isn't let through."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.data.images import load_image
from customized_grpo.evaluation.evaluator import evaluate
from customized_grpo.policies.adapters.full import TransformerFolder
from customized_grpo.policies.adapters.hashes import base_hash
from customized_grpo.policies.adapters.lora import save_adapter
from customized_grpo.policies.adapters.other_base import check_adapters, explained
from customized_grpo.policies.adapters.tuning import Scaled
from customized_grpo.policies.base import load_policy
from customized_grpo.policies.flux import UNOConfig
from customized_grpo.policies.flux2 import Flux2KleinConfig
from customized_grpo.recipe.config import Base, EvaluateRecipe
from customized_grpo.recipe.drawn import on_base
from customized_grpo.recipe.loading import load_recipe, save_recipe
from customized_grpo.sampling.draw import draw
from pipeline_cases import PROMPT, adapted
from tiny import make_tiny_flux
from tiny_flux2 import make_tiny_flux2, tiny_flux2

CPU = torch.device("cpu")


def reweighted(folder: Path) -> Path:
    """The model of a folder with other norms, which a base is known by."""
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: 1.5 * one if one.ndim == 1 else one for name, one in weights.items()}, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base/``, ``distilled/``, ``wider/``, FLUX.2-dev's ``dev/``, an ``adapter/`` of the base, and held-out data."""
    folder = tmp_path_factory.mktemp("world")
    make_tiny_flux2(folder / "base", klein=True)
    reweighted(make_tiny_flux2(folder / "distilled", klein=True, distilled=True))
    make_tiny_flux2(folder / "dev")
    policy = adapted(tiny_flux2(folder / "base"))
    save_adapter(policy, folder / "adapter", {"base_model": "klein-base"})
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(folder / "0.png")
    row = {"id": "dog", "prompt": PROMPT, "references": ["0.png"], "subject": "dog"}
    (folder / "held.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def recipe(world: Path, **changes: Any) -> EvaluateRecipe:
    given = {
        "run": {"dir": str(world / "run"), "precision": "no", "device": "cpu"},
        "policy": {
            "type": "flux2-klein",
            "model": str(world / "base"),
            "height": 64,
            "width": 48,
            "max_sequence_length": 40,
            "reference_size": 64,
        },
        "sampling": {"steps": 2},
        "evaluate": {
            "data": {"type": "manifest", "path": str(world / "held.jsonl")},
            "metrics": {"bright": {"type": "runs:Brightness"}},
        },
    }
    return EvaluateRecipe.model_validate(given | changes)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said on stderr about bases, without the bars of libraries."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("base:")]


def drawn(world: Path, file: Path, base: Base | None = None, adapter: str | None = None, **changes: Any) -> bytes:
    settings: dict[str, Any] = {"steps": None, "seed": 0, "num": 1, "grid": None}
    references = [load_image(world / "0.png")]
    (out,) = draw(recipe(world, **changes), adapter, references, PROMPT, file, base=base, **settings)
    return load_image(out).tobytes()


def test_the_distilled_model_draws_the_bases_adapter(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, distilled = str(world / "adapter"), str(world / "distilled")
    found = drawn(world, tmp_path / "a.png", Base(model=distilled), adapter)
    said = lines(capsys)
    hashes = [base_hash(load_policy(on_base(recipe(world).policy, one), device=CPU).transformer) for one in
              (None, Base(model=distilled))]  # fmt: skip
    assert hashes[0] != hashes[1]
    assert said == [
        f"base: adapter '{adapter}/pytorch_lora_weights.safetensors' was trained on 'klein-base' (hash {hashes[0]}); "
        f"it is drawn on {distilled!r} (hash {hashes[1]})",
        f"base: {distilled!r} is step-distilled, and {str(world / 'base')!r} is not: it was made for 4 steps without "
        "guidance; 2 are taken (--steps of generate, evaluate.steps)",
    ]
    # What is drawn is the distilled model with the adapter, not the base with it.
    policy = recipe(world).policy.model_copy(update={"model": distilled})
    alone = drawn(world, tmp_path / "b.png", policy=policy)
    assert found not in (drawn(world, tmp_path / "c.png", adapter=adapter), alone)
    as_recipe = recipe(world, lora=adapter, base={"model": distilled})
    (out,) = draw(as_recipe, adapter, [load_image(world / "0.png")], PROMPT, tmp_path / "d.png",
                  steps=None, seed=0, num=1, grid=None)  # fmt: skip
    assert load_image(out).tobytes() == found, "an evaluation's own base"


def test_without_being_asked_for_it_is_refused(world: Path, tmp_path: Path) -> None:
    policy = recipe(world).policy.model_copy(update={"model": str(world / "distilled")})
    with pytest.raises(ValueError, match=r"was trained on another base .*on purpose by --base of generate"):
        drawn(world, tmp_path / "a.png", adapter=str(world / "adapter"), policy=policy)


def test_the_base_it_was_trained_on_is_no_news(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = str(world / "adapter")
    found = drawn(world, tmp_path / "a.png", Base(model=str(world / "base")), adapter)
    assert lines(capsys) == []
    assert found == drawn(world, tmp_path / "b.png", adapter=adapter)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("dev", "holds a Flux2Pipeline, and policy.type flux2-klein reads a Flux2KleinPipeline"),
        ("nowhere", "no such folder"),
    ],
)
def test_another_architecture_is_refused(world: Path, tmp_path: Path, model: str, reason: str) -> None:
    found = rf"base: '.*{model}' can't be drawn with in place of policy.model '.*base'; give a model .*{reason}"
    with pytest.raises(ValueError, match=found):
        drawn(world, tmp_path / "a.png", Base(model=str(world / model)), str(world / "adapter"))


def test_another_size_of_the_family_is_refused(world: Path, tmp_path: Path) -> None:
    """A model with fewer blocks than the adapter has."""
    policy = adapted(tiny_flux2(make_tiny_flux2(tmp_path / "deep", klein=True, layers=2)))
    save_adapter(policy, tmp_path / "adapter", {})
    deep = recipe(world).policy.model_copy(update={"model": str(tmp_path / "deep")})
    with pytest.raises(ValueError, match=r"base: .* give a model of the same architecture: LoRA .*transformer_blocks"):
        drawn(world, tmp_path / "a.png", Base(model=str(world / "distilled")), str(tmp_path / "adapter"), policy=deep)


def test_a_base_without_an_adapter_is_the_policys_model(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base: .* is another base for an adapter, and none is given"):
        drawn(world, tmp_path / "a.png", Base(model=str(world / "distilled")))
    with pytest.raises(ValueError, match="base: it is another base for an adapter, and no adapter is given; give lora"):
        recipe(world, base={"model": str(world / "distilled")})


def test_a_transformer_that_was_trained_in_full_has_no_other_base(tmp_path: Path) -> None:
    check_adapters([])
    with pytest.raises(ValueError, match=r"base: .*run is a transformer that was trained in full.*leave base out"):
        check_adapters([Scaled(TransformerFolder(tmp_path / "run"), 1.0)])


def test_what_belongs_to_the_trained_model_is_left_out() -> None:
    klein = Flux2KleinConfig(model="a", revision="r", variant="fp16", guidance=3.0, height=64, width=48)
    other = on_base(klein, Base(model="b", revision="s"))
    assert (other.model, other.revision, other.variant) == ("b", "s", None)
    assert (other.guidance, other.height, other.width) == (3.0, 64, 48)
    uno = UNOConfig(model="a", transformer="t.safetensors", transformer_revision="r", base_lora={"path": "uno"})
    moved = on_base(uno, Base(model="b"))
    assert (moved.model, moved.transformer, moved.transformer_revision) == ("b", None, None)
    assert moved.base_lora == uno.base_lora
    assert on_base(uno, None) is uno


def test_errors_of_the_recipes_own_base_are_not_touched() -> None:
    with pytest.raises(ValueError, match=r"^broken$"), explained(None, UNOConfig(model="a")):
        raise ValueError("broken")


def test_an_evaluation_stands_on_the_base_that_drew_it(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Through the command; rows of one base are never kept for another."""
    adapter, distilled, file = str(world / "adapter"), str(world / "distilled"), tmp_path / "recipe.yaml"
    save_recipe(recipe(world), file)

    def evaluated(*options: str) -> dict[str, Any]:
        given = [str(file), f"run.dir={tmp_path / 'run'}", "--lora", adapter, *options]
        result = CliRunner().invoke(app, ["evaluate", *given], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        folder = tmp_path / "run" / "evaluation"
        rows = {name: (folder / f"{name}.jsonl").read_text() for name in ("base", "tuned")}
        return {"rows": rows, "settings": json.loads((folder / "summary.json").read_text())["settings"]}

    first = evaluated()
    other = evaluated("--base", distilled)
    assert any("drawn anew (weights" in record.getMessage() for record in caplog.records)
    assert other["settings"]["model"] == distilled
    assert first["settings"]["model"] == str(world / "base")
    assert not {json.loads(row)["stands_on"]["weights"] for row in first["rows"].values()} & {
        json.loads(row)["stands_on"]["weights"] for row in other["rows"].values()
    }
    saved = load_recipe(tmp_path / "run" / "config.yaml", (), EvaluateRecipe)
    assert saved.base == Base(model=distilled)
    assert saved.policy.model == str(world / "base")
    capsys.readouterr()
    evaluate(saved)  # the recipe alone says everything
    assert (tmp_path / "run" / "evaluation" / "tuned.jsonl").read_text() == other["rows"]["tuned"]
    assert "it is drawn on" in capsys.readouterr().err


def test_a_uno_adapter_on_another_flux(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ``generate``, with the run's own recipe."""
    flux, other = make_tiny_flux(tmp_path / "flux"), make_tiny_flux(tmp_path / "schnell", seed=1, guidance_embeds=False)
    policy = UNOConfig(model=str(flux), height=32, width=32, max_sequence_length=16, min_references=0)
    opened = adapted(load_policy(policy, device=CPU, precision="no"))
    save_adapter(opened, tmp_path / "run", {"base_model": str(flux)})
    own = {"dir": str(tmp_path / "run"), "precision": "no", "device": "cpu"}
    given = {"data": {"type": "mini"}, "metrics": {"bright": {"type": "runs:Brightness"}}}
    whole = EvaluateRecipe.model_validate({"run": own, "policy": policy, "sampling": {"steps": 2}, "evaluate": given})
    save_recipe(whole, tmp_path / "run" / "config.yaml")
    options = ["--lora", str(tmp_path / "run"), "--prompt", "a dog", "--out", str(tmp_path / "a.png")]
    result = CliRunner().invoke(app, ["generate", *options, "--base", str(other)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").is_file()
    refused = CliRunner().invoke(app, ["generate", *options, "--base", str(tmp_path / "run")])
    assert refused.exit_code != 0
