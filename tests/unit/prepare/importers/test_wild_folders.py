"""Picture folders as people have them: what is meant is read, the rest is named, nothing is guessed in silence."""

import json
import os
import re
import shlex
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo import registry
from customized_grpo.data.images import image_size
from customized_grpo.prepare.importers.base import SourceError
from customized_grpo.prepare.importers.class_words import class_word
from customized_grpo.prepare.importers.nouns import is_likely
from customized_grpo.prepare.importers.report import Report
from customized_grpo.prepare.importers.writer import Options, import_data
from customized_grpo.recipe.loading import recipe_of
from layouts import draw, read, rejected

SYSTEM = (
    ".hidden", "@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "#recycle",
    "System Volume Information", "@Recycle", ".thumbnails",
)  # fmt: skip


def run(kind: str, source: Path, out: Path, images: Any = "link", **options: Any) -> Report:
    importer = registry.resolve("importers", kind).model_validate({"type": kind, **options})
    return import_data(importer, str(source), out, Options(images=images))


def subjects(out: Path) -> set[str]:
    return {row["extra"]["subject_id"] for row in read(out)}


def reasons(out: Path) -> dict[str, str]:
    return {line["id"]: line["reason"] for line in rejected(out)}


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two subjects of two pictures each."""
    for name in ("dog/a.png", "dog/b.png", "cat/a.png", "cat/b.png"):
        draw(tmp_path / "pets" / name)
    return tmp_path / "pets"


# --- what is a user's file


def test_a_stray_picture_does_not_hide_the_subjects(pets: Path, tmp_path: Path) -> None:
    draw(pets / "overview.png")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    assert subjects(tmp_path / "out") == {"dog", "cat"}
    assert "lies beside the subjects' folders (cat, dog)" in reasons(tmp_path / "out")["overview.png"]
    assert (report.rows, report.problems) == (40, {"file": 1})
    assert report.examples["file"][0].startswith("overview.png: ")


def test_many_pictures_beside_few_folders_are_asked_about(pets: Path, tmp_path: Path) -> None:
    for number in range(3):
        draw(pets / f"{number}.png")
    with pytest.raises(
        SourceError, match=r"holds 3 pictures and 2 folders of pictures \(cat, dog\), and either could be"
    ):
        run("dreambooth-folder", pets, tmp_path / "out")


def test_folders_and_files_of_the_system_are_none(pets: Path, tmp_path: Path) -> None:
    for folder in SYSTEM:
        draw(pets / folder / "x.png")
        draw(pets / "dog" / folder / "x.png")
    for name in ("._a.png", ".hidden.png"):
        draw(pets / "dog" / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "~$notes.txt"):
        (pets / "dog" / name).write_bytes(b"\0")
        (pets / name).write_bytes(b"\0")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    assert subjects(tmp_path / "out") == {"dog", "cat"}
    assert (report.rows, report.rejected) == (40, 0)
    assert all(len(row["views"]) == 2 for row in read(tmp_path / "out"))
    assert report.skipped == {"files and folders of the system": 2 * len(SYSTEM) + 2 + 8}
    assert len(report.examples["files and folders of the system"]) == 3


def test_pictures_that_are_not_read_are_named(pets: Path, tmp_path: Path) -> None:
    for name in ("IMG_1.jxl", "b.psd", "raw.CR2", "clip.mp4", "notes.docx"):
        (pets / "dog" / name).write_bytes(b"1")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    said = reasons(tmp_path / "out")
    assert said["dog/IMG_1.jxl"] == "is a .jxl file, which isn't read; save it as PNG or JPEG"
    assert {"dog/b.psd", "dog/raw.CR2", "dog/clip.mp4", "dog/notes.docx"} < set(said)
    assert report.problems == {"file": 5}


def test_a_folder_of_raw_photos_alone_says_so(tmp_path: Path) -> None:
    draw(tmp_path / "pets/cat/a.png")
    (tmp_path / "pets/dog").mkdir()
    (tmp_path / "pets/dog/a.dng").write_bytes(b"1")
    run("dreambooth-folder", tmp_path / "pets", tmp_path / "out")
    assert "there is no picture in it: a.dng is a .dng file" in reasons(tmp_path / "out")["dog"]


@pytest.mark.parametrize("suffix", [".JPG", ".JPEG", ".PNG", ".WebP", ".AVIF", ".TIFF", ".jfif", ".jpe", ".GIF"])
def test_suffixes_in_any_case(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path / "pets/dog" / f"a{suffix.lower()}").rename(tmp_path / f"pets/dog/a{suffix}")
    assert run("dreambooth-folder", tmp_path / "pets", tmp_path / "out").rows == 10


def test_a_broken_picture_costs_its_own_rows_only(pets: Path, tmp_path: Path) -> None:
    """As a view of every other row it took the whole subject with it."""
    (pets / "dog/b.png").write_bytes(b"")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    assert (report.rows, report.problems, report.views_dropped) == (30, {"empty": 10}, 10)
    assert [row["views"] for row in read(tmp_path / "out") if row["id"] == "dog-a-00"] == [["source/dog/a.png"]]
    assert len(report.examples["empty"]) == 1, "one picture is named once"


@pytest.mark.parametrize("name", ["a_seg.png", "a_mask.png", "a-masklabel.png"])
def test_masks_beside_pictures_are_no_pictures(pets: Path, tmp_path: Path, name: str) -> None:
    draw(pets / "dog" / name, 255, mode="L")
    run("dreambooth-folder", pets, tmp_path / "out")
    rows = {row["id"]: row for row in read(tmp_path / "out")}
    assert len(rows) == 40
    assert rows["dog-a-00"]["masks"] == [f"source/dog/{name}"]


def test_a_mask_without_its_picture_is_no_picture(pets: Path, tmp_path: Path) -> None:
    draw(pets / "dog/gone_seg.png", 255, mode="L")
    run("dreambooth-folder", pets, tmp_path / "out")
    assert len(read(tmp_path / "out")) == 40
    assert "is named like a mask, but there is no picture" in reasons(tmp_path / "out")["dog/gone_seg.png"]


# --- depth and links


def test_folders_deeper_than_expected_are_named(pets: Path, tmp_path: Path) -> None:
    draw(pets / "birds/owl/a.png")
    draw(pets / "dog/old/a.png")
    run("dreambooth-folder", pets, tmp_path / "out")
    said = reasons(tmp_path / "out")
    assert said["birds"] == "there are pictures only in folders below it (owl); import it as a source of its own"
    assert "is a folder inside a subject's folder" in said["dog/old"]
    draw(tmp_path / "splits/train/dog/a.png")
    with pytest.raises(SourceError, match=r"first reason: train: .*only in folders below it \(dog\)"):
        run("dreambooth-folder", tmp_path / "splits", tmp_path / "two")


def test_links_are_followed_or_named(pets: Path, tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere/cow/a.png")
    (pets / "cow").symlink_to(tmp_path / "elsewhere/cow")
    (pets / "cat/c.png").symlink_to(pets / "dog/a.png")
    (pets / "cat/gone.png").symlink_to(tmp_path / "gone.png")
    (pets / "nowhere").symlink_to(tmp_path / "gone")
    (pets / "loop").symlink_to(pets)
    (pets / "dog/loop").symlink_to(pets / "dog/loop")
    run("dreambooth-folder", pets, tmp_path / "out")
    assert subjects(tmp_path / "out") == {"dog", "cat", "cow"}
    assert len(read(tmp_path / "out")) == 60
    said = reasons(tmp_path / "out")
    assert f"is a link to {tmp_path / 'gone.png'}, which is not there" == said["cat/gone.png"]
    assert {"nowhere", "loop", "dog/loop"} < set(said)


@pytest.mark.parametrize("images", ["link", "copy"])
def test_an_output_folder_in_the_source_is_not_read(pets: Path, tmp_path: Path, images: str) -> None:
    """A second import took the first one's copies for a subject called 'images'."""
    first = run("dreambooth-folder", pets, pets / "out", images=images)
    second = run("dreambooth-folder", pets, tmp_path / "again", images=images)
    assert subjects(pets / "out") == subjects(tmp_path / "again") == {"dog", "cat"}
    assert (first.rows, first.rejected) == (second.rows, second.rejected) == (40, 0)
    assert second.skipped == {"what an import wrote": 1}
    one = run("dreambooth-folder", pets / "dog", pets / "dog/out", images=images)
    assert (one.rows, one.rejected) == (20, 0)


@pytest.mark.parametrize("images", ["link", "copy"])
def test_a_set_that_is_its_own_output_stays_itself(pets: Path, images: Any) -> None:
    importer = registry.resolve("importers", "dreambooth-folder").model_validate({"type": "dreambooth-folder"})
    for source, rows in ((pets / "dog", 20), (pets, 40)):
        for again in (False, True):
            report = import_data(importer, str(source), source, Options(images=images, overwrite=again))
            draw(source / "contact_sheet.jpg")  # as data check writes it
            assert (report.rows, report.rejected) == (rows, 0)
            assert set(report.skipped) == ({"what an import wrote"} if again else set())
        for name in ("manifest.jsonl", "rejected.jsonl", "import.json", "contact_sheet.jpg"):
            (source / name).unlink()
        shutil.rmtree(source / "images", ignore_errors=True)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".7z"])
def test_an_archive_in_place_of_a_folder(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"pets{suffix}").write_bytes(b"PK")
    for kind in ("dreambooth-folder", "imagefolder"):
        with pytest.raises(SourceError, match="is an archive; unpack it first"):
            run(kind, tmp_path / f"pets{suffix}", tmp_path / "out")


def test_names_of_all_kinds(tmp_path: Path) -> None:
    long = "n" * 250
    for name in (
        "a.png",
        "a.jpg",
        "A.png",
        "b, c.png",
        "d\ne.png",
        f"{long}.png",
        unicodedata.normalize("NFD", "é.png"),
    ):
        draw(tmp_path / "pets/Hund, groß" / name, "blue" if name == "a.jpg" else "red")
    for images in ("link", "copy"):
        out = tmp_path / images
        report = run("dreambooth-folder", tmp_path / "pets", out, images=images, references="each")
        assert (report.rows, report.rejected) == (70, 0)
        rows = read(out)
        assert len({row["id"].casefold() for row in rows}) == 70
        assert len({row["references"][0] for row in rows}) == 7
        assert all((out / row["references"][0]).is_file() for row in rows)


def test_a_folder_that_cannot_be_listed_is_named(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self.name == "cat":
            raise PermissionError(13, "Permission denied")
        return plain(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    run("dreambooth-folder", pets, tmp_path / "out")
    assert subjects(tmp_path / "out") == {"dog"}
    assert reasons(tmp_path / "out")["cat"] == "can't be listed (Permission denied)"


# --- class words


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("dog6", "dog"), ("cat2", "cat"), ("backpack_dog", "backpack"), ("rc_car", "toy"), ("can", "can"),
        ("red_bag2", "red bag"), ("bag_03", "bag"), ("t-shirt", "t-shirt"), ("dog (2)", "dog"), ("iphone15", "iphone"),
        ("красная_сумка", "красная сумка"), ("狗", "狗"), ("1girl", "1girl"),
        ("10_sks dog", ""), ("10_dog", ""), ("3_ohwx", ""), ("ps5", ""), ("r2d2", ""), ("17", ""), ("2024-05-10", ""),
        ("images", ""), ("IMG_2034", ""), ("New folder", ""), ("photos2", ""), ("instance_images", ""),
    ],
)  # fmt: skip
def test_class_words_of_names(name: str, word: str) -> None:
    assert class_word(name) == word


def test_class_words_are_asked_for_or_said(tmp_path: Path) -> None:
    for name in ("10_sks dog", "iphone15"):
        draw(tmp_path / "set" / name / "a.png")
    with pytest.raises(
        SourceError, match=r"1 folder without a class word in the name: '10_sks dog' \(sd-scripts'.*classes\.txt"
    ):
        run("dreambooth-folder", tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out/manifest.jsonl").exists()
    (tmp_path / "set/classes.txt").write_text("10_sks dog,dog\nno such,bag\n")
    report = run("dreambooth-folder", tmp_path / "set", tmp_path / "out")
    assert {row["subject"] for row in read(tmp_path / "out")} == {"dog", "iphone"}
    assert any("iphone15 -> iphone" in remark for remark in report.remarks)
    assert any("there is no folder 'no such'" in remark for remark in report.remarks)
    assert report.rejected == 0


def test_class_words_of_names_with_commas_and_of_another_unicode_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "mädchen 1")
    for name in ("bag, red", decomposed):
        draw(tmp_path / "set" / name / "a.png")
    (tmp_path / "set/classes.txt").write_text("bag, red,handbag\nmädchen 1,doll\n")
    run("dreambooth-folder", tmp_path / "set", tmp_path / "out", references="first")
    assert {row["subject"] for row in read(tmp_path / "out")} == {"handbag", "doll"}


@pytest.mark.parametrize("word", ["dog", "red bag", "stuffed animal", "sunglasses", "Guinea pig", "cars", "T-shirt"])
def test_common_class_words(word: str) -> None:
    assert is_likely(word)


@pytest.mark.parametrize("word", ["rex", "my dog", "the cat", "canon", "sks", "dogx", "", "vacation paris"])
def test_words_that_are_asked_about(word: str) -> None:
    assert not is_likely(word)


def test_an_unlikely_class_word_is_asked_about_and_the_command_line_sets_another(pets: Path, tmp_path: Path) -> None:
    (pets / "dog").rename(pets / "rex")
    (pets / "cat").rename(pets / "my cat")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    (asked,) = [remark for remark in report.remarks if remark.startswith("is this what the photos show?")]
    assert "'rex' of rex" in asked
    assert "'my cat' of my cat" in asked
    option = shlex.split(re.search(r"say another by ('.*?')", asked)[1])[0]  # type: ignore[index]
    assert option == 'words={"my cat": dog}'
    told = recipe_of(
        {"type": "dreambooth-folder"}, [option, "words.rex=dog"], registry.resolve("importers", "dreambooth-folder")
    )
    assert told.words == {"my cat": "dog", "rex": "dog"}
    report = run("dreambooth-folder", pets, tmp_path / "told", words={"rex": "dog", "my cat": "cat", "tom": "cat"})
    assert {row["subject"] for row in read(tmp_path / "told")} == {"dog", "cat"}
    assert not any("is this what" in remark for remark in report.remarks)
    assert any("there is no folder 'tom'" in remark for remark in report.remarks)


def test_subjects_are_counted_for_the_list(pets: Path, tmp_path: Path) -> None:
    draw(pets / "cat/c.png")
    (pets / "dog/b.png").write_bytes(b"")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    assert [(one.name, one.word, one.photos, one.rows, one.prompt) for one in report.subjects] == [
        ("cat", "cat", 3, 30, "a cat in the jungle"),
        ("dog", "dog", 1, 10, "a dog in the jungle"),
    ]
    assert report.num_subjects == 2
    assert {what.rsplit("/", 1)[1].split(":")[0]: str(cost) for what, cost in report.lost.items()} == {
        "b.png": "10 rows, and as a view of 10 rows"
    }


def test_prompts_as_instructions(pets: Path, tmp_path: Path) -> None:
    (pets / "cat/a.txt").write_text("a cat on a mat")
    run("dreambooth-folder", pets, tmp_path / "plain")
    report = run("dreambooth-folder", pets, tmp_path / "out", prompts="instructions")
    rows = read(tmp_path / "out")
    assert len(rows) == 40
    prompts = {row["prompt"] for row in rows if row["subject"] == "dog"}
    assert len(prompts) == 10
    assert all(re.match(r"(Place|Show) this dog (in|on|with) ", prompt) for prompt in prompts)
    assert "Show this dog with a city in the background" in prompts
    assert any("its captions are not read, because prompts=instructions" in remark for remark in report.remarks)
    assert report.prompts is not None
    assert report.prompts.noisy == 0
    scenes = {row["prompt"].removeprefix("a dog ") for row in read(tmp_path / "plain") if row["subject"] == "dog"}
    assert {re.sub(r"^\w+ this dog ", "", prompt) for prompt in prompts} == scenes, "the same scenes"


def test_a_class_word_with_a_vowel_has_its_article(tmp_path: Path) -> None:
    draw(tmp_path / "set/umbrella/a.png")
    report = run("dreambooth-folder", tmp_path / "set", tmp_path / "out")
    assert read(tmp_path / "out")[0]["prompt"] == "an umbrella in the jungle"
    assert report.prompts is not None
    assert report.prompts.noisy == 0


# --- captions beside pictures


def caption(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")


def test_a_caption_beside_a_picture_is_its_prompt(pets: Path, tmp_path: Path) -> None:
    caption(pets / "dog", a_txt="a dog on a sofa", b_caption="a dog at sea\n")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    rows = [row for row in read(tmp_path / "out") if row["extra"]["subject_id"] == "dog"]
    assert [(row["prompt"], row["references"], row["target"]) for row in rows] == [
        ("a dog on a sofa", ["source/dog/b.png"], "source/dog/a.png"),
        ("a dog at sea", ["source/dog/a.png"], "source/dog/b.png"),
    ]
    assert any(remark.startswith("dog: 2 of 2 pictures have a caption beside them") for remark in report.remarks)
    assert report.rows == 22, "the cat has no captions and keeps the scenes"
    (tmp_path / "scenes.txt").write_text("a {} in the snow\n")
    other = run("dreambooth-folder", pets, tmp_path / "scenes", prompts=str(tmp_path / "scenes.txt"))
    assert {row["prompt"] for row in read(tmp_path / "scenes")} == {"a dog in the snow", "a cat in the snow"}
    assert any("dog: its captions are not read, because prompts=" in remark for remark in other.remarks)


def test_captions_need_no_class_word(tmp_path: Path) -> None:
    draw(tmp_path / "10_sks dog/a.png")
    caption(tmp_path / "10_sks dog", a_txt="sks dog on a sofa")
    report = run("dreambooth-folder", tmp_path / "10_sks dog", tmp_path / "out")
    (row,) = read(tmp_path / "out")
    assert (row["prompt"], row["references"], row["target"]) == ("sks dog on a sofa", ["source/a.png"], "source/a.png")
    assert "subject" not in row
    assert any("10_sks dog -> none" in remark for remark in report.remarks)
    assert any("and the reference too, because there is no other" in remark for remark in report.remarks)


@pytest.mark.parametrize(
    ("texts", "left_out", "reason"),
    [
        ({"a_txt": "one", "b_txt": " \n"}, "dog/b.png", "the caption is empty"),
        ({"a_txt": "one"}, "dog/b.png", "has no caption, as others of its folder have"),
        ({"a_txt": "one", "b_txt": "two\nthree"}, "dog/b.png", "the caption has 2 lines"),
        ({"a_txt": "one", "b_txt": "two", "b_caption": "three"}, "dog/b.png", "differ; keep one"),
        ({"a_txt": "one", "b_txt": "two", "c_txt": "three"}, "dog/c.txt", "no picture of that name whose caption"),
    ],
)
def test_captions_that_are_not_used_are_named(
    pets: Path, tmp_path: Path, texts: dict[str, str], left_out: str, reason: str
) -> None:
    caption(pets / "dog", **texts)
    run("dreambooth-folder", pets, tmp_path / "out")
    assert reason in reasons(tmp_path / "out")[left_out]


def test_captions_in_the_form_of_other_systems(tmp_path: Path) -> None:
    draw(tmp_path / "dog" / unicodedata.normalize("NFD", "é.png"))
    draw(tmp_path / "dog/b.png")
    draw(tmp_path / "dog/b.jpg", "blue")
    caption(tmp_path / "dog", é_TXT="one", b_txt="two")
    run("dreambooth-folder", tmp_path / "dog", tmp_path / "out", references="first")
    assert sorted(row["prompt"] for row in read(tmp_path / "out")) == ["one", "two", "two"]


def test_a_picture_in_two_formats_is_one(tmp_path: Path) -> None:
    """Each was the reference of the other, so that the target was the reference."""
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    (tmp_path / "dog").mkdir()
    noise.save(tmp_path / "dog/c.jpg", quality=50)
    noise.save(tmp_path / "dog/c.png")
    draw(tmp_path / "dog/b.png")
    draw(tmp_path / "dog/b.jpg", "blue")
    draw(tmp_path / "dog/d.png", size=(8, 8))
    draw(tmp_path / "dog/d.webp")
    (tmp_path / "dog/c.jpg.txt").write_text("a dog")
    report = run("dreambooth-folder", tmp_path / "dog", tmp_path / "out")
    assert report.examples["pictures that are there twice, by a link or in another format"] == ["dog/c.jpg (c.png)"]
    rows = read(tmp_path / "out")
    assert {row["target"] for row in rows} == {"source/c.png"}
    assert {row["references"][0] for row in rows} == {
        f"source/{name}" for name in ("b.jpg", "b.png", "d.png", "d.webp")
    }


def test_links_are_no_second_subject_or_picture(pets: Path, tmp_path: Path) -> None:
    """One dog was two individuals, and one picture two views."""
    (pets / "rex").symlink_to(pets / "dog")
    (pets / "dog/0.png").symlink_to(pets / "dog/a.png")
    report = run("dreambooth-folder", pets, tmp_path / "out")
    assert subjects(tmp_path / "out") == {"dog", "cat"}
    assert reasons(tmp_path / "out") == {"rex": "is a link to dog, which is read under that name"}
    assert report.examples["pictures that are there twice, by a link or in another format"] == ["dog/0.png (a.png)"]
    assert all(len(row["views"]) == 2 for row in read(tmp_path / "out"))


def test_all_folders_without_a_class_word_are_asked_for_at_once(tmp_path: Path) -> None:
    for number in range(11):
        draw(tmp_path / f"pets/{number}/a.png")
    with pytest.raises(SourceError, match=r"11 folders without .* '9'"):
        run("dreambooth-folder", tmp_path / "pets", tmp_path / "out")


def test_a_target_with_its_reference_s_pixels_is_said(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / "dog" / name)
    caption(tmp_path / "dog", a_txt="one", b_txt="two")
    report = run("dreambooth-folder", tmp_path / "dog", tmp_path / "out")
    assert (
        report.remarks[-1] == "2 rows have a reference's pixels as their target (dog-a-b, dog-b-a): they teach to copy"
    )


@pytest.mark.parametrize("sign", [";", "\t"])
def test_class_words_behind_another_sign(tmp_path: Path, sign: str) -> None:
    draw(tmp_path / "pets/17/a.png")
    (tmp_path / "pets/classes.txt").write_text(f"17{sign}dog\n")
    run("dreambooth-folder", tmp_path / "pets", tmp_path / "out")
    assert {row["subject"] for row in read(tmp_path / "out")} == {"dog"}


# --- tables beside pictures


@pytest.mark.parametrize(
    "table",
    [
        "sep=;\nfile_name;text\na.png;a dog\n",
        '"sep=\t"\r\nfile_name\ttext\r\na.png\ta dog\r\n',
        "File_Name,Text\na.png,a dog\n",
        "FILE_NAME;Caption\na.png;a dog\n",
    ],
)
def test_a_table_in_excel_s_form_or_another_case(tmp_path: Path, table: str) -> None:
    draw(tmp_path / "set/a.png")
    (tmp_path / "set/metadata.csv").write_bytes(table.encode())
    run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert [row["prompt"] for row in read(tmp_path / "out")] == ["a dog"]


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        (
            {"image": "a.png", "text": "x"},
            {},
            "column 'file_name'; there are image, text; name it: reference=image",
        ),
        (
            {"x": "a.png", "text": "x"},
            {},
            "column 'file_name'; there are x, text; name it: reference=COLUMN",
        ),
        ({"file_name": "a.png", "text": "x"}, {"subject": "clas"}, "no line has the column 'clas'.*subject=COLUMN"),
        ({"file_name": "a.png", "text": "x"}, {"mask": "msk"}, "no line has the column 'msk'.*mask=COLUMN"),
    ],
)
def test_a_column_that_no_line_has_is_named(
    tmp_path: Path, line: dict[str, str], options: dict[str, str], message: str
) -> None:
    """A class word or a mask was left out without a word."""
    draw(tmp_path / "set/a.png")
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(SourceError, match=message):
        run("imagefolder", tmp_path / "set", tmp_path / "out", **options)


def test_metadata_that_is_a_json_array_is_named_once(tmp_path: Path) -> None:
    draw(tmp_path / "set/a.png")
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps([{"file_name": "a.png", "text": "x"}], indent=1))
    with pytest.raises(SourceError, match=r"metadata\.jsonl: is a JSON array; .* as by: jq -c"):
        run("imagefolder", tmp_path / "set", tmp_path / "out")


def test_a_url_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps({"file_name": "https://x.org/a.png", "text": "x"}) + "\n")
    with pytest.raises(SourceError, match=r"'https:/x\.org/a\.png' is a URL; download the file"):
        run("imagefolder", tmp_path / "set", tmp_path / "out")


def test_what_is_left_out_without_an_option_is_not_called_one(tmp_path: Path) -> None:
    draw(tmp_path / "set/a.png")
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "x"}) + "\n")
    with pytest.raises(SourceError, match=r"none of 1 entries .* row; left out: 1 pictures that the metadata do"):
        run("imagefolder", tmp_path / "set", tmp_path / "out")


def metadata(folder: Path, *lines: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("nothing", ["null", '""', '" "', '"nan"', '"None"', '"NULL"', '"N/A"', "[]"])
def test_no_id_is_no_individual(tmp_path: Path, nothing: str) -> None:
    for name in "abcd":
        draw(tmp_path / f"set/{name}.png")
    line = '{"file_name": "%s.png", "text": "a bag", "who": %s}'
    metadata(
        tmp_path / "set", line % ("a", nothing), line % ("b", nothing), line % ("c", 0), line % ("d", '["x", "y"]')
    )
    report = run("imagefolder", tmp_path / "set", tmp_path / "out", subject_id="who")
    rows = read(tmp_path / "out")
    assert [row.get("extra") for row in rows] == [None, None, {"subject_id": "0"}, {"subject_id": ["x", "y"]}]
    if nothing != "[]":
        assert report.remarks == ["2 lines name no individual: their who is empty"]
    with pytest.raises(SourceError, match="no other picture of who=''"):
        run("imagefolder", tmp_path / "set", tmp_path / "two", subject_id="who", pairs="subject")


@pytest.mark.parametrize(
    "value",
    [["a.png", "b.png"], '["a.png", "b.png"]', "a.png;b.png", "a.png; b.png", "a.png|b.png", "a.png,b.png"],
)
def test_several_references_in_one_column(tmp_path: Path, value: Any) -> None:
    for name in "ab":
        draw(tmp_path / f"set/{name}.png")
    metadata(tmp_path / "set", {"file_name": value, "text": "a bag"})
    run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert read(tmp_path / "out")[0]["references"] == ["source/a.png", "source/b.png"]
    draw(tmp_path / "set/a.png;b.png")
    metadata(tmp_path / "set", {"file_name": "a.png;b.png", "text": "a bag"})
    run("imagefolder", tmp_path / "set", tmp_path / "one")
    assert read(tmp_path / "one")[0]["references"] == ["source/a.png;b.png"], "a file of that name"


def test_references_in_several_columns(tmp_path: Path) -> None:
    for name in "ab":
        draw(tmp_path / f"set/{name}.png")
    metadata(tmp_path / "set", {"image_0": "a.png", "image_1": "b.png", "text": "a bag"})
    run("imagefolder", tmp_path / "set", tmp_path / "out", reference=["image_0", "image_1"])
    assert read(tmp_path / "out")[0]["references"] == ["source/a.png", "source/b.png"]


@pytest.mark.parametrize("sign", [";", "\t", "|", ","])
def test_tables_by_another_sign(tmp_path: Path, sign: str) -> None:
    draw(tmp_path / "set/a.png")
    text = sign.join(('"file_name"', "text")) + "\n" + sign.join(("a.png", "a bag")) + "\n"
    (tmp_path / "set/metadata.csv").write_text(text)
    run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert read(tmp_path / "out")[0]["prompt"] == "a bag"


def test_a_comma_does_not_cut_a_caption(tmp_path: Path) -> None:
    """The words behind it went away in silence."""
    for name in "ab":
        draw(tmp_path / f"set/{name}.png")
    (tmp_path / "set/metadata.csv").write_text("file_name,text\na.png,a cat, on a mat\nb.png,a bag\n")
    run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert [row["prompt"] for row in read(tmp_path / "out")] == ["a bag"]
    assert "cells" in rejected(tmp_path / "out")[0]["reason"]


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [
        (unicodedata.normalize("NFD", "é.png"), "é.png"),
        ("é.png", unicodedata.normalize("NFD", "é.png")),
        ("A.JPG", "a.jpg"),
        ("sub/a.png", "sub\\a.png"),
        ("sub/a.png", "./sub/../sub/a.png"),
    ],
)
def test_names_in_tables_from_another_system(tmp_path: Path, on_disk: str, in_table: str) -> None:
    draw(tmp_path / "set" / on_disk)
    metadata(tmp_path / "set", {"file_name": in_table, "text": "a bag"})
    report = run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert (report.rows, report.skipped) == (1, {})
    assert (tmp_path / "out" / read(tmp_path / "out")[0]["references"][0]).is_file()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "n" * 300 + ".png", "a\0.png", "A.png"])
def test_names_in_tables_that_are_no_file_of_the_set(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "secret.png")
    draw(tmp_path / "set/ok.png")
    for alike in ("a.PNG", "a.Png"):  # 'A.png' could be either
        draw(tmp_path / "set/a.png").rename(tmp_path / f"set/{alike}")
    metadata(tmp_path / "set", {"file_name": name, "text": "a bag"}, {"file_name": "ok.png", "text": "a bag"})
    report = run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert (report.rows, report.rejected) == (1, 1)


def test_pictures_that_a_table_does_not_name_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "c.png", ".hidden.png", "a_seg.png"):
        draw(tmp_path / "set" / name, 255, mode="L")
    metadata(tmp_path / "set", {"file_name": "a.png", "text": "a bag"}, {"file_name": "c.png"})
    report = run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert report.skipped == {"pictures that the metadata doesn't name": 1}
    assert report.examples["pictures that the metadata doesn't name"] == ["sub/b.png"]


def test_what_a_folder_without_a_table_may_be(tmp_path: Path) -> None:
    metadata(tmp_path / "set/train")
    metadata(tmp_path / "set/test")
    with pytest.raises(SourceError, match="but in test, train: give one of them, because splits are not mixed"):
        run("imagefolder", tmp_path / "set", tmp_path / "out")
    draw(tmp_path / "captions/a.png")
    caption(tmp_path / "captions", a_txt="one")
    with pytest.raises(SourceError, match="captions beside pictures, which dreambooth-folder reads"):
        run("imagefolder", tmp_path / "captions", tmp_path / "out")
    draw(tmp_path / "labels/dog/a.png")
    with pytest.raises(SourceError, match="but folders of pictures, which dreambooth-folder reads"):
        run("imagefolder", tmp_path / "labels", tmp_path / "out")
    metadata(tmp_path / "captions").joinpath("metadata.csv").write_text("file_name,text\n")
    with pytest.raises(SourceError, match=r"there are metadata\.jsonl and metadata\.csv"):
        run("imagefolder", tmp_path / "captions", tmp_path / "out")


def test_which_column_is_the_prompt_is_said(tmp_path: Path) -> None:
    draw(tmp_path / "set/a.png")
    metadata(tmp_path / "set", {"file_name": "a.png", "caption": "one", "text": "two"})
    report = run("imagefolder", tmp_path / "set", tmp_path / "out")
    assert read(tmp_path / "out")[0]["prompt"] == "one"
    assert "prompts are the column caption" in report.remarks[0]


# --- other importers' listings


def test_apple_doubles_of_json_and_archives_are_not_read(tmp_path: Path) -> None:
    for name in "ab":
        draw(tmp_path / f"set/{name}.png")
    (tmp_path / "set/split1.json").write_text(json.dumps([{"prompt": "a bag", "image_path": "a.png"}]))
    (tmp_path / "set/._split1.json").write_bytes(b"\0\5\x16\7")
    assert run("uno", tmp_path / "set", tmp_path / "out").rows == 1
    syncd = [{"filenames": ["a.png", "b.png"], "prompts": ["one", "two"]}]
    (tmp_path / "set/metadata.json").write_text(json.dumps(syncd))
    for name in ("._metadata.json", "._archive_1.zip"):
        (tmp_path / "set" / name).write_bytes(b"\0\5\x16\7")
    assert run("syncd", tmp_path / "set", tmp_path / "two").rows == 2


def test_dreambench_plus_from_a_mac(tmp_path: Path) -> None:
    draw(tmp_path / "data/images/object/00.jpg")
    (tmp_path / "data/captions/object").mkdir(parents=True)
    (tmp_path / "data/captions/object/00.txt").write_text("\n".join(["Lamp", *(f"a lamp {n}" for n in range(9))]))
    (tmp_path / "data/captions/object/._00.txt").write_bytes(b"\0\5\x16\7\xff")
    draw(tmp_path / "data/images/object/01.jpg")
    report = run("dreambench++", tmp_path / "data", tmp_path / "out")
    assert (report.rows, report.skipped) == (9, {"pictures without a list of prompts": 1})


def test_order_and_ids_of_plain_folders_stay(pets: Path, tmp_path: Path) -> None:
    run("dreambooth-folder", pets, tmp_path / "out")
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows[:11]] == [*(f"cat-a-{n:02d}" for n in range(10)), "cat-b-00"]
    assert rows[0]["prompt"] == "a cat in the jungle"
    assert os.readlink(tmp_path / "out/source") == str(pets)
    assert image_size(tmp_path / "out" / rows[0]["references"][0]) == (32, 32)
