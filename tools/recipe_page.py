"""Tables of all keys of a recipe, from its schema: the generated part of ``docs/recipe.md``."""

from typing import Any

from customized_grpo.recipe.schema import Place, recipe_schema, shown
from customized_grpo.registry import BUILTIN, Kind

SECTIONS = ("run", "sampling", "advantage", "train", "evaluate")
KINDS: dict[Kind, str] = {
    "policies": "policy",
    "datasets": "data",
    "rewards": "rewards.<name>",
    "metrics": "evaluate.metrics.<name>",
    "aggregators": "advantage.aggregator",
    "time_weights": "advantage.time_weights",
    "dynamics": "sampling.dynamics",
    "plans": "sampling.plan",
    "objectives": "objective",
}
NESTED = {
    "lora": "LoraSettings",
    "full": "FullSettings",
    "base_lora": "BaseLora",
    "segmenter": "SegmenterConfig",
    "rubric": "Rubric",
    "levels": "Levels",
    "old": "Old",
}
NESTED_HERE = {
    "train": {"schedule": "Schedule"}, "sampling": {"cache": "Cache"}, "advantage": {"rules": "Rules"},
}  # fmt: skip
RULES = {
    "scale": "Sigmoid", "gate": "Gate", "spread": "Spread", "difficulty": "Difficulty", "keep": "Keep",
}  # fmt: skip
HEAD = "| Key | Allowed | Default | Meaning |\n|---|---|---|---|\n"


def tables() -> str:
    """A table per section, then one per kind of plug-in: keys that all built-ins of the kind have come first."""
    schema = recipe_schema()
    defined: dict[str, Any] = schema["$defs"]
    parts = []
    for name in SECTIONS:
        nested = {key: defined[of] for key, of in NESTED_HERE.get(name, {}).items()}
        parts.append(f"### `{name}`\n\n{_table(_rows(defined[name.capitalize()], defined, nested))}")
    for kind, place in KINDS.items():
        parts.append(f"### `{place}`\n\n{_plugins(kind, defined)}")
    return "\n".join(parts)


def _plugins(kind: Kind, defined: dict[str, Any]) -> str:
    names = {f"{kind}.{name}" for name in BUILTIN[kind]}  # a name may have dots, as a nested section's has
    plugins = {name: node for name, node in defined.items() if name in names}
    rows = {}
    for name, node in plugins.items():
        nested = {key: defined[f"{name}.{of}"] for key, of in NESTED.items() if f"{name}.{of}" in defined}
        rows[name] = _rows(node, defined, nested)
    first, *others = rows.values()
    common = [row for row in first if others and all(row in other for other in others)]
    parts = [_table(common)]
    for name, own in rows.items():
        purpose = str(plugins[name].get("description", "")).split("\n")[0].replace("``", "`")
        purpose = "" if "section" in purpose and "type:" in purpose else f": {purpose}"
        parts.append(f"**`type: {name.partition('.')[2]}`**{purpose}\n")
        parts.append(_table([row for row in own if row not in common]))
    return "\n".join(filter(None, parts))


def _table(rows: list[str]) -> str:
    return HEAD + "\n".join(rows) + "\n" if rows else ""


def _rows(node: dict[str, Any], defined: dict[str, Any], nested: dict[str, Any], prefix: str = "") -> list[str]:
    """A row per key; the keys of a nested section follow it as ``section.key``."""
    rows = []
    for key, field in node["properties"].items():
        if key == "type" and not prefix:
            continue  # it stands above the table
        default = f"`{shown(field['default'])}`" if "default" in field else ""
        by_name = isinstance(field.get("additionalProperties"), dict)
        if key in nested and field.get("default") is not None and not by_name:
            default = "a section"
        if key in node.get("required", ()):
            default = "required"
        meaning = field.get("description", "").split("\n")[0].replace("|", "\\|")
        rows.append(f"| `{prefix}{key}` | {_allowed(key, field, defined, nested)} | {default} | {meaning} |")
        if key in nested:
            inner = {rule: defined[of] for rule, of in RULES.items()} if key == "rules" else {}
            rows += _rows(nested[key], defined, inner, f"{prefix}{key}.{'<name>.' if by_name else ''}")
    return rows


def _allowed(key: str, field: dict[str, Any], defined: dict[str, Any], nested: dict[str, Any]) -> str:
    by_name = field.get("additionalProperties")
    if key in nested and isinstance(by_name, dict):
        return "sections by a reward's name"
    if key in nested:
        return "a text, or a section" if {"type": "string"} in field.get("anyOf", ()) else "a section"
    if isinstance(by_name, dict):
        return "sections by name, below" if "anyOf" in by_name else "values by name"
    if any("$ref" in choice for choice in field.get("anyOf", ())):
        return "a section with a `type`, below"
    return Place(field, defined).words()
