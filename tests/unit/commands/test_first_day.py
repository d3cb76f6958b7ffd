"""The first commands of a new user: help that helps, what can't work refused at once, files that others can read."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from typer.testing import CliRunner

from customized_grpo.advantages.shaping import try_aggregator
from customized_grpo.atomic import readable
from customized_grpo.commands.app import EXAMPLES, app
from customized_grpo.memory import needs
from customized_grpo.policies.adapters.lora import attach, save_adapter
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.export import export
from customized_grpo.publish.fetched import carried_recipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.sampling import draw
from customized_grpo.training.tracking import prepare_folder
from pipeline_cases import pictures
from runs import make_tiny_world, tiny_dict, tiny_recipe
from tiny import tiny_policy

ROOT: Any = typer.main.get_command(app)
COMMANDS = {name: command for name, command in ROOT.commands.items() if name != "data"} | ROOT.commands["data"].commands


def run(*given: str) -> Any:
    return CliRunner().invoke(app, [*given])


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_has_an_example_whose_options_there_are(name: str) -> None:
    where = ["data", name] if name in ROOT.commands["data"].commands else [name]
    short, long = run(*where, "-h"), run(*where, "--help")
    assert short.exit_code == 0
    assert short.output == long.output
    assert f"customized-grpo {EXAMPLES[name]}".split() == long.output.partition("Example:")[2].split()
    words = shlex.split(EXAMPLES[name])
    assert words[: len(where)] == where
    command, words = COMMANDS[name], words[len(where) :]
    context = command.make_context(name, words, resilient_parsing=True)  # refuses an option that it doesn't have
    assert not context.args
    missing = [one.name for one in command.params if one.required and context.params.get(one.name) in (None, (), [])]
    assert not missing


def test_summaries_are_whole_and_a_shell_may_complete() -> None:
    for group in ((), ("data",)):
        output = run(*group, "--help").output
        assert "..." not in output.partition("Commands:")[2]
    assert "--install-completion" in run("--help").output
    assert "Write one self-contained HTML page about one run, or several" in " ".join(run("--help").output.split())


def test_a_large_model_without_a_gpu_is_refused_unless_it_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    recipe = load_recipe("uno_customized_grpo", [f"run.dir={tmp_path / 'run'}"])
    message = r"run.device: auto, but torch finds no GPU here, and black-forest-labs/FLUX.1-dev has 11.9 billion"
    with pytest.raises(ValueError, match=message):
        needs.need_gpu(recipe)
    needs.need_gpu(load_recipe("uno_customized_grpo", ["run.device=cpu"]))
    needs.need_gpu(load_recipe("mini_customized"))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    needs.need_gpu(recipe)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    asked = ("generate", "--config", "uno_customized_grpo", "--prompt", "a cat", "--out", str(tmp_path / "x.png"))
    done = run(*asked)
    assert done.exit_code == 2
    assert "run.device=cpu if you mean it" in " ".join(done.stderr.split())
    assert not (tmp_path / "x.png").exists()


def test_a_training_refuses_it_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(
        "customized_grpo.training.setup.look_over", lambda *_, **__: pytest.fail("tokenizers would be fetched")
    )
    world = make_tiny_world(tmp_path)
    keys = (f"data.path={world / 'train.jsonl'}", f"run.dir={tmp_path / 'run'}")
    done = run("train", "uno_customized_grpo", *keys)
    assert done.exit_code == 2
    assert "torch finds no GPU here" in done.stderr
    prepare_folder(tmp_path / "run", resuming=False)  # so that it may begin there


def test_doctor_says_what_a_recipe_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr("customized_grpo.commands.doctor.examine", lambda folder: [])
    done = run("doctor", "uno_customized_grpo")
    said = " ".join(done.output.replace("│", " ").split())
    assert done.exit_code == 1
    assert "is not here" in said
    assert "torch finds no GPU" in said
    assert run("doctor", "mini_customized").exit_code == 0


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (lambda a, w: a.sum(1), r"advantage.aggregator: it gave \(4,\), where a tensor of \(G, K\) = \(4, 3\)"),
        (lambda a, w: a.sum(1, keepdim=True), r"advantage.aggregator: it gave \(4, 1\)"),
        (lambda a, w: [1], r"advantage.aggregator: it gave list"),
        (lambda a, w: a @ w, r"advantage.aggregator: it failed on advantages \(4, 2\) and weights \(3, 2\): Runtime"),
    ],
)
def test_an_aggregator_is_tried_before_anything_is_loaded(aggregator: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        try_aggregator(aggregator, 2)


def joined_wrongly(a: Tensor, w: Tensor) -> Tensor:
    """A plug-in that forgets the steps."""
    return a.sum(1, keepdim=True)


def test_a_training_tries_it_first(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    recipe = tiny_dict(world, tmp_path / "run", advantage__aggregator={"type": f"{__name__}:joined_wrongly"})
    (world / "train.jsonl").unlink()  # which would be read next
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = run("train", str(tmp_path / "recipe.yaml"))
    assert done.exit_code == 2
    assert "advantage.aggregator: it gave (4, 1)" in " ".join(done.stderr.split())


def test_a_run_that_never_began_may_begin_again_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {}\n")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "heldout/base/clip": 1.0}\n')
    prepare_folder(tmp_path, resuming=False)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a": 1}\n{"step": 1, "loss/kl": 0.0}\n')
    with pytest.raises(ValueError, match=r"already holds files"):
        prepare_folder(tmp_path, resuming=False)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"already holds files"):
        prepare_folder(tmp_path, resuming=False)
    (tmp_path / "holiday.png").unlink()
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"already holds files"):
        prepare_folder(tmp_path, resuming=False)


def test_exported_files_are_for_others_and_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    policy = tiny_policy(world / "flux")
    attach(policy, LoraSettings(rank=2), seed=0)
    recipe = tiny_recipe(world, tmp_path / "run")
    about = {"base_model": str(world / "flux"), "recipe": recipe.model_dump_json(exclude={"run"}), "step": "1"}
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001"
    save_adapter(policy, checkpoint, about)
    file = export(str(checkpoint), tmp_path / "out", "diffusers", with_base=False, recipe=None)
    mask = os.umask(0)
    os.umask(mask)
    for written in (file, next(checkpoint.glob("*.safetensors"))):
        assert written.stat().st_mode & 0o777 == 0o666 & ~mask
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    assert str(tmp_path) not in json.dumps(header)
    assert header["exported_from"] == "run/checkpoints/step-000001/pytorch_lora_weights.safetensors"
    assert json.loads(header["recipe"])["policy"]["model"] == "flux"
    nested = tmp_path / "model"
    (nested / "transformer").mkdir(parents=True)
    (nested / "transformer" / "x").touch(mode=0o600)
    readable(nested)
    assert (nested / "transformer" / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_adapters_file_alone_draws_by_the_recipe_in_its_header(tmp_path: Path) -> None:
    """Taken out of its run; and the picture says what it was drawn from, and what it replaces is said."""
    world = make_tiny_world(tmp_path)
    policy = tiny_policy(world / "flux")
    attach(policy, LoraSettings(rank=2), seed=0)
    recipe = tiny_recipe(world, tmp_path / "run")
    save_adapter(policy, tmp_path / "alone", {"recipe": recipe.model_dump_json(exclude={"run"}), "precision": "no"})
    pictures()[0].save(tmp_path / "subject.png")
    given = (
        "generate",
        "--lora",
        str(tmp_path / "alone" / "pytorch_lora_weights.safetensors"),
        "--prompt",
        "a red cube in Zürich",
    )
    for name, replaced in (("x.png", False), ("x.png", True), ("x.jpg", False)):
        done = run(*given, "--reference", str(tmp_path / "subject.png"), "--out", str(tmp_path / name), "--seed", "3")
        assert done.exit_code == 0, done.stderr
        assert ("was there, and is replaced" in " ".join(done.stderr.split())) == replaced
    carried = carried_recipe(str(tmp_path / "alone"))
    assert carried is not None
    assert (carried.run.precision, carried.policy) == ("no", recipe.policy)
    with Image.open(tmp_path / "x.png") as png, Image.open(tmp_path / "x.jpg") as jpg:
        about = json.loads(png.text[draw.ABOUT])  # type: ignore[attr-defined]
        assert json.loads(jpg.getexif()[270])["prompt"] == "a red cube in Zürich"
    assert (about["prompt"], about["seed"], about["number"], about["steps"]) == ("a red cube in Zürich", 3, 0, 5)
    assert str(tmp_path) not in json.dumps(about)
    for other in ("no JSON", "[]", '{"policy": {}}'):
        save_adapter(policy, tmp_path / "tools", {"recipe": other})
        assert carried_recipe(str(tmp_path / "tools")) is None
    data = recipe.model_dump(mode="json", exclude={"run"})
    data["policy"]["type"] = "os:system"
    save_adapter(policy, tmp_path / "others", {"recipe": json.dumps(data)})
    done = run("generate", "--lora", str(tmp_path / "others"), "--prompt", "x", "--out", str(tmp_path / "y.png"))
    assert done.exit_code == 2
    assert "names code" in done.stderr
