"""Identity of what a recipe's options name: files by their content, hub ids by their commit.

A dumped section is rewritten so that it is equal for equal content, wherever that lies: a moved model is the same, and
another file under the same path is another.
"""

import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from customized_grpo.identity.hashes import FileHashes, short_hash
from customized_grpo.identity.parts import Place, elsewhere
from customized_grpo.paths import ASSETS, INDICES

_EMBEDDED: Final = ("mini", "mini-judge")
_HUB: Final = re.compile(r"([\w.-]+/[\w.-]+)(/.+)?")
_WRITTEN: Final = (".db", ".log", ".sqlite", ".sqlite3")
_CHECKPOINTS: Final = "checkpoints"


def identified(section: Any, hashes: FileHashes) -> Any:
    """A dumped section (mappings, lists, values) with content in the place of names.

    - A file or folder of this machine stands as a hash of its content.
    - A hub id in the hub's local cache stands with its commit.
    - The type ``my_module:attr`` stands with a hash of the module's source file.
    """
    if isinstance(section, dict):
        return {str(key): _identified_value(section, key, hashes) for key in section}
    if isinstance(section, list | tuple):
        return [identified(one, hashes) for one in section]
    if isinstance(section, str):
        return named(section, hashes) or section
    return section


def _identified_value(section: Mapping[Any, Any], key: Any, hashes: FileHashes) -> Any:
    value = section[key]
    if key == "type":
        return _plugin(value, hashes)
    if isinstance(value, str):
        return named(value, hashes, revision_of(section, key)) or value
    return identified(value, hashes)


def revision_of(section: Mapping[Any, Any], key: Any) -> str | None:
    """The revision at which the hub id under a key is read: ``<key>_revision``; of ``model`` and ``path`` ``revision``.

    It is no other id's of the section, nor of a section within: each repository has branches and commits of its own.
    """
    own = "revision" if key in ("model", "path") else f"{key}_revision"
    found = section.get(own)
    return found if isinstance(found, str) else None


def with_local_content(section: Any, hashes: FileHashes) -> Any:
    """A dumped section with content in the place of the files and folders of this machine, and all else as it is."""
    if isinstance(section, dict):
        return {key: value if key == "type" else with_local_content(value, hashes) for key, value in section.items()}
    if isinstance(section, list | tuple):
        return [with_local_content(one, hashes) for one in section]
    content = local_content(section, hashes) if isinstance(section, str) else None
    return section if content is None else {"content": content}


def named(name: str, hashes: FileHashes, revision: str | None = None) -> dict[str, str] | None:
    """The content behind a name; None for a string that names nothing on this machine."""
    if name in _EMBEDDED:
        return {"embedded": name} | hashes.of(ASSETS, ["manifest.json"])
    if (content := local_content(name, hashes)) is not None:
        return {"content": content}
    hub = _HUB.fullmatch(name)
    commit = hub and hub_commit(hub[1], revision)
    if hub is None or not commit:
        return None
    snapshot = _hub_folder(hub[1]) / "snapshots" / commit
    return {"hub": name, "commit": commit} | parts_elsewhere(snapshot, hub[1], hashes)


def parts_elsewhere(folder: Path, source: str, hashes: FileHashes, without: Collection[str] = ()) -> dict[str, str]:
    """Content of what a modular pipeline's index places in other folders or repositories, by the part's name.

    A repository that isn't in the hub's local cache yet stands for itself alone.

    Args:
        folder: of the index; another one has no such parts.
        source: that folder, or the hub id whose files it holds.
        hashes: remembers files.
        without: parts to leave out.
    """
    places = elsewhere(folder, source).items()
    return {f"part {name}": _content_at(place, hashes) for name, place in places if name not in without}


def _content_at(place: Place, hashes: FileHashes) -> str:
    if Path(place.source).is_dir():
        return short_hash(hashes.of_folder(Path(place.source) / place.inside, lambda part: part.suffix != ".md"))
    commit = hub_commit(place.source, place.revision) if _HUB.fullmatch(place.source) else None
    return f"{place.source}/{place.inside} {commit or ''}".strip()


def local_content(name: str, hashes: FileHashes) -> str | None:
    """Hash of the file or folder that a string names; None where it names neither.

    A word without a slash is a folder's name only where that folder holds a ``config.json`` or ``model_index.json``. Of
    a run's folder the newest checkpoint counts, without the trainer's state: it is what a run stands for as a model.
    Databases and logs don't count, since they are written while they are used.
    """
    if not name.strip() or "\0" in name or len(name) > 1024:
        return None
    path = Path(name).expanduser()
    try:
        if path.is_file():
            written = path.suffix.lower() in _WRITTEN
            return None if written else short_hash([*hashes.of(path.parent, [path.name]).values()])
        if not path.is_dir() or not (_is_model(path) or _is_meant(name, path)):
            return None
    except OSError:  # a name that no file system takes
        return None
    steps = [one for one in (path / _CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", one.name)]
    folder = max(steps, key=lambda one: int(one.name.removeprefix("step-")), default=path)
    content = hashes.of_folder(folder, _is_read if _has_index(folder) else _is_weight)
    return short_hash(content | parts_elsewhere(folder, name, hashes))


def hub_commit(repository: str, revision: str | None = None) -> str | None:
    """The commit that a revision of a hub id stands for in the hub's local cache; None where it isn't there."""
    folder = _hub_folder(repository)
    if revision and (folder / "snapshots" / revision).is_dir():
        return revision  # a commit itself, of which the cache has no name
    file = folder / "refs" / (revision or "main")
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def hub_snapshot(repository: str, revision: str | None = None) -> Path | None:
    """The folder of a hub id's files in the hub's local cache; None where it isn't there."""
    commit = hub_commit(repository, revision) if _HUB.fullmatch(repository) else None
    folder = _hub_folder(repository) / "snapshots" / (commit or "")
    return folder if commit and folder.is_dir() else None


def _hub_folder(repository: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def source_hash(module: str, hashes: FileHashes) -> str | None:
    """Hash of an imported module's source file; None for one without."""
    found = sys.modules.get(module)
    spec = None if found is None else found.__spec__
    return local_content(spec.origin, hashes) if spec is not None and spec.origin else None


def _plugin(kind: Any, hashes: FileHashes) -> Any:
    if not isinstance(kind, str) or ":" not in kind:
        return kind
    return [kind, source_hash(kind.partition(":")[0], hashes)]


def _is_meant(name: str, folder: Path) -> bool:
    """False for a word that happens to be a folder's name, and for a slash or dots that name a whole disk or home."""
    around = {place for here in (Path.cwd(), Path.home()) for place in (here, *here.parents)}
    return ("/" in name or "\\" in name) and folder.resolve() not in around


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or _has_index(folder)


def _has_index(folder: Path) -> bool:
    return any((folder / name).is_file() for name in INDICES)


def _is_weight(part: Path) -> bool:
    return part.suffix not in (".md", *_WRITTEN) and part.parts[0] != "state"


def _is_read(part: Path) -> bool:
    """A pipeline reads its parts' folders; a file of all weights beside them is for other programs."""
    return part.suffix != ".md" and (len(part.parts) > 1 or part.suffix == ".json")
