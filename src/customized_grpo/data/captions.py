"""Captions of drawn pictures: text wrapped and cut to a width, by the font that comes with Pillow."""

from functools import cache

from PIL import ImageFont


def fold(text: str, size: int, width: int, *, most: int) -> list[str]:
    """Text wrapped to a width.

    Args:
        text: any; line breaks are spaces.
        size: of the font, in pixels.
        width: in pixels; words that are wider are cut.
        most: number of lines; the last one ends in dots where there is more.
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} ..."]
    return [cut(line, size, width) for line in lines]


def cut(text: str, size: int, width: int) -> str:
    """Text whose end is dots where it is wider than ``width`` pixels."""
    while font(size).getlength(text) > width and len(text) > 4:
        text = f"{text[:-4]}..."
    return text


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size)
