"""The shape of the package: imports point one way, files stay small, and torchvision stays out.

Imports are read from the source (also those inside functions), so a forbidden one is found before it runs.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "customized_grpo"
ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / PACKAGE

# A module may import from its own layer and from lower ones.
LAYERS = {
    "types": 0,
    "seeding": 0,
    "registry": 0,
    "config": 0,
    "sections": 0,
    "server_config": 0,
    "schema": 0,
    "problems": 0,
    "yaml_source": 0,
    "loading": 0,
    "paths": 0,
    "atomic": 0,
    "clock": 0,
    "assets": 0,
    "console": 0,
    "sampling": 1,
    "advantages": 1,
    "rewards": 1,
    "policies": 1,
    "data": 1,
    "tracking": 1,
    "hub": 1,
    "training": 2,
    "evaluation": 2,
    "mini": 3,
    "testing": 3,
    "generating": 3,
    "generate_cli": 4,
    "scoring": 3,
    "exporting": 3,
    "plugins": 3,
    "doctor": 3,
    "serve": 3,
    "demo": 3,
    "data_cli": 4,
    "score_cli": 4,
    "serve_cli": 4,
    "masks_cli": 4,
    "cache_cli": 4,
    "memory_cli": 4,
    "export_cli": 4,
    "cli": 4,
    "__main__": 5,
}


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


def part(module: str) -> str:
    """``customized_grpo.rewards.dino`` -> ``rewards``; the package itself -> ``""``."""
    return module.removeprefix(PACKAGE).lstrip(".").split(".")[0]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            cut = stack.index(node)
            component = stack[cut:]
            del stack[cut:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_every_part_has_a_layer() -> None:
    unknown = sorted({part(module) for module in FILES} - set(LAYERS) - {""})
    assert not unknown, f"give {unknown} a layer in LAYERS, or move the code into an existing part"


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in sorted(targets)
        if part(module) and part(target) and LAYERS[part(module)] < LAYERS[part(target)]
    ]
    assert not wrong, "a lower layer imports a higher one: " + "; ".join(wrong)


def test_only_the_commands_know_the_miniature() -> None:
    wrong = [
        module
        for module, targets in GRAPH.items()
        if part(module) not in {"mini", "testing", "demo", "cli"}
        and any(part(target) == "mini" for target in targets)
    ]
    assert not wrong, f"{wrong} import the miniature world: it is one plug-in among others"


def test_no_import_circle_of_modules() -> None:
    assert circles(GRAPH) == []


def test_no_import_circle_of_parts() -> None:
    parts: dict[str, set[str]] = {part(module): set() for module in FILES}
    for module, targets in GRAPH.items():
        parts[part(module)] |= {part(target) for target in targets} - {part(module), ""}
    assert circles(parts) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]


@pytest.mark.parametrize("module", FILES)
def test_source_files_are_small(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= 300, f"{FILES[module].relative_to(ROOT)} has {lines} lines; split it by idea"


@pytest.mark.parametrize("module", FILES)
def test_source_files_say_what_they_are(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{FILES[module].relative_to(ROOT)} has no docstring"


def test_every_folder_of_source_is_a_package() -> None:
    folders = {path.parent for path in FILES.values()}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]


def test_forbidden_libraries_are_not_imported() -> None:
    forbidden = {"torchvision", "pickle", "torch.load", "dill", "cloudpickle"}
    wrong = [
        f"{module}: {name}"
        for module, tree in TREES.items()
        for name in imported_names(tree)
        if name in forbidden or name.split(".")[0] in forbidden
    ]
    assert not wrong


def test_unsafe_loaders_are_not_called() -> None:
    unsafe = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load")}
    calls = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in unsafe
    ]
    assert not calls, f"use safetensors and yaml.safe_load: {calls}"


def run_python(program: str, *arguments: str) -> str:
    """Standard output of a fresh interpreter, which has none of this process's imports."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_module_imports_without_torchvision_and_without_a_warning() -> None:
    modules = [module for module in FILES if not module.endswith("__main__")]
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "sys.stdout.write(','.join(m for m in ('torchvision', 'torchaudio') if m in sys.modules))"
    assert run_python(program, *modules) == ""


def test_the_package_itself_imports_nothing_heavy() -> None:
    program = f"import sys, {PACKAGE}\n"
    program += "sys.stdout.write(','.join(m for m in ('torch', 'diffusers') if m in sys.modules))"
    assert run_python(program) == ""
