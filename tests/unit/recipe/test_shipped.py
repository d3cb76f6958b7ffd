"""The recipes of real models: what their headers and comments say is so."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cards import SHIPPED, as_its_header_says, header
from customized_grpo.commands.app import app
from customized_grpo.data.base import load_dataset
from customized_grpo.memory.fitting import fits
from customized_grpo.memory.footprint import GIB, of_recipe
from customized_grpo.recipe.loading import load_recipe
from layouts import draw, syncd

ROOT = Path(__file__).parents[3]


def test_there_are_such_recipes() -> None:
    assert len(SHIPPED) >= 10


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_fits_the_card_that_its_header_names(name: str) -> None:
    """Qwen's took 90 GiB of 80, and 105 with HPSv3."""
    said = re.search(r"for GPUs with (\d+) GB", header(name))
    assert said is not None, "the header names a card"
    recipe, world = as_its_header_says(name)
    found = of_recipe(recipe, world=world)
    assert found.unknown == ()
    assert fits(found, int(said[1]) * GIB), found.total / GIB


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_replays_the_batch_that_it_draws(name: str) -> None:
    """Else the two differ in the last bits, and the guard of the first ratio may stop the run."""
    recipe = load_recipe(name)
    assert (recipe.sampling.batch or recipe.train.group_size) == recipe.pairs_per_backward
    assert recipe.samples_per_update % recipe.pairs_per_backward == 0


def test_servers_and_trainers_have_cards_of_their_own() -> None:
    """A server takes the first card that it sees, and so does the first process."""
    seen = 0
    for file in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/how-to/*.md"),
        *ROOT.glob("config/*/*.yaml"),
        *ROOT.glob("scripts/*"),
    ]:
        text = re.sub(r"\\\n[# ]*", "", file.read_text(encoding="utf-8"))
        lines = [line.strip().lstrip("#").strip() for line in text.splitlines()]
        for at, line in enumerate(lines):
            if not re.search(r"^(\w+=\S+ )*(vllm serve|customized-grpo serve hpsv3$)", line):
                continue
            seen += 1
            server = re.match(r"CUDA_VISIBLE_DEVICES=([\d,]+)", line)
            assert server is not None, f"{file}: {line}"
            if file.parent.name == "serve":
                continue  # a server's own file has no trainer beside it
            trains = next((one for one in lines[at + 1 : at + 10] if re.search(r" train |/train_", one)), "")
            trainers = re.match(r"CUDA_VISIBLE_DEVICES=([\d,]+)", trains)
            assert trainers is not None, f"{file}: {trains}"
            cards = trainers[1].split(",")
            assert not set(server[1].split(",")) & set(cards), f"{file}: {line}"
            assert len(cards) == 1 or f".yaml {len(cards)} train.groups_per_step={len(cards)}" in trains, trains
    assert seen >= 6


def test_the_documented_commands_write_what_the_recipes_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wrote manifest.jsonl, and recipes read train.jsonl."""
    syncd(tmp_path / "raw/syncd", objects=4)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/how-to/data.md").read_text(encoding="utf-8").partition("### SynCD")[2].partition("###")[0]
    commands = [
        line.partition("#")[0] for line in page.splitlines() if "--out data/syncd " in line or "data split" in line
    ]
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    read = [name for name in SHIPPED if not name.startswith("one_gpu")]
    for name in read:
        assert len(load_dataset(load_recipe(name).data)) > 0, name


@pytest.mark.parametrize("name", SHIPPED)
def test_recipes_of_models_that_edit_say_that_they_are_asked_by_instructions(name: str) -> None:
    text = (ROOT / f"config/train/{name}.yaml").read_text(encoding="utf-8")
    edits = load_recipe(name).policy.type in ("flux-kontext", "qwen-image-edit-plus", "qwen-image-2.1")
    assert ("prompts=instructions" in text) is edits


def test_paths_of_data_are_those_that_commands_write(tmp_path: Path) -> None:
    """Recipes, README and pages read data/syncd/train.jsonl and data/mine/train.jsonl, which nothing writes."""
    draw(tmp_path / "photos/dog/a.png")
    draw(tmp_path / "photos/cat/a.png", "blue")
    (tmp_path / "photos/dog/a_seg.png").write_bytes(draw(tmp_path / "mask.png", 255, mode="L").read_bytes())
    (tmp_path / "photos/cat/a_seg.png").write_bytes((tmp_path / "mask.png").read_bytes())
    out = tmp_path / "out"
    for command in (
        f"import dreambooth-folder {tmp_path / 'photos'} --out {out} --workers 1",
        f"split {out} --share 0.5",
        f"masks {out}",
        f"check {out} --workers 1 --usable {out / 'manifest.usable.jsonl'}",
    ):
        done = CliRunner().invoke(app, ["data", *shlex.split(command)])
        assert done.exit_code == 0, done.output
    written = {path.name for path in out.glob("*.jsonl")}
    assert {"manifest.train.jsonl", "manifest.test.jsonl", "manifest-masks.jsonl"} <= written
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("config/**/*.yaml"), *ROOT.glob("examples/*")]
    read = 0
    for page in (
        page
        for page in [*pages, ROOT / "src/customized_grpo/commands/app.py"]
        if page.name not in ("log.md", "errors.md")
    ):
        text = page.read_text(encoding="utf-8")
        made = set(re.findall(r"--(?:out|usable) (\S+\.jsonl)", text))
        for path in re.findall(r"(?<![\w./])data/[\w./-]+\.jsonl", text):
            read += 1
            assert Path(path).name in written or path in made, f"{page}: {path} is written by nothing"
    assert read > 25


def test_photos_become_what_the_recipes_for_one_card_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own commands, on one subject's photos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/dog").mkdir(parents=True)
    for number in range(4):
        Image.effect_noise((300, 280), 60 + number).convert("RGB").save(tmp_path / f"photos/dog/{number}.jpg")
    page = (ROOT / "docs/how-to/one-gpu.md").read_text(encoding="utf-8")
    commands = [line.partition("#")[0] for line in page.splitlines() if line.startswith("customized-grpo data ")]
    assert [command.split()[2] for command in commands] == ["import", "check", "split"]
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    names = [name for name in SHIPPED if name.startswith("one_gpu")]
    assert len(names) == 3
    for name in names:
        recipe = load_recipe(name)
        assert recipe.evaluate is not None
        train, test = (load_dataset(one) for one in (recipe.data, recipe.evaluate.data))
        assert len(train) > len(test) > 0
        assert not {train[i].prompt for i in range(len(train))} & {test[i].prompt for i in range(len(test))}
        done = CliRunner().invoke(app, ["validate", name])
        assert done.exit_code == 0, done.output
