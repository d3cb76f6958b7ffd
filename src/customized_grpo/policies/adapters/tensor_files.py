"""Reading and writing safetensors: equal tensors and metadata give equal bytes; a damaged file gives a clear error."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.policies.adapters.low_rank import shown

FLOATS: Final = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
FLOAT8: Final = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})

_BEGINNINGS: Final = (
    (b"version https://git-lfs", "it is a pointer of Git LFS and not the file itself: run 'git lfs pull' where it is"),
    (b"<!doctype", "it is a web page saved under this name: download the file itself"),
    (b"<html", "it is a web page saved under this name: download the file itself"),
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


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are not numbers.

    Args:
        tensors: by the names to show.
        what: where they come from, for the message.

    Raises:
        ValueError: NaN or infinity; the message names the tensors and how many values.
    """
    broken = {name: count for name, tensor in tensors.items() if (count := _num_broken(tensor))}
    if broken:
        raise ValueError(
            f"{what} is broken: {sum(broken.values())} values are NaN or infinite, in {shown(sorted(broken))}. Such "
            "weights draw black pictures; take an earlier checkpoint, or ask who made the file"
        )


def _num_broken(tensor: Tensor) -> int:
    if tensor.is_meta or tensor.dtype not in FLOATS | FLOAT8:
        return 0
    values = tensor.float() if tensor.dtype in FLOAT8 else tensor  # float8 can't be summed
    if values.sum().isfinite():  # one pass without a copy; a sum may also overflow where all values are finite
        return 0
    return int((~values.isfinite()).sum())


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
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    known = next((meaning for begin, meaning in _BEGINNINGS if text.lower().startswith(begin)), None)
    if known is None and text.isascii() and text.decode().replace("\n", " ").isprintable():
        known = f"it is a text ({text.decode().splitlines()[0]!r}); download the file itself"
    return known or "it is no safetensors file, or a damaged one"


def _difference(header: bytes, length: int, size: int) -> str:
    """What the size of a file says against its header."""
    end = length
    with suppress(ValueError, TypeError, LookupError, AttributeError):
        entries = json.loads(header)
        end += max(one["data_offsets"][1] for name, one in entries.items() if name != "__metadata__")
    if 8 + end > size:
        return f"it is cut off: its header speaks of {8 + end} bytes, and the file has {size}; download it again"
    if 8 + end < size:
        return f"its header speaks of {8 + end} bytes, and the file has {size}; download it again"
    return "its header is damaged; download it again"


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with sorted keys and metadata; its folder is created if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}, file, metadata)
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
