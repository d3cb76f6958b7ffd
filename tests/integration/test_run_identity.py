"""A run goes on only on what it stands on, by content: data, frozen weights, formula; and pairs what it evaluates."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo.evaluation.evaluator import evaluate
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.mini.dataset import MiniDataset
from customized_grpo.objectives.grpo import GRPO
from customized_grpo.policies.adapters.lora_files import WEIGHTS_NAME, write_adapter
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.training.identity import RunIdentity, difference
from customized_grpo.training.trainer import train
from runs import checkpoint_bytes, make_tiny_world, metrics_of, tiny_dict, tiny_recipe, with_evaluation
from uno_tiny import uno_file

STEPS: dict[str, Any] = {"train__checkpoint_every": 1, "train__group_size": 2, "sampling__steps": 3}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world, and in it a run of its first two steps."""
    folder = tmp_path_factory.mktemp("begun")
    make_tiny_world(folder / "world")
    rows = [json.loads(line) for line in (folder / "world" / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"masks": [f"mask-{row['references'][0]}"], "extra": {"subject_id": row["id"]}}
        with Image.open(folder / "world" / row["references"][0]) as picture:
            Image.new("L", picture.size, 255).save(folder / "world" / row["masks"][0])
    write(folder / "world", rows)
    begin(folder)
    return folder


def begin(folder: Path, **changes: Any) -> None:
    train(tiny_recipe(folder / "world", folder / "run", **STEPS | {"train__steps": 2} | changes))


def write(world: Path, rows: list[dict[str, Any]]) -> None:
    (world / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]


@pytest.fixture
def copied(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "copy"))


def go_on(folder: Path, **changes: Any) -> Path:
    recipe = tiny_recipe(folder / "world", folder / "run", **STEPS | {"run__resume": "latest"} | changes)
    return train(recipe)


def edited(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    def edit(world: Path) -> None:
        rows = rows_of(world)
        change(rows)
        write(world, rows)

    return edit


def another_picture(name: str) -> Callable[[Path], None]:
    """Of the same size in bytes, with the old one's time."""

    def replace(world: Path) -> None:
        file = world / name
        content, before = bytearray(file.read_bytes()), file.stat()
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return replace


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited(lambda rows: rows[1].update(prompt="another")), r"1 changed \(dog-1\)"),
        (edited(lambda rows: rows[1].update(subject="cat")), r"1 changed \(dog-1\)"),
        (edited(lambda rows: rows[1].update(extra={})), r"1 changed \(dog-1\)"),
        (edited(lambda rows: rows.pop(0)), r"1 removed \(dog-0\)"),
        (edited(lambda rows: rows.append(rows[0] | {"id": "new"})), r"1 added \(new\)"),
        (edited(lambda rows: rows.reverse()), "their order is another"),
        (another_picture("1.png"), r"1 changed \(dog-1\)"),
        (another_picture("mask-1.png"), r"1 changed \(dog-1\)"),
    ],
)
def test_other_data_are_refused(copied: Path, change: Callable[[Path], None], said: str) -> None:
    change(copied / "world")
    with pytest.raises(ValueError, match="other examples than those of the checkpoint: .*" + said):
        go_on(copied)
    assert [row["step"] for row in metrics_of(copied / "run")] == [1, 2], "nothing was written"


def test_the_same_data_go_on_wherever_they_are(copied: Path, tmp_path: Path, capsys: Any) -> None:
    expected = train(tiny_recipe(copied / "world", tmp_path / "whole", **STEPS))
    (copied / "world").rename(copied / "moved")
    world = copied / "moved"
    for file in world.glob("*.png"):
        os.utime(file, (1, 1))
    recipe = tiny_recipe(world, copied / "run", **STEPS, run__resume="latest")
    capsys.readouterr()
    train(recipe)
    said = capsys.readouterr().out
    assert "resuming with changed keys" in said
    assert "data.path, policy.model, run.dir, train.steps" in said
    ours, theirs = checkpoint_bytes(copied / "run", 4), checkpoint_bytes(expected, 4)
    exported = "pytorch_lora_weights.safetensors"  # its header has the recipe, with the paths
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name != exported)


def test_another_model_under_the_same_path_is_refused(copied: Path) -> None:
    file = copied / "world" / "flux" / "vae" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"\1\2\3\4")
    with pytest.raises(
        ValueError, match=r"other files than those of the checkpoint - policy\.model: was content \w+, is"
    ):
        go_on(copied)


def test_another_base_lora_under_the_same_path_is_refused(begun: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(begun / "world", folder / "world")
    changes = {"policy__base_lora": {"path": str(uno_file(folder))}, "sampling__shift": "dynamic"}
    begin(folder, **changes)
    other = uno_file(folder, seed=7)
    assert str(other) == changes["policy__base_lora"]["path"]
    with pytest.raises(ValueError, match=r"policy\.base_lora\.path: was content \w+, is content"):
        go_on(folder, **changes)


def test_a_checkpoint_of_an_earlier_version_goes_on_and_it_is_said(begun: Path, copied: Path, capsys: Any) -> None:
    forget(copied / "run")
    capsys.readouterr()
    recipe = tiny_recipe(begun / "world", copied / "run", **STEPS, run__resume="latest")
    train(recipe)
    assert "is of a version that didn't keep what data and weights it stands on" in capsys.readouterr().out
    assert (copied / "run" / "checkpoints" / "step-000004" / "state" / "identity.json").is_file()


def forget(run: Path) -> None:
    """Take out of checkpoints what earlier versions didn't write."""
    for manifest in (run / "checkpoints").glob("step-*/manifest.json"):
        content = json.loads(manifest.read_text())
        del content["files"]["state/identity.json"]
        manifest.write_text(json.dumps(content))
        (manifest.parent / "state" / "identity.json").unlink()


@pytest.mark.parametrize(
    ("weights", "given", "refused"),
    [
        ({"type": "tdw"}, "minimum", True),
        ({"type": "tdw"}, "weighted_minimum", False),
        ({"type": "constant"}, "minimum", False),
    ],
)
def test_a_formula_that_changed_under_its_name(
    begun: Path, tmp_path: Path, weights: dict[str, Any], given: str, refused: bool
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(begun / "world", folder / "world")
    changes = {"advantage__time_weights": weights, "advantage__aggregator": {"type": "minimum"}}
    begin(folder, **changes)
    forget(folder / "run")
    changes |= {"advantage__aggregator": {"type": given}}
    if refused:
        with pytest.raises(ValueError, match=r"minimum ignores the time weights now.*type=weighted_minimum"):
            go_on(folder, **changes)
    else:
        go_on(folder, **changes)
        with pytest.raises(ValueError, match=r"advantage\.aggregator\.type: was"):
            go_on(folder, **changes | {"advantage__aggregator": {"type": "maximum"}})


def test_an_objective_that_changed_under_its_name(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPO, "formula", 7)
    with pytest.raises(ValueError, match=r"objective\.type grpo has another loss .* was number 1, and is 7.*new run"):
        go_on(copied)
    monkeypatch.undo()
    go_on(copied)


def test_the_base_is_evaluated_anew_on_other_held_out_data(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before the trained weights are put back; tuned rows are never paired with rows of other prompts."""
    shutil.rmtree(copied / "run")
    begin(copied, **with_evaluation(copied / "world", 2))
    other = Path(shutil.copytree(copied / "world", copied / "other"))
    edited(lambda rows: rows[1].update(prompt="a green dog on a beach"))(other)
    folder = go_on(copied, **with_evaluation(other, 2)) / "evaluation"
    assert "step-000000: of 2 rows 1 are kept; 1 are drawn anew (prompt: 1)" in caplog.messages
    assert "step-000002: of 2 rows 1 are kept; 1 are drawn anew (prompt: 1)" in caplog.messages
    base, tuned = (
        [json.loads(line) for line in (folder / f"step-{step:06d}.jsonl").read_text().splitlines()] for step in (0, 4)
    )
    assert (
        [row["prompt"] for row in base] == [row["prompt"] for row in tuned] == ["a red dog", "a green dog on a beach"]
    )
    (compared,) = json.loads((folder / "summary.json").read_text())["differences"]
    assert "unlike" not in compared
    recipe = tiny_dict(copied / "world", copied / "alone", **with_evaluation(other, 2))
    alone = {key: recipe[key] for key in ("run", "policy", "evaluate")} | {"sampling": {"steps": 3}}
    found = evaluate(EvaluateRecipe.model_validate(alone)) / "evaluation" / "base.jsonl"
    assert [json.loads(line)["values"] for line in found.read_text().splitlines()] == [row["values"] for row in base]


def test_a_finished_run_keeps_its_summary(copied: Path) -> None:
    changes = with_evaluation(copied / "world", 2)
    shutil.rmtree(copied / "run")
    begin(copied, **changes)
    summary = copied / "run" / "evaluation" / "summary.json"
    before = summary.read_bytes()
    go_on(copied, **changes | {"train__steps": 2})
    assert summary.read_bytes() == before
    assert [row["name"] for row in json.loads(before)["rows"]] == ["base", "tuned"]


def test_another_base_lora_file_makes_an_evaluation_anew(begun: Path, tmp_path: Path, caplog: Any) -> None:
    lora = uno_file(tmp_path)
    recipe = tiny_dict(begun / "world", tmp_path / "run", policy__base_lora={"path": str(lora)})
    recipe["evaluate"] = with_evaluation(begun / "world", 1)["evaluate"]
    given = {key: recipe[key] for key in ("run", "policy", "evaluate")} | {"sampling": {"steps": 2}}
    file = evaluate(EvaluateRecipe.model_validate(given)) / "evaluation" / "base.jsonl"
    first = file.read_bytes()
    evaluate(EvaluateRecipe.model_validate(given))
    assert file.read_bytes() == first
    uno_file(tmp_path, seed=7)
    evaluate(EvaluateRecipe.model_validate(given))
    assert "base: of 2 rows 0 are kept; 2 are drawn anew (weights: 2)" in caplog.messages
    assert file.read_bytes() != first
    again = file.read_bytes()
    given["policy"]["base_lora"]["path"] = str(lora.rename(tmp_path / "renamed.safetensors"))
    evaluate(EvaluateRecipe.model_validate(given))
    assert file.read_bytes() == again, "the same content under another name"


def test_another_scale_of_the_same_adapter_is_another_adapter(begun: Path, tmp_path: Path, caplog: Any) -> None:
    """Alpha stands in a file's header and not among its weights."""
    draw = torch.Generator().manual_seed(0)
    name, file = "transformer_blocks.0.attn.to_q", tmp_path / "lora" / WEIGHTS_NAME
    shapes = {f"{name}.lora_A.weight": (2, 64), f"{name}.lora_B.weight": (64, 2)}
    tensors = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
    recipe = tiny_dict(begun / "world", tmp_path / "run")
    given = {key: recipe[key] for key in ("run", "policy")} | {"sampling": {"steps": 2}, "lora": str(file)}
    given["evaluate"] = with_evaluation(begun / "world", 1)["evaluate"]
    for alpha in (2, 20):
        write_adapter(file, tensors, {"r": 2, "lora_alpha": alpha, "target_modules": name}, {})
        evaluate(EvaluateRecipe.model_validate(given))
    assert [text for text in caplog.messages if "rows" in text] == [
        "tuned: of 2 rows 0 are kept; 2 are drawn anew (weights: 2)"
    ]


def test_differences_are_counted_and_named() -> None:
    saved = [[f"k{n}", "h"] for n in range(6)]
    assert difference(saved, saved) == ""
    now = [["new", "h"], *([key, "other"] for key, _ in saved[:5])]
    assert difference(saved, now) == "5 changed (k0, k1, k2, ...), 1 added (new), 1 removed (k5)"
    assert difference(saved, saved[::-1]) == "their order is another"


def test_a_data_set_without_files_is_told_by_some_examples(tmp_path: Path) -> None:
    def of(**options: Any) -> list[list[str]]:
        dataset = MiniDataset(MiniDataset.Config(type="mini", **options))
        found: list[list[str]] = RunIdentity(
            tiny_recipe(tmp_path, tmp_path / "run"), dataset, {}, FileHashes()
        ).content["examples"]
        return found

    assert of(size=5000) == of(size=5000)
    assert difference(of(size=5000), of(size=5000, seed=1)).startswith(
        "32 changed (example 0, example 156, example 312"
    )
    assert "number of examples" in difference(of(size=5000), of(size=6000))
