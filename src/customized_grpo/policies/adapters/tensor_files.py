"""Reading and writing safetensors: equal tensors and metadata give equal bytes; a damaged file gives a clear error."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.atomic import readable
from customized_grpo.paths import matching
from customized_grpo.text import is_html, is_lfs_pointer
from customized_grpo.weights import check_finite, shown

_BEGINNINGS: Final = (
    (b"<?xml", "it is a web page saved under this name: download the file itself"),
    (b"pk\x03\x04", "it is a pickle of torch.save, which is never opened here: convert it to safetensors"),
    (b"\x80\x02", "it is a pickle, which is never opened here: convert it to safetensors"),
    (b"gguf", "it is a GGUF file, which is not read here"),
)
"""What other files begin with, in lower case, and what to say of them."""


def read_tensors(file: Path, what: str = "file") -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU; all of them are numbers.

    Args:
        file: the file.
        what: kind of file, for the message.

    Raises:
        ValueError: it can't be read, is damaged or truncated, or holds NaN or infinity.
    """
    with _opened(file, what) as opened:
        tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    check_finite(tensors, f"{what} {str(file)!r}")
    return tensors


def read_metadata(file: Path, what: str = "file") -> dict[str, str]:
    """Metadata in the header of a safetensors file; see ``read_tensors``."""
    with _opened(file, what) as opened:
        return opened.metadata() or {}


def is_part(file: Path) -> bool:
    """True if the file holds only some of its weights: by its name, ``-00001-of-00002``, or by an index beside it."""
    numbers = re.search(r"\d+[-_]?of[-_]?(\d+)$", file.stem)
    return (numbers is not None and int(numbers[1]) > 1) or any(
        file.name in parts and len(parts) > 1 for parts in map(_indexed, matching(file.parent, "*.index.json"))
    )


def _indexed(index: Path) -> set[str]:
    """Names of the files that an index speaks of; none where it is none."""
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return set()


@contextmanager
def _opened(file: Path, what: str) -> Iterator[Any]:
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            yield opened
    except (safetensors.SafetensorError, OSError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
        raise ValueError(f"{what} {str(file)!r} can't be read ({error}): {_diagnosis(file)}") from error


def _diagnosis(file: Path) -> str:
    """Why a file is no safetensors, from its first bytes and its size."""
    if not file.is_file():
        return "there is no such file"
    with file.open("rb") as opened:
        start = opened.read(64)
        length, size = int.from_bytes(start[:8], "little"), file.stat().st_size
        if not size:
            return "it is empty; download it again"
        if start[8:9] == b"{" and length < 2**40:
            opened.seek(8)
            return _difference(opened.read(min(length, size)), length, size)
    if is_lfs_pointer(start):
        return "it is a pointer of Git LFS and not the file itself: run 'git lfs pull' where it is"
    if is_html(start):
        return "it is a web page saved under this name: download the file itself"
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    known = next((meaning for begin, meaning in _BEGINNINGS if text.lower().startswith(begin)), None)
    if known is None and text.isascii() and text.decode().replace("\n", " ").isprintable():
        known = f"it is a text ({text.decode().splitlines()[0]!r}); download the file itself"
    return known or "it is no safetensors file, or a damaged one"


def _difference(header: bytes, length: int, size: int) -> str:
    """What is wrong with a header, or with the size of the file against it."""
    if len(header) < length:
        return f"it is cut off: its header alone is of {8 + length} bytes, and the file has {size}; download it again"
    try:
        entries = json.loads(header.decode())
        ends = [one["data_offsets"][1] for name, one in entries.items() if name != "__metadata__"]
        end = 8 + length + max(ends, default=0)
        texts = dict(entries.get("__metadata__") or {})
    except UnicodeDecodeError as error:
        return (
            f"its header is no UTF-8 ({header[max(error.start - 20, 0) : error.start + 10]!r}), which the format asks "
            "for; its weights may be whole: write the file again with metadata in UTF-8, or without"
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return "its header is damaged; download it again"
    if end > size:
        return f"it is cut off: its header speaks of {end} bytes, and the file has {size}; download it again"
    if end < size:
        return f"its header speaks of {end} bytes, and the file has {size}; download it again"
    if others := sorted(name for name, value in texts.items() if not isinstance(value, str)):
        return f"its metadata are no texts: {shown(others)}; write the file again with texts, or without metadata"
    return "its header is damaged; download it again"


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with sorted keys and metadata; its folder is created if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}, file, metadata)
    readable(file)
    if not metadata:
        return
    with file.open("r+b") as written:  # safetensors writes metadata in the order of a random hash
        length = int.from_bytes(written.read(8), "little")
        header = json.loads(written.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "the same header in another order is as long as it was"
        written.seek(8)
        written.write(text)
