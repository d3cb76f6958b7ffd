"""Broken and odd image files of every kind that a data set may hold, and the table of docs/image-files.md."""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from customized_grpo.data.images import ImageError, load_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


@dataclass(frozen=True)
class Kind:
    """A kind of file: what it is called, its suffix, its bytes (None: no file; a folder makes itself), a remark."""

    title: str
    suffix: str
    content: Callable[[], bytes | None]
    remark: str = ""

    @property
    def name(self) -> str:
        """Its file name in a data set that holds all kinds."""
        return "".join(char if char.isalnum() else "-" for char in self.title.lower()) + f".{self.suffix}"


def picture() -> Image.Image:
    """Upright: red above, blue below, with noise that no decoder can leave out."""
    noise = np.random.default_rng(0).integers(-20, 20, (48, 32, 3))
    halves = np.concatenate([np.full((24, 32, 3), RED), np.full((24, 32, 3), BLUE)])
    return Image.fromarray(np.clip(halves + noise, 0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "SecretCamera"
    tags.get_ifd(0x8825)[1] = "N"
    return tags


def broken_exif() -> bytes:
    content = bytearray(saved(picture(), "JPEG", exif=exif(6)))
    at = content.find(b"Exif\0\0")
    content[at + 6 : at + 14] = b"XXXXXXXX"
    return bytes(content)


def palette() -> bytes:
    image = Image.new("P", (32, 48), 0)
    image.putpalette([10, 200, 30, *BLUE])
    image.paste(1, (0, 24, 32, 48))
    return saved(image, "PNG", transparency=0)


def animated(form: str, **options: object) -> bytes:
    return saved(picture(), form, save_all=True, append_images=[Image.new("RGB", (32, 48), "green")], **options)


def png(width: int, height: int, bits: int, colour: int, raw: bytes) -> bytes:
    """A PNG file of any header: Pillow can't write all of them."""

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes, image: Image.Image | None = None, after: bool = False) -> bytes:
    """A PNG with further chunks before or after its pixels."""
    content = saved(image or picture(), "PNG")
    at = content.rfind(b"IEND") - 4 if after else 33
    return content[:at] + b"".join(chunks) + content[at:]


def workflow(size: int) -> bytes:
    return (b'{"nodes": [' + b'{"id": 1, "type": "KSampler"},' * (size // 30) + b"{}]}")[:size]


def heic(image: Image.Image, exif: bytes | None = None) -> bytes:
    from pillow_heif import HeifFile

    buffer, file = io.BytesIO(), HeifFile()
    file.add_from_pillow(image)
    file.save(buffer, quality=90, exif=exif)
    return buffer.getvalue()


def lying() -> Image.Image:
    return picture().rotate(90, expand=True)


def tiff_tags() -> bytes:
    return exif(6).tobytes().removeprefix(b"Exif\0\0")


def grey16() -> bytes:
    return saved(Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)), "PNG")


def rgb16() -> bytes:
    return png(1, 2, 16, 2, b"\0" + struct.pack(">3H", 65535, 0, 0) + b"\0" + struct.pack(">3H", 0, 0, 65535))


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def flipped() -> bytes:
    content = bytearray(saved(picture(), "PNG"))
    for at in range(len(content) // 2, len(content) // 2 + 40):
        content[at] ^= 0xFF
    return bytes(content)


def with_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    return saved(picture(), "JPEG", icc_profile=profile.tobytes())


KINDS = [
    Kind("Phone photo, turned by EXIF", "jpg", lambda: saved(picture().rotate(90, expand=True), "JPEG", exif=exif(6)),
         "upright; camera and place are not passed on"),
    Kind("JPEG with a broken EXIF block", "jpg", broken_exif, "as stored: nothing says how to turn it"),
    Kind("PNG with an alpha channel", "png", lambda: saved(Image.new("RGBA", (32, 48), (10, 200, 30, 0)), "PNG"),
         "on white; the hidden colour stays hidden"),
    Kind("Grey PNG with an alpha channel", "png", lambda: saved(Image.new("LA", (32, 48), (40, 0)), "PNG"), "on white"),
    Kind("PNG palette with a transparent colour", "png", palette, "on white"),
    Kind("Grey PNG of 16 bits", "png", grey16, "scaled to 8 bits, not clipped"),
    Kind("Colour PNG of 16 bits", "png", rgb16, "the upper 8 bits"),
    Kind("PNG with a ComfyUI workflow of 3 MB", "png",
         lambda: png_with(chunk(b"tEXt", b"workflow\0" + workflow(3_000_000)),
                          chunk(b"zTXt", b"prompt\0\0" + zlib.compress(workflow(3_000_000)))), "texts are dropped"),
    Kind("PNG with texts of 80 MB after the pixels", "png",
         lambda: png_with(chunk(b"iTXt", b"w\0\1\0\0\0" + zlib.compress(bytes(80_000_000))), after=True),
         "texts are dropped"),
    Kind("PNG with a colour profile of 2 MB", "png",
         lambda: png_with(chunk(b"iCCP", b"wide\0\0" + zlib.compress(bytes(2_000_000)))),
         "numbers as stored, the profile is dropped"),
    Kind("PNG with a damaged colour profile", "png", lambda: png_with(chunk(b"iCCP", b"sRGB\0\0broken")),
         "numbers as stored, the profile is dropped"),
    Kind("PNG whose EXIF block has a wrong checksum", "png",
         lambda: png_with(chunk(b"eXIf", tiff_tags())[:-4] + b"\0\0\0\0"), "as stored: nothing says how to turn it"),
    Kind("PNG turned by EXIF after its pixels", "png",
         lambda: png_with(chunk(b"eXIf", tiff_tags()), image=lying(), after=True), "upright"),
    Kind("PNG turned by XMP", "png",
         lambda: png_with(chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'), image=lying()),
         "upright"),
    Kind("PNG without its end", "png", lambda: saved(picture(), "PNG")[:-12], "no pixel is lost"),
    Kind("Black and white PNG of 1 bit", "png", lambda: saved(picture().convert("1"), "PNG"), "0 and 255"),
    Kind("CMYK JPEG", "jpg", lambda: saved(picture().convert("CMYK"), "JPEG"), "converted without a colour profile"),
    Kind("JPEG with a foreign colour profile", "jpg", with_profile, "numbers as stored, the profile is dropped"),
    Kind("JPEG with a colour profile of 3 MB", "jpg", lambda: saved(picture(), "JPEG", icc_profile=bytes(3_000_000)),
         "numbers as stored, the profile is dropped"),
    Kind("JPEG with other data behind it", "jpg", lambda: saved(picture(), "JPEG") + bytes(1_000_000)),
    Kind("Progressive JPEG", "jpg", lambda: saved(picture(), "JPEG", progressive=True)),
    Kind("MPO of a phone with two pictures", "jpg", lambda: animated("MPO"), "the first"),
    Kind("Animated GIF", "gif", lambda: animated("GIF"), "the first frame"),
    Kind("Animated WebP", "webp", lambda: animated("WEBP"), "the first frame"),
    Kind("TIFF of two pages", "tiff", lambda: animated("TIFF"), "the first page"),
    Kind("AVIF", "avif", lambda: saved(picture(), "AVIF")),
    Kind("PNG called .jpg", "jpg", lambda: saved(picture(), "PNG"), "the content decides"),
    Kind("Truncated JPEG", "jpg", lambda: cut(saved(picture(), "JPEG"), 0.9)),
    Kind("Truncated PNG", "png", lambda: cut(saved(picture(), "PNG"), 0.7)),
    Kind("PNG with flipped bytes", "png", flipped),
    Kind("Empty file", "png", lambda: b""),
    Kind("HTML page of a failed download", "jpg", lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    Kind("Git LFS pointer", "png",
         lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
    Kind("Text called .png", "png", lambda: b'{"error": "rate limited"}'),
    Kind("SVG drawing", "png", lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
    Kind("HEIC photo of a phone, turned by EXIF", "heic", lambda: heic(lying(), exif=exif(6).tobytes()),
         "upright; without `customized-grpo[heic]` it is reported as `heic`"),
    Kind("HEIC photo called .jpg", "jpg", lambda: heic(picture()), "the content decides"),
    Kind("Truncated HEIC photo", "heic", lambda: cut(heic(picture()), 0.9)),
    Kind("JPEG XL picture", "jpg", lambda: b"\xff\x0a" + bytes(40)),
    Kind("JPEG XL picture in a container", "png", lambda: b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a" + bytes(40)),
    Kind("AVIF called .jpg", "jpg", lambda: saved(picture(), "AVIF"), "the content decides"),
    Kind("Film called .jpg", "jpg", lambda: b"\0\0\0\x20ftypisom" + bytes(40)),
    Kind("PDF called .png", "png", lambda: b"%PDF-1.7\n"),
    Kind("100 million pixels", "png", lambda: png(10_000, 10_000, 1, 0, b"\0")),
    Kind("400 million pixels", "png", lambda: png(20_000, 20_000, 1, 0, b"\0"), "refused before decoding"),
    Kind("TIFF of 32-bit floats", "tiff", lambda: saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")),
    Kind("Folder called .png", "png", lambda: None),
    Kind("File that isn't there", "png", lambda: None),
]  # fmt: skip


def write_all(folder: Path) -> None:
    """One file of each kind."""
    for kind in KINDS:
        content = kind.content()
        if content is not None:
            (folder / kind.name).write_bytes(content)
        elif "Folder" in kind.title:
            (folder / kind.name).mkdir()


def outcome(folder: Path, kind: Kind) -> tuple[str, str]:
    """``loaded``, or the error's kind; and a sentence."""
    try:
        image = load_image(folder / kind.name)
    except ImageError as error:
        return f"`{error.problem}`", error.reason
    size = f"{image.width} x {image.height} {image.mode}"
    return "loaded", f"{size}; {kind.remark}" if kind.remark else size


def table() -> str:
    """What the loader makes of each."""
    lines = ["| File | Outcome | |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        write_all(Path(name))
        for kind in KINDS:
            word, sentence = outcome(Path(name), kind)
            lines.append(f"| {kind.title} | {word} | {sentence} |")
    return "\n".join(lines) + "\n"
