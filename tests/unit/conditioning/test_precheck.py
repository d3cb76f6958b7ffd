"""What a recipe can't use is found before the run, with row and file, by every command that starts from a recipe."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.conditioning import opening
from customized_grpo.conditioning.drawing import check_drawing
from customized_grpo.conditioning.miniature import SIDE
from customized_grpo.conditioning.outlines import outlines_of
from customized_grpo.conditioning.precheck import Findings, check_examples
from customized_grpo.data.base import load_dataset, supervised
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.evaluation.precheck import check_held_out, check_training
from customized_grpo.mini import render
from customized_grpo.policies.flux import KontextConfig, UNOConfig
from customized_grpo.policies.flux2 import Flux2KleinConfig
from customized_grpo.policies.prompt_tokens import read_prompts
from customized_grpo.policies.qwen_image import QwenImageEditPlusConfig
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.recipe.loading import load_recipe, shipped_recipes
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.recipe.yaml_source import dump, read_yaml
from customized_grpo.rewards.clip import ClipT
from customized_grpo.rewards.dino import Dino
from customized_grpo.training import setup
from tiny_flux2 import make_tiny_flux2, tiny_flux2

SIZES = {
    "ok.png": (80, 60), "wide.png": (900, 100), "thin.png": (1000, 10), "small.png": (63, 200),
    "thread.png": (3000, 10),
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        Image.new("RGB", size, "red").save(tmp_path / name)
    Image.new("L", (40, 30), 255).save(tmp_path / "mask.png")
    Image.new("L", (60, 60), 255).save(tmp_path / "square_mask.png")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    return tmp_path


def write(root: Path, *rows: dict[str, Any]) -> Path:
    full = [
        {"id": f"r{n}", "prompt": "a bag", "references": ["ok.png"], "subject": "bag"} | row
        for n, row in enumerate(rows)
    ]
    (root / "train.jsonl").write_text("\n".join(json.dumps(row) for row in full), encoding="utf-8")
    return root / "train.jsonl"


def look(path: Path, policy: PolicySpec, **measures: Any) -> Findings:
    dataset = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(path)))
    return check_examples(outlines_of(dataset), policy, measures)


UNO = UNOConfig(model="mini")
KONTEXT = KontextConfig(model="org/unknown")
KLEIN = Flux2KleinConfig(model="org/unknown")
QWEN = QwenImageEditPlusConfig(model="org/unknown")


@pytest.mark.parametrize(
    ("policy", "references", "words"),
    [
        (UNO, ["ok.png"] * 4, ""),
        (UNO, ["ok.png"] * 5, "5 references given, but policy.type=uno takes 1 to 4"),
        (UNO, ["thin.png"], "thin.png: a reference of 1000 x 10 pixels is too narrow"),
        (UNO, ["wide.png"], ""),
        (KONTEXT, ["ok.png"], ""),
        (KONTEXT, ["ok.png", "ok.png"], "2 references given, but policy.type=flux-kontext takes 1 "),
        (KLEIN, ["ok.png"], "sides of at least 64"),
        (KLEIN, ["small.png"], "small.png: a reference of 63 x 200"),
        (KLEIN, ["wide.png"], "none over 8 times the other"),
        (QWEN, ["wide.png", "ok.png", "small.png"], ""),
        (QWEN, ["ok.png"] * 4, "takes 1 to 3"),
        (QWEN, ["thread.png"], "too narrow: Qwen2.5-VL"),
        (UNO, ["page.jpg"], "page.jpg: is an HTML page"),
    ],
)
def test_references_that_a_policy_cannot_take(
    root: Path, policy: PolicySpec, references: list[str], words: str
) -> None:
    path = write(root, {}, {"references": references})
    found = [one for one in look(path, policy).misfits if one.place == f"{path}:2"]
    assert bool(found) is bool(words)
    assert not words or words in found[0].reason


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a bag <|endoftext|> in the snow"}, "prompt holds <|endoftext|>"),
        ({"prompt": "a bag</s>"}, "prompt holds </s>"),
        ({"prompt": "<pad> a bag <extra_id_7>"}, "prompt holds <pad>, <extra_id_7>"),
        ({"prompt": "a bag<|im_end|>\n<|vision_start|><|image_pad|><|vision_end|>"}, "<|vision_start|>, <|image_pad|>"),
        ({"prompt": "[INST] a bag"}, "prompt holds [INST]"),
        ({"subject": "bag<|im_end|>"}, "subject holds <|im_end|>"),
        ({"masks": ["square_mask.png"]}, "square_mask.png: is (60, 60) but its image is (80, 60)"),
        ({"masks": ["page.jpg"]}, "page.jpg: is an HTML page"),
        ({"masks": ["mask.png"]}, ""),
        ({"prompt": "a <b>bag</b> [of] <tea> | x |"}, ""),
    ],
)
def test_texts_and_masks(root: Path, row: dict[str, Any], words: str) -> None:
    path = write(root, {}, row)
    found = look(path, UNO).misfits
    assert [one.place for one in found] == ([f"{path}:2"] if words else [])
    assert not words or words in found[0].reason


def test_the_rows_of_a_reward(root: Path) -> None:
    segment = {"segment": "both", "segmenter": {}}
    masked = Dino.Config.model_validate({"type": "dino", "axis": "identity", "model": "mini", "copy_penalty": 0.1})
    worded = Dino.Config.model_validate(
        {"type": "dino", "axis": "identity", "model": "mini", "missing_mask": "skip", **segment}
    )
    plain = Dino.Config.model_validate({"type": "dino", "axis": "identity", "model": "mini"})
    path = write(root, {"masks": ["mask.png"]}, {}, {"masks": ["mask.png"], "subject": ""})
    assert [one.reason for one in look(path, UNO, sharp=masked).misfits] == [
        "has 0 masks for 1 references, and sharp needs each; make them by 'customized-grpo data masks'"
    ]
    assert ["no 'subject', and words looks" in one.reason for one in look(path, UNO, words=worded).misfits] == [True]
    assert look(path, UNO, plain=plain).misfits == []
    two = {"references": ["ok.png"] * 2}
    twice = write(root, {"subject": "bag and bag", **two}, {"subject": "bag", **two}, {"subject": "bag and dog", **two})
    found = look(twice, UNO, words=worded).misfits
    assert [one.place for one in found] == [f"{twice}:1"]
    assert "two subjects of the word 'bag', and words finds one" in found[0].reason
    assert "type: subjects" in found[0].reason
    assert look(twice, UNO, plain=plain).misfits == []


def test_prompts_are_read_by_the_models_own_tokenizers(root: Path) -> None:
    long = " ".join(["bag"] * 90)
    path = write(root, {"prompt": "a bag"}, {"prompt": long}, {"prompt": "一只狗在雪地里"})
    notices = look(path, UNO).notices
    assert any("of 3 prompts are longer than the 16 tokens that the model's tokenizer reads" in one for one in notices)
    assert any(f"the longest, of {path}:2, has" in one for one in notices)
    assert any("hold signs that the model's tokenizer_2 doesn't know" in one for one in notices)
    assert any("tokens of the model's tokenizer, not on this machine" in one for one in look(path, KLEIN).notices)


def test_prompts_that_a_reward_cuts_off_are_counted(root: Path) -> None:
    path = write(root, {}, {"prompt": " ".join(["bag"] * 90)})
    clip = ClipT.Config.model_validate({"type": "clip_t", "axis": "prompt", "model": "mini"})
    lost = clip.model_copy(update={"model": "./not/here"})
    notices = look(path, UNO, follow=clip).notices
    assert any("1 of 2 prompts are longer" in one and "tokens that follow reads" in one for one in notices)
    assert any("tokens of follow, not on this machine" in one for one in look(path, UNO, follow=lost).notices)


@pytest.mark.parametrize("klein", [False, True])
def test_tokens_are_those_that_the_pipeline_makes(tmp_path: Path, klein: bool) -> None:
    """One token below, at and over the limit, its chat template included."""
    folder = make_tiny_flux2(tmp_path, klein=klein, distilled=klein)
    policy = tiny_flux2(folder)
    (kind,) = policy.config.prompt_tokenizers()
    prompts = [" ".join(["red"] * count) for count in range(1, 40)]
    reading = read_prompts(kind, prompts, download=False)
    assert reading is not None
    limit = policy.config.max_sequence_length
    over = [count > limit for count in reading.tokens]
    assert set(over) == {True, False}
    attended = []
    real = policy._pipeline.text_encoder.forward

    def forward(*given: Any, **named: Any) -> Any:
        attended.append(int(named["attention_mask"].sum()))
        return real(*given, **named)

    policy._pipeline.text_encoder.forward = forward
    for prompt in prompts:
        policy.encode(prompt, [])
    assert attended == [min(count, limit) for count in reading.tokens]


def test_a_reference_that_changes_its_shape_is_mentioned(root: Path) -> None:
    found = look(write(root, {}, {"references": ["wide.png"]}), KONTEXT)
    assert found.misfits == []
    assert any("read in another shape" in one and "900 x 100 becomes 1568 x 672" in one for one in found.notices)


def test_a_tiny_reference_is_mentioned(root: Path) -> None:
    Image.new("RGB", (16, 12), "red").save(root / "icon.png")
    found = look(write(root, {}, {"references": ["icon.png"]}), UNO)
    assert found.misfits == []
    assert any("enlarged over 16 times" in one and "16 x 12 becomes 512 x 384" in one for one in found.notices)


# --- the commands


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400", "TERM": "dumb"})


@pytest.fixture
def recipe(root: Path) -> Path:
    data, _ = read_yaml(shipped_recipes()["mini_customized"])
    data["data"] = {"type": "manifest", "path": str(root / "train.jsonl")}
    data["train"]["evaluate_every"] = 0
    data["policy"]["max_references"] = 2
    data["run"]["dir"] = str(root / "run")
    data.pop("evaluate")
    (root / "recipe.yaml").write_text(dump(data), encoding="utf-8")
    return root / "recipe.yaml"


@pytest.mark.parametrize("command", [["validate"], ["train"], ["data", "cache"]])
def test_every_command_finds_it_before_anything_is_loaded(
    root: Path, recipe: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(root, {}, {"references": ["ok.png"] * 3}, {"prompt": "a bag </s>"}, {"references": ["thin.png"]})
    load: Callable[..., Any] = lambda *_, **__: pytest.fail("a model was loaded")  # noqa: E731
    monkeypatch.setattr(opening, "load_policy", load)
    monkeypatch.setattr(setup, "load_rewards", load)
    options = [f"run.cache={root / 'cache'}"] if "cache" in command else []
    done = run(*command, str(recipe), *options)
    told = done.output
    assert done.exit_code == 2, told
    assert "data: 3 of 4 examples can't be used by this recipe" in told
    for line, words in ((2, "3 references given"), (3, "holds </s>"), (4, "thin.png: a reference of 1000 x 10")):
        assert f"{path}:{line}: " in told
        assert words in told
    assert not (root / "run" / "metrics.jsonl").exists()


def test_one_drawing_is_checked_as_a_data_set_is(root: Path) -> None:
    options = ["--config", "mini_customized", "--out", str(root / "drawn.png"), "--reference", str(root / "thin.png")]
    assert "1000 x 10 pixels is too narrow" in run("generate", "--prompt", "a bag", *options).output
    options[-1] = str(root / "ok.png")
    assert "prompt holds <|endoftext|>" in run("generate", "--prompt", "a bag <|endoftext|>", *options).output
    assert not (root / "drawn.png").exists()


def test_scoring_names_the_row_too(root: Path) -> None:
    path = write(root, {}, {"prompt": "a bag<|im_end|>"})
    Image.new("RGB", (64, 64)).save(root / "r1.png")
    reward = ["--reward", "clip_t", "clip_t.model=mini"]
    done = run("score", str(root / "r1.png"), "--manifest", str(path), *reward)
    assert done.exit_code == 2
    assert f"{path}:2: prompt holds <|im_end|>" in done.output
    assert "subject holds </s>" in run("score", str(root / "r1.png"), "--subject", "bag</s>", *reward).output


def test_data_check_with_a_recipe_writes_what_can_be_used(root: Path, recipe: Path) -> None:
    path = write(root, {}, {"references": ["ok.png"] * 3}, {"prompt": "a bag </s>"}, {"references": ["page.jpg"]}, {})
    plain = run("data", "check", str(path), "--workers", "1")
    assert "4 of 5 rows can be used" in plain.output
    usable = root / "usable.jsonl"
    done = run("data", "check", str(path), "--workers", "1", "--config", str(recipe), "--usable", str(usable))
    assert done.exit_code == 1, done.output
    assert "2 of 5 rows can be used" in done.output
    assert "rows that the recipe can't use: 2" in done.output
    # A table breaks the lines of a long path anywhere.
    assert f"{path}:2:3referencesgiven" in re.sub(r"[\s│]", "", done.output)
    assert [json.loads(line)["id"] for line in usable.read_text().splitlines()] == ["r0", "r4"]
    done = run("data", "check", str(usable), "--workers", "1", "--config", str(recipe))
    assert done.exit_code == 0, done.output
    assert run("validate", str(recipe), f"data.path={usable}").exit_code == 0


def test_data_that_is_not_here_is_said(root: Path, recipe: Path) -> None:
    done = run("validate", str(recipe), f"data.path={root / 'elsewhere.jsonl'}")
    assert done.exit_code == 0
    assert "elsewhere.jsonl is not on this machine, so its examples are not checked" in done.output


def held_out(path: Path, **changes: Any) -> EvaluateRecipe:
    options = [
        f"evaluate.data={{type: manifest, path: {path}}}",
        *(f"evaluate.{key}={one}" for key, one in changes.items()),
    ]
    return load_recipe("mini", options, EvaluateRecipe)


def test_what_a_protocol_needs_of_every_row(root: Path) -> None:
    whole = {"views": ["ok.png"], "extra": {"subject_id": "a"}}
    unnamed, unseen = {"views": ["ok.png"]}, {"extra": {"subject_id": "a"}}
    broken, two = whole | {"views": ["page.jpg"]}, whole | {"references": ["ok.png"] * 2}
    path = write(root, whole, unseen, unnamed, broken, two)
    recipe = held_out(path, protocol="dreambench/uno-all-references")
    data = load_dataset(recipe.evaluate.data)
    with pytest.raises(ValueError, match=r"evaluate\.data: 4 of 5 examples can't be used") as caught:
        check_held_out(recipe.policy, recipe.evaluate, data)
    for line, words in ((2, "no 'views'"), (3, "no 'subject_id'"), (4, "is an HTML page"), (5, "of 1 subject")):
        assert any(f":{line}: " in one and words in one for one in str(caught.value).splitlines())
    limited = held_out(path, protocol="dreambench/uno-all-references", limit=1, batch=1)
    check_held_out(limited.policy, limited.evaluate, data)
    check_held_out(recipe.policy, held_out(path).evaluate, data)


@pytest.mark.parametrize("protocol", ["heldout", "dreambench/uno-all-references"])
def test_a_damaged_view_is_left_out_and_said_and_costs_no_row(
    root: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    """It made every example of its subject unusable, or stopped an evaluation after its models were loaded."""
    cut(root / "ok.png", root / "cut.png")
    views = {"views": ["ok.png", "cut.png", "gone.png"], "extra": {"subject_id": "a"}}
    path = write(root, views, views)
    recipe = held_out(path, protocol=protocol)
    check_held_out(recipe.policy, recipe.evaluate, load_dataset(recipe.evaluate.data))
    told = [line for line in capsys.readouterr().err.splitlines() if "left out of the other photos" in line]
    assert len(told) == 1
    assert "cut.png: is damaged or truncated" in told[0]
    assert "gone.png: no such file (of 2 examples)" in told[0]


def cut(source: Path, target: Path) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])


def test_a_cut_reference_is_found_before_the_run_and_named_once(root: Path) -> None:
    """Its head is whole, so that a run stopped at it, after hours."""
    cut(root / "ok.png", root / "cut.png")
    Image.effect_noise((80, 60), 60).convert("RGB").save(root / "whole.jpg")
    cut(root / "whole.jpg", root / "cut.jpg")
    path = write(root, *({"references": [name]} for name in ("cut.png", "ok.png", "cut.png", "whole.jpg", "cut.jpg")))
    found = look(path, UNO)
    assert [one.place for one in found.misfits] == [f"{path}:{number}" for number in (1, 3, 5)]
    with pytest.raises(ValueError, match=r"3 of 5 examples can't be used") as caught:
        found.refuse("data")
    message = str(caught.value)
    assert message.count("cut.png") == 1
    assert "(and 1 more lines)" in message
    assert f"data check {path} --config RECIPE --usable {path.with_suffix('.usable.jsonl')}'" in message


def test_a_cut_target_is_found_where_it_is_learnt_from(root: Path) -> None:
    cut(root / "ok.png", root / "cut.png")
    path = write(root, {"target": "cut.png"}, {"target": "ok.png"})
    dataset = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(path)))
    assert not check_examples(outlines_of(dataset), UNO, {}).misfits, "no other objective reads it"
    misfits = check_examples(outlines_of(supervised(dataset, 1)), UNO, {}).misfits
    assert [one.place for one in misfits] == [f"{path}:1"]


def test_the_miniature_says_that_photos_are_none_of_its_world(root: Path) -> None:
    path = write(root, {}, {"references": ["wide.png"]})
    (said,) = [line for line in look(path, UNO).notices if "its own drawn world" in line]
    assert "(policy)" in said
    assert "2 references are none of it" in said
    measures = {"mine": ClipT.Config(type="clip_t", axis="prompt", model="mini")}
    assert any("the miniature (mine) knows" in line for line in look(path, KONTEXT, **measures).notices)
    assert not any("drawn world" in line for line in look(path, KONTEXT).notices)
    Image.new("RGB", (SIDE, SIDE)).save(root / "drawn.png")
    drawn = write(root, {"references": ["drawn.png"]})
    assert not any("drawn world" in line for line in look(drawn, UNO).notices)
    assert render.SIDE == SIDE
    (one,) = [line for line in check_drawing(UNO, "a bag", [Image.new("RGB", (80, 60))]) if "drawn world" in line]
    assert "the reference is none of it" in one
    assert "one_gpu_24gb" in one


def test_an_evaluation_stops_at_its_start(root: Path) -> None:
    path = write(root, {}, {"references": ["thin.png"]})
    done = run("evaluate", "mini", f"evaluate.data={{type: manifest, path: {path}}}", f"run.dir={root / 'run'}")
    assert done.exit_code == 2
    assert f"{path}:2: {root / 'thin.png'}: a reference of 1000 x 10 pixels is too narrow" in done.output.replace(
        "\n", ""
    )


def test_a_data_set_without_files_is_looked_at_by_its_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("mini_customized", ["policy.min_references=2"])
    with pytest.raises(ValueError, match=r"data: 1 of 1 examples can't be used.*\n.*1 references given"):
        check_training(recipe, load_dataset(recipe.data))
    plain = load_recipe("mini_customized")
    check_training(plain, load_dataset(plain.data))
    assert capsys.readouterr().err == ""
