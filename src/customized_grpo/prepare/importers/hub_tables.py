"""Tables of Hugging Face data sets, opened by ``datasets``: one split of one configuration, never a mixture."""

import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from customized_grpo.data.folders import SUFFIXES
from customized_grpo.paths import files_under, is_system
from customized_grpo.prepare.importers.base import SourceError, holds_manifest
from customized_grpo.web.hub import hub_problem

ALL: Final = "all"
"""Name of all files of a folder together, as a split."""
_WHOLE: Final = "train"
"""Name of the only split of files that name none, as ``datasets`` calls it."""
_WORDS: Final[Mapping[str, str]] = {
    word: split
    for split, words in {
        "train": "train training",
        "validation": "validation valid dev val",
        "test": "test testing eval evaluation",
    }.items()
    for word in words.split()
}
"""Words in paths that name a split, as ``datasets`` reads them."""
_DATA: Final = SUFFIXES | {".parquet", ".csv", ".tsv", ".json", ".jsonl", ".arrow", ".tar", ".zip"}


@final
@dataclass(frozen=True, slots=True)
class Table:
    """Records, with images as ``{"bytes", "path"}``, and sentences about what of the source is in them."""

    records: Iterable[dict[str, Any]]
    remarks: Sequence[str]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to open of a data set; None: the only one there is."""

    split: str | None
    config: str | None
    revision: str | None
    streaming: bool


def open_table(source: str, wanted: Wanted) -> Table:
    """Open a hub id, a folder, or a parquet file.

    Raises:
        SourceError: the library is missing, the set can't be opened, or several splits or configurations are there.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        message = f"{source}: reading it needs the library 'datasets'; pip install 'customized-grpo[hub]'"
        raise SourceError(message) from error
    path = Path(source).expanduser()
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise SourceError(f"{source}: no such folder and no hub id such as Yuanshi/Subjects200K")
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise SourceError(f"{source}: is no parquet file; give the folder that holds it")
    try:
        table, remarks = _opened(datasets, source, path, wanted)
        for name, feature in (table.features or {}).items():
            if (plain := _undecoded(datasets, feature)) is not None:
                table = table.cast_column(name, plain)
    except SourceError:
        raise
    except Exception as error:  # of a dozen types; in any case the set can't be read
        said = hub_problem(error, source, data=True)
        raise SourceError(f"{source}: can't be opened: {type(error).__name__}: {said}") from error
    return Table(read(source, table), remarks)


def read(source: str, table: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records of a data set, which may be downloaded while they are read."""
    number = 0
    try:
        for number, record in enumerate(table, start=1):  # noqa: B007 - for the message
            yield record
    except Exception as error:  # a lost connection or a damaged file, of a dozen types
        raise SourceError(
            f"{source}: reading broke off after record {number}: {type(error).__name__}: "
            f"{hub_problem(error, source, data=True)}; try again"
        ) from error


def _opened(datasets: Any, source: str, path: Path, wanted: Wanted) -> tuple[Any, list[str]]:
    if (path / "state.json").is_file():  # written by save_to_disk, which knows one split
        table: Any = datasets.load_from_disk(str(path))
        _choose(source, wanted.split, [str(table.split or _WHOLE)], [str(table.split or _WHOLE)], 1)
        return table, []
    parquet = _parquet_files(path)
    options, split, remarks = (
        _of_parquet(path, parquet, wanted) if parquet else _of_datasets(datasets, source, path, wanted)
    )
    return datasets.load_dataset(**options, split=split, streaming=wanted.streaming), remarks


_Opening = tuple[dict[str, Any], str, list[str]]
"""Arguments of ``load_dataset``, its split, and remarks."""


def _parquet_files(path: Path) -> list[Path]:
    """The user's parquet files; none in a folder whose README says which files are which split."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    if _says_splits(path):
        return []
    return [file for file in files_under(path, holds_manifest) if file.suffix.lower() == ".parquet"]


def _says_splits(folder: Path) -> bool:
    about = folder / "README.md"
    return about.is_file() and re.search(rb"(?m)^configs:", about.read_bytes()) is not None


def _of_parquet(path: Path, files: list[Path], wanted: Wanted) -> _Opening:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file.relative_to(path) if path.is_dir() else Path()), []).append(file)
    if list(groups) == [""]:
        groups = {_WHOLE: files}
    if wanted.config is not None:
        raise SourceError(f"config={wanted.config}: {path} has parquet files without configurations in its README.md")
    shown = {name: f"{name or 'of no split'} ({_some(files, path)})" for name, files in groups.items()}
    if wanted.split == ALL:
        groups, chosen = {ALL: files}, ALL
    else:
        chosen = _choose(str(path), wanted.split, [name for name in groups if name], shown.values(), len(groups))
    others = [shown[name] for name in groups if name != chosen]
    remarks = [*_told(chosen, others), *(_absent(groups[chosen]) if path.is_dir() else [])]
    options = {"path": "parquet", "data_files": [glob.escape(str(file)) for file in groups[chosen]]}
    return options, "train", remarks  # datasets' name of files that are given without one


def _of_datasets(datasets: Any, source: str, path: Path, wanted: Wanted) -> _Opening:
    place = str(path) if path.exists() else source
    names = datasets.get_dataset_config_names(place, revision=wanted.revision)
    if wanted.config is None and len(names) > 1 and "default" not in names:
        raise SourceError(f"{source}: has the configurations {', '.join(names)}; say which: config={names[0]}")
    options: dict[str, Any] = {"path": place, "name": wanted.config, "revision": wanted.revision}
    builder = datasets.load_dataset_builder(**options)
    files: Mapping[str, list[str]] = {
        str(key): list(map(str, value)) for key, value in (builder.config.data_files or {}).items()
    }
    splits = [str(name) for name in (builder.info.splits or files)]
    chosen = _choose(source, wanted.split, splits, splits, len(splits)) if splits else wanted.split or _WHOLE
    others = [name for name in splits if name != chosen]
    remarks = _told(chosen, others)
    if path.is_dir() and chosen in files:
        mine = [file for file in files[chosen] if _is_of_the_set(Path(file), path.resolve())]
        remarks += _absent(map(Path, mine))
        if len(mine) < len(files[chosen]):
            options["data_files"] = {chosen: list(map(glob.escape, mine))}
        read = {file for some in files.values() for file in some}
        left = [
            file
            for file in files_under(path, holds_manifest)
            if file.suffix.lower() in _DATA and str(file.resolve()) not in read
        ]
        kinds = {Path(file).suffix.lower() for file in read}
        alike = [file for file in left if file.suffix.lower() in kinds or file.stem == "metadata"]
        if alike and not _says_splits(path):
            raise SourceError(
                f"{source}: datasets takes words such as 'train' in names for splits and leaves out "
                f"{_some(alike, path)}; rename what has such a word, or say the splits in README.md"
            )
        remarks += [f"not read, because datasets finds them in no split: {_some(left, path)}"] if left else []
    return options, chosen, remarks


def _is_of_the_set(file: Path, root: Path) -> bool:
    """True for a file that neither a system nor an import put into the set's folder."""
    parts = file.relative_to(root).parts
    folders = [root.joinpath(*parts[:depth]) for depth in range(1, len(parts))]
    return not any(map(is_system, parts)) and not any(map(holds_manifest, folders))


def _choose(source: str, split: str | None, names: Sequence[str], shown: Iterable[str], groups: int) -> str:
    """The split to read.

    Raises:
        SourceError: there are several and none is chosen, or the chosen one is not there.
    """
    if split is None and groups == 1:
        return names[0]
    if split is None:
        raise SourceError(
            f"{source}: has the splits {', '.join(shown)}, which are not mixed; say which: split={names[0]}"
        )
    if re.split(r"[\[+]", split)[0] not in names:
        raise SourceError(f"{source}: there is no split {split!r}; there are: {', '.join(shown)}")
    return split


def _told(chosen: str, others: Sequence[str]) -> list[str]:
    if others:
        return [f"split {chosen}; not read: {', '.join(others)}"]
    return [] if chosen in (_WHOLE, ALL) else [f"split {chosen}"]


def _split_of(path: Path) -> str:
    """The split that a path's words name, the outermost folder first; empty if they name none."""
    words = (word for part in path.parts for word in re.findall("[a-z]+", part.lower()))
    return next((_WORDS[word] for word in words if word in _WORDS), "")


def _absent(files: Iterable[Path]) -> list[str]:
    """A sentence about shards (``train-00000-of-00003.parquet``) that were not downloaded."""
    shards: dict[tuple[str, int, str], set[int]] = {}
    for file in files:
        if found := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(.*)", str(file)):
            shards.setdefault((found[1], int(found[3]), found[4]), set()).add(int(found[2]))
    absent = [
        f"{Path(start).name}-{number:05d}-of-{total:05d}{end}"
        for (start, total, end), there in shards.items()
        for number in range(total)
        if number not in there
    ]
    more = ", ..." if len(absent) > 3 else ""
    return [f"{len(absent)} shards are not there, and so not read: {', '.join(absent[:3])}{more}"] if absent else []


def _some(files: Sequence[Path], root: Path) -> str:
    named = ", ".join(file.relative_to(root).as_posix() if file != root else file.name for file in files[:2])
    return f"{len(files)} file{'s' if len(files) > 1 else ''}: {named}{', ...' if len(files) > 2 else ''}"


def _undecoded(datasets: Any, feature: Any) -> Any:
    """The feature with its images, also those in lists, as bytes for the package's own loader; None without images."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        inner = _undecoded(datasets, feature.feature)
        return None if inner is None else type(feature)(inner)
    return None
