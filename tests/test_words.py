"""The mechanical part of the house's language: a docstring names its thing, in the field's words first."""

import ast
import re

from source import FILES, ROOT

QUESTION = re.compile(r"(What|How|Where|Which|Whether|Who|When)\b")
FRAGMENT = re.compile(r"Of\b")


def test_docstrings_name_their_thing() -> None:
    """No module begins with a question word, and no docstring, a field's included, is a fragment such as "Of rho."."""
    wrong: list[str] = []
    for path in [*FILES.values(), *(ROOT / "tools").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if QUESTION.match(ast.get_docstring(tree) or ""):
            wrong.append(f"{path.relative_to(ROOT)}:1: begins with a question word; name the module's content first")
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.value.value[:40]!r}; say what it is, as in 'Mean of rho.'"
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and FRAGMENT.match(node.value.value)
        ]
    assert not wrong, "\n".join(wrong)
