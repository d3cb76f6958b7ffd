"""``customized-grpo data``: what a person sees."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.registry import BUILTIN


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "160", "TERM": "dumb"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for name in ("cat", "dog", "cow"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (300, 300), (40 * len(lines), 9, 9)).save(tmp_path / "set" / name / f"{number}.png")
            lines.append(name)
    (tmp_path / "set/dog/1.png").write_bytes(b"")
    return tmp_path


def test_import_check_split_train(folder: Path) -> None:
    out = folder / "out"
    done = run(
        "import",
        "dreambooth-folder",
        str(folder / "set"),
        "--out",
        str(out),
        "--workers",
        "1",
        "references=first",
    )
    assert done.exit_code == 0, done.output
    assert "rows" in done.output
    assert str(out / "manifest.jsonl") in done.output
    assert "views dropped" in done.output
    assert f"left out: {folder / 'set/dog/1.png'}: is empty (0 bytes) (as a view of 10 rows)" in done.output
    assert done.output.count("set/dog/1.png") == 1, "one picture is named once"
    assert done.output.rstrip().splitlines()[-1].startswith(f"next: customized-grpo data check {out} ")
    done = run("check", str(out), "--workers", "1", "--json", str(folder / "found.json"))
    assert done.exit_code == 0, done.output
    assert "30 of 30 rows can be used" in done.output
    assert json.loads((folder / "found.json").read_text())["usable"] == 30
    with Image.open(out / "contact_sheet.jpg") as sheet:
        assert sheet.width > 400
        assert not sheet.getexif()
    done = run("split", str(out), "--hold-out", "cow")
    assert "manifest.train.jsonl: 20 rows of 2 subjects" in done.output.replace("\n", "")
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(out / "manifest.test.jsonl")))
    assert {data[index].subject for index in range(len(data))} == {"cow"}


def test_each_command_ends_with_the_next_one_and_it_runs(folder: Path) -> None:
    """import, check, its --usable, check, split: what is printed is typed, down to validate."""
    said, out = [], folder / "my out"
    command = ["import", "dreambooth-folder", str(folder / "set"), "--out", str(out)]
    while command[0] != "validate":
        done = run(*command, "--workers", "1") if command[0] != "split" else run(*command, "--share", "0.4")
        said.append(command[0])
        last = [line for line in done.stdout.splitlines() if line.strip()][-1]
        assert last.startswith("next: customized-grpo "), last
        if len(said) == 1:
            (folder / "set/cat/0.png").write_bytes(b"")  # damaged after the import
        words = shlex.split(last.partition("next: customized-grpo ")[2], comments=True)
        command = words[1:] if words[0] == "data" else words
    assert said == ["import", "check", "check", "split"]
    assert command[1] == "one_gpu_24gb"
    done = CliRunner().invoke(app, command, env={"COLUMNS": "160", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    parts = dict(one.split("=", 1) for one in command[2:])
    again = run("check", parts["data.path"], "--workers", "1")
    last = again.stdout.rstrip().splitlines()[-1].partition("next: customized-grpo ")[2]
    assert shlex.split(last, comments=True) == command, "the check of a part names both parts"


def test_the_usable_lines_of_a_part_go_with_the_other_part(folder: Path) -> None:
    run("import", "dreambooth-folder", str(folder / "set"), "--out", str(folder / "out"), "--workers", "1")
    run("split", str(folder / "out"), "--hold-out", "cow")
    (folder / "set/cat/0.png").write_bytes(b"")
    train, usable = (folder / f"out/manifest.{name}.jsonl" for name in ("train", "train.usable"))
    done = run("check", str(train), "--workers", "1")
    assert f"next: customized-grpo data check {train} --usable {usable} " in done.output
    both = f"data.path={usable} evaluate.data.path={folder / 'out/manifest.test.jsonl'} "
    assert both in run("check", str(train), "--workers", "1", "--usable", str(usable)).output
    assert both in run("check", str(usable), "--workers", "1").output


def test_a_benchmark_leads_to_an_evaluation(folder: Path) -> None:
    done = run("import", "dreambooth-folder", str(folder / "set"), "--out", str(folder / "out"), "--workers", "1")
    facts = json.loads((folder / "out/import.json").read_text())
    facts["importer"]["type"] = "dreambench++"
    (folder / "out/import.json").write_text(json.dumps(facts))
    done = run("check", str(folder / "out"), "--workers", "1")
    last = done.stdout.rstrip().splitlines()[-1]
    assert "evaluate dreambench_plus 'evaluate.data={type: manifest" in last
    assert "split" not in last


def test_the_subjects_are_listed(folder: Path) -> None:
    done = run("import", "dreambooth-folder", str(folder / "set"), "--out", str(folder / "out"), "--workers", "1")
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line]
    assert ["cow", "cow", "2", "20", "a cow in the jungle"] in lines
    assert ["dog", "dog", "1", "10", "a dog in the jungle"] in lines


def test_an_import_names_what_it_left_out_and_how_it_read(folder: Path) -> None:
    (folder / "set/dog/1.png").unlink()
    for name in ("overview.png", "@eaDir/x.png"):
        (folder / "set" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 30)).save(folder / "set" / name)
    Image.new("RGB", (30, 30)).save(
        folder / "set/cow/move.gif", save_all=True, append_images=[Image.new("RGB", (30, 30), "red")]
    )
    (folder / "set/cow/IMG_1.CR2").write_bytes(b"1")
    done = run("import", "dreambooth-folder", str(folder / "set"), "--out", str(folder / "out"), "--workers", "1")
    assert done.exit_code == 0, done.output
    for line in (
        "left out: overview.png: lies beside the subjects' folders (cat, cow, dog)",
        "left out: cow/IMG_1.CR2: is a .cr2 file, which isn't read",
        "left out: files and folders of the system  1 (@eaDir)",
        "left out: all frames or pages but the first  1 (move.gif)",
        "class words by the folders' names: cat -> cat, cow -> cow, dog -> dog; write others to",
    ):
        assert " ".join(line.split()) in " ".join(done.output.replace("│", " ").split())
    (folder / "10_sks dog").mkdir()
    Image.new("RGB", (30, 30)).save(folder / "10_sks dog/a.png")
    done = run("import", "dreambooth-folder", str(folder / "10_sks dog"), "--out", str(folder / "asked"))
    assert done.exit_code != 0
    assert "without a class word in the name: '10_sks dog'" in " ".join(done.output.split())


def test_check_says_what_is_broken_and_keeps_the_rest(folder: Path) -> None:
    rows = [{"id": str(n), "prompt": "a dog", "references": [f"set/dog/{n}.png"]} for n in range(2)]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run("check", str(folder / "mine.jsonl"), "--workers", "1", "--usable", str(folder / "good.jsonl"))
    assert done.exit_code == 1
    assert "set/dog/1.png: is empty (0 bytes) (1 row)" in done.output
    assert json.loads((folder / "good.jsonl").read_text())["id"] == "0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dreambnech", "set"), "did you mean 'dreambench'?"),
        (("syncd", "nowhere"), "nowhere: is no such folder; give the folder that holds metadata.json"),
        (("syncd", "set"), "there is no *metadata*.json in it"),
        (("syncd", "set", "pair=one"), "pair: unknown key; did you mean 'pairs'?"),
        (("syncd", "set", "pairs=some"), "pairs: given 'some'; allowed: 'all', 'one'"),
        (("syncd", "set", "references=0"), "references: given 0; allowed: a whole number, at least 1"),
        (("syncd", "set", "pairs"), "write it as key=value"),
        (("uno", "lost.json"), "lost.json: can't be read (No such file or directory)"),
    ],
)
def test_mistakes_are_one_clean_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    done = run("import", *arguments, "--workers", "1")
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    for command in ("check", "split"):
        done = run(command, str(tmp_path))
        assert done.exit_code == 2
        assert "no such manifest" in done.stderr


def test_downloads_say_what_they_are_about() -> None:
    done = run("download", "dreambench", "--out", "x", "--dry-run", "--include", "*/cat/*")
    assert "dataset/cat/00.jpg" in done.stdout
    assert "5 files" in done.stderr
    assert "allowed: dreambench, dreambench++, or a hub id" in run("download", "coco", "--out", "x").stderr


def test_every_importer_of_the_documents_is_there() -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/data.md").read_text(encoding="utf-8")
    for name in BUILTIN["importers"]:
        assert f"`{name}`" in page
