"""The studio's artist on real runs: what it draws is what ``generate`` draws, whatever was drawn before."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.data.images import load_image
from customized_grpo.recipe.loading import load_any, save_recipe
from customized_grpo.report.folders import named
from customized_grpo.sampling.draw import draw
from customized_grpo.studio import saved
from customized_grpo.studio.artist import BASE, Artist, Shown
from customized_grpo.studio.scores import Scores
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from judge_server import JudgeServer
from judge_server import score as score_of
from runs import BALANCED, FULL, tiny_recipe

PROMPT = "a red dog"


def trained(world: Path, folder: Path, **changes: Any) -> Path:
    """A run of a few steps at a rate that shows."""
    return Trainer(build(tiny_recipe(world, folder, **({"train__steps": 2, "train__lr": 0.1} | changes)))).run()


@pytest.fixture(scope="module")
def runs(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "plain": trained(tiny_world, folder / "plain"),
        "balanced": trained(tiny_world, folder / "balanced", **(BALANCED | {"train__lr": 0.1})),
    }


@pytest.fixture
def artist(runs: dict[str, Path]) -> Artist:
    return Artist(runs["plain"] / "config.yaml", runs)


@pytest.fixture
def reference(tiny_world: Path) -> Image.Image:
    return load_image(tiny_world / "0.png")


def generated(runs: dict[str, Path], file: Path, reference: Image.Image, system: str, shown: Shown) -> np.ndarray:
    adapter = None if system == BASE else [f"{runs[system]}={shown.strength}"]
    recipe = load_any(runs["plain"] / "config.yaml")
    b = shown.balance if system == "balanced" else None
    draw(recipe, adapter, [reference], PROMPT, file, steps=shown.steps, seed=shown.seed, num=1, grid=None, balance=b)
    return np.asarray(Image.open(file))


def test_every_system_draws_what_generate_draws(
    artist: Artist, runs: dict[str, Path], reference: Image.Image, tmp_path: Path
) -> None:
    """In an order in which each follows another: an adapter leaves nothing behind."""
    asked = [
        (BASE, Shown(3)),
        ("balanced", Shown(3, balance=-1.0)),
        ("plain", Shown(3)),
        ("balanced", Shown(3, balance=0.5, strength=1.5)),
        (BASE, Shown(3)),
        ("plain", Shown(4, steps=2, strength=0.5)),
        (BASE, Shown(4, steps=2)),
    ]
    found = []
    for system, shown in asked:
        image = artist.draw(system, PROMPT, [reference], shown)[0].numpy()
        assert np.array_equal(image, generated(runs, tmp_path / "one.png", reference, system, shown)), (system, shown)
        found.append(image)
    assert len({one.tobytes() for one in found}) == len(asked) - 1, "only the base is there twice"


def test_a_kept_picture_is_drawn_again_by_its_command(
    artist: Artist, reference: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = Shown(11, steps=3, strength=0.75, balance=-0.5)
    for system in artist.systems:
        image = Image.fromarray(artist.draw(system, PROMPT, [reference], shown)[0].numpy())
        file = saved.keep(image, tmp_path / "kept", artist, system, PROMPT, [reference], shown, {"bright": 1.5})
        found = saved.recipe_in(file)
        assert (found["prompt"], found["seed"], found["system"]) == (PROMPT, 11, system)
        assert found["scores"] == {"bright": 1.5}
        program, *words = shlex.split(found["command"])
        assert program == "customized-grpo"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert np.array_equal(np.asarray(Image.open("again.png")), np.asarray(image))
    assert len(list((tmp_path / "kept" / "references").iterdir())) == 1, "one reference, kept once"
    with pytest.raises(ValueError, match="holds no recipe"):
        saved.recipe_in(Path("again.png"))


def test_a_training_is_followed(tiny_world: Path, tmp_path: Path, reference: Image.Image) -> None:
    """A run before its first checkpoint can be opened, and newer checkpoints are drawn by."""
    changes = {"train__checkpoint_every": 1, "train__lr": 0.1}
    folder = tmp_path / "run"
    trainer = Trainer(build(tiny_recipe(tiny_world, folder, **changes)))
    save_recipe(trainer.recipe, folder / "config.yaml")  # as its first step does
    artist = Artist(folder / "config.yaml", {"run": folder})
    with pytest.raises(ValueError, match="no checkpoint yet"):
        artist.draw("run", PROMPT, [reference], Shown(0))
    trainer.run()
    newest = artist.draw("run", PROMPT, [reference], Shown(0))
    for step in (3, 4):
        (folder / "checkpoints" / f"step-{step:06d}").rename(tmp_path / f"later-{step}")
    earlier = artist.draw("run", PROMPT, [reference], Shown(0))
    assert not torch.equal(newest, earlier)
    (tmp_path / "later-4").rename(folder / "checkpoints" / "step-000004")
    assert torch.equal(artist.draw("run", PROMPT, [reference], Shown(0)), newest)


def test_a_transformer_that_was_trained_in_full_beside_an_adapter(
    tiny_world: Path, runs: dict[str, Path], tmp_path: Path, reference: Image.Image
) -> None:
    whole = trained(tiny_world, tmp_path / "whole", **(FULL | {"train__lr": 0.01, "objective__kl": 0.0}))
    artist = Artist(runs["plain"] / "config.yaml", {"plain": runs["plain"], "whole": whole})
    base, own, again = (artist.draw(one, PROMPT, [reference], Shown(1)) for one in (BASE, "whole", BASE))
    assert torch.equal(base, again)
    file = tmp_path / "own.png"
    draw(load_any(whole / "config.yaml"), [str(whole)], [reference], PROMPT, file, steps=None, seed=1, num=1, grid=None)
    assert np.array_equal(own[0].numpy(), np.asarray(Image.open(file)))
    with pytest.raises(ValueError, match="has no strength"):
        artist.draw("whole", PROMPT, [reference], Shown(1, strength=0.5))


def test_runs_that_draw_otherwise_are_refused(tiny_world: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    larger = trained(tiny_world, tmp_path / "larger", policy__height=48)
    with pytest.raises(ValueError, match=r"larger: its policy\.height is 48, and the first run's is 32"):
        Artist(runs["plain"] / "config.yaml", {"plain": runs["plain"], "larger": larger})


def test_names_of_runs(tmp_path: Path) -> None:
    assert named([tmp_path / "a" / "run", tmp_path / "b" / "run"]).keys() == {"a/run", "b/run"}
    assert named([tmp_path / "base"], taken=BASE).keys() == {f"{tmp_path.name}/base"}, (
        "the untrained system has that name"
    )
    with pytest.raises(ValueError, match="given twice"):
        named([tmp_path / "run", tmp_path / "run"])


def test_scores_are_those_of_training_and_a_broken_reward_leaves_the_others(
    artist: Artist, runs: dict[str, Path], reference: Image.Image
) -> None:
    recipe = load_any(runs["plain"] / "config.yaml")
    images = [artist.draw(BASE, PROMPT, [reference], Shown(seed)) for seed in (0, 1)]
    scores = Scores(recipe, artist.device)
    assert (scores.local, scores.asked) == (("bright", "warm"), ())
    found, problems = scores.of(images, PROMPT, [reference], "dog", ask=False)
    assert problems == []
    assert [row["bright"] for row in found] == pytest.approx([float(one.float().mean()) for one in images])
    scores._sections["warm"] = replace_type(scores._sections["warm"], "runs:Missing")
    scores._loaded.pop("warm")
    found, problems = scores.of(images, PROMPT, [reference], "dog", ask=False)
    assert [np.isnan(row["warm"]) for row in found] == [True, True]
    assert not any(np.isnan(row["bright"]) for row in found)
    assert problems[0].startswith("warm: ")


def test_a_judge_is_asked_only_where_somebody_says_so(tiny_world: Path, tmp_path: Path) -> None:
    with JudgeServer(lambda request: score_of(3)) as server:
        judge = {
            "type": "vlm", "preset": "vllm", "model": "m", "base_url": server.url, "rubric": "prompt_following",
            "cache": str(tmp_path / "judges.sqlite"), "axis": "prompt",
        }  # fmt: skip
        recipe = tiny_recipe(tiny_world, tmp_path / "run", rewards__pf=judge)
        scores = Scores(recipe, torch.device("cpu"))
        assert (scores.local, scores.asked) == (("bright", "warm"), ("pf",))
        image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        reference = load_image(tiny_world / "0.png")
        (plain,), problems = scores.of([image], PROMPT, [reference], "dog", ask=False)
        assert (plain.keys(), problems, server.requests) == ({"bright", "warm"}, [], [])
        (judged,), problems = scores.of([image], PROMPT, [reference], "dog", ask=True)
        scores.close()
    assert problems == []
    assert judged.keys() == {"bright", "warm", "pf"}
    assert not np.isnan(judged["pf"])
    assert len(server.requests) == 1


def replace_type(section: Any, kind: str) -> Any:
    return section.model_copy(update={"type": kind})


def test_a_prompt_that_says_nothing_is_refused(artist: Artist, reference: Image.Image) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        artist.check("  ", [reference])
