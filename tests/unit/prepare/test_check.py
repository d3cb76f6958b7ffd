"""The check of a manifest, its contact sheet, and subjects held out."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.data.prompts import num_words, prompt_problems, survey
from customized_grpo.data.rows import Row
from customized_grpo.prepare.check import check_manifest, write_usable
from customized_grpo.prepare.sheet import choose, contact_sheet
from customized_grpo.prepare.split import groups_of, split_manifest
from layouts import draw


def row(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "prompt": f"a bag {name}", "references": ["a.png"]} | fields


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, colour, size in (
        ("a.png", "red", (300, 300)),
        ("b.png", "blue", (400, 280)),
        ("small.png", "red", (9, 300)),
    ):
        draw(tmp_path / name, colour, size)
    (tmp_path / "twin.png").write_bytes((tmp_path / "a.png").read_bytes())
    for name, value, size in (
        ("m.png", 255, (300, 300)),
        ("empty.png", 0, (30, 30)),
        ("misfit.png", 200, (30, 20)),
    ):
        draw(tmp_path / name, value, size, "L")
    (tmp_path / "broken.png").write_bytes(b"")
    return tmp_path


def write(root: Path, *rows: Any) -> Path:
    path = root / "manifest.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows))
    return path


def test_everything_is_found_at_once(root: Path) -> None:
    path = write(
        root,
        row("1", extra={"subject_id": "x"}, masks=["m.png"], target="b.png", target_mask="broken.png"),
        row(
            "2",
            extra={"subject_id": ["x", "y"]},
            references=["a.png", "small.png"],
            masks=["empty.png", None],
        ),
        "{",
        row("3", references=["broken.png"]),
        row("4", target="twin.png"),
        row("5", prompt="a bag 4", target="twin.png"),
        row("6", masks=["misfit.png"]),
        row("1"),
        row("7", views=["gone.png"], prompt="a -out bag"),
    )
    check, rows, seen = check_manifest(path)
    assert (check.rows, check.subjects, check.images, check.targets, check.masks) == (7, 2, 6, 3, 4)
    assert check.references == {1: 6, 2: 1}
    assert [line.split(": ", 1)[0][-2:] for line in check.bad_lines] == [":3", ":8"]
    assert {(one.path, one.problem, one.rows, one.views) for one in check.broken} == {
        ("broken.png", "empty", 1, 0), ("gone.png", "missing", 0, 1),
    }  # fmt: skip
    assert len(check.broken) == 3  # once as a picture, once as a mask
    assert check.sizes is not None
    assert (check.sizes.smallest, check.sizes.largest, check.sizes.square, check.sizes.small) == (
        (9, 300),
        (400, 280),
        2,
        1,
    )
    assert check.masks_doubtful == {"empty": 1, "nearly everything": 2}
    assert check.mask_problems == ["mask misfit.png is 30 x 20, its image 300 x 300"]
    assert check.same_pictures == [["a.png", "twin.png"]]
    assert check.same_rows == [["4", "5"]]
    assert check.copies == ["4", "5"]
    assert check.prompts is not None
    assert check.prompts.problems == {"lost-word": 1}
    assert check.usable == {2, 5, 6, 9}, "a view that is gone costs no row"
    assert check.sound_views == {9: []}
    assert not check.ok
    write_usable(path, check, root / "good.jsonl")
    assert check_manifest(root / "good.jsonl")[0].ok
    with pytest.raises(ValueError, match="must be in the manifest's folder"):
        write_usable(path, check, root.parent / "good.jsonl")
    contact_sheet(root / "s.png", rows, seen, root, title="t", subtitle="s", num=4)
    with Image.open(root / "s.png") as sheet:
        assert sheet.info == {}
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert (255, 0, 0) in colours  # a picture
    assert (0xB3, 0x26, 0x1E) in colours  # the frame of a row that can't be used


def test_a_damaged_view_costs_no_row_and_is_left_out(root: Path) -> None:
    """It made all rows of its subject unusable."""
    views = ["a.png", "broken.png", "twin.png"]
    path = write(
        root, row("0", views=views), row("1", views=["a.png"]), row("2", references=["broken.png"], views=views)
    )
    check, _, _ = check_manifest(path)
    assert [(one.path, one.rows, one.views) for one in check.broken] == [("broken.png", 1, 1)]
    assert check.usable == {1, 2}
    write_usable(path, check, root / "good.jsonl")
    first, second = (root / "good.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == json.loads(path.read_text(encoding="utf-8").splitlines()[0]) | {
        "views": ["a.png", "twin.png"]
    }
    assert second == path.read_text(encoding="utf-8").splitlines()[1]
    alone, _, _ = check_manifest(write(root, row("0", views=views)))
    assert alone.ok, "nothing that a run needs is broken"
    assert [(one.rows, one.views) for one in alone.broken] == [(0, 1)]


def test_workers_see_the_same(root: Path) -> None:
    path = write(root, *(row(str(n), references=[name]) for n, name in enumerate(("a.png", "b.png", "broken.png"))))
    counts: list[tuple[int, int]] = []
    one = check_manifest(path)
    two = check_manifest(path, workers=2, progress=lambda done, total: counts.append((done, total)))
    assert one == two
    assert counts == [(1, 3), (2, 3), (3, 3)]


def test_what_is_read_in_part_or_twice_is_said(root: Path) -> None:
    frames = [Image.new("RGB", (300, 300), colour) for colour in ("red", "blue")]
    frames[0].save(root / "film.gif", save_all=True, append_images=frames[1:])
    check, _, _ = check_manifest(
        write(root, row("1", references=["a.png", "twin.png"]), row("2", references=["film.gif", "b.png"]))
    )
    assert (check.repeated, check.frames, check.ok) == (["1"], ["film.gif"], True)


def test_a_manifest_without_a_row_still_gives_a_sheet(root: Path) -> None:
    check, rows, seen = check_manifest(write(root, "{}"))
    contact_sheet(root / "s.jpg", rows, seen, root, title="t" * 300, subtitle="s")
    assert (check.rows, check.ok) == (0, False)
    assert (root / "s.jpg").is_file()


def test_a_sheet_shows_many_subjects_and_prompts(root: Path) -> None:
    rows = [
        row(f"{subject}-{n}", references=[f"{subject}.png"], extra={"subject_id": subject})
        for subject in "abcdef"
        for n in range(25)
    ]
    for subject in "abcdef":
        draw(root / f"{subject}.png")
    _, read, seen = check_manifest(write(root, *rows))
    shown = choose(read, seen, 8)
    assert len(shown) == len({one.id for one in shown}) == 8
    assert {one.extra["subject_id"] for one in shown} == set("abcdef")
    assert len({one.id[2:] for one in shown}) > 4  # not everyone's first prompt


# --- splits


def made(*rows: dict[str, Any]) -> list[Row]:
    return [Row.model_validate(one) for one in rows]


def test_rows_that_share_an_individual_or_a_picture_stay_together() -> None:
    rows = made(
        row("0", references=["a"], extra={"subject_id": "x"}),
        row("1", references=["b"], subject="bag"),
        row("2", references=["c"], extra={"subject_id": ["x", "y"]}, subject="bag"),
        row("3", references=["d"], target="b"),
        row("4", references=["e"], extra={"subject_id": "y"}),
        row("5", references=["f"], views=["z"]),
    )
    assert groups_of(rows, "individual") == [[0, 2, 4], [1, 3], [5]]
    assert groups_of(rows, "class") == [[0, 1, 2, 3, 4], [5]]


@settings(deadline=None)  # of a busy machine
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=20))
def test_groups_are_a_partition_without_anything_shared(pairs: list[tuple[int, int]]) -> None:
    rows = made(
        *(row(str(n), references=[f"{r}.png"], extra={"subject_id": f"s{s}"}) for n, (s, r) in enumerate(pairs))
    )
    groups = groups_of(rows, "individual")
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    keys = [{key for index in group for key in (("s", pairs[index][0]), ("r", pairs[index][1]))} for group in groups]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_a_split_holds_whole_subjects_out(tmp_path: Path) -> None:
    rows = [
        row(f"{s}-{n}", references=[f"{s}.png"], extra={"subject_id": f"s{s}"}) for s in range(10) for n in range(3)
    ]
    path = write(tmp_path, *rows[:15], "", *rows[15:])
    done = split_manifest(path, share=0.2, seed=1)
    assert [(part.rows, part.groups) for part in done] == [(24, 8), (6, 2)]
    parts = [[json.loads(line) for line in part.path.read_text().splitlines()] for part in done]
    subjects = [{one["extra"]["subject_id"] for one in part} for part in parts]
    assert not subjects[0] & subjects[1]
    assert sorted(one["id"] for part in parts for one in part) == sorted(one["id"] for one in rows)
    before = done[1].path.read_bytes()
    assert split_manifest(path, share=0.2, seed=1) == done
    assert done[1].path.read_bytes() == before
    split_manifest(path, share=0.2, seed=2)
    assert done[1].path.read_bytes() != before


def test_named_subjects(tmp_path: Path) -> None:
    rows = [row(f"{s}", references=[f"{s}.png"], extra={"subject_id": f"s{s}"}, subject="bag") for s in range(4)]
    path = write(tmp_path, *rows)
    done = split_manifest(path, share=0.1, names=["s1", "s3"])
    assert [json.loads(line)["id"] for line in done[1].path.read_text().splitlines()] == ["1", "3"]
    with pytest.raises(ValueError, match="no row is about 's9'; there are 4: s0, s1"):
        split_manifest(path, share=0.1, names=["s9"])
    with pytest.raises(ValueError, match="all would be held out"):
        split_manifest(path, share=0.1, names=["bag"], by="class")
    with pytest.raises(ValueError, match=r"given 1\.5; allowed: above 0 and below 1"):
        split_manifest(path, share=1.5)
    with pytest.raises(ValueError, match=r"manifest\.jsonl:5: is not JSON"):
        split_manifest(write(tmp_path, *rows, "{"), share=0.5)


# --- prompts


@pytest.mark.parametrize(
    ("prompt", "problems"),
    [
        ("a bag in the snow", []),
        ("a unicorn on a user's desk for an hour with one European", []),
        ("a t-shirt and a half-open box (old), \"new\" and 'worn'", []),
        ("a toaster next to a -out mug", ["lost-word"]),
        ("t- tank in a street", ["lost-word"]),
        ("a of a rabbit", ["lost-word"]),
        ("let me know if you need more!", ["remark"]),
        ("a bag with the number , on it", ["loose-punctuation"]),
        ("a bag on a  floor", ["double-space"]),
        ("A fox\n\nIn a forest", ["line-break"]),
        ("a bag on on a floor", ["repeated-word"]),
        ("a royalty-free lamp", ["listing-words"]),
        ("a bag in a outdoor place", ["wrong-article"]),
        ("an gold cup", ["wrong-article"]),
        ("a bag <b>on</b> a floor", ["markup"]),
        ("a photo of a (dog:1.3) in the snow", ["prompt-syntax"]),
        ("((masterpiece)), a dog", ["prompt-syntax"]),
        ("a dog <lora:detail:0.8>", ["prompt-syntax", "markup"]),
        ("a {red|blue} dog", ["prompt-syntax"]),
        ("a photo of {} in the snow", ["prompt-syntax"]),
        ("a photo of {0} in the snow", ["prompt-syntax"]),
        ("a __colour__ dog", ["prompt-syntax"]),
        ("a photo of a [V] dog", ["prompt-syntax"]),
        ("a dog BREAK in the snow", ["prompt-syntax"]),
        ("a dog (a small one: 3 months old) in the snow", []),
        ("a clock at 12:30 with a note (ratio 4:3)", []),
        ("a bag \ufffd on a floor", ["broken-text"]),
        ("a bag adding to the", ["cut-off"]),
        ('A frog," perched', ["unpaired-quote"]),
        ("bag", ["one-word"]),
        ("小狗", ["one-word"]),
        ("一只小狗坐在雪地里", []),
        ("雪の中に座っている犬の写真", []),
        ("눈 위에 앉아 있는 강아지", []),
        ("สุนัขนั่งอยู่บนหิมะ", []),
        ("一只小狗坐在雪地里的照片" * 10 + "狗", ["too-long"]),
        ("a bag<|endoftext|> on a floor", ["special-token"]),
        ("a bag on a floor </s>", ["markup", "special-token"]),
        ("a <|vision_start|><|image_pad|> bag", ["special-token"]),
        ("a bag <extra_id_0>", ["markup", "special-token"]),
        ("[INST] a bag", ["special-token"]),
        ("a bag in a caf\u00c3\u00a9", ["broken-text"]),
        ("it\u00e2\u20ac\u2122s a bag", ["broken-text"]),
        ("a\u00a0bag", ["invisible"]),
        ("a bag\u200b on a floor", ["invisible"]),
        ("a bag with \U0001f468\u200d\U0001f469\u200d\U0001f467 on it", []),
        (" ".join(f"word{n}" for n in range(61)), ["too-long"]),
    ],
)
def test_noise_in_prompts_is_named(prompt: str, problems: list[str]) -> None:
    assert prompt_problems(prompt) == problems


def test_words_of_scripts_without_spaces_are_estimated() -> None:
    words = {
        "a red bag": 3,
        "一只小狗坐在雪地里": 5,
        "สุนัขนั่งอยู่บนหิมะ": 4,
        "红色的 iPhone 15": 4,
        "눈 위에 앉아": 3,
        "- !": 0,
    }
    assert {text: num_words(text) for text in words} == words
    assert survey(["一只小狗坐在雪地里"]).mean_words == 5


def test_a_survey_counts_prompts_once() -> None:
    found = survey(["a bag", "a  bag  in a outdoor", "an  gold cup"])
    assert (found.noisy, found.max_words) == (2, 5)
    assert found.problems == {"double-space": 2, "wrong-article": 2}
    assert found.examples["wrong-article"] == ["a  bag  in a outdoor", "an  gold cup"]
    assert survey([]).mean_words == 0


def test_a_picture_under_two_names_is_on_one_side(tmp_path: Path) -> None:
    """Copies of a picture were on both sides, and held-out scores measured memory (tqwei05/PlantSeg#11)."""
    for at in range(8):
        (tmp_path / f"{at}.png").write_bytes(bytes([at]) * 70_000)
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "like.png").write_bytes((tmp_path / "1.png").read_bytes()[:-1] + b"x")
    names = [*(f"{at}.png" for at in range(8)), "copy.png", "like.png"]
    path = write(tmp_path, *(row(str(at), references=[name]) for at, name in enumerate(names)))
    apart = 0
    for seed in range(8):
        parts = split_manifest(path, share=0.3, seed=seed)
        texts = [part.path.read_text() for part in parts]
        assert any('"0.png"' in text and "copy.png" in text for text in texts)
        apart += not any('"1.png"' in text and "like.png" in text for text in texts)
    assert apart
