"""Reading and writing safetensors: equal tensors and metadata give equal bytes; a damaged file gives a clear error."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.policies.adapters.low_rank import shown

_BEGINNINGS = (
    (b"version https://git-lfs", "it is a pointer of Git LFS and not the file itself: run 'git lfs pull' where it is"),
    (b"<", "it is a web page saved under this name: download the file itself"),
    (b"PK\x03\x04", "it is a pickle of torch.save, which is never opened here: convert it to safetensors"),
    (b"\x80", "it is a pickle, which is never opened here: convert it to safetensors"),
    (b"GGUF", "it is a GGUF file, which is not read here"),
    (b"{", "it is a JSON text"),
)
"""What a file that is no safetensors begins with, and what to say of it."""


def read_tensors(file: Path, what: str = "file") -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU.

    Args:
        file: the file.
        what: kind of file, for the message.

    Raises:
        ValueError: it can't be read, or is damaged or truncated.
    """
    with _opened(file, what) as opened:
        return {name: opened.get_tensor(name) for name in sorted(opened.keys())}


def read_metadata(file: Path, what: str = "file") -> dict[str, str]:
    """Metadata in the header of a safetensors file; see ``read_tensors``."""
    with _opened(file, what) as opened:
        return opened.metadata() or {}


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers.

    Raises:
        ValueError: NaN or infinity; the message names the tensors and how many values.
    """
    broken = {name: count for name, tensor in tensors.items() if (count := _num_broken(tensor))}
    if broken:
        raise ValueError(
            f"{sum(broken.values())} values are NaN or infinite, in {shown(sorted(broken))}; such weights draw black "
            "pictures: take an earlier checkpoint, or ask who made the file"
        )


def _num_broken(tensor: Tensor) -> int:
    if tensor.is_meta or not tensor.is_floating_point():
        return 0
    values = tensor.float() if tensor.itemsize == 1 else tensor  # float8 can't be summed
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
    size = file.stat().st_size
    with file.open("rb") as opened:
        beginning = opened.read(64)
    if not size:
        return "it is empty: download it again"
    for start, meaning in _BEGINNINGS:
        if beginning.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(start):
            return meaning
    length = int.from_bytes(beginning[:8], "little")
    if beginning[8:9] == b"{" and 8 + length > size:
        return f"it is cut off: its header alone takes {length} bytes, and the file has {size}; download it again"
    return "is it whole, and a safetensors file?"


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
