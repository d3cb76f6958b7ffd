"""Errors of the hub in one line: what was asked for, why it doesn't come, and what to do."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from customized_grpo.web.proxies import proxy_of

_SHOWN: Final = 300


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Turn what a library raises while it fetches or opens something into one line.

    Args:
        what: of the message: the recipe's key, or what the thing is for.
        name: the hub id, folder or file that was given.

    Raises:
        ValueError: in place of errors of the hub, its client, the disk or the library.
    """
    from httpx2 import HTTPError

    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        raise ValueError(f"{what} {name!r} can't be loaded: {hub_problem(error, name)}") from error


def hub_problem(error: BaseException, name: str, *, data: bool = False) -> str:
    """One line: why a repository or file can't be loaded, and what to do.

    Args:
        error: as a library raised it, with what it stands on.
        name: the repository.
        data: whether that is a data set.
    """
    from httpx2 import ConnectError, ConnectTimeout
    from huggingface_hub import constants, errors

    try:
        proxy_of(constants.ENDPOINT)
    except ValueError as unusable:
        return str(unusable)
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if full := next((one for one in chain if isinstance(one, OSError) and one.errno in _FULL), None):
        return f"{full.strerror}: make room, or let HF_HOME name a folder on another disk, and run it again"
    fetch = f"hf download{' --repo-type dataset' if data else ''} {name}"
    page = f"{constants.ENDPOINT}/{'datasets/' if data else ''}{name}"
    for kind, text in _ADVICE:
        meant = (getattr(errors, kind), *((ConnectError, ConnectTimeout) if kind == "LocalEntryNotFoundError" else ()))
        if any(isinstance(one, meant) for one in chain):
            return text.format(name=name, hub=constants.ENDPOINT, page=page, fetch=fetch)
    lines = [" ".join(line.split()) for line in str(error).strip().splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    said = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}..."
    if any(_BROKEN.search(f"{type(one).__name__} {one}") for one in chain):
        return f"{said}; run it again, which goes on where the download stopped"
    if _SWALLOWED.search(str(error)):
        return (
            f"{_SWALLOWED.split(said)[0].rstrip(' .(')} - look at {page}; where it is gated accept its licence there "
            "and run 'hf auth login'; without a way to the hub let HF_ENDPOINT name a mirror, or fetch it by "
            f"'{fetch}' and give its folder"
        )
    return said


_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_BROKEN: Final = re.compile(r"Consistency check failed|RemoteProtocolError|IncompleteRead|ReadTimeout|ReadError")
_SWALLOWED: Final = re.compile(
    r"\(Cannot find an appropriate cached snapshot|If you were trying to load it from|on the Hub\b"
)
"""In errors of diffusers, transformers and datasets that no longer say why the hub gave nothing."""
_ADVICE: Final = (
    (
        "GatedRepoError",
        "it is gated: accept its licence at {page}, then run 'hf auth login'",
    ),
    (
        "RepositoryNotFoundError",
        "there is no repository {name!r} on the hub, or it is private: look for a typing "
        "mistake, give a folder, or run 'hf auth login'",
    ),
    ("RevisionNotFoundError", "{name!r} has no such revision: give a branch, a tag or a commit of it"),
    (
        "OfflineModeIsEnabled",
        "it is not in the hub's cache and HF_HUB_OFFLINE is set: unset it, or fetch it by '{fetch}'",
    ),
    (
        "LocalEntryNotFoundError",
        "it is not in the hub's cache, and {hub} can't be reached or may not be asked: go online "
        "(policy.offline=false), let HF_ENDPOINT name a mirror, or fetch it by '{fetch}' and give its folder",
    ),
    ("EntryNotFoundError", "{name!r} has no such file: look at its list of files on the hub"),
    ("HfHubHTTPError", "the hub refused it: try again later, or see 'hf auth whoami'"),
)
"""By the names of huggingface_hub's errors. The first that fits: gated ones are a kind of missing ones, and both are
HTTP errors."""
