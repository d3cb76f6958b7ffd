"""YAML with the line of every value: safe-loaded, duplicate keys refused, errors with line and column.

Scalars are YAML 1.2's, so that booleans are ``true`` and ``false`` only, ``1e-4`` is a number, and dates, ``010`` and
``12:30`` stay text: by PyYAML's own rules ``precision: no`` would be false, ``lr: 1e-4`` a text, ``dir: 2026-01-01`` a
date, ``steps: 010`` eight and ``12:30`` the number 750.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from customized_grpo.recipe.problems import RecipeError, dotted
from customized_grpo.recipe.schema import Location, shown
from customized_grpo.text import TextError, read_text

# A leading zero is octal to some readers and decimal to others: such a number stays text, which a key then refuses.
_INT: Final = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$")
_FLOAT: Final = re.compile(
    r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_BOOL: Final = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's booleans and numbers, and without dates."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either these rules or PyYAML's own would read as something else."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump(data: Any) -> str:
    """YAML that ``construct``, and any other reader, reads as ``data``."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def read_yaml(file: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    """A file that holds one mapping, and the line of each of its values.

    Raises:
        RecipeError: unreadable, empty, not YAML, not a mapping, or with duplicate or non-text keys.
    """
    try:
        text = read_text(file)
    except TextError as error:
        raise RecipeError(str(error)) from error
    except OSError as error:
        raise RecipeError(f"{file}: can't be read ({error.strerror})") from error
    try:
        node, data = construct(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}{yaml_problem(error)}") from error
    if node is None or data is None:
        raise RecipeError(f"{file}: is empty; a recipe has the sections run, policy, data, rewards, ...")
    if not isinstance(data, dict):
        raise RecipeError(
            f"{file}:1: given {shown(data)}; a recipe is a mapping of sections, as in 'run: {{dir: runs/mine}}'"
        )
    lines: dict[Location, int] = {}
    problems = list(_walk(node, (), lines))
    if problems:
        raise RecipeError("\n".join(f"{file}:{line}: {text}" for line, text in problems))
    return data, lines


def construct(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a document and its data; ``None, None`` for an empty one.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply; a recipe has a few levels") from error
    except ValueError as error:  # Python's limit on the digits of a number
        raise yaml.YAMLError("a number has thousands of digits; put a text in quotes") from error
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, location: Location, lines: dict[Location, int], above: frozenset[int] = frozenset()
) -> Iterator[tuple[int, str]]:
    """Record the line of every value, and find duplicate and non-text keys."""
    if id(node) in above:
        yield (
            node.start_mark.line + 1,
            f"{dotted(location)}holds itself (an alias into what it is part of); write it out",
        )
        return
    above |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*location, index)] = item.start_mark.line + 1
            yield from _walk(item, (*location, index), lines, above)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag.endswith(":merge"):
            continue
        if not key.tag.endswith(":str"):
            yield line, f"{dotted(location)}the key {key.value!r} is not text; write it in quotes"
            continue
        where = (*location, key.value)
        if key.value in seen:
            yield line, f"{dotted(where)}is given twice, first in line {seen[key.value]}; keep one"
        seen[key.value] = lines[where] = line
        yield from _walk(value, where, lines, above)


def yaml_problem(error: yaml.YAMLError) -> str:
    """``:3:7: is not YAML: ...``, to be put after a file's name."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": is not YAML: {' '.join(str(error).split())}"
    mark, problem = error.problem_mark, error.problem or error.context or "can't be read"
    hint = "; indent by spaces, not tabs" if "\\t" in problem else ""
    return f":{mark.line + 1}:{mark.column + 1}: is not YAML: {problem}{hint}"
