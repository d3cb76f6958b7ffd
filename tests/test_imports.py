"""The shape of the package: imports point one way, files stay small, and torchvision stays out.

Imports are read from the source (also those inside functions), so a forbidden one is found before it runs.
"""

import ast
import subprocess
import sys
from pathlib import Path

from source import FILES, GRAPH, PACKAGE, ROOT, SOURCE, TREES, imported_names

# Floors of the house: a room imports from lower floors only. docs/design.md shows this very table.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "seeding", "registry", "paths", "atomic", "devices", "text", "weights", "advantages", "web"),
    ("recipe", "console", "identity"),
    ("data", "policies", "rewards"),
    ("conditioning", "scoring", "prepare"),
    ("sampling", "serve"),
    ("objectives", "memory", "evaluation"),
    ("report", "mini", "testing", "cost"),
    ("training", "studio", "publish"),
    ("commands",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


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


def test_the_table_of_floors_and_the_tree_agree() -> None:
    assert {part(module) for module in FILES} - {""} == set(FLOOR)


def test_the_root_holds_nouns_only() -> None:
    files = {path.stem for path in SOURCE.glob("*.py")} | {"registry", "text"}  # packages of three files
    nouns = {"types", "seeding", "registry", "paths", "atomic", "devices", "text", "weights", "console", "testing"}
    assert files == nouns | {"__init__", "__main__"}, "a module belongs into a room"


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in sorted(targets)
        if part(module) and part(target) and part(module) != part(target)
        if FLOOR[part(module)] <= FLOOR[part(target)]
    ]
    assert not wrong, "a room imports from its own floor or a higher one: " + "; ".join(wrong)


def test_nothing_below_the_commands_prepares_data() -> None:
    wrong = [
        module
        for module, targets in GRAPH.items()
        if part(module) not in {"prepare", "commands"} and any(part(target) == "prepare" for target in targets)
    ]
    assert not wrong, f"{wrong} import data preparation: a run reads a manifest that is finished"


def test_the_design_shows_the_floors() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = [f"| {number} | {', '.join(f'`{room}`' for room in rooms)} |" for number, rooms in enumerate(FLOORS)]
    assert "\n".join(rows) in page, "docs/design.md needs these rows:\n" + "\n".join(rows)


def test_only_the_commands_know_the_miniature() -> None:
    wrong = [
        module
        for module, targets in GRAPH.items()
        if part(module) not in {"mini", "commands"} and any(part(target) == "mini" for target in targets)
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


def test_tests_stand_on_the_package_and_their_support_alone() -> None:
    """But one, which runs a benchmark as the program that it is."""
    as_programs = {ROOT / "tests" / "test_flux_benchmark.py"}
    benchmarks = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    wrong = []
    for path in set((ROOT / "tests").rglob("*.py")) - as_programs:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            imported |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            named = isinstance(node, ast.Constant) and node.value == "benchmarks" and path != Path(__file__)
            if named or imported & benchmarks:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not wrong, f"these use benchmarks/; what both need belongs into tests/support: {wrong}"


def test_source_files_are_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES.values()}
    large = [f"{path.relative_to(ROOT)}: {count}" for path, count in lines.items() if count > 300]
    assert not large, f"over 300 lines, split by idea: {large}"


def test_source_files_say_what_they_are() -> None:
    silent = [str(path.relative_to(ROOT)) for name, path in FILES.items() if not ast.get_docstring(TREES[name])]
    assert not silent, f"without a docstring: {silent}"


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
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in unsafe
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
