"""Every trap of image files that the loader must get right or refuse by name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from customized_grpo.data.images import ImageError, load_image, load_mask
from customized_grpo.types import Example


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def save(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_a_plain_png_is_exact(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    assert np.array_equal(pixels(load_image(tmp_path / "a.png")), pixels(gradient()))
    assert np.array_equal(pixels(load_image(str(tmp_path / "a.png"))), pixels(gradient()))


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "tiff"])
def test_common_formats(tmp_path: Path, suffix: str) -> None:
    gradient().save(tmp_path / f"a.{suffix}")
    loaded = pixels(load_image(tmp_path / f"a.{suffix}"))
    assert np.abs(loaded - pixels(gradient())).mean() < 6


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (47, 31)), (6, (31, 0)), (8, (0, 47)), (2, (47, 0))]
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (48, 32), "black")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.size == ((32, 48) if orientation in (6, 8) else (48, 32))
    assert loaded.getpixel(corner) == (255, 0, 0)


def test_no_metadata_is_passed_on(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    gradient().save(tmp_path / "a.jpg", exif=exif, comment="SecretPlace")
    again = io.BytesIO()
    loaded = load_image(tmp_path / "a.jpg")
    loaded.save(again, "JPEG")
    assert loaded.info == {}
    assert b"Secret" not in again.getvalue()
    assert b"Secret" in (tmp_path / "a.jpg").read_bytes()


def test_transparency_shows_white_and_not_the_hidden_colour(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 1), (10, 200, 30, 0))
    image.putpixel((1, 0), (10, 200, 30, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    assert pixels(load_image(tmp_path / "a.png"))[0].tolist() == [
        [255, 255, 255],
        [10, 200, 30],
        [127, 127, 127],
        [255, 255, 255],
    ]


def test_grey_with_alpha_is_put_on_white(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1), (40, 0))
    image.putpixel((1, 0), (40, 255))
    image.save(tmp_path / "a.png")
    assert pixels(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 40]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_transparency_is_put_on_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 200, 30, 0, 0, 250])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / f"a.{suffix}", transparency=0)
    assert pixels(load_image(tmp_path / f"a.{suffix}"))[0].tolist() == [[255, 255, 255], [0, 0, 250]]


def test_rgb_with_a_transparent_colour_is_put_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (10, 200, 30))
    image.putpixel((1, 0), (0, 0, 250))
    image.save(tmp_path / "a.png", transparency=(10, 200, 30))
    assert pixels(load_image(tmp_path / "a.png"))[0].tolist() == [[255, 255, 255], [0, 0, 250]]


def test_an_opaque_palette_keeps_its_colours(tmp_path: Path) -> None:
    gradient().quantize(16).save(tmp_path / "a.png")
    assert np.abs(pixels(load_image(tmp_path / "a.png")) - pixels(gradient())).mean() < 40


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = pixels(load_image(tmp_path / "a.jpg")).mean(axis=(0, 1))
    assert red > 200
    assert max(green, blue) < 50


def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="32 bits per pixel"):
        load_image(tmp_path / "a.tiff")


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert pixels(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("webp", {"lossless": True}), ("tiff", {})])
def test_the_first_frame_is_used(tmp_path: Path, suffix: str, options: dict[str, bool]) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        assert opened.n_frames == 2
    assert load_image(tmp_path / f"a.{suffix}").getpixel((0, 0)) == (255, 0, 0)


def test_mpo_of_phones(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
    red, _, blue = pixels(load_image(tmp_path / "a.jpg")).mean(axis=(0, 1))
    assert red > 240
    assert blue < 15


def encoded(suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "gif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    content = encoded(suffix)
    path = save(tmp_path, f"a.{suffix}", content[: int(share * len(content))])
    with pytest.raises(ImageError, match=r"truncated|no image") as caught:
        load_image(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "gif", "tiff", "bmp"])
def test_damage_anywhere_is_an_image_or_an_image_error(tmp_path: Path, suffix: str) -> None:
    content, random = encoded(suffix), np.random.default_rng(1)
    refused = 0
    for trial in range(40):
        damaged = bytearray(content)
        for at in random.integers(0, min(len(damaged), 400 if trial % 2 else len(damaged)), 12):
            damaged[at] = random.integers(0, 256)
        path = save(tmp_path, f"a.{suffix}", bytes(damaged))
        try:
            assert load_image(path).mode == "RGB"
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"\xef\xbb\xbf\n  <html lang=en>rate limited", "HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "damaged or truncated"),
        (b"just some words", "not an image that Pillow can read"),
        (b"\x00" * 1000, "not an image that Pillow can read"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = save(tmp_path, "a.png", content)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(path)
    assert isinstance(caught.value, ValueError)
    assert caught.value.path == path


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_the_pixel_limit(tmp_path: Path) -> None:
    gradient(40, 30).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", max_pixels=1200).size == (40, 30)
    with pytest.raises(ImageError, match="40 x 30 pixels, over the limit of 1,199"):
        load_image(tmp_path / "a.png", max_pixels=1199)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    """100 MP makes Pillow warn, 400 MP makes it raise; here both are an ImageError."""
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"pixels.*scale it down"):
        load_image(tmp_path / "a.png")


def test_masks_are_grey_and_turned_like_their_image(tmp_path: Path) -> None:
    mask = Image.new("L", (6, 4), 0)
    mask.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    mask.save(tmp_path / "m.png", exif=exif)
    loaded = load_mask(tmp_path / "m.png")
    assert (loaded.mode, loaded.size, loaded.getpixel((3, 0))) == ("L", (4, 6), 255)


def test_a_cut_out_subject_is_a_mask_by_its_opacity(tmp_path: Path) -> None:
    cut_out = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    cut_out.putpixel((1, 1), (0, 0, 0, 255))  # a black subject: its colour must not count
    cut_out.save(tmp_path / "a_seg.png")
    mask = load_mask(tmp_path / "a_seg.png")
    assert [(x, y) for y in range(2) for x in range(4) if mask.getpixel((x, y))] == [(1, 1)]


def test_a_coloured_picture_is_no_mask(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), (200, 40, 40)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is a coloured picture, not a mask; .* transparency") as error:
        load_mask(tmp_path / "a.png")
    assert error.value.problem == "no-mask"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_grey_pictures_of_any_kind_are_masks(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (2, 1), 0)
    grey.putpixel((1, 0), 255)
    grey.convert(mode).save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    assert [mask.getpixel((x, 0)) for x in range(2)] == [0, 255]


def test_a_half_file_is_refused_whatever_a_plugin_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many a module sets this when it is imported, and then the rest is grey (QwenLM/Qwen3-VL#1234)."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "half.jpg"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="damaged or truncated"):
        load_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "CMYK"])
def test_an_example_takes_rgb_alone(mode: str) -> None:
    """A data set of one's own that opens files itself gave models the colours beneath transparency."""
    with pytest.raises(ValueError, match=f"example 'x': a reference has Pillow's mode {mode}; allowed: RGB"):
        Example(key="x", prompt="a dog", references=(Image.new(mode, (8, 8)),))
