"""The fenced blocks of the pages: what each is marked as, and what can be said of it without running it.

A mark is an HTML comment in the line above a fence: ``<!-- needs: a GPU -->``, or ``<!-- run: short -->``. A block of
``sh`` or ``python`` without a mark is run as it is typed. Data (``yaml``, ``json``, ``toml``) is loaded; ``<!-- over:
uno_customized_grpo -->`` names the recipe that a part of one is laid over.
"""

import ast
import builtins
import importlib
import inspect
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from typer.main import get_command

from customized_grpo.commands.app import app
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.loading import find_recipe, load_any, load_recipe, load_supervised, recipe_of
from customized_grpo.recipe.server import ServerConfig
from customized_grpo.recipe.yaml_source import read_yaml
from customized_grpo.rewards.judge.rubrics import read_rubric
from customized_grpo.scoring.folder import read_rewards

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (
    "README.md", "docs/index.md", "docs/quickstart.md", "docs/troubleshooting.md", "docs/glossary.md",
    "docs/read-the-code.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs" / "how-to").glob("*.md"))),
)  # fmt: skip
NEEDS: Final[Mapping[str, str]] = {
    "a GPU": r"GPU|\bcards?\b|CUDA",
    "the hub": r"\bhub\b|download|huggingface",
    "docker": r"docker|container",
    "packages": r"\binstalls?\b",
    "weights": r"weights|checkpoint|pickle",
    "several machines": r"machines|Slurm|SBATCH",
    "a server": r"\bservers?\b",
    "a judge": r"judge|API_KEY",
    "a browser": r"a page|notebook|studio",
    "minutes": r"minutes?\b",
    "your data": r"\byour\b|data set|DreamBench|SynCD",
    "your code": r"\byour own\b|\bMyPolicy\b",
}
"""What a block that isn't run may lack, and the words of which one tells the reader: in it, or in its section."""
CODE: Final = ("sh", "python", "console")
DATA: Final = ("yaml", "json", "toml", "ini", "dockerfile")
SHORT: Final[Mapping[str, tuple[str, ...]]] = {
    "train": (
        "train.steps=2", "train.groups_per_step=1", "train.group_size=4", "train.microbatch=null", "data.size=4",
        "train.evaluate_every=0", "train.checkpoint_every=1",
    ),
    "sft": (
        "train.steps=2", "train.groups_per_step=1", "train.microbatch=null", "data.size=4", "train.evaluate_every=0",
    ),
    "evaluate": ("evaluate.data.size=2",),
}  # fmt: skip
"""What ``run: short`` puts in the place of a command's own numbers: no step count is changed without that mark."""
MINI: Final = "mini_customized"
_PLACEHOLDERS: Final = ("RECIPE", "CONFIG")
_ENDS: Final = ("&&", "||", "|", ";", ">", "<", ")", "&")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, its place, and its marks by name."""

    page: str
    line: int
    language: str
    text: str
    section: str
    """What the reader sees from the heading above it to the next heading or block."""
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found, heading, at = [], 0, 0
    while at < len(lines):
        if lines[at].startswith("#"):
            heading = at
        opened = re.match(r"\s*```(\w*)\s*$", lines[at])
        if not opened:
            at += 1
            continue
        end = next(number for number in range(at + 1, len(lines)) if lines[number].strip() == "```")
        above, marks = at - 1, {}
        while above >= 0 and (mark := re.fullmatch(r"<!-- (needs|run|over): (.+) -->", lines[above])):
            marks[mark[1]] = mark[2]
            above -= 1
        body = "\n".join(lines[at + 1 : end])
        after = next((n for n in range(end + 1, len(lines)) if lines[n].startswith(("#", "```"))), len(lines))
        said = "\n".join(line for line in lines[heading:after] if not line.startswith("<!--"))
        found.append(Block(page, at + 1, opened[1], body, said, marks))
        at = end + 1
    return found


ALL: Final = [block for page in PAGES if (ROOT / page).exists() for block in blocks_of(page)]


def check_mark(block: Block) -> None:
    """A block is code that is run or says what it needs, data that is loaded, or output."""
    assert block.language in (*CODE, *DATA, "text"), f"{block.place}: say what it is: {CODE}, {DATA}, or text"
    assert set(block.marks) <= ({"needs", "run"} if block.language in CODE else {"over"}), block.place
    assert block.marks.get("run", "short") == "short", block.place
    if (need := block.marks.get("needs")) is not None:
        assert "run" not in block.marks, f"{block.place}: it is run, or needs something"
        assert need in NEEDS, f"{block.place}: {need!r}; allowed: {', '.join(NEEDS)}"
        assert re.search(NEEDS[need], block.section, re.I), (
            f"{block.place}: nothing tells the reader that it needs {need}"
        )


def is_run(block: Block) -> bool:
    return block.language in CODE and "needs" not in block.marks


# Lines of a shell


def lines_of(block: Block) -> list[str]:
    """A shell block's commands, each in one line or with a quoted line break; of ``console`` those after ``$``."""
    text = block.text
    if block.language == "console":
        text = "\n".join(line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ "))
    found, held = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        held = f"{held}\n{line}" if held else line
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # a quote is still open
            continue
        if words:
            found.append(held)
        held = ""
    assert not held, f"{block.place}: a quote is never closed"
    return found


def words_of(line: str) -> list[str]:
    """The words of the command of this package in a line, however it is started; none where there is none."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words = list(lexer)
    if words[:2] == ["docker", "build"]:
        return []
    if words[0].startswith("scripts/"):
        if words[0] == "scripts/fetch_dreambench.sh":
            return []
        kind = "evaluate" if "eval" in words[0] else "train"
        given = words[1:]
        return [kind, *(word for at, word in enumerate(given) if not (at == 1 and word.isdecimal()))]
    starts = [at for at, word in enumerate(words) if word == "customized_grpo" and words[at - 1] == "-m"] or [
        at for at, word in enumerate(words) if re.fullmatch(r"(\S*/)?customized-grpo(:\w+)?", word)
    ]
    if not starts or (words[0] == "docker" and starts[-1] == len(words) - 1):
        return []
    rest = words[starts[-1] + 1 :]
    end = next((at for at, word in enumerate(rest) if word in _ENDS), len(rest))
    return rest[:end]


def check_shell(block: Block) -> None:
    """The shell can read it; its commands have these options and keys; extras and targets that it names exist."""
    text = "\n".join(lines_of(block))
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert read.returncode == 0, f"{block.place}: {read.stderr}"
    for line in lines_of(block):
        try:
            if words := words_of(line):
                check_command(words)
            check_others(line)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block.place}: {line}\n{error or type(error)}") from error


def check_others(line: str) -> None:
    words = shlex.split(line, comments=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"customized-grpo\[(\w+)\]", line):
        assert named in extras, f"no extra {named}"
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(words[1 : words.index("&&") if "&&" in words else None]) <= set(targets), "no such target"
    for word in words:
        if re.match(r"(scripts|config|examples)/", word):
            assert (ROOT / word).exists(), f"there is no {word}"
    if words[0] == "python" and words[1] == "-c":
        compile(words[2], "-c", "exec")


def check_command(words: list[str]) -> None:
    """Parse as the command line does, then read the recipe with its overrides; nothing is loaded or fetched."""
    commands: Any = get_command(app)
    name, given = words[0], words[1:]
    assert name in commands.commands, f"there is no command {name}"
    command = commands.commands[name]
    if name == "data":
        command, given = command.commands[given[0]], given[1:]
        name = f"data {command.name}"
    context = command.make_context(name, list(given), resilient_parsing=True)
    params = context.params
    assert not context.args, f"{context.args} are no arguments of it"
    missing = [one.name for one in command.params if one.required and params.get(one.name) in (None, (), [])]
    assert not missing, f"without {missing}"
    overrides = list(params.get("overrides") or ())
    config = params.get("config")
    if name == "score":
        read_rewards(params["reward"], list(params["options"] or ()))
    elif name == "data import":
        assert all("=" in one for one in params.get("options") or ()), params
    elif name == "serve":
        load_recipe(_recipe(config), overrides, ServerConfig)
    elif name in ("sft", "dpo"):
        load_supervised(_recipe(config), overrides, name)
    elif name == "evaluate" and not params["compare"]:
        load_recipe("mini" if config in _PLACEHOLDERS else _recipe(config), overrides, EvaluateRecipe)
    elif name in ("train", "data cache"):
        load_recipe(_recipe(config), overrides)
    elif config is not None and name != "evaluate":
        load_any(_recipe(config), overrides)


def _recipe(config: str) -> str:
    """A recipe of the repository; a run's own is the miniature's, and any recipe one with a manifest."""
    if config in _PLACEHOLDERS:
        return "uno_customized_grpo"
    if re.fullmatch(r"runs/\w+/config\.yaml|[A-Z]+/config\.yaml", config):
        return MINI
    return str(find_recipe(ROOT / config if config.startswith("config/") else config))


# Python


def check_python(block: Block, known: Mapping[str, Any]) -> None:
    """It compiles; what it imports is there; calls of what it imports fit their signatures; no name is unknown.

    Args:
        block: the code.
        known: names of the page's earlier blocks.
    """
    tree = ast.parse(block.text, block.place)
    names: dict[str, Any] = dict(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                module = importlib.import_module(one.name)
                names[one.asname or one.name.partition(".")[0]] = (
                    module if one.asname else importlib.import_module(one.name.partition(".")[0])
                )
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                names[one.asname or one.name] = _member(importlib.import_module(str(node.module)), one.name, block)
    made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    made |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    unknown = read - made - names.keys() - set(dir(builtins))
    assert not unknown, f"{block.place}: it uses {sorted(unknown)}, which nothing above it makes"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not _starred(node):
            called = _resolved(node.func, names, block)
            if called is not None and callable(called):
                _bind(called, node, block)


def _member(of: Any, name: str, block: Block) -> Any:
    try:
        return getattr(of, name)
    except AttributeError:
        raise AssertionError(f"{block.place}: {of.__name__} has no {name}") from None


def _starred(node: ast.Call) -> bool:
    return any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords)


def _resolved(node: ast.expr, names: Mapping[str, Any], block: Block) -> Any:
    """What a dotted name of an import is; None of anything else."""
    if isinstance(node, ast.Name):
        found = names.get(node.id)
        return found if inspect.ismodule(found) or callable(found) else None
    if isinstance(node, ast.Attribute) and (of := _resolved(node.value, names, block)) is not None:
        return _member(of, node.attr, block)
    return None


def _bind(called: Any, node: ast.Call, block: Block) -> None:
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*node.args, **{str(one.arg): one.value for one in node.keywords})
    except TypeError as error:
        raise AssertionError(f"{block.place}: {ast.unparse(node)}: {error}") from None


# Data


def check_data(block: Block, folder: Path) -> None:
    """It loads as what it is: a recipe or a part of one, a reward, a rubric, a server, lines of a manifest."""
    if block.language == "json":
        for line in block.text.splitlines():
            assert {"id", "prompt", "references"} <= json.loads(line).keys(), block.place
    elif block.language == "toml":
        for group in tomllib.loads(block.text)["project"]["entry-points"].values():
            for place in group.values():
                module, _, attribute = place.partition(":")
                _member(importlib.import_module(module), attribute, block)
    elif block.language == "yaml":
        try:
            check_yaml(block, folder)
        except ValueError as error:
            raise AssertionError(f"{block.place}: {error}") from error


def check_yaml(block: Block, folder: Path) -> None:
    content, _ = read_yaml(_saved(block, folder))
    for earlier in ALL:
        if earlier.page == block.page and earlier.language == "yaml" and earlier.line < block.line:
            _saved(earlier, folder)
    if {"text", "scale"} <= content.keys():
        read_rubric(str(_saved(block, folder)), {})
    elif "rewards" in content and not content.keys().isdisjoint({"device", "gpus"}):
        recipe_of(content, (), ServerConfig)
    elif {"policy", "rewards", "train"} <= content.keys():
        recipe_of(content, (), Recipe)
    else:
        if "type" in content:
            content = {"rewards": {"one": content}}
        base, _ = read_yaml(find_recipe(block.marks.get("over", MINI)))
        assert content.keys() <= Recipe.model_fields.keys(), f"{sorted(content)} are no sections of a recipe"
        with chdir(folder):
            recipe_of(laid_over(base, content), (), EvaluateRecipe if "train" not in base else Recipe)


def _saved(block: Block, folder: Path) -> Path:
    """A YAML block as a file, by the name in its first line where it has one."""
    named = re.match(r"# (\S+\.yaml)\n", block.text)
    file = folder / (named[1] if named else f"{block.line}.yaml")
    file.write_text(block.text, encoding="utf-8")
    return file


def laid_over(base: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with a part of another on top; where a ``type`` differs the section is replaced."""
    joined = dict(base)
    for key, value in part.items():
        below = base.get(key)
        merge = isinstance(value, dict) and isinstance(below, dict) and value.get("type") in (None, below.get("type"))
        joined[key] = laid_over(below, value) if merge and isinstance(below, dict) else value
    return joined


def modules() -> Iterator[tuple[str, str]]:
    """Name and text of the files that the pages have the reader write, by their first line: ``# my_rewards.py``."""
    for block in ALL:
        if block.language == "python" and (named := re.match(r"# (\S+\.py)\n", block.text)):
            yield named[1], block.text
