"""Class words of subjects from the names of their folders: read where a name has one meaning, else asked for.

``red_bag`` is a red bag and ``bag_03`` the third bag. ``10_sks dog`` (sd-scripts: repeats, token, class), ``photos``,
``17`` or ``ps5`` don't say what is in them.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from customized_grpo.data.folders import plain
from customized_grpo.prepare.importers.base import SourceError
from customized_grpo.prepare.importers.nouns import is_likely

_DREAMBENCH: Final[Mapping[str, str]] = {
    name: word
    for word, names in {
        "backpack": "backpack backpack_dog", "bowl": "berry_bowl", "boot": "fancy_boot", "can": "can",
        "candle": "candle", "cartoon": "red_cartoon", "cat": "cat cat2", "clock": "clock",
        "dog": "dog dog2 dog3 dog5 dog6 dog7 dog8", "glasses": "pink_sunglasses",
        "sneaker": "colorful_sneaker shiny_sneaker",
        "stuffed animal": "bear_plushie grey_sloth_plushie wolf_plushie", "teapot": "teapot",
        "toy": "duck_toy monster_toy poop_emoji rc_car robot_toy", "vase": "vase",
    }.items()
    for name in names.split()
}  # fmt: skip
"""Classes of DreamBench's subjects, as its ``prompts_and_classes.txt`` says them."""

_YAML: Final = re.compile(r"[^\w./-]|^[\d.-]")
"""What makes quotation marks necessary around a folder's name in YAML."""
_ASKED: Final = 40
"""Folders that are named where class words are asked for: all at once, but no endless line."""
_CONTAINERS: Final = (
    "data dataset folder image images img imgs input instance mask masks new photo photos pic pics picture pictures "
    "raw sample samples subject test train training untitled val validation"
)
"""Names of folders that say nothing about what is in them."""


def class_word(name: str) -> str:
    """The class word that a folder's name says; empty where it doesn't say one."""
    if name in _DREAMBENCH:
        return _DREAMBENCH[name]
    if re.match(r"\d+_", name):  # sd-scripts' repeats; a word behind them may be a token
        return ""
    words = re.sub(r"[_\-\s]*(\d*|\(\d+\))$", "", name).replace("_", " ").strip()
    last = words.rpartition(" ")[2]
    numbered = name[-1:].isdigit() and not re.search(r"[_\-\s]\d+$", name)
    if numbered and (len(last) < 3 or re.search(r"\d", last)):  # ps5, r2d2: the digits may be the name
        return ""
    said = {word for word in words.lower().split() if word not in _CONTAINERS.split()}
    return words if any(re.search(r"[^\W\d_]", word) for word in said) else ""


def read_class_words(path: Path, lines: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Class words by folder from lines 'folder,class word'; a folder's name may hold commas.

    Raises:
        SourceError: a line has no class word.
    """
    known = {plain(name): name for name in folders}
    words = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, word = _parts(line, known)
        if not word:
            raise SourceError(f"{path}:{number}: given {line!r}; write 'folder,class word'")
        words[known.get(name, name)] = word
    return words


def _parts(line: str, known: Mapping[str, str]) -> tuple[str, str]:
    """A line's folder and class word, at the comma before which a folder of that name is, else at the first.

    A line without a comma has a semicolon or a tab in its place.
    """
    sign = next((sign for sign in ",;\t" if sign in line), ",")
    cuts = [at for at, letter in enumerate(line) if letter == sign]
    pairs = [(plain(line[:at].strip()), line[at + 1 :].strip()) for at in cuts]
    return next((pair for pair in pairs if pair[0] in known), pairs[0] if pairs else ("", ""))


def ask(unclear: Sequence[str], path: Path) -> SourceError:
    """The error that asks for class words."""
    more = f" and {len(unclear) - _ASKED} more" if len(unclear) > _ASKED else ""
    shown = ", ".join(repr(name) for name in unclear[:_ASKED]) + more
    repeats = " (sd-scripts' <repeats>_<token> <class>)" if any(re.match(r"\d+_", name) for name in unclear) else ""
    return SourceError(
        f"{len(unclear)} folder{'s' if len(unclear) > 1 else ''} without a class word in the name: {shown}{repeats}; "
        f"say what they show: {_option(unclear[:3])}, or in {path} one line for each folder, such as '{unclear[0]},dog'"
    )


def _option(folders: Sequence[str]) -> str:
    """How a class word is said on the command line."""
    keys = (json.dumps(name, ensure_ascii=False) if _YAML.search(name) else name for name in folders)
    return shlex.quote(f"words={{{', '.join(f'{key}: dog' for key in keys)}}}")


def told(words: Mapping[str, str], given: Mapping[str, str], path: Path) -> Iterator[str]:
    """Sentences about the class words that were read from names, unlikely ones, and lines that no folder has."""
    guessed = {name: word for name, word in words.items() if name not in given}
    if guessed:
        order = sorted(guessed, key=lambda name: (name == guessed[name], name))
        shown = ", ".join(f"{name} -> {guessed[name] or 'none'}" for name in order[:8])
        more = f" and {len(order) - 8} more" if len(order) > 8 else ""
        yield f"class words by the folders' names: {shown}{more}; write others to {path} as 'folder,class word'"
        if unlikely := [name for name in order if guessed[name] and not is_likely(guessed[name])]:
            named = ", ".join(f"{guessed[name]!r} of {name}" for name in unlikely[:8])
            more = f" and {len(unlikely) - 8} more" if len(unlikely) > 8 else ""
            yield (
                f"is this what the photos show? {named}{more}: no common class word, and it stands in every prompt; "
                f"say another by {_option(unlikely[:1])} and --overwrite"
            )
    if strange := sorted(set(given) - set(words)):
        yield f"there is no folder {', '.join(map(repr, strange[:8]))}, for which words or {path} has a class word"
