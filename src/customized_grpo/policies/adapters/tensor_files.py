"""Reading and writing safetensors: equal tensors and metadata give equal bytes; a damaged file gives a clear error."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor


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


@contextmanager
def _opened(file: Path, what: str) -> Iterator[Any]:
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            yield opened
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{what} {str(file)!r} can't be read ({error}); is it whole, and a safetensors file?"
        ) from error


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
