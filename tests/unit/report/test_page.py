"""What a person sees on the page: the visible effect first, every metric explained, pictures, and what to do next."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from customized_grpo import registry
from customized_grpo.evaluation import about
from customized_grpo.report import explain, page
from customized_grpo.report.differ import differences_of_recipes, over_seeds, side_by_side
from customized_grpo.report.folders import RunFolder, read_runs
from customized_grpo.report.samples import samples_of
from customized_grpo.report.write import write_report
from run_folder import PLACES, evaluation_rows, make_run, picture, write_rows

KINDS: tuple[registry.Kind, ...] = ("metrics", "rewards")
AXES = {"identity": "identity_accuracy", "prompt": "prompt_accuracy"}


def read(*paths: Path) -> list[RunFolder]:
    return read_runs(list(paths))


def change(mean: float, half: float = 0.01) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=40, planned=40, n=12, gain=3.0)


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return write_report([run]).read_text(encoding="utf-8")


def test_the_visible_effect_comes_first(run: Path, text: str) -> None:
    (one,) = read(run)
    rows = {
        "base": {"copy": {"mean": 0.38}, "both": {"mean": 0.2}},
        "tuned": {"copy": {"mean": 0.07}, "both": {"mean": 0.3}},
    }
    found = explain.visible(one, rows, {"both": change(0.1), "copy": change(-0.31)})
    assert [(effect["base"], effect["tuned"], effect["better"]) for effect in found] == [
        (0.38, 0.07, True),
        (0.2, 0.3, True),
    ], "the largest first; fewer copies are better"
    assert not explain.visible(one, rows, {"copy": change(-0.1, half=0.2)}), "it may be nothing"
    assert not explain.visible(one, rows, {"copy": change(0.31)})[0]["better"]
    assert text.index('class="headline effect"') < text.index('class="headline">') < text.index('class="cards"')


def test_copy_of_other_worlds_is_no_share_of_pictures(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", steps=20, planned=20, n=4)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["evaluate"]["metrics"] = {"copy": {"type": "copy", "model": "facebook/dinov2-base"}}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (one,) = read(other)
    rows = {name: {"copy": {"mean": 0.1}} for name in ("base", "tuned")}
    assert not explain.visible(one, rows, {"copy": change(-0.3)})
    assert explain.meanings(one)["copy"].startswith("how much nearer a picture is to its reference")


def test_a_fall_that_only_looks_like_reward_hacking_is_explained(tmp_path: Path) -> None:
    """The demo's judge DINO fell, in red, and the page itself called such a fall reward hacking."""
    made = make_run(tmp_path / "run", steps=20, planned=20, n=4)
    config = yaml.safe_load((made / "config.yaml").read_text())
    config["evaluate"]["metrics"]["judge_dino"] = {"type": "dino", "model": "mini-judge", "segment": "none"}
    config["evaluate"]["metrics"]["cut"] = {"type": "dino", "model": "mini-judge", "segment": "reference"}
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    (one,) = read(made)
    changes = {"identity_accuracy": change(0.02), "copy": change(-0.2), "judge_dino": change(-2.0), "cut": change(-2.0)}
    (sentence,) = explain.disagreements(one, changes, AXES)
    assert sentence.startswith("judge dino fell though identity accuracy")
    assert "fewer pictures copy it" in sentence
    assert not explain.disagreements(one, changes | {"identity_accuracy": change(-0.2)}, AXES), "then it may be hacking"


def test_every_built_in_metric_has_a_meaning() -> None:
    builtin = {name for kind in KINDS for name in registry.BUILTIN[kind]}
    assert builtin == explain.TYPES.keys()
    for column in ("identity_accuracy", "copy"):
        assert explain.ORACLE[column]


def test_every_column_of_the_page_is_explained(run: Path, text: str) -> None:
    explained = re.findall(r"<div><dt>([^<]*)</dt><dd>", text[text.index('class="explained"') :].split("</dl>")[0])
    assert [name.replace(" ", "_") for name in explained] == read(run)[0].columns


def test_three_examples_stand_under_the_headline_and_nowhere_else(text: str) -> None:
    top = text[: text.index("<nav")]
    assert top.count('class="card"') == 3
    assert "drawn by a fixed seed before looking" in top
    assert "Random <span" in text
    assert "(6 more)" in text


def test_galleries_are_folded_and_every_picture_enlarges(text: str) -> None:
    pictures = text[text.index('<section id="pictures"') :].split("</section>")[0]
    assert pictures.count("<details>") == pictures.count("<summary>") >= 4
    boxes = re.findall(r'<input class="zoom" type="checkbox" id="([^"]*)"', text)
    assert len(boxes) == len(set(boxes)) == text.count('class="card"')
    assert all(f'<label for="{one}"' in text for one in boxes)
    assert "loading=" not in text, "a picture that isn't loaded is not printed"


def test_what_is_better_is_green_in_the_table_and_on_its_track(run: Path, text: str) -> None:
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    metrics = summary["differences"][0]["metrics"]
    body = text[text.index('<table class="results"') :].split("</table>")[0]
    for column, value in metrics.items():
        row = body[body.index(f'<th scope="row">{column.replace("_", " ")}</th>') :].split("</tr>")[0]
        rose, fell = value["low"] is not None and value["low"] > 0, value["high"] is not None and value["high"] < 0
        expected = {True: "up", False: "down"}[rose != (column == "copy")] if rose or fell else ""
        assert f'class="rail {expected}"' in row
        assert f'<b class="{expected}">' in row
    scale = page.view(read(run)[0], summary, AXES)["scale"]
    assert f"<span>+{scale:.3f}</span>" in body, "the axis has numbers"


def test_a_constant_and_a_chart_twice_are_left_out(tmp_path: Path, text: str) -> None:
    made = make_run(tmp_path / "run", steps=20, planned=20, evaluate=False)
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["ratio/clip_share"] = 0.0
        for name in [name for name in line if name.startswith("weight/")]:
            line[name.replace("weight/", "weight_effective/")] = line[name]
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    alike = write_report([made]).read_text()
    for title in ("Share of clipped ratios", "Effective weights"):
        assert f"<h3>{title}</h3>" in text
        assert f"<h3>{title}</h3>" not in alike
    assert "The effective weights are the same." in alike


def test_circumstances_are_told(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", steps=20, planned=40, n=4)
    about.note(made, device="NVIDIA H200", processes=8)
    facts = dict(page.facts(read(made)[0], None))
    assert facts["Device"] == "8 processes on NVIDIA H200"
    assert facts["Started"].endswith("UTC")
    assert facts["Took, without loading"].endswith(("s", "minutes"))
    told = write_report([made]).read_text()
    assert "torch " in told[: told.index("<nav")]
    (one,) = read(made)
    commands = dict(page.next_commands(one))
    assert commands["Go on with the training"] == f"customized-grpo train {made}/config.yaml run.resume=latest"
    for typed in commands.values():
        assert typed in told.replace("&#39;", "'")


def test_what_training_drew_stands_where_nothing_was_evaluated(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", steps=20, planned=20, evaluate=False)
    assert samples_of(read(made)[0]) is None
    (made / "samples").mkdir()
    picture((200, 80, 60), PLACES["at night"], 0.5, side=300).resize((2400, 300)).save(
        made / "samples" / "step-000010.png"
    )
    (made / "samples" / "step-000010.json").write_text(json.dumps({"prompt": "a dog at night"}))
    groups = samples_of(read(made)[0])
    assert groups is not None
    assert not groups.fixed
    assert [card.prompt for card in groups.cards] == ["a dog at night"]

    fixed = made / "samples" / "fixed"
    for step in range(0, 100, 10):
        (fixed / f"step-{step:06d}").mkdir(parents=True)
        picture((200, 80, 60), PLACES["at night"], step / 100).save(fixed / f"step-{step:06d}" / "0.png")
        rows = [{"prompt": "a dog", "file": f"step-{step:06d}/0.png", "reference": "r.png", "values": {"clip": step}}]
        (fixed / f"step-{step:06d}.json").write_text(json.dumps(rows))
    found = samples_of(read(made)[0])
    assert found is not None
    (card,) = found.cards
    assert [name for name, _ in card.images] == ["before", "step 10", "step 30", "step 50", "step 70", "step 90"]
    assert card.values == [("clip", 0, 90)]
    top = write_report([made]).read_text().split("<nav")[0]
    assert "Nothing was evaluated; these are fixed prompts" in top
    assert top.count("<img") == 6


@pytest.mark.parametrize("damage", ["[1, 2", "{}", '[{"prompt": 3}]', "[]"])
def test_a_damaged_record_of_samples_stops_no_report(tmp_path: Path, damage: str) -> None:
    made = make_run(tmp_path / "run", steps=2, planned=2, evaluate=False)
    (made / "samples" / "fixed").mkdir(parents=True)
    (made / "samples" / "fixed" / "step-000000.json").write_text(damage)
    assert "No pictures are saved" in write_report([made]).read_text()


def test_several_runs_show_how_their_recipes_differ(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", steps=20, planned=20, n=4)
    two = make_run(tmp_path / "two", steps=20, planned=20, n=4, aggregator="product")
    assert differences_of_recipes(read(one, two)) == [("advantage.aggregator.type", ["sars", "product"])]
    again = make_run(tmp_path / "again", steps=20, planned=20, n=4)
    assert "Their recipes say the same." in write_report([one, again]).read_text()


def test_the_same_prompt_stands_side_by_side(tmp_path: Path) -> None:
    one, two = (
        make_run(tmp_path / name, steps=20, planned=20, n=6, gain=gain) for name, gain in (("one", 1.0), ("two", 2.0))
    )
    rows = evaluation_rows(two / "evaluation", "step-000020", 2.0, 6, seed=3)
    write_rows(two / "evaluation", "step-000020", rows[:5])  # one example fewer
    cards = side_by_side(read(one, two))
    assert len(cards) == 5
    assert [name for name, _ in cards[0].images] == ["base", "one", "two"]
    assert all(source for _, source in cards[0].images)


def test_runs_that_differ_in_their_seed_alone_have_a_mean(tmp_path: Path) -> None:
    made = [
        make_run(tmp_path / f"seed{seed}", steps=20, planned=20, n=4, gain=gain)
        for seed, gain in enumerate((1.0, 2.0, 3.0))
    ]
    for seed, folder in enumerate(made):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["run"]["seed"] = seed
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    other = make_run(tmp_path / "other", steps=20, planned=20, n=4, aggregator="product")
    runs = read(*made, other)
    summaries = [page.summary_of(run) for run in runs]
    changes = [summary["differences"][0]["metrics"] for summary in summaries if summary is not None]
    (found,) = over_seeds(runs, changes)
    assert found["names"] == ["seed0", "seed1", "seed2"]
    means = [one["identity_accuracy"]["mean"] for one in changes[:3]]
    value = found["changes"]["identity_accuracy"]
    assert value["mean"] == pytest.approx(sum(means) / 3)
    assert value["low"] < min(means)
    assert "Mean over seeds: seed0, seed1, seed2" in write_report([*made, other]).read_text()


def test_a_checkpoint_leads_to_its_run(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", steps=2, planned=2, evaluate=False)
    (made / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"is a checkpoint; .* give {re.escape(str(made))}$"):
        write_report([made / "checkpoints" / "step-000002"])
