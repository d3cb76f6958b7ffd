"""What rows stand on: after any change of the data, the metrics or their files, a second evaluation in its folder gives
what a first one in an empty folder gives, keeps every row that it can, and says why the others are made anew."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.evaluation.evaluator import evaluate
from customized_grpo.evaluation.summary import Row
from customized_grpo.recipe.config import EvaluateRecipe
from evaluation_fakes import Channels, Counted

LABELS = ("real_photos", "copy_reference", "base")
COUNT = 5


class World:
    """A manifest of five bags with a reference, a mask and two views each, and a metric with a weights file."""

    def __init__(self, folder: Path) -> None:
        self.root, self.runs, self.weights = folder / "data", folder, folder / "weights.bin"
        self.root.mkdir()
        self.weights.write_bytes(b"first")
        for number in range(COUNT):
            for name in ("ref", "view", "other"):
                self.picture(f"{name}{number}.png", (40 * number, len(name) * 20, 9))
            self.picture(f"mask{number}.png", (255, 255, 255))
        self.rows: list[dict[str, Any]] = [
            {
                "id": f"bag-{number}",
                "prompt": f"a bag, number {number}",
                "references": [f"ref{number}.png"],
                "masks": [f"mask{number}.png"],
                "views": [f"view{number}.png", f"other{number}.png"],
                "subject": "bag",
                "extra": {"subject_id": f"bag{number}"},
            }
            for number in range(COUNT)
        ]
        self.write()

    def picture(self, name: str, colour: tuple[int, int, int]) -> None:
        Image.new("RGB", (8, 8), colour).save(self.root / name)

    def write(self) -> None:
        (self.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def evaluate(self, run: str = "run", **changes: Any) -> dict[str, list[Row]]:
        Channels.calls.clear()
        Counted.asked.clear()
        section: dict[str, Any] = {
            "data": {"type": "manifest", "path": str(self.root / "rows.jsonl")},
            "metrics": {
                "channels": {"type": "evaluation_fakes:Channels"},
                "counted": {"type": "evaluation_fakes:Counted", "axis": "identity", "weights": str(self.weights)},
            },
        }
        recipe = {
            "run": {"dir": str(self.runs / run), "device": "cpu", "precision": "no"},
            "policy": {"type": "evaluation_fakes:TinyPolicy", "model": "none", "height": 2, "width": 2},
            "sampling": {"steps": 2},
            "evaluate": section | changes,
        }
        folder = evaluate(EvaluateRecipe.model_validate(recipe)) / "evaluation"
        files = [folder / f"{label}.jsonl" for label in LABELS]
        return {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def measured(rows: dict[str, list[Row]]) -> list[tuple[Any, ...]]:
    return [
        (label, r["key"], r["prompt"], r["index"], r["values"], r["stands_on"]) for label in LABELS for r in rows[label]
    ]


def prompt_is_corrected(world: World) -> None:
    world.rows[2]["prompt"] = "a bag, corrected"


def prompt_has_another_space(world: World) -> None:
    world.rows[2]["prompt"] = world.rows[2]["prompt"].replace(", ", ",  ")


def reference_is_replaced(world: World) -> None:
    """By a picture of the same size in bytes, with the old one's time."""
    file = world.root / "ref2.png"
    size, time = file.stat().st_size, file.stat().st_mtime_ns
    world.picture("ref2.png", (81, 60, 9))
    assert file.stat().st_size == size
    os.utime(file, ns=(time, time))


def another_reference_is_named(world: World) -> None:
    world.rows[2]["references"] = ["other4.png"]


def mask_is_replaced(world: World) -> None:
    Image.new("L", (8, 8), 0).save(world.root / "mask2.png")


def view_is_replaced(world: World) -> None:
    world.picture("view2.png", (200, 0, 0))


def subject_is_renamed(world: World) -> None:
    world.rows[2]["subject"] = "backpack"


def extra_says_more(world: World) -> None:
    world.rows[2]["extra"]["colour"] = "red"


def id_is_renamed(world: World) -> None:
    world.rows[2]["id"] = "bag-x"


CHANGES: dict[Callable[[World], None], tuple[str, int, bool]] = {
    prompt_is_corrected: ("prompt: 1", 1, True),
    prompt_has_another_space: ("prompt: 1", 1, True),
    reference_is_replaced: ("references: 1", 1, True),
    another_reference_is_named: ("references: 1", 1, True),
    mask_is_replaced: ("masks: 1", 1, False),
    view_is_replaced: ("views: 1", 1, False),
    subject_is_renamed: ("subject: 1", 1, False),
    extra_says_more: ("extra: 1", 1, False),
}
"""What is done to the third of five rows: the reason that is said, how many rows are made anew, and whether drawn."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_and_no_other_is_made_anew(
    world: World, change: Callable[[World], None], caplog: pytest.LogCaptureFixture
) -> None:
    world.evaluate()
    change(world)
    world.write()
    reason, count, drawn = CHANGES[change]
    again = world.evaluate()
    assert Channels.calls == ["bag-2"] * 2, "of the copied reference and the base"
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("base: ")]
    assert said == f"base: of 5 rows 4 are kept; {count} are {'drawn' if drawn else 'scored'} anew ({reason})"
    caplog.clear()
    assert measured(again) == measured(world.evaluate("fresh"))
    assert measured(world.evaluate()) == measured(again)
    assert Channels.calls == []
    assert not caplog.records


def test_a_row_that_is_gone_is_dropped(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.evaluate()
    world.rows.pop()
    world.write()
    rows = world.evaluate()
    assert Channels.calls == []
    assert "base: of 4 rows 4 are kept; 1 of examples that are no longer there are dropped" in caplog.messages
    assert [row["key"] for row in rows["base"]] == [f"bag-{n}" for n in range(4)]


def test_rows_that_moved_are_those_of_their_new_place(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The noise is a function of the place, so a row that is removed moves the noise of all rows behind it."""
    world.evaluate()
    world.rows.pop(1)
    world.write()
    rows = world.evaluate()
    assert "base: of 4 rows 1 are kept; 3 are drawn anew (place: 3), 1 of examples that" in "".join(caplog.messages)
    assert measured(rows) == measured(world.evaluate("fresh"))


def test_rows_that_come_later_are_made_and_others_kept(world: World) -> None:
    world.evaluate()
    world.rows.append(world.rows[0] | {"id": "bag-9"})
    world.write()
    rows = world.evaluate()
    assert Channels.calls == ["bag-9"] * 2
    assert measured(rows) == measured(world.evaluate("fresh"))


def test_a_renamed_row_is_another(world: World) -> None:
    world.evaluate()
    id_is_renamed(world)
    world.write()
    assert measured(world.evaluate()) == measured(world.evaluate("fresh"))


@pytest.mark.parametrize("with_times", [True, False])
def test_a_folder_with_the_same_content_goes_on_wherever_it_is(
    world: World, with_times: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.evaluate()
    elsewhere = world.runs / "elsewhere"
    if with_times:
        shutil.move(world.root, elsewhere)
    else:
        shutil.copytree(world.root, elsewhere, copy_function=shutil.copyfile)
        shutil.rmtree(world.root)
    moved_weights = world.runs / "other" / "name.bin"
    moved_weights.parent.mkdir()
    world.weights.rename(moved_weights)
    world.root, world.weights = elsewhere, moved_weights
    assert world.evaluate() == first
    assert (Channels.calls, Counted.asked) == ([], [])
    assert not caplog.records


def test_touched_files_go_on(world: World) -> None:
    first = world.evaluate()
    for file in world.root.iterdir():
        os.utime(file, (1, 1))
    assert world.evaluate() == first
    assert Channels.calls == []


def test_a_metric_s_own_file_is_part_of_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.evaluate(save_images=5)
    world.weights.write_bytes(b"other")
    again = world.evaluate(save_images=5)
    assert "base: of 5 rows 0 are kept; 5 are scored anew (metrics.counted: 5)" in caplog.messages
    assert measured(again) == measured(world.evaluate("fresh"))


def test_a_picture_that_is_not_the_row_s_own_is_drawn_anew(world: World) -> None:
    first = world.evaluate()
    picture = world.runs / "run" / "evaluation" / first["base"][2]["file"]
    before = picture.read_bytes()
    shutil.copy(picture.with_name("bag-3-0.png"), picture)
    assert world.evaluate() == first
    assert picture.read_bytes() == before


def test_a_killed_second_evaluation_leaves_no_picture_of_another_prompt(world: World) -> None:
    """Drawn for another prompt, and killed before its row was written: then the prompt is put back."""
    first, before = world.evaluate(), dict(world.rows[2])
    prompt_is_corrected(world)
    world.write()
    Channels.killed_at = "bag-3"
    world.rows[3]["prompt"] = "another, too"
    world.write()
    with pytest.raises(KeyboardInterrupt):
        world.evaluate()
    Channels.killed_at = ""
    world.rows[2:4] = [before, before | {"id": "bag-3", **{k: v for k, v in world.rows[3].items() if k != "prompt"}}]
    world.rows[3]["prompt"] = "a bag, number 3"
    world.write()
    assert measured(world.evaluate()) == measured(first)
    assert measured(world.evaluate("fresh")) == measured(first)


def test_rows_of_an_earlier_version_are_made_anew(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first = world.evaluate()
    file = world.runs / "run" / "evaluation" / "base.jsonl"
    old = [{k: v for k, v in row.items() if k not in ("stands_on", "picture")} for row in first["base"]]
    file.write_text("".join(json.dumps(row | {"fingerprint": "0", "drawn": "0"}) + "\n" for row in old))
    assert world.evaluate() == first
    assert "5 are drawn anew (rows of an earlier version" in "".join(caplog.messages)


def test_photos_are_compared_with_those_of_now(world: World) -> None:
    """In the same process: no photo is remembered by its path."""
    protocol = {"protocol": "dreambench/uno-all-references"}
    first = world.evaluate(**protocol)
    assert len(first["real_photos"]) == 2 * COUNT
    view_is_replaced(world)
    again = world.evaluate(**protocol)
    assert Counted.asked.count("bag2-photo-view2") == Counted.asked.count("bag2-photo-other2") == 1
    assert len(Counted.asked) == 4
    assert measured(again) == measured(world.evaluate("fresh", **protocol))
    assert measured(again) != measured(first)


def test_nothing_but_headers_is_read_of_what_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and time first: a finished evaluation is looked through without a picture being decoded or hashed."""
    for file in [*world.root.iterdir(), world.weights]:
        os.utime(file, (1, 1))
    monkeypatch.setattr("customized_grpo.identity.hashes._GRAIN_NS", -1)  # as if they had lain there for a while
    world.evaluate()
    first = world.evaluate()  # which looks at the first's pictures once
    monkeypatch.setattr("customized_grpo.identity.hashes.file_hash", lambda path: pytest.fail(f"{path} is read"))
    assert world.evaluate() == first
