"""Licence of what is published: that of the base, which binds what was trained on it. None is guessed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from customized_grpo.policies.hub_files import is_hub_id
from customized_grpo.recipe.sections import PolicySpec

MINI: Final = "mini"
"""The recipe's name of the miniature, which is part of this package and on no hub."""


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence in the hub's words.

    Attributes:
        id: of the hub's list; ``other`` for one that is not in it.
        name: of an ``other``.
        link: where it can be read.
        note: what a user has to know of it.
    """

    id: str
    name: str | None = None
    link: str | None = None
    note: str = ""

    def __str__(self) -> str:
        return self.name or self.id


def _of_flux(model: str, name: str = "flux-non-commercial-license", file: str = "") -> Licence:
    note = "for non-commercial use; it asks whoever passes a derivative on for a copy of it and a notice: read it first"
    return Licence("other", name, f"https://huggingface.co/black-forest-labs/{model}{file}", note)


_FLUX1: Final = {
    f"black-forest-labs/{one}": _of_flux(one, "flux-1-dev-non-commercial-license", "/blob/main/LICENSE.md")
    for one in ("FLUX.1-dev", "FLUX.1-Kontext-dev", "FLUX.1-Krea-dev")
}
_FLUX2: Final = {
    f"black-forest-labs/{one}": _of_flux(one)
    for one in ("FLUX.2-dev", "FLUX.2-klein-9B", "FLUX.2-klein-base-9B", "FLUX.2-klein-9b-kv")
}
_FLUX3: Final = {
    f"black-forest-labs/{one}": _of_flux(one, "flux-kommunity-license")
    for one in ("flux-3-image-klein", "flux-3-image-klein-base")
}
_QWEN_RESEARCH: Final = Licence(
    "other",
    "qwen-research",
    "https://huggingface.co/Qwen/Qwen-Image-2.1/blob/main/LICENSE",
    "for research and evaluation, not for commercial use; its notice has to be kept: read it first",
)
_APACHE: Final = dict.fromkeys(
    (
        MINI,
        "black-forest-labs/FLUX.1-schnell",
        "black-forest-labs/FLUX.2-klein-4B",
        "black-forest-labs/FLUX.2-klein-base-4B",
        "Qwen/Qwen-Image",
        "Qwen/Qwen-Image-Edit",
        "Qwen/Qwen-Image-Edit-2509",
        "Qwen/Qwen-Image-Edit-2511",
    ),
    Licence("apache-2.0"),
)
LICENCES: Final[Mapping[str, Licence]] = {
    **_APACHE, **_FLUX1, **_FLUX2, **_FLUX3, "Qwen/Qwen-Image-2.1": _QWEN_RESEARCH
}  # fmt: skip
"""Base by its hub id -> licence of its weights, as their model cards said in November 2026."""


def licence_of(base: str, given: str | None, link: str | None = None) -> Licence:
    """Licence of what was trained on ``base``.

    Args:
        base: hub id, or ``mini``.
        given: what the user says (``--license``); None: the base's.
        link: where the user's licence can be read, for one that is not in the hub's list.

    Raises:
        ValueError: the base's is not known and none is given, or it is known and binding, and another is given.
    """
    known = {name.casefold(): one for name, one in LICENCES.items()}.get(base.casefold())
    if given is None:
        if link is not None:
            raise ValueError("--license-link: it belongs to --license NAME, which is missing")
        if known is None:
            raise ValueError(
                f"--license: the licence of {base} is not known here, and what is trained on it follows it; look at "
                "its model card and say it: an id of the hub's list (--license apache-2.0), or a name of its own with "
                "--license-link URL"
            )
        return known
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", given) or (given == "other" and link is None):
        raise ValueError(
            f"--license: given {given!r}; give an id of the hub's list, such as apache-2.0 or cc-by-nc-4.0, or a name "
            "of its own with --license-link URL"
        )
    if known is not None and known.id == "other":
        raise ValueError(
            f"--license: given {given!r}, but {base} is under {known}, which binds what is trained on it "
            f"({known.link}); leave --license out"
        )
    return Licence(given) if link is None else Licence("other", given, link)


def base_of(policy: PolicySpec, given: str | None) -> str:
    """Hub id of the base that a recipe's section ``policy`` trains, or ``mini``.

    Args:
        policy: the section.
        given: hub id that the user says (``--base``), for a recipe that names a folder.

    Raises:
        ValueError: the recipe names a folder or file and no id is given, or an id that contradicts the recipe's.
    """
    file = dict(policy).get("transformer")
    local = [one for one in (policy.model, file) if isinstance(one, str) and is_local(one)]
    if given is None and local:
        raise ValueError(
            f"--base: the recipe's base is {local[0]!r}, on this machine, and a reader needs one of the hub; say by "
            "--base ORGANISATION/NAME which it is a copy of, or put it there first"
        )
    if given is None:
        return policy.model
    if not is_hub_id(given) or given.count("/") != 1:
        raise ValueError(f"--base: given {given!r}; give a hub id, organisation/name")
    if not local and given != policy.model:
        raise ValueError(f"--base: given {given!r}, but the run trained {policy.model!r}; leave --base out")
    return given


def is_local(name: str) -> bool:
    """True if a recipe's ``model`` or ``path`` is a file or folder of this machine, there or not; hub ids are not."""
    return name != MINI and not is_hub_id(name)
