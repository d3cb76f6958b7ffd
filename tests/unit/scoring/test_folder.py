"""``customized-grpo score``: rewards over a folder, each image against its own example, tables that lose nothing."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from tiny_rewards import pictures

MODULE = """
import numpy as np

def bright(example, images):
    return [float(np.asarray(image).mean()) for image in images]

def context(example, images):
    return [len(example.prompt) + 1000 * len(example.references) for _ in images]

def picky(example, images):
    return [None if np.asarray(image).mean() == 0 else 1 for image in images]

def refusing(example, images):
    if example.key == "b":
        raise ValueError("no b")
    return [0.5] * len(images)

async def down(example, images):
    raise OSError("connection refused")
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "score_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("score_rewards", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "drawn"
    (made / "b").mkdir(parents=True)
    for at, image in enumerate(pictures(3).numpy()):
        Image.fromarray(image).save(made / f"a-{at}.png")
    Image.fromarray(pictures(1, height=20, width=20)[0].numpy()).save(made / "b" / "x.png")
    Image.new("RGB", (20, 20)).save(made / "b" / "y.png")
    return made


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "ref.png")
    rows = [
        {"id": "a", "prompt": "four", "references": ["ref.png"]},
        {"id": "b", "prompt": "seven77", "references": ["ref.png", "ref.png"]},
        {"id": "unused", "prompt": "p", "references": ["ref.png"]},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})


def of(name: str) -> list[str]:
    return ["--reward", f"score_rewards:{name}"]


def test_each_image_is_judged_against_its_own_example(folder: Path, manifest: Path, tmp_path: Path) -> None:
    table = tmp_path / "new" / "scores.jsonl"
    done = run(folder, *of("bright"), *of("context"), *of("picky"), "--manifest", manifest, "--out", table)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert [(row["image"], row["example"], row["context"]) for row in rows] == [
        ("a-0.png", "a", 1004), ("a-1.png", "a", 1004), ("a-2.png", "a", 1004),
        ("b/x.png", "b", 2007), ("b/y.png", "b", 2007),
    ]  # fmt: skip
    for row in rows:
        assert row["bright"] == pytest.approx(np.asarray(Image.open(folder / row["image"])).mean(), rel=1e-5)
    assert [row["picky"] for row in rows] == [1, 1, 1, 1, None]
    assert [row["error"] for row in rows] == [*[""] * 4, "picky: the score was nan"]
    assert "b/y.png: picky: the score was nan" in done.stderr
    assert f"1 examples of {manifest} have no image: unused" in " ".join(done.stderr.split())
    assert "4 of 5" in done.output
    assert "a-1.png" in done.output


def test_one_prompt_and_reference_for_all_as_csv(folder: Path, manifest: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    given = ["--prompt", "a dog", "--reference", tmp_path / "ref.png"]
    done = run(folder, *of("context"), "--reward", "dino", "dino.model=mini", *given, "--out", table)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == ["image", "example", "context", "dino", "error"]
    assert {row["context"] for row in rows} == {"1005.0"}
    assert len({row["dino"] for row in rows}) == 5
    one = run(folder / "a-0.png", "--reward", "dino", "dino.model=mini", *given, "--out", table)
    assert one.exit_code == 0
    (alone,) = csv.DictReader(table.read_text().splitlines())
    assert float(alone["dino"]) == pytest.approx(float(rows[0]["dino"]), abs=1e-4)


def test_a_type_may_come_twice_under_names(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "ref.png")
    twice = ["--reward", "one=dino", "--reward", "two=dino", "one.model=mini", "two.model=mini-judge"]
    done = run(folder, *twice, "--reference", tmp_path / "ref.png", "--out", tmp_path / "t.jsonl")
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert row["one"] != row["two"]


def test_a_broken_image_does_not_lose_the_rest(folder: Path, tmp_path: Path) -> None:
    (folder / "a-1.png").write_bytes((folder / "a-1.png").read_bytes()[:80])
    done = run(folder, *of("bright"), "--out", tmp_path / "t.csv")
    assert done.exit_code == 1
    rows = {row["image"]: row for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())}
    assert len(rows) == 5
    assert rows["a-1.png"]["bright"] == ""
    assert "truncated" in rows["a-1.png"]["error"]
    assert all(row["bright"] for name, row in rows.items() if name != "a-1.png")
    assert "truncated" in done.stderr


def test_what_is_no_image_of_the_user_is_not_scored_and_named(folder: Path, tmp_path: Path) -> None:
    for name in ("@eaDir/a.png", "__MACOSX/a.png", ".cache/a.png", "a-0_seg.png", "._a-0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(folder / name)
    (folder / "b/z.CR2").write_bytes(b"1")
    (folder / "notes.txt").write_text("mine")
    (folder / "gone.png").symlink_to(tmp_path / "gone.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "apart.png")
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart.png").rename(tmp_path / "apart/z.png")
    (folder / "linked").symlink_to(tmp_path / "apart")
    (folder / "loop").symlink_to(folder)
    done = run(folder, *of("bright"), "--out", tmp_path / "t.csv")
    assert done.exit_code == 0, done.output
    rows = [row["image"] for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())]
    assert rows == ["a-0.png", "a-1.png", "a-2.png", "b/x.png", "b/y.png", "linked/z.png"]
    said = done.stderr
    for name, reason in (
        ("a-0_seg.png", "is the mask of another image"),
        ("b/z.CR2", "is a .cr2 file, which isn't read"),
        ("gone.png", "which is not there"),
    ):
        assert any(name in line and reason in line for line in said.splitlines()), said
    assert "notes.txt" not in said


def test_a_reward_that_scores_nothing_says_why_and_fails_the_command(folder: Path, tmp_path: Path) -> None:
    done = run(folder, *of("bright"), *of("down"), "--out", tmp_path / "t.jsonl")
    assert done.exit_code == 1
    assert "0 of 5" in done.output
    assert "a-0.png: down: OSError: connection refused" in done.stderr
    assert "scored no image: down" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert {row["error"] for row in rows} == {"down: OSError: connection refused"}
    assert all(row["bright"] is not None for row in rows)


def test_a_judge_says_what_it_will_cost_before_it_is_asked(folder: Path, tmp_path: Path) -> None:
    """Its key is not set, so it can't even be opened."""
    Image.new("RGB", (9, 9)).save(tmp_path / "ref.png")
    judge = ["--reward", "cp=vlm", "cp.rubric=concept_preservation", "cp.key_env=NO_SUCH_KEY"]
    done = run(folder, *judge, "--reference", tmp_path / "ref.png")
    assert done.exit_code == 2
    assert "cp: 5 requests to gpt-4o" in done.stderr
    assert done.stderr.index("5 requests") < done.stderr.index("NO_SUCH_KEY is not set")


def test_what_was_scored_before_a_failure_is_kept(folder: Path, manifest: Path, tmp_path: Path) -> None:
    done = run(folder, *of("refusing"), "--manifest", manifest, "--out", tmp_path / "t.jsonl")
    assert done.exit_code == 1
    assert "stopped after 3 of 5 images" in done.stderr
    assert "no b" in done.stderr
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drawn", "--reward", "dinno"], "did you mean 'dino'?"),
        (["drawn", "--reward", "dino", "dino.modle=mini"], "did you mean 'model'?"),
        (["drawn", "--reward", "dino", "dio.model=mini"], "did you mean 'dino'? names: dino"),
        (["drawn", "--reward", "dino", "--reward", "dino"], "comes twice; name one: --reward other=dino"),
        (["drawn", "--reward", "dino", "dino.model=./none"], "--reward dino: model './none': no such folder"),
        (["nowhere", "--reward", "dino"], "nowhere: there is no such folder or image"),
        (["empty", "--reward", "dino"], "there is no image in it"),
        (["drawn", "--reward", "dino", "--out", "t.xlsx"], "end it in .csv or .jsonl"),
        (
            ["drawn", "--reward", "dino", "dino.model=mini", "--device", "gpu"],
            "not one of 'auto', 'cpu', 'cuda'",
        ),
        (["drawn", "--reward", "dino", "--manifest", "m.jsonl", "--prompt", "p"], "give either it, or"),
        (["stray", "--reward", "dino", "--manifest", "m.jsonl"], "of no example of m.jsonl, such as q.png"),
    ],
)
def test_mistakes_are_said_before_anything_is_scored(
    folder: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    (folder.parent / "stray").mkdir()
    Image.new("RGB", (9, 9)).save(folder.parent / "stray" / "q.png")
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_two_examples_is_refused(manifest: Path, folder: Path) -> None:
    """'a-1.png' is the second picture of 'a', or the one of 'a-1'; the longer id was taken."""
    with manifest.open("a") as file:
        file.write(json.dumps({"id": "a-1", "prompt": "p", "references": ["ref.png"]}) + "\n")
    done = run(folder, *of("context"), "--manifest", manifest)
    assert done.exit_code == 2
    assert "a-1.png may be of example 'a-1' or 'a'" in done.output
    assert "a-1/0.png" in done.output


@pytest.mark.parametrize("name", ["image", "example", "error"])
def test_a_reward_takes_no_other_columns_name(folder: Path, name: str) -> None:
    """The table had two columns of that name, and the scores were lost."""
    done = run(folder, "--reward", f"{name}=score_rewards:bright", "--prompt", "p")
    assert done.exit_code == 2
    assert f"{name!r} is another column of the table" in done.output
