"""Error messages for recipes: pydantic's errors in plain words, with allowed values, suggestions and advice."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from customized_grpo import registry
from customized_grpo.paths import unread_variable
from customized_grpo.recipe.schema import Location, Place, shown

_PRIVATE = re.compile(r"key|token|secret|password", re.IGNORECASE)
_OCTAL = re.compile(r"[-+]?0[0-9]")
_LOGIN = re.compile(r"://[^/\s]*@")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:api_?key|access_?key|secret|secret_key|password|passwd|(?:hf|auth|access|api)_token)$"
)
"""Names of options that hold a secret; those that name its variable end otherwise (``key_env``)."""
_SECRET = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{20,}|gh[opsu]_\w{20,}|github_pat_\w{20,}|AIza[\w-]{30,}|AKIA[A-Z0-9]{16})"
)
"""Forms in which OpenAI, Hugging Face, GitHub, Google and Amazon give out keys."""


def repeated(override: str) -> str:
    """An override as shown in an error: without its value if that may be a misplaced secret."""
    if _PRIVATE.search(override) or _holds_secret(override):
        return f"{override.partition('=')[0]}=…"
    return override


def _holds_secret(text: str) -> bool:
    """True for a key in a known form, or an address with a login."""
    return any(pattern.search(text) for pattern in (_SECRET, _LOGIN))


class RecipeError(ValueError):
    """A recipe can't be used; one line per problem, each with its place and what is allowed there."""


def explain(error: Mapping[str, Any], model: type[BaseModel], data: Any) -> tuple[Location, str]:
    """Location and message of one of pydantic's errors."""
    location: Location = tuple(part for part in error["loc"] if part != "[key]")
    given = error["input"]
    if error["type"] == "extra_forbidden":
        return location, _unknown_key(location, model, data)
    place = Place.find(model, data, location)
    if error["type"] in ("value_error", "assertion_error"):
        cause = error["ctx"]["error"]
        if isinstance(cause, registry.UnknownPluginError):
            location = (*location, "type")
        return _named(location, str(cause), model, data)
    if error["type"] == "missing":
        return location, f"is missing; give {place.words() or 'a value'}{_about(place)}"
    hidden = (location and _PRIVATE.search(str(location[-1]))) or _holds_secret(json.dumps(given, default=str))
    seen = "a value" if hidden else shown(given)
    texts = [value for value in place.values if isinstance(value, str)]
    near = registry.did_you_mean(given, texts) if isinstance(given, str) else ""
    return location, f"given {seen};{near} {what_is_allowed(place) or error['msg']}"


def _named(location: Location, text: str, model: type[BaseModel], data: Any) -> tuple[Location, str]:
    """A check across sections names the key that it is about, as ``train.group_size: ...``: that is the place."""
    key, colon, rest = text.partition(": ")
    parts: Location = tuple(key.split("."))
    place = parts if parts[: len(location)] == location else (*location, *parts)
    if colon and Place.find(model, data, place).node:
        return place, rest
    return location, text


def _unknown_key(location: Location, model: type[BaseModel], data: Any) -> str:
    key = str(location[-1])
    section = Place.find(model, data, location[:-1])
    owners = section.types_with(key)
    near = f" it belongs to type {', '.join(owners)};" if owners else registry.did_you_mean(key, section.keys)
    if not near:
        sections = Place.find(model, data, ()).keys
        others = [name for name in sections if key in Place.find(model, data, (name,)).keys]
        near = f" did you mean '{others[0]}.{key}'?" if others else ""
    allowed = f" allowed: {', '.join(section.keys)}" if section.keys else ""
    above = dotted(location[:-1]).removesuffix(": ")
    # Where an override changed a plug-in's type, the options of the type before are still in the file.
    hint = (
        f"; to change the type, give the whole section: {above}={{type: ...}}"
        if "type" in section.keys and (owners or not near)
        else ""
    )
    return f"unknown key;{near}{allowed}{hint}"


def converted(given: Any, read: Any, location: Location) -> Iterator[tuple[Location, str]]:
    """Values that pydantic accepts silently but nobody means: true for 1, 010 for 10, and infinite numbers."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key in given.keys() & read.keys():
            yield from converted(given[key], read[key], (*location, key))
    elif isinstance(given, list) and isinstance(read, list | tuple):
        for index, (one, other) in enumerate(zip(given, read, strict=False)):
            yield from converted(one, other, (*location, index))
    elif isinstance(read, float) and not math.isfinite(read):
        yield location, f"given {shown(given)}, which is not finite"
    elif isinstance(given, str) and isinstance(read, int | float) and _OCTAL.match(given):
        yield location, f"given {given}, which some readers take for octal; write it without the leading zero"
    elif isinstance(given, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        yield location, f"given {shown(given)}"


def not_meant(read: Any, location: Location) -> Iterator[tuple[Location, str]]:
    """Texts that would be taken literally though nobody means them so: a shell's variable in a path, and a secret."""
    if isinstance(read, Mapping):
        for key, value in read.items():
            yield from not_meant(value, (*location, key))
    elif isinstance(read, list | tuple):
        for index, value in enumerate(read):
            yield from not_meant(value, (*location, index))
    elif isinstance(read, str):
        if (variable := unread_variable(read)) is not None:
            yield (
                location,
                f"{variable} is replaced by a shell, not in a recipe; write the path out, or give it on the command "
                f'line in double quotes: {".".join(map(str, location))}="{variable}..."',
            )
        if _holds_secret(read) or (_SECRET_NAME.search(str(location[-1])) and re.fullmatch(r"\S{8,}", read)):
            yield (
                location,
                "its value looks like a secret, and would be written into config.yaml, checkpoints and trackers; keep "
                "it in an environment variable that the plug-in reads, or declare the option as pydantic's SecretStr",
            )


def what_is_allowed(place: Place) -> str:
    """``allowed: a whole number, at least 1 (what it is for)``, or an empty string where the schema doesn't say."""
    return f"allowed: {place.words()}{_about(place)}" if place.words() else ""


def _about(place: Place) -> str:
    return f" ({place.description})" if place.description else ""


def dotted(location: Location) -> str:
    """``train.steps: ``; empty for the whole recipe."""
    return ".".join(map(str, location)) + ": " if location else ""
