"""Full fine-tuning on tiny weights: what always holds of a run, what its checkpoint is for others, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.evaluation.evaluator import evaluate
from customized_grpo.policies.adapters import full, tuning
from customized_grpo.policies.adapters.tensor_files import read_tensors, write_tensors
from customized_grpo.policies.base import load_policy
from customized_grpo.policies.flux import UNO
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.report.write import write_report
from customized_grpo.training.checkpoint import check
from customized_grpo.training.setup import build
from customized_grpo.training.state import restore
from customized_grpo.training.trainer import Trainer, train
from runs import FULL, checkpoint_bytes, metrics_of, tiny_dict, tiny_recipe, with_evaluation


@pytest.fixture(scope="module")
def run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Four steps of all weights, with a KL, an average, and a held-out evaluation."""
    changes = FULL | with_evaluation(tiny_world, 4)
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path_factory.mktemp("full") / "run", **changes)))
    trainer.run()
    return trainer


def last(run: Trainer) -> Path:
    return run.parts.folder / "checkpoints" / "step-000004"


def velocity(policy: Any, trainer: Trainer) -> Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.dtype)
    example = trainer.parts.dataset[0]
    with torch.no_grad():
        out: Tensor = policy.velocity(x, torch.tensor(0.7), policy.encode(example.prompt, example.references))
    return out


def test_every_weight_is_trained_from_a_ratio_of_one(run: Trainer) -> None:
    rows = metrics_of(run.parts.folder)
    assert [row["ratio/max_abs_log_first"] for row in rows[1:]] == [0] * 4
    assert all(row["grad/norm"] > 0 for row in rows[1:])
    transformer = run.parts.policy.transformer
    assert set(run.parts.parameters) == {name for name, _ in transformer.named_parameters()}
    base = run.parts.policy.base_weights
    assert base is not None
    assert all(not torch.equal(one, base[name]) for name, one in run.parts.parameters.items())


def test_the_kl_is_to_the_first_weights(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly 0 before the first update, above 0 after it, and asking for it moves no weight."""
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **FULL)))
    start = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    kls, real = [], Trainer.update

    def spy(self: Trainer, *given: Any, first: bool) -> dict[str, float]:
        metrics = real(self, *given, first=first)
        kls.append(metrics["loss/kl"])
        return metrics

    monkeypatch.setattr(Trainer, "update", spy)
    trainer.step(0)
    assert kls[0] == 0
    assert kls[1] > 1e-8
    base = trainer.parts.policy.base_weights
    assert base is not None
    assert all(torch.equal(base[name], start[name]) for name in start)
    moved = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    with tuning.reference(trainer.parts.policy):
        assert all(torch.equal(one, start[name]) for name, one in trainer.parts.parameters.items())
    assert all(torch.equal(one, moved[name]) for name, one in trainer.parts.parameters.items())


def test_constant_rewards_move_nothing(tiny_world: Path, tmp_path: Path) -> None:
    rewards = {f"of_{axis}": {"type": "runs:Constant", "axis": axis} for axis in ("prompt", "identity")}
    changes = FULL | {"rewards": rewards, "train__weight_decay": 0.0, "objective__kl": 0.0}
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **changes)))
    assert trainer.parts.policy.base_weights is None, "a copy that nothing asks for"
    before = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    assert trainer.step(0)["grad/norm"] == 0
    assert all(torch.equal(one, before[name]) for name, one in trainer.parts.parameters.items())


def test_a_run_that_goes_on_ends_with_the_same_bytes(run: Trainer, tiny_world: Path, tmp_path: Path) -> None:
    changes = FULL | with_evaluation(tiny_world, 4)
    shutil.copytree(run.parts.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    resumed = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", run__resume="latest", **changes)))
    assert restore(resumed.parts) == 2
    first = resumed.parts.policy.base_weights
    assert first is not None
    assert any(not torch.equal(first[n], one) for n, one in resumed.parts.parameters.items())
    train(resumed.recipe)
    for name, expected in (run.parts.policy.base_weights or {}).items():
        assert torch.equal(first[name], expected), "the KL is to the base, not to where the run went on"
    assert state_bytes(tmp_path / "run") == state_bytes(run.parts.folder)
    assert metrics_of(tmp_path / "run") == metrics_of(run.parts.folder)


def state_bytes(folder: Path) -> dict[str, bytes]:
    checkpoint = folder / "checkpoints" / "step-000004"
    files = sorted((*(checkpoint / "state").iterdir(), *(checkpoint / "transformer").iterdir()))
    return {file.name: file.read_bytes() for file in files}


def test_diffusers_opens_the_checkpoint_to_the_same_velocity(run: Trainer) -> None:
    """The averaged weights, as the recipe has ``train.ema``; one file a model, and no adapter's."""
    assert check(last(run)) == 4
    assert sorted(path.name for path in last(run).iterdir()) == [
        "config.yaml", "manifest.json", "state", "transformer",
    ]  # fmt: skip
    opened = FluxTransformer2DModel.from_pretrained(last(run), subfolder="transformer")
    average = read_tensors(last(run) / "state" / "ema.safetensors")
    assert all(torch.equal(one, average[name]) for name, one in opened.named_parameters())
    assert json.loads((last(run) / "transformer" / "config.json").read_text())["num_layers"] == 1
    policy = load_policy(run.recipe.policy, device=torch.device("cpu"), precision="no")
    before = velocity(policy, run)
    tuning.apply(policy, tuning.read(run.parts.folder))
    with run.parts.averaged():
        assert torch.equal(velocity(policy, run), velocity(run.parts.policy, run))
    policy.transformer.load_state_dict(opened.state_dict())
    assert (velocity(policy, run) - before).abs().max() > 1e-3


def test_generate_and_evaluate_take_the_run(run: Trainer, tiny_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    arguments = ["generate", "--lora", str(last(run)), "--reference", str(tiny_world / "0.png")]
    arguments += [
        "--prompt",
        "a red dog",
        "--steps",
        "2",
        "--grid",
        str(tmp_path / "grid.png"),
        "--out",
        str(out),
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "grid.png") as sheet:
        above = sheet.height - 3 * 64  # the prompt's lines
        rows = [sheet.crop((4, above + 64 * row + 28, 36, above + 64 * row + 60)).tobytes() for row in (1, 2)]
    assert rows[0] != rows[1]
    assert rows[1] == Image.open(out).convert("RGB").tobytes()

    section = tiny_dict(tiny_world, tmp_path / "eval", **with_evaluation(tiny_world, 4))
    policy = {key: value for key, value in section["policy"].items() if key != "lora"}
    recipe = EvaluateRecipe.model_validate(
        {"run": section["run"], "policy": policy, "sampling": {"steps": 5}, "evaluate": section["evaluate"],
         "lora": str(run.parts.folder)}
    )  # fmt: skip
    evaluate(recipe)
    told = [json.loads((folder / "evaluation" / "summary.json").read_text()) for folder in
            (tmp_path / "eval", run.parts.folder)]  # fmt: skip
    inside, during = ({row["name"]: row["metrics"]["bright"]["mean"] for row in one["rows"]} for one in told)
    assert inside["tuned"] != inside["base"]
    assert {name: inside[name] for name in during} == during


def test_the_report_knows_what_was_trained(run: Trainer, tmp_path: Path) -> None:
    page = write_report([run.parts.folder], tmp_path / "report.html").read_text(encoding="utf-8")
    told = json.loads((run.parts.folder / "evaluation" / "summary.json").read_text())
    tuned = next(row["metrics"]["bright"]["mean"] for row in told["rows"] if row["name"] == "tuned")
    assert f"{tuned:.1f}" in page
    assert "full:" in page  # the recipe's section, as it was resolved


def test_export_writes_the_whole_model(run: Trainer, tmp_path: Path) -> None:
    expected = velocity(tuned_policy(run), run)
    for form in ("model", "original"):
        done = CliRunner().invoke(
            app, ["export", str(run.parts.folder), "--out", str(tmp_path / form), "--format", form]
        )
        assert done.exit_code == 0, done.output
    section = run.recipe.policy.model_copy(update={"full": None})
    for changes in (
        {"model": str(tmp_path / "model")},
        {"transformer": str(tmp_path / "original" / "transformer.safetensors")},
    ):
        policy = load_policy(section.model_copy(update=changes), device=torch.device("cpu"), precision="no")
        assert torch.equal(velocity(policy, run), expected)
    refused = CliRunner().invoke(app, ["export", str(run.parts.folder), "--out", str(tmp_path / "no")])
    assert refused.exit_code == 2
    assert "--format model or original" in " ".join(refused.output.split())


def tuned_policy(run: Trainer) -> UNO:
    policy = load_policy(run.recipe.policy, device=torch.device("cpu"), precision="no")
    tuning.apply(policy, tuning.read(run.parts.folder))
    assert isinstance(policy, UNO)
    return policy


def test_targets_train_a_part_and_save_the_whole(tiny_world: Path, tmp_path: Path) -> None:
    changes = FULL | {
        "policy__full": {"targets": ["attn", r"transformer_blocks\.\d+\.norm1"]},
        "train__steps": 2,
    }
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **changes)))
    before = {n: p.detach().clone() for n, p in trainer.parts.policy.transformer.named_parameters()}
    assert {name for name in before if ".attn." in name or ".norm1." in name} == set(trainer.parts.parameters)
    trainer.run()
    state = tmp_path / "run" / "checkpoints" / "step-000002"
    saved = FluxTransformer2DModel.from_pretrained(state, subfolder="transformer").state_dict()
    trained = set(read_tensors(state / "state" / "adapter.safetensors"))
    assert trained == set(trainer.parts.parameters)
    assert {name for name, one in before.items() if not torch.equal(saved[name], one)} == trained


def test_half_precision_keeps_float32_weights_and_saves_half(tiny_world: Path, tmp_path: Path) -> None:
    """Steps far below a bfloat16 weight's last bit are kept, and the KL still begins at exactly 0."""
    changes = FULL | {"run__precision": "bf16", "train__lr": 1e-6, "train__ema": None, "train__steps": 2}
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **changes)))
    start = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    assert {one.dtype for one in start.values()} == {torch.float32}
    trainer.run()
    rows = metrics_of(tmp_path / "run")
    assert [row["ratio/max_abs_log_first"] for row in rows] == [0, 0]
    name = "transformer_blocks.0.attn.to_q.weight"
    moved = (trainer.parts.parameters[name] - start[name]).abs()
    assert 0 < moved.max() < start[name].abs().mean() * 2**-9
    folder = full.find(tmp_path / "run")
    assert folder is not None
    saved = read_tensors(folder.files[0])
    assert {one.dtype for one in saved.values()} == {torch.bfloat16}
    assert saved.keys() == start.keys()
    opened = load_policy(trainer.recipe.policy, device=torch.device("cpu"), precision="bf16")
    full.load(opened, folder)
    torch.testing.assert_close(velocity(opened, trainer), velocity(trainer.parts.policy, trainer), rtol=0, atol=2e-2)


def test_a_run_starts_from_another_and_is_held_to_the_base(run: Trainer, tiny_world: Path, tmp_path: Path) -> None:
    changes = FULL | {"policy__full": {"path": str(run.parts.folder)}}
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **changes)))
    average = read_tensors(last(run) / "state" / "ema.safetensors")
    assert all(torch.equal(one, average[name]) for name, one in trainer.parts.parameters.items())
    base, first = trainer.parts.policy.base_weights, run.parts.policy.base_weights
    assert base is not None
    assert first is not None
    assert all(torch.equal(base[name], first[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy__lora": {"rank": 2}}, r"full: it trains the transformer itself.*lora: null"),
        ({"policy__full": None}, r"lora: null leaves nothing to train; give full"),
        ({"policy__quantization": "8bit", "run__precision": "bf16"}, r"held in 8bit can't be trained"),
        ({"policy__base_lora": {"path": "x", "mode": "adapter"}}, r"base_lora\.mode=fuse"),
        ({"policy__full": {"target": ["attn"]}}, r"target"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_world: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_recipe(tiny_world, tiny_world / "run", **(FULL | changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["attnn"]}, r"no parameter matches 'attnn'; among the names' parts are: .*attn"),
        ({"targets": ["("]}, "not a regular expression"),
        ({"path": "nowhere"}, "there is no transformer in diffusers' layout at 'nowhere'"),
    ],
)
def test_wrong_settings_are_refused(tiny_world: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny_recipe(tiny_world, tmp_path / "run", **(FULL | {"policy__full": settings})))


def test_another_models_weights_are_refused(run: Trainer, tmp_path: Path) -> None:
    policy = load_policy(run.recipe.policy, device=torch.device("cpu"), precision="no")
    tensors = {name: one.clone() for name, one in policy.transformer.state_dict().items()}
    name = "x_embedder.weight"
    for change, message in (
        ({name: None}, f"missing: {name}"),
        ({"other.weight": torch.zeros(2)}, r"surplus: other\.weight"),
        ({name: torch.zeros(2, 2)}, f"another width: {name}"),
    ):
        changed = {n: t for n, t in (tensors | change).items() if t is not None}
        folder = tmp_path / f"{len(changed)}-{changed.get(name, torch.zeros(1)).numel()}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        # as macOS leaves them on foreign disks
        (folder / "._diffusion_pytorch_model.safetensors").write_bytes(b"\0\5\x16\7")
        assert full.find(folder) is None
        write_tensors(folder / "diffusion_pytorch_model.safetensors", changed)
        found = full.find(folder)
        assert found is not None
        assert found.files == [folder / "diffusion_pytorch_model.safetensors"]
        with pytest.raises(ValueError, match=message):
            full.load(policy, found)


def test_an_adapters_run_is_still_an_adapter(tiny_world: Path, tmp_path: Path) -> None:
    train(tiny_recipe(tiny_world, tmp_path / "run", train__steps=1))
    assert full.find(tmp_path / "run") is None
    assert "transformer" not in {path.name for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    assert set(checkpoint_bytes(tmp_path / "run", 1)) >= {"pytorch_lora_weights.safetensors"}
