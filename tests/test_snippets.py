"""Every fenced block of the pages for users is run, or says what it lacks and is checked as far as it can be."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import customized_grpo as cg
from customized_grpo.commands.app import app
from snippets import (
    ALL,
    CODE,
    DATA,
    NEEDS,
    ROOT,
    SHORT,
    Block,
    blocks_of,
    check_data,
    check_mark,
    check_python,
    check_shell,
    is_run,
    lines_of,
    modules,
    words_of,
)  # fmt: skip

RUN = [block for block in ALL if is_run(block)]
RUNS = {"docs/quickstart.md": ("demo",), "docs/how-to/use-elsewhere.md": ("demo", "mine")}
"""Runs that are there before a page's first block: what it tells the reader to make first."""
EXIT = {"docs/how-to/memory.md": 1}
"""What the commands of a page end with, where it isn't 0: there a card that is too small."""


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The modules that the pages have their reader write, importable."""
    folder = tmp_path_factory.mktemp("written")
    for name, text in modules():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as open_file:
            open_file.write(text + "\n\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make demo`` leaves, of a training that is a hundred times shorter."""
    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    more = ("train.evaluate_every=2", "evaluate.data.size=2", "train.save_samples_every=1")
    short = [one for one in SHORT["train"] if not one.startswith("train.evaluate_every")]
    cg.train(cg.load_recipe("mini_customized", [f"run.dir={folder}", "run.device=cpu", *short, *more]))
    return folder


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.place)
def test_a_block_is_run_or_says_what_it_needs(block: Block, written: Path, tmp_path: Path) -> None:
    check_mark(block)
    if block.language in ("sh", "console"):
        check_shell(block)
    elif block.language == "python":
        known: dict[str, Any] = {}
        for earlier in blocks_of(block.page):
            if earlier.line < block.line and earlier.language == "python" and is_run(earlier):
                known |= dict.fromkeys(_names(earlier))
        check_python(block, known)
    elif block.language in DATA:
        check_data(block, tmp_path)


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in RUN))
def test_a_page_does_what_it_says(
    page: str, demo: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks in their order, in one folder that begins as the page says, one Python for all of its code."""
    prepare(page, demo, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names: dict[str, Any] = {"__name__": "snippet"}
    for block in RUN:
        if block.page == page:
            run(block, names)
    if page == "docs/quickstart.md":
        with Image.open("cube.png") as picture:
            assert picture.size == (64, 64)


def prepare(page: str, demo: Path, folder: Path) -> None:
    """A clone's files, the demo's run, and pictures of a subject under the names that the page has."""
    for name in ("config", "scripts", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for name in RUNS.get(page, ()):
        shutil.copytree(demo, folder / "runs" / name)
    data = cg.load_recipe("mini_customized", ["data.size=4"]).data
    photos = [cg.load_dataset(data)[index].references[0] for index in range(4)]
    (folder / "images").mkdir()
    (folder / "photos" / "dog").mkdir(parents=True)
    for name, photo in zip("abcd", photos, strict=True):
        photo.resize((256, 256)).save(folder / "photos" / "dog" / f"{name}.jpg")
        photo.save(folder / "images" / f"{name}.png")
    photos[0].save(folder / "subject.png")


def run(block: Block, names: dict[str, Any]) -> None:
    short = block.marks.get("run") == "short"
    if block.language == "python":
        run_python(block, names, short=short)
        return
    printed = "".join(run_line(line, block, short=short) for line in lines_of(block))
    if block.language == "console":
        shown = [line for line in block.text.splitlines() if not line.startswith("$ ") and line != "..."]
        flat = "".join(printed.split())
        assert not [line for line in shown if "".join(line.split()) not in flat], f"{block.place}\n{printed}"


def run_python(block: Block, names: dict[str, Any], *, short: bool) -> None:
    text = block.text
    if short:
        found = re.findall(r'"train\.steps=\d+"', text)
        assert len(found) == 1, block.place
        text = text.replace(found[0], ", ".join(f'"{one}"' for one in SHORT["train"]))
    exec(compile(text, block.place, "exec"), names)
    for name in _names(block):
        if name.startswith("test_"):
            names[name]()


def run_line(line: str, block: Block, *, short: bool) -> str:
    """Run a line: a command of the package in this process, anything else by bash; gives what it printed."""
    environment = dict(re.findall(r"^(?:([A-Z_]+)=(\S+) )", line))
    words = words_of(line)
    first = shlex.split(line, comments=True)[len(environment)]
    if not words or first != "customized-grpo":
        allowed = ("cd", "python", "sed", "mkdir")
        assert first in allowed, f"{block.place}: {first} isn't run by a test ({allowed}); mark what the block needs"
        paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "-ec", line], capture_output=True, text=True, env=os.environ | paths, check=False
        )
        assert done.returncode == 0, f"{block.place}: {line}\n{done.stdout}{done.stderr}"
        return done.stdout
    if short:
        instead = SHORT.get(words[0], ())
        keys = [one.partition("=")[0] for one in instead]
        words = [word for word in words if word.partition("=")[0] not in keys] + [*instead]
    result = CliRunner().invoke(app, words, env=environment)
    assert result.exit_code == EXIT.get(block.page, 0), f"{block.place}: {words}\n{result.output}\n{result.exception!r}"
    return result.output


def _names(block: Block) -> list[str]:
    """What a block of Python defines at its top."""
    found = []
    for node in ast.parse(block.text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found += [(one.asname or one.name).partition(".")[0] for one in node.names]
    return found


def _block(text: str, language: str = "sh", section: str = "", **marks: str) -> Block:
    return Block("page.md", 7, language, text, section, marks)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (_block("x", ""), "say what it is"),
        (_block("x", needs="luck"), "allowed: a GPU"),
        (_block("x", needs="a GPU"), "nothing tells the reader"),
        (_block("x", needs="a GPU", run="short"), "it is run, or needs"),
    ],
)
def test_a_block_without_a_right_mark_is_named(block: Block, message: str) -> None:
    with pytest.raises(AssertionError, match=rf"page\.md:7: .*{message}"):
        check_mark(block)


@pytest.mark.parametrize(
    "line",
    [
        "customized-grpo trian mini_customized",
        "customized-grpo train mini_customized train.stepz=3",
        "customized-grpo train mini_customised",
        "customized-grpo report runs/a --colour",
        "customized-grpo export",
        "customized-grpo publish runs/a --out b [--push user/name]",
        "customized-grpo score images --reward dimo",
        "torchrun --nproc_per_node 8 -m customized_grpo train mini_customized train.lr=fast",
        "scripts/train_customized_grpo.sh config/train/mini_customized.yaml 8 train.lr=fast",
        "docker run --rm customized-grpo train mini_customized train.lr=fast",
        "scripts/none.sh",
        "make dmeo",
        "pip install 'customized-grpo[stduio]'",
        "customized-grpo train RECIPE 'open",
    ],
)
def test_a_wrong_line_of_a_shell_is_found(line: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:7"):
        check_shell(_block(line))


@pytest.mark.parametrize(
    "text",
    [
        "import customized_grpo as cg\ncg.load_recpie('a')",
        "from customized_grpo import load_recipies",
        "import customized_grpo as cg\ncg.load_recipe('a', overides=[])",
        "print(pipeline)",
    ],
)
def test_wrong_python_is_found(text: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:7"):
        check_python(_block(text, "python"), {})


@pytest.mark.parametrize("text", ["train: {stepz: 3}", "policy: {lora: {rank: -1}}", "rewards: {a: {type: dimo}}"])
def test_wrong_yaml_is_found(text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:7"):
        check_data(_block(text, "yaml"), tmp_path)


def test_each_need_is_used_and_each_page_has_code() -> None:
    assert {block.marks["needs"] for block in ALL if "needs" in block.marks} == set(NEEDS)
    assert len(RUN) > 15
    assert {block.language for block in RUN} == set(CODE)
