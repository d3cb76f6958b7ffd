"""Download of data sets, on request only: resumable, checked by size and checksum, complete or absent.

The list of files is part of the package (DreamBench, DreamBench++), or comes from the hub's record of a data set, which
has a checksum of every file.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, final
from urllib.parse import urlsplit
from urllib.request import getproxies

import requests
from filelock import FileLock

from customized_grpo.data.dreambench import facts
from customized_grpo.identity.hashes import file_hash
from customized_grpo.paths import is_inside
from customized_grpo.web.hub import hub_problem
from customized_grpo.web.proxies import proxy_of, unusable
from customized_grpo.web.waits import asked_wait

_TRIES: Final = 6
_TIMEOUT_S: Final = (15.0, 60.0)
"""Timeouts to connect, and between two chunks."""
_LONGEST_WAIT_S: Final = 300.0
"""Longest wait that a server may ask for; the hub's limits are for five minutes."""
_CHUNK: Final = 1 << 16

DREAMBENCH_PLUS: Final = (
    "https://huggingface.co/datasets/yuangpeng/dreambench_plus/resolve/main/data.zip",
    15_061_282,
    "fabdaac1cbff6826c226e874902193ac7965e29b6c1644e983551c980ec82a33",
)


@final
class DownloadError(ValueError):
    """A download failed; the part received is kept for the next try unless it is wrong."""


@final
@dataclass(frozen=True, slots=True)
class Remote:
    """A file to download."""

    name: str
    """Its path in the output folder."""
    url: str
    size: int
    sha256: str = ""
    git_sha1: str = ""
    """SHA-1 of the git blob, the only checksum of small files on the hub."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def listing(name: str, include: Sequence[str] = (), revision: str | None = None) -> tuple[list[Remote], str]:
    """The files of ``dreambench``, ``dreambench++`` or a data set of the hub, and the licence if known.

    Args:
        name: one of the first two, or a hub id such as ``nupurkmr9/syncd``.

    Raises:
        ValueError: no such set, or nothing matches.
    """
    if name == "dreambench":
        known = facts()
        files = [Remote(path, known["base"] + path, *rest) for path, rest in known["files"].items()]
        licence = str(known["licence"])
    elif name == "dreambench++":
        files, licence = [Remote("data.zip", *DREAMBENCH_PLUS)], "see the card of yuangpeng/dreambench_plus"
    elif name.count("/") == 1:
        files, licence = _of_hub(name, revision), f"see https://huggingface.co/datasets/{name}"
    else:
        raise ValueError(
            f"download: given {name!r}; allowed: dreambench, dreambench++, or a hub id such as nupurkmr9/syncd"
        )
    chosen = [file for file in files if not include or any(fnmatch(file.name, one) for one in include)]
    if not chosen:
        some = ", ".join(file.name for file in files[:8])
        raise ValueError(f"--include: none of the {len(files)} files matches {', '.join(include)}; there are {some}")
    return chosen, licence


def download(
    files: Sequence[Remote], folder: Path, progress: Callable[[str, int], None] = lambda name, size: None
) -> int:
    """Download files into a folder; complete ones are kept and not counted. Others wait meanwhile.

    Args:
        progress: called with a file's name and the number of new bytes (negative after a failed start).

    Raises:
        DownloadError: a file can't be downloaded, or differs from the listed one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fetched = 0
    with FileLock(folder / ".download.lock"):
        for file in files:
            if not is_inside(file.name):
                raise DownloadError(f"{file.name}: would be written outside {folder}")
            path = folder / file.name
            if path.is_file() and _wrong(file, path) == "":
                progress(file.name, file.size)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(file, path, lambda size, name=file.name: progress(name, size))  # type: ignore[misc]
            fetched += 1
    return fetched


def _fetch(file: Remote, path: Path, progress: Callable[[int], None]) -> None:
    part = path.with_name(f"{path.name}.part")
    if part.exists():
        progress(part.stat().st_size)
    problem, wait = "", None
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(0.25 * 2**attempt if wait is None else wait)
        wait = None
        resumed = part.exists()
        try:
            _stream(file, part, progress)
        except requests.HTTPError as error:
            assert error.response is not None  # raise_for_status has one
            status = error.response.status_code
            problem = f"the server says {status} {error.response.reason}"
            if status in (401, 403):
                problem += "; accept the licence on the hub and set HF_TOKEN"
            if status < 500 and status not in (408, 416, 429):
                break
            wait = asked_wait(error.response.headers, "")
            if wait is not None and wait > _LONGEST_WAIT_S:
                problem += f" and asks to wait {wait:,.0f} s"
                break
        except requests.RequestException as error:  # but no OSError of this machine's disk
            problem = f"the connection broke ({type(error).__name__})"
        else:
            problem = _wrong(file, part)
            if not problem:
                os.replace(part, path)
                return
            progress(-part.stat().st_size)
            part.unlink()
            if not resumed:  # the fault isn't that of an earlier part
                break
    raise DownloadError(f"{file.url}: {problem}; run the command again to continue")


def _stream(file: Remote, part: Path, progress: Callable[[int], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have == file.size:
        return
    headers = {**file.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT_S, proxies=_proxies(file.url)) as answer:
        if answer.status_code == 416:
            progress(-have)
            part.unlink()
        answer.raise_for_status()
        goes_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not goes_on:
            progress(-have)
        with part.open("ab" if goes_on else "wb") as target:
            arrived = have if goes_on else 0
            for piece in answer.iter_content(_CHUNK):
                arrived += len(piece)
                if arrived > file.size:
                    raise DownloadError(f"{file.url}: sends more than the {file.size:,} bytes that are listed")
                target.write(piece)
                progress(len(piece))


def _proxies(url: str) -> dict[str, str]:
    """The proxy of a URL, for ``requests``: it would ask one for private hosts, and read a variable with its blanks.

    Raises:
        ValueError: the variable holds what no client can use.
    """
    proxy = proxy_of(url, socks="socks")
    parts = urlsplit(url)
    if proxy is None:  # for this host alone: the hub sends on to other ones
        return {"no_proxy": ",".join(filter(None, (parts.hostname, getproxies().get("no"))))}
    return {parts.scheme: proxy.url}


def _wrong(file: Remote, path: Path) -> str:
    """Reason why a file differs from the listed one; empty if it doesn't."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size:,} of {file.size:,} bytes arrived"
    fine = file_hash(path) == file.sha256 if file.sha256 else _git_hash(path) == file.git_sha1
    return "" if fine else "its checksum is not the one that is listed"


def _git_hash(path: Path) -> str:
    """As git names a file's content."""
    with path.open("rb") as opened:
        head = f"blob {path.stat().st_size}\0".encode()
        return hashlib.file_digest(opened, lambda: hashlib.sha1(head)).hexdigest()


def _of_hub(name: str, revision: str | None) -> list[Remote]:
    import httpx2
    from huggingface_hub import HfApi, get_token, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        info = api.dataset_info(name, revision=revision, files_metadata=True)
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
        raise DownloadError(f"{name}: its files can't be listed: {hub_problem(error, name, data=True)}") from error
    except (ValueError, ImportError) as error:  # of the hub's client, which reads all proxies at its start
        said = "; ".join(unusable(os.environ)) or str(error)
        raise DownloadError(f"{name}: the hub can't be asked: {said}") from error
    token = get_token()  # requests sends it only to the hub, not to the store that the hub redirects to
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return [
        Remote(
            one.rfilename,
            hf_hub_url(name, one.rfilename, repo_type="dataset", revision=info.sha, endpoint=api.endpoint),
            one.size or 0,
            one.lfs.sha256 if one.lfs is not None else "",
            one.blob_id or "",
            headers,
        )
        for one in info.siblings or []
    ]
