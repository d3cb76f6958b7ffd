"""PNG files without what tools store beside the picture: texts of any length, colour profiles, damaged metadata.

ComfyUI writes its workflow, other tools their settings and a preview into text chunks. Pillow refuses a file whose
texts are over 1 MB, or one with a single damaged chunk of metadata, though its picture is whole. Format: W3C PNG, third
edition.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TEXTS: Final = (b"tEXt", b"zTXt", b"iTXt")
_PIXELS: Final = (b"fcTL", b"IDAT", b"fdAT", b"IEND")
_TURNING: Final = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of texts that may say how to turn the picture."""

_Stream = io.BufferedReader | io.BytesIO


def plain(stream: _Stream, *, pixels: bool) -> io.BytesIO:
    """The file without its texts, its colour profile, and metadata whose checksum is wrong.

    Args:
        stream: a PNG file; what stands in it is decided by its first bytes, not by its name.
        pixels: False for the head alone: metadata from the whole file, and no pixels.
    """
    parts = [SIGNATURE]
    for kind, at, length in _chunks(stream):
        if kind == b"iCCP" or (kind in _TEXTS and _keyword(stream, at) not in _TURNING):
            continue
        if kind in _PIXELS and not pixels:
            continue
        stream.seek(at)
        chunk = stream.read(length)
        # tRNS is about the pixels: where it is damaged, they are.
        if kind[:1].islower() and kind not in (b"tRNS", b"acTL", *_PIXELS) and not _is_whole(chunk):
            continue
        parts.append(chunk)
    return io.BytesIO(b"".join(parts if pixels else [*parts, struct.pack(">I4s", 0, b"IDAT")]))


def _chunks(stream: _Stream) -> Iterator[tuple[bytes, int, int]]:
    """Kind, position and length (with head and checksum) of each chunk; the last one may be cut off."""
    at = len(SIGNATURE)
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, at, length + 12
        at += length + 12
        if kind == b"IEND":
            return


def _keyword(stream: _Stream, at: int) -> bytes:
    stream.seek(at + 8)
    return stream.read(80).partition(b"\0")[0]


def _is_whole(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
