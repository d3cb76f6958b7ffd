"""JSON schema of recipes, including the plug-ins' schemas, and descriptions of allowed values in plain words."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from customized_grpo import registry
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.fields import DEFAULT_TYPES

Location = tuple[str | int, ...]
"""Keys and indices from the top of a recipe down to a value."""

_SHOWN = 80


def recipe_schema(model: type[BaseModel] = Recipe) -> dict[str, Any]:
    """The JSON schema of a recipe, for editors.

    Each plug-in section is any of the built-in plug-ins of its kind, or a plug-in of another package, whose options
    a schema made here can't know.
    """
    schema = model.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for section in list(_plugin_sections(schema)):
        known = [(kind, name) for kind in _kinds(section["x-plugin"]) for name in registry.BUILTIN[kind]]
        elsewhere = {"type": {"type": "string", "not": {"enum": [name for _, name in known]}}}
        null = [{"type": "null"}] if section["x-null"] else []
        section.clear()
        section["anyOf"] = [
            *(_builtin(kind, name, definitions) for kind, name in known),
            {"type": "object", "required": ["type"], "properties": elsewhere},
            *null,
        ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _kinds(kind: registry.Kind) -> tuple[registry.Kind, ...]:
    """Kinds in which the type of a section is looked up: every reward is a metric too."""
    return ("metrics", "rewards") if kind == "metrics" else (kind,)


def _plugin_sections(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "x-plugin" in node:
            yield node
        for child in node.values():
            yield from _plugin_sections(child)
    elif isinstance(node, list):
        for child in node:
            yield from _plugin_sections(child)


def _builtin(kind: registry.Kind, name: str, definitions: dict[str, Any]) -> dict[str, str]:
    """A reference to the definition of a built-in plug-in's section, which is added if missing."""
    prefix = f"{kind}.{name}"
    if prefix not in definitions:
        options = registry.config_model(kind, registry.resolve(kind, name))
        schema = options.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
        definitions.update({f"{prefix}.{inner}": value for inner, value in schema.pop("$defs", {}).items()})
        # A default for "type" would let an editor leave it out, and the section would not say what it is.
        schema["properties"]["type"] = {"const": name}
        may_be_left_out = DEFAULT_TYPES.get(kind) == name
        required = [key for key in schema.get("required", []) if key != "type"]
        schema["required"] = required if may_be_left_out else ["type", *required]
        definitions[prefix] = {**schema, "title": prefix}
    return {"$ref": f"#/$defs/{prefix}"}


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A location in a schema, with what is allowed there."""

    node: Mapping[str, Any]
    definitions: Mapping[str, Any]
    kind: registry.Kind | None = None
    """Kind of the plug-in whose whole section this is."""

    @classmethod
    def find(cls, model: type[BaseModel], data: Any, location: Sequence[str | int]) -> Self:
        """The place of ``location``; ``data`` says which plug-in each section on the way names.

        A location that the schema doesn't know gives an empty place.
        """
        schema = model.model_json_schema()
        place: Self = cls(schema, schema.get("$defs", {}))
        value = data
        for part in location:
            place = place._child(part)
            value = _item(value, part)
            if "x-plugin" in place.node and isinstance(value, dict):
                kind: registry.Kind = place.node["x-plugin"]
                options = _options(kind, value.get("type", DEFAULT_TYPES.get(kind)))
                if options is not None:
                    place = cls(options, options.get("$defs", {}), kind)
        return place

    @property
    def keys(self) -> list[str]:
        """Names of the keys that a section has here."""
        return [key for node in self._choices() for key in node.get("properties", {})]

    def types_with(self, key: str) -> list[str]:
        """Other built-in types of this plug-in section that have a key of that name."""
        kinds = () if self.kind is None else _kinds(self.kind)
        named = {name: kind for kind in kinds for name in registry.BUILTIN[kind]}
        sections = {name: _options(kind, name) or {} for name, kind in named.items()}
        return sorted(name for name, section in sections.items() if key in section.get("properties", {}))

    @property
    def values(self) -> list[Any]:
        """The allowed values, if they can be listed."""
        return [value for node in self._choices() for value in _listed(node)]

    @property
    def description(self) -> str:
        """Description of the field, or an empty string."""
        return str(self.node.get("description", "")).split("\n")[0].replace("``", "").rstrip(".")

    def words(self) -> str:
        """Allowed values in plain words: ``a whole number, at least 2``. Empty if the schema doesn't say."""
        return " or ".join(filter(None, (self._describe(node) for node in self._choices())))

    def _choices(self) -> list[Mapping[str, Any]]:
        node = self._resolve(self.node)
        return [self._resolve(choice) for choice in node["anyOf"]] if "anyOf" in node else [node]

    def _resolve(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            node = self.definitions.get(node["$ref"].rpartition("/")[2], {})
        return node

    def _child(self, part: str | int) -> Self:
        for node in self._choices():
            many = node.get("additionalProperties")
            items = node.get("prefixItems", [])
            if part in node.get("properties", {}):
                return self._at(node["properties"][part])
            if isinstance(part, str) and isinstance(many, dict):
                return self._at(many)
            if isinstance(part, int) and (items or "items" in node):
                return self._at(items[part] if part < len(items) else node.get("items", {}))
        return self._at({})

    def _at(self, node: Mapping[str, Any]) -> Self:
        # A description next to a reference belongs to the field, so it goes before the referenced one.
        return type(self)({**self._resolve(node), **{k: v for k, v in node.items() if k != "$ref"}}, self.definitions)

    def _describe(self, node: Mapping[str, Any]) -> str:
        if values := _listed(node):
            return ", ".join(map(shown, values))
        if "x-plugin" in node:
            names = sorted({name for kind in _kinds(node["x-plugin"]) for name in registry.available(kind)})
            return f"a section with a 'type', one of: {', '.join(names)}"
        match node.get("type"):
            case "integer":
                return "a whole number" + _bounds(node)
            case "number":
                return "a number" + _bounds(node)
            case "string":
                return "a text that is not empty" if node.get("minLength") else "a text"
            case "boolean":
                return "true or false"
            case "null":
                return "null"
            case "array":
                if items := node.get("prefixItems"):
                    inner = ", ".join(self._describe(self._resolve(item)) for item in items)
                    return f"a list of {len(items)}: {inner}"
                inner = self._at(node.get("items", {})).words()
                return f"a list, each item {inner}" if inner else "a list"
            case "object":
                if keys := list(node.get("properties", {})):
                    return f"a section with the keys {', '.join(keys)}"
                for values in node.get("patternProperties", {}).values():
                    return f"names, each with {self._at(values).words()}"
                least = ", at least one" if node.get("minProperties") else ""
                return f"a section of names, each with its own section{least}"
        return ""


def _listed(node: Mapping[str, Any]) -> list[Any]:
    return list(node["enum"]) if "enum" in node else [node["const"]] if "const" in node else []


def shown(value: Any) -> str:
    """A value as written in YAML, shortened if long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _bounds(node: Mapping[str, Any]) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    parts = [f"{word} {node[key]:g}" for key, word in words.items() if key in node]
    if node.get("type") == "integer" and "exclusiveMinimum" in node:
        parts[0] = f"at least {node['exclusiveMinimum'] + 1:g}"
    if "multipleOf" in node:
        parts.append(f"a multiple of {node['multipleOf']:g}")
    return "".join(f", {part}" if not at else f" and {part}" for at, part in enumerate(parts))


def _options(kind: registry.Kind, name: Any) -> dict[str, Any] | None:
    """The schema of a plug-in's section, or None if it can't be made."""
    if not isinstance(name, str):
        return None
    found = next((kind for kind in _kinds(kind) if name in registry.available(kind)), _kinds(kind)[-1])
    try:
        return registry.config_model(found, registry.resolve(found, name)).model_json_schema()
    except (
        registry.UnknownPluginError,
        PydanticUserError,
    ):  # the latter: options that no schema can describe
        return None


def _item(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None
