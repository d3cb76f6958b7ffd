"""Weights files by path or hub id."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from customized_grpo.web.hub import hub_problem


def weights_file(given: str, key: str, *, default: str | None, revision: str | None, offline: bool) -> Path:
    """A .safetensors file on this machine.

    Args:
        given: a file; a folder that holds ``default``; ``organisation/name`` (its ``default``) or
            ``organisation/name/path/file.safetensors`` on the hub.
        key: the recipe's key, for messages.
        default: the file's name where only its place is given; None: the file must be named.
        revision: branch, tag or commit on the hub.
        offline: look into the hub's cache only.

    Raises:
        ValueError: there is none, or the hub does not give it.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and default is not None and (path / default).is_file():
        return path / default
    owner, _, rest = given.partition("/")
    name, _, inside = rest.partition("/")
    inside = inside or default or ""
    if path.is_dir() or given.startswith((".", "/", "~")) or not name or not inside.endswith(".safetensors"):
        example = f"organisation/name/{default or 'file.safetensors'}"
        raise ValueError(f"{key}: there is no file {given!r}; give a .safetensors file, or {example} on the hub")
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{name}", inside, revision=revision, local_files_only=offline))
    except (OSError, ValueError, HTTPError) as error:
        raise ValueError(f"{key}: {given!r} can't be loaded: {hub_problem(error, f'{owner}/{name}')}") from error


def is_hub_id(given: str) -> bool:
    """True for ``organisation/name`` and ``organisation/name/path/file.safetensors``, if no local folder begins so."""
    owner, _, rest = given.partition("/")
    name, _, inside = rest.partition("/")
    plain = all(re.fullmatch(r"\w[\w.-]*", part) for part in (owner, name))
    return plain and (not inside or inside.endswith(".safetensors")) and not Path(owner).exists()


def hub_lora(
    given: str, *, names: Sequence[str], beside: Mapping[str, str], revision: str | None, offline: bool
) -> Path:
    """A LoRA's file on the hub, fetched into its cache.

    Args:
        given: an ``is_hub_id``.
        names: of files, the first that a repository holds is taken; without any of them, its only .safetensors.
        beside: name of a LoRA's file -> that of the configuration that must come with it, where the repository has it.
        revision: branch, tag or commit.
        offline: look into the hub's cache only.

    Raises:
        ValueError: the hub does not give it, or the repository holds several files and none is named.
    """
    from httpx2 import HTTPError
    from huggingface_hub import errors, hf_hub_download

    owner, name, *path = given.split("/")
    repository, inside = f"{owner}/{name}", "/".join(path)
    try:
        files = _hub_files(repository, revision, offline)
        if not inside:
            weights = [file for file in files if file.endswith(".safetensors") and "/" not in file]
            named = [file for file in names if file in weights][:1] or weights
            if len(named) != 1:
                choice = ", ".join(f"{repository}/{file}" for file in sorted(named)[:3]) or "none is at its top"
                raise ValueError(f"{repository!r} holds {len(named)} .safetensors files ({choice}); name one")
            inside = named[0]
        folder, _, file = inside.rpartition("/")
        needed = f"{folder}/{beside.get(file)}".lstrip("/")
        if needed in files:
            hf_hub_download(repository, needed, revision=revision, local_files_only=offline)
        return Path(hf_hub_download(repository, inside, revision=revision, local_files_only=offline))
    except (
        OSError,
        HTTPError,
        errors.HFValidationError,
    ) as error:  # listing files raises the client's own
        raise ValueError(f"there is no {given!r} here, and on the hub {hub_problem(error, repository)}") from error


def _hub_files(repository: str, revision: str | None, offline: bool) -> list[str]:
    """Names of a repository's files: of what is in the cache, where the hub may not be asked."""
    from huggingface_hub import constants, list_repo_files, snapshot_download

    if not (offline or constants.HF_HUB_OFFLINE):
        return list_repo_files(repository, revision=revision)
    folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
