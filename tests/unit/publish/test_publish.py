"""``customized-grpo publish``: what is in the folder, what stays on the machine, what is refused, and the upload."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel
from huggingface_hub import ModelCard, close_session, constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.policies.adapters import full
from customized_grpo.policies.adapters.tuning import apply_all, load_tuned, read_all
from customized_grpo.policies.base import load_policy
from customized_grpo.publish.licences import LICENCES, licence_of
from customized_grpo.publish.pictures import data_of
from customized_grpo.publish.private import public_recipe
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import load_any, load_recipe, recipe_of, save_recipe, shipped_recipes
from hub_server import Hub, hub_server
from publishing import STEP, checkpoint_of, measured, noisy_adapter, run_of
from run_folder import evaluation_rows, write_rows
from runs import environment, make_tiny_world, tiny_recipe
from uno_tiny import uno_file

DEV = ("--base", "black-forest-labs/FLUX.1-dev")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the miniature."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    run_of(folder, load_recipe("mini_customized", [f"run.dir={folder}", f"train.steps={STEP}"]))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_world(tmp_path_factory.mktemp("world"))
    uno_file(folder)
    return folder


def said(*arguments: object) -> str:
    """What the command says, on both streams."""
    result = CliRunner().invoke(app, ["publish", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["publish", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1, result.output
    return result.output


def files(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}


def private_run(world: Path, folder: Path, **changes: Any) -> Path:
    """A run on a local model and local data."""
    run_of(folder, tiny_recipe(world, folder, policy__min_references=0, **changes))
    return folder


def test_the_demos_folder(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert said(demo, "--out", out) == f"{out}\n"
    names = files(out)
    pictures = {one for one in names if one.startswith("pictures/")}
    assert names == pictures | {"README.md", "config.yaml", "pytorch_lora_weights.safetensors"}
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.base_model is None, "the miniature is on no hub"
    summary = json.loads((demo / "evaluation" / "summary.json").read_text())
    tuned = next(row["metrics"] for row in summary["rows"] if row["name"] == "tuned")
    numbers = {one.metric_type: one for one in card.data.eval_results or ()}
    assert numbers.keys() == tuned.keys()
    for column, value in tuned.items():
        assert numbers[column].metric_value == pytest.approx(value["mean"], abs=1e-4)
        assert f"{value['low']:.3f} to {value['high']:.3f}" in str(numbers[column].metric_name)
        assert f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in card.text
    assert all(f"]({one})" in card.text for one in pictures)
    for part in ("dino", "clip_t", "identity", "sars + tdw", "40 of 40", "1.5", "Random", "Largest gains", "One run"):
        assert part in card.text
    recipe = load_any(out / "config.yaml")
    assert recipe.policy == load_recipe(demo / "config.yaml").policy
    assert said(demo / "checkpoints" / f"step-{STEP:06d}", "--out", tmp_path / "again") == f"{tmp_path / 'again'}\n"


def test_the_folder_draws_what_the_run_draws(demo: Path, tmp_path: Path) -> None:
    said(demo, "--out", tmp_path / "out")
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "a.png")
    for name, lora in {"run": demo, "out": tmp_path / "out"}.items():
        arguments = ["generate", "--lora", str(lora), "--reference", str(tmp_path / "a.png"), "--prompt", "a ball"]
        CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / f"{name}.png")], catch_exceptions=False)
    first, second = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("run", "out"))
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_nothing_of_the_machine_is_in_the_folder(
    world: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither paths nor addresses, in no text and no header, and everybody may read every file."""
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "ada"))
    remote = {"type": "remote", "axis": "prompt", "reward": "hpsv3", "urls": ["http://10.1.2.3:8000"]}
    run = tmp_path / "run"
    if kind == "lora":
        private_run(world, run, rewards__far=remote, run__cache=str(tmp_path / "cache"))
    else:
        full_run(world, run)
    out = tmp_path / "out"
    given = said(run, "--out", out, *DEV, "--pictures")
    assert given == f"{out}\n"
    for name in files(out):
        file = out / name
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        content = file.read_bytes()
        for secret in (str(tmp_path), str(world), "/home/ada", "10.1.2.3", str(Path.cwd()), str(tmp_path.parent)):
            assert secret.encode() not in content, (name, secret)
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert load_any(out / "config.yaml").policy.model == DEV[1]
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")], "nothing is left beside it"


def test_a_path_that_would_be_published_all_the_same_is_found(world: Path, tmp_path: Path) -> None:
    run = private_run(world, tmp_path / "run")
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["settings"]["note"] = f"see {tmp_path}/run/notes"
    file.write_text(json.dumps(summary))
    assert "README.md: a path of this machine would be published" in refused(run, "--out", tmp_path / "out", *DEV)
    assert not (tmp_path / "out").exists()


def test_private_pictures_stay_at_home_unless_asked_for(world: Path, tmp_path: Path) -> None:
    run = private_run(world, tmp_path / "run", evaluate=with_data(world))
    printed = said(run, "--out", tmp_path / "out", *DEV)
    assert "left out: the pictures and prompts of a data set of the author's" in printed
    assert "add --pictures" in printed
    assert files(tmp_path / "out") == {"README.md", "config.yaml", "pytorch_lora_weights.safetensors"}
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Not published: the pictures are of the author's data" in text
    assert "wearing a red hat" not in text, "prompts are the author's, too"
    said(run, "--out", tmp_path / "shown", *DEV, "--pictures")
    assert any(one.startswith("pictures/") for one in files(tmp_path / "shown"))
    assert "wearing a red hat" in (tmp_path / "shown" / "README.md").read_text()


def with_data(world: Path) -> dict[str, Any]:
    return {
        "data": {"type": "manifest", "path": str(world / "train.jsonl")},
        "metrics": {"bright": {"type": "runs:Brightness"}},
    }


def test_pictures_have_no_metadata_of_a_camera(world: Path, tmp_path: Path) -> None:
    run = private_run(world, tmp_path / "run", evaluate=with_data(world))
    for number, file in enumerate(sorted((run / "evaluation" / "references").glob("*.png"))):
        exif = Image.Exif()
        exif[0x010F] = "SECRET CAMERA"
        pixels = Image.open(file).convert("RGB").resize((600 if number % 2 else 64, 64))
        pixels.save(file, exif=exif)
    said(run, "--out", tmp_path / "out", *DEV, "--pictures")
    pictures = list((tmp_path / "out" / "pictures").iterdir())
    assert {one.suffix for one in pictures} == {".png", ".jpg"}
    assert not [one.name for one in pictures if b"SECRET" in one.read_bytes()]


def test_dreambench_is_attributed() -> None:
    assert "github.com/google/dreambooth: CC BY 4.0" in str(data_of({"type": "dreambench"}).licence)
    assert data_of({"type": "manifest"}).licence is None
    assert data_of({"type": "my_package:Photos"}).licence is None


def test_a_run_that_was_not_evaluated_says_so(world: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "run", tiny_recipe(world, tmp_path / "run"), evaluated=False)
    assert "the card says 'Not evaluated'" in said(tmp_path / "run", "--out", tmp_path / "out", *DEV)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "**Not evaluated**" in card.text
    assert card.data.eval_results is None
    assert card.data.base_model == DEV[1]
    assert card.data.to_dict()["base_model_relation"] == "adapter"


def test_an_earlier_checkpoint_has_its_own_numbers(world: Path, tmp_path: Path) -> None:
    run = private_run(world, tmp_path / "run", evaluate=with_data(world))
    recipe = load_recipe(run / "config.yaml")
    checkpoint_of(run, recipe, noisy_adapter(load_policy(recipe), recipe.policy.lora), step=25)  # type: ignore[arg-type]
    measured_too(run, 20, 0.3)
    said(run / "checkpoints" / "step-000025", "--out", tmp_path / "out", *DEV)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "During training, step 20" in text
    assert "Its numbers and pictures are of step 20, and the weights here of step 25." in text
    assert "25 of 4" in text
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    last = summary["rows"][1]["metrics"]["identity_accuracy"]
    assert f"{last['mean']:.3f} [{last['low']:.3f}" not in text, "those are of step 40"


def measured_too(run: Path, step: int, quality: float) -> None:
    rows = evaluation_rows(run / "evaluation", f"step-{step:06d}", quality, 12, seed=3)
    write_rows(run / "evaluation", f"step-{step:06d}", rows)


def test_an_evaluation_of_this_adapter_is_on_the_card_and_of_another_is_not(
    world: Path, demo: Path, tmp_path: Path
) -> None:
    run = private_run(world, tmp_path / "run")
    other = tmp_path / "heldout"
    other.mkdir()
    measured(other, settings={"model": str(world / "flux"), "examples": 12})
    (other / "metrics.jsonl").unlink()
    config: dict[str, Any] = {
        "run": {"dir": str(other)},
        "evaluate": {"data": {"type": "dreambench"}},
        "lora": [str(run)],
    }
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    said(run, "--out", tmp_path / "out", *DEV, "--evaluation", other)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "By customized-grpo evaluate (`heldout`, DreamBench)" in text
    assert "CC BY 4.0" in text.partition("## Licence")[2]
    config["lora"] = [str(demo)]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert "is published; give one that drew" in refused(run, "--out", tmp_path / "b", *DEV, "--evaluation", other)
    config["lora"] = [f"{run}=0.5"]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert "is published; give one that drew" in refused(run, "--out", tmp_path / "b", *DEV, "--evaluation", other)


def test_a_suspicion_of_reward_hacking_is_on_the_card(world: Path, tmp_path: Path) -> None:
    run = private_run(world, tmp_path / "run", rewards__bright__axis="identity", rewards__warm__axis="prompt")
    lines = [{"step": n, "reward/bright/mean": n / 10, "time/step": 1.0} for n in range(1, STEP + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    measured_too(run, STEP, -2.0)
    (run / "evaluation" / "summary.json").unlink()
    said(run, "--out", tmp_path / "out", *DEV)
    assert (
        "> **Warning.** reward hacking? The training reward 'bright' rose" in (tmp_path / "out/README.md").read_text()
    )


def full_run(world: Path, folder: Path) -> None:
    recipe = tiny_recipe(world, folder, policy__lora=None, policy__full={}, policy__min_references=0)
    policy = load_policy(recipe)
    place = folder / "checkpoints" / f"step-{STEP:06d}"
    place.mkdir(parents=True)
    weights = {name: one + 0.01 for name, one in policy.transformer.named_parameters()}
    full.save(policy.transformer, place, {n: w.detach() for n, w in weights.items()}, torch.float32)
    (place / "manifest.json").write_text("{}")
    save_recipe(recipe, folder / "config.yaml")
    measured(folder)


def test_a_whole_transformer_is_published_as_one(world: Path, tmp_path: Path) -> None:
    full_run(world, tmp_path / "run")
    said(tmp_path / "run", "--out", tmp_path / "out", *DEV)
    assert "transformer/config.json" in files(tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert 'FluxTransformer2DModel.from_pretrained(REPO, subfolder="transformer"' in card.text
    stock = FluxTransformer2DModel.from_pretrained(tmp_path / "out", subfolder="transformer")
    policy = load_policy(load_recipe(tmp_path / "run" / "config.yaml"))
    load_tuned(policy, tmp_path / "out")
    for name, one in policy.transformer.state_dict().items():
        assert torch.equal(stock.state_dict()[name], one)


def test_a_balanced_adapter_is_two_files_or_one_trade_off(world: Path, tmp_path: Path) -> None:
    run = private_run(world, tmp_path / "run", policy__lora={"rank": 2, "balance": True})
    said(run, "--out", tmp_path / "both", *DEV)
    assert {"pytorch_lora_weights.safetensors", "balance/pytorch_lora_weights.safetensors"} <= files(tmp_path / "both")
    assert 'subfolder="balance"' in (tmp_path / "both" / "README.md").read_text()
    said(run, "--out", tmp_path / "one", *DEV, "--balance", "0.5")
    assert "balance/pytorch_lora_weights.safetensors" not in files(tmp_path / "one")
    velocities = [
        velocity(world, where, b) for where, b in ((run, 0.5), (tmp_path / "both", 0.5), (tmp_path / "one", None))
    ]
    for one in velocities[1:]:
        torch.testing.assert_close(one, velocities[0], rtol=0, atol=2e-5)
    assert "draws at b = 0, and this file is at b = 0.5" in (tmp_path / "one" / "README.md").read_text()


def velocity(world: Path, lora: Path, b: float | None) -> torch.Tensor:
    policy = load_policy(tiny_recipe(world, world / "unused", policy__min_references=0))
    apply_all(policy, read_all(str(lora), b))
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.velocity(x, torch.tensor(0.6), policy.encode("a dog", []))


def test_an_adapter_on_a_local_lora_is_published_with_it(world: Path, tmp_path: Path) -> None:
    beneath = {"path": str(world / "dit_lora.safetensors"), "mode": "adapter"}
    run = private_run(world, tmp_path / "run", policy__base_lora=beneath)
    assert "add --with-base" in refused(run, "--out", tmp_path / "out", *DEV)
    said(run, "--out", tmp_path / "out", *DEV, "--with-base")
    assert load_any(tmp_path / "out" / "config.yaml").policy.model_dump()["base_lora"] is None
    with safe_open(str(tmp_path / "out" / "pytorch_lora_weights.safetensors"), framework="pt") as opened:
        assert opened.metadata()["base_lora"] == "none"
    tuned = load_policy(load_recipe(run / "config.yaml"))
    load_tuned(tuned, run)
    x = torch.randn(1, *tuned.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tuned.velocity(x, torch.tensor(0.6), tuned.encode("a dog", []))
    torch.testing.assert_close(velocity(world, tmp_path / "out", None), expected, rtol=0, atol=2e-5)


def test_what_is_refused(world: Path, demo: Path, tmp_path: Path) -> None:
    run = private_run(world, tmp_path / "run")
    out = tmp_path / "out"
    assert "--base: the recipe's base is" in refused(run, "--out", out)
    unknown = refused(run, "--out", out, "--base", "somebody/their-model")
    assert "the licence of somebody/their-model is not known here" in unknown
    assert "binds what is trained on it" in refused(run, "--out", out, *DEV, "--license", "mit")
    assert "but the run trained 'mini'" in refused(demo, "--out", out, *DEV)
    assert "give a hub id" in refused(run, "--out", out, "--base", str(world / "flux"))
    assert "no policy.base_lora" in refused(run, "--out", out, *DEV, "--with-base")
    assert "is of one trade-off" in refused(run, "--out", out, *DEV, "--balance", "0.5")
    assert "--public: it belongs to --push" in refused(run, "--out", out, *DEV, "--public")
    assert "is not a folder" in refused(tmp_path / "absent", "--out", out, *DEV)
    (tmp_path / "empty").mkdir()
    assert "has no complete checkpoint" in refused(tmp_path / "empty", "--out", out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert "is taken" in refused(demo, "--out", out)
    assert files(out) == {"mine.txt"}


def test_licences() -> None:
    assert licence_of("black-forest-labs/flux.1-DEV", None).name == "flux-1-dev-non-commercial-license"
    assert licence_of("Qwen/Qwen-Image-Edit-2511", None).id == "apache-2.0"
    assert licence_of("Qwen/Qwen-Image-Edit-2511", "cc-by-nc-4.0").id == "cc-by-nc-4.0", "Apache leaves the choice"
    theirs = licence_of("somebody/model", "their-terms", "https://example.org/terms")
    assert (theirs.id, theirs.name, theirs.link) == ("other", "their-terms", "https://example.org/terms")
    for given in ("other", "Not An Id"):
        with pytest.raises(ValueError, match="--license: given"):
            licence_of("somebody/model", given)
    with pytest.raises(ValueError, match="--license-link: it belongs to"):
        licence_of("somebody/model", None, "https://example.org")
    assert all(one.link for one in LICENCES.values() if one.id == "other")


def test_every_shipped_training_recipe_has_a_licence_and_loads_without_its_paths() -> None:
    shipped = [file for file in shipped_recipes().values() if file.parent.name == "train"]
    assert len(shipped) > 10
    for file in shipped:
        recipe = load_recipe(file)
        assert licence_of(recipe.policy.model, None)
        config = public_recipe(recipe.model_dump(mode="json"), recipe.policy.model, joined=False)
        assert recipe_of(config, (), Recipe).policy == recipe.policy


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine that the real client talks to."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        close_session()
        yield server
    close_session()


def test_a_push_is_private_and_comes_back(hub: Hub, demo: Path, tmp_path: Path) -> None:
    """Uploaded by huggingface_hub; ``generate --lora user/name`` draws with it, by the policy of its config.yaml."""
    out = tmp_path / "out"
    printed = said(demo, "--out", out, "--push", "ada/critters")
    assert f"{hub.url}/ada/critters/" in printed
    assert "it is private" in printed
    assert hub.private == {"ada/critters": True}
    assert hub.repos["ada/critters"] == {name: (out / name).read_bytes() for name in files(out)}
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert 'REPO = "ada/critters"' in (out / "README.md").read_text()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "a.png")
    there = environment(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home"))
    for name, lora in {"run": str(demo), "hub": "ada/critters"}.items():
        arguments = ["--lora", lora, "--reference", "a.png", "--prompt", "a ball", "--out", f"{name}.png"]
        program = [sys.executable, "-m", "customized_grpo", "generate", *arguments]
        done = subprocess.run(program, cwd=tmp_path, env=there, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    first, second = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("run", "hub"))
    assert np.abs(first - second).max() <= 1


def test_a_public_repository_is_not_filled_by_accident(hub: Hub, demo: Path, tmp_path: Path) -> None:
    hub.repos["ada/open"], hub.private["ada/open"] = {}, False
    assert "is there and public" in refused_push(demo, tmp_path / "a", "ada/open")
    assert hub.repos["ada/open"] == {}
    assert "anybody may see it" in said(demo, "--out", tmp_path / "b", "--push", "ada/open", "--public")
    assert "README.md" in hub.repos["ada/open"]
    said(demo, "--out", tmp_path / "c", "--push", "ada/new", "--public")
    assert hub.private["ada/new"] is False


def refused_push(run: Path, out: Path, repo: str) -> str:
    result = CliRunner().invoke(app, ["publish", str(run), "--out", str(out), "--push", repo], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    (line,) = [one for one in result.output.splitlines() if one.startswith("error: ")]
    return line


@pytest.mark.parametrize(("status", "message"), [(401, "doesn't know the token"), (403, "may not write"), (500, "500")])
def test_a_hub_that_refuses_is_one_line(hub: Hub, demo: Path, tmp_path: Path, status: int, message: str) -> None:
    hub.refuse = status
    line = refused_push(demo, tmp_path / "out", "ada/critters")
    assert message in line
    assert "is complete" in line
    assert (tmp_path / "out" / "README.md").is_file()


def test_without_token_network_or_name(hub: Hub, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is missing, an id that is none and offline mode are said before anything is written."""
    out = tmp_path / "out"
    assert "give user/name" in refused_push(demo, out, "critters")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused_push(demo, out, "ada/critters")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "no token of the hub here" in refused_push(demo, out, "ada/critters")
    assert not out.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 can't be reached" in refused_push(demo, out, "ada/critters")


def test_a_recipe_of_the_hub_that_names_code_is_not_read(hub: Hub, tmp_path: Path) -> None:
    def generate() -> str:
        result = CliRunner().invoke(
            app,
            ["generate", "--lora", "eve/lora", "--prompt", "x", "--out", str(tmp_path / "x.png")],
            catch_exceptions=False,
        )
        assert result.exit_code == 2, result.output
        return result.output

    assert "no such file or folder, and no config.yaml of it on the hub" in generate()
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    hub.repos["eve/lora"] = {"pytorch_lora_weights.safetensors": (tmp_path / "a.safetensors").read_bytes()}
    hub.private["eve/lora"] = False
    hub.repos["eve/lora"]["config.yaml"] = b"run: {dir: x}\npolicy: {type: 'antigravity:Fly', model: x}\n"
    assert "names code (antigravity:Fly), which is not imported" in generate()
    assert "antigravity" not in sys.modules
