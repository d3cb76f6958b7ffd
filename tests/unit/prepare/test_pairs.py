"""Ranked pairs from a table of scores: better on every column, by most; what can't be ranked is said or refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.data.base import load_dataset, supervised
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.prepare.pairs import Pairs, write_pairs

SCORES = [
    {"image": "dog-a.png", "example": "dog", "dino": 80.0, "clip": 20.0},
    {"image": "dog-b.png", "example": "dog", "dino": 70.0, "clip": 19.0},
    {"image": "dog-c.png", "example": "dog", "dino": 90.0, "clip": 10.0},
    {"image": "dog-d.png", "example": "dog", "dino": 60.0, "clip": 15.0},
    {"image": "cat-a.png", "example": "cat", "dino": 50.0, "clip": 20.0},
    {"image": "cat-b.png", "example": "cat", "dino": 60.0, "clip": 10.0},
    {"image": "cat-c.png", "example": "cat", "dino": 99.0, "clip": ""},
]


def world(folder: Path, scores: list[dict[str, Any]] = SCORES) -> dict[str, Any]:
    (folder / "drawn").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "ref.png")
    rows = [{"id": key, "prompt": f"a {key}", "references": ["ref.png"], "extra": {"x": 1}} for key in ("dog", "cat")]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "scores.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(scores[0]))
        table.writeheader()
        table.writerows(scores)
    for row in scores:
        Image.new("RGB", (8, 8), "red").save(folder / "drawn" / row["image"])
    return {
        "manifest": folder / "data.jsonl",
        "table": folder / "scores.csv",
        "images": folder / "drawn",
        "by": ["dino", "clip"],
        "out": folder / "pairs.jsonl",
    }


def pairs_of(path: Path) -> dict[str, tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: (row["chosen"], row["rejected"]) for row in rows}


def test_the_chosen_is_better_on_every_column_and_by_most(tmp_path: Path) -> None:
    made = write_pairs(**world(tmp_path))
    # c has the best dino and the worst clip; a over d differs by more deviations than a over b
    assert pairs_of(made.path) == {"dog": ("drawn/dog-a.png", "drawn/dog-d.png")}
    assert made == Pairs(tmp_path / "pairs.jsonl", 1, ("cat",))
    data = load_dataset(ManifestDataset.Config(type="manifest", path=str(made.path)))
    assert len(supervised(data, 2)[0].targets) == 2
    assert data[0].extra == {"x": 1}


def test_the_command_names_what_learns_from_them(tmp_path: Path) -> None:
    given = world(tmp_path)
    options = ["--scores", given["table"], "--images", given["images"], "--by", "dino", "--by", "clip"]
    command = ["data", "pairs", given["manifest"], *options, "--out", given["out"]]
    done = CliRunner().invoke(app, [str(one) for one in command])
    assert done.exit_code == 0, done.output
    last = f"next: customized-grpo dpo one_gpu_24gb data.path={tmp_path / 'pairs.jsonl'} "
    assert done.stdout.splitlines()[-1].startswith(last)


def test_one_column_ranks_all_that_it_scores_in_either_format(tmp_path: Path) -> None:
    given = world(tmp_path)
    found = pairs_of(write_pairs(**given | {"by": ["dino"]}).path)
    assert found == {"dog": ("drawn/dog-c.png", "drawn/dog-d.png"), "cat": ("drawn/cat-c.png", "drawn/cat-a.png")}
    lines = [json.dumps({**row, "clip": row["clip"] or None}) for row in reversed(SCORES)]
    (tmp_path / "scores.jsonl").write_text("\n".join(lines))
    again = write_pairs(**given | {"by": ["dino"], "table": tmp_path / "scores.jsonl"})
    assert pairs_of(again.path) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"by": ["dina"]}, "there is no column 'dina'; did you mean 'dino'"),
        ({"by": []}, "--by: missing"),
        ({"out": "data.jsonl"}, "under another name"),
        ({"out": "drawn/pairs.jsonl"}, "write it beside"),
        ({"images": "other"}, "there is no "),
        ({"table": "none.csv"}, "there is no such file"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    given = world(tmp_path) | {key: tmp_path / one if isinstance(one, str) else one for key, one in change.items()}
    with pytest.raises(ValueError, match=said):
        write_pairs(**given)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "x.png", "example": "bird", "dino": 1.0, "clip": 1.0}, "no line of the manifest has the id 'bird'"),
        ({"image": "x.png", "example": "dog", "dino": "good", "clip": 1.0}, "dino: given 'good'; it must be a number"),
        ({"image": "x.png", "example": "dog", "dino": "inf", "clip": 1.0}, "it must be finite"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"scores\.csv:9: .*{said}"):
        write_pairs(**world(tmp_path, [*SCORES, row]))


def test_nothing_to_rank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no example has two pictures of which one is better on all of dino, clip"):
        write_pairs(**world(tmp_path, SCORES[4:6]))
    (tmp_path / "flat").mkdir()
    with pytest.raises(ValueError, match="dino is the same for all pictures"):
        write_pairs(**world(tmp_path / "flat", [row | {"dino": 5.0} for row in SCORES]) | {"by": ["dino"]})
