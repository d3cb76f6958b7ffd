"""What ``import customized_grpo`` offers: names that resolve late, with types, signatures and docstrings."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import customized_grpo

NAMES = [name for name in customized_grpo.__all__ if name != "__version__"]


def test_what_the_issue_asks_for_is_there() -> None:
    assert {"train", "load_recipe", "load_policy", "sample_group", "generate", "score"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_resolves_to_something_that_explains_itself(name: str) -> None:
    found = vars(customized_grpo).get(name) or customized_grpo.__getattr__(name)
    assert callable(found)
    assert found.__name__ == name
    assert len(inspect.getdoc(found) or "") > 40
    assert inspect.signature(found).parameters


def test_dir_lists_them() -> None:
    assert set(customized_grpo.__all__) <= set(dir(customized_grpo))


def test_types_table_and_list_agree() -> None:
    """What type checkers read (the imports under TYPE_CHECKING) is what is found at run time."""
    tree = ast.parse(Path(customized_grpo.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == customized_grpo._MODULE_OF
    assert sorted(typed) == sorted(NAMES)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'; it has .*load_policy"):
        customized_grpo.__getattr__("nonsense")
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec("from customized_grpo import nonsense")


def test_names_load_only_what_they_need() -> None:
    program = (
        "import sys, customized_grpo as cg\n"
        "dir(cg); assert 'torch' not in sys.modules, 'dir'\n"
        "cg.load_image; assert 'torch' not in sys.modules, 'load_image'\n"
        "assert cg.load_image is vars(cg)['load_image']"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
