"""The package's source as syntax trees, and who imports whom (imports inside functions included)."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "customized_grpo"
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / PACKAGE


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of all imports: ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner_imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules among ``known`` that the source imports, by the longest matching prefix."""
    found = set()
    for name in imported_names(tree):
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        found.update(next(([prefix] for prefix in prefixes if prefix in known), []))
    return found


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
GRAPH = {name: inner_imports(tree, set(FILES)) - {name} for name, tree in TREES.items()}
