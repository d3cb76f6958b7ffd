"""Contact sheet of a manifest: one card per row, in one picture.

A card shows a row's references (the background dimmed if there is a mask), its target, id, class word and prompt.
Unusable rows come first, in red.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final, TypeVar

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from customized_grpo.data.captions import cut, fold, font
from customized_grpo.data.images import load_image, load_mask, save_image
from customized_grpo.data.rows import Row, fit_mask, same_shape
from customized_grpo.prepare.check import File, row_problem
from customized_grpo.prepare.inspection import Seen
from customized_grpo.prepare.split import groups_of

T = TypeVar("T")

_WIDTH: Final = 1760
_TILE: Final = 208
_GAP: Final = 8
_MARGIN: Final = 28
_LINE: Final = 20
_TEXT_LINES: Final = 3
_HEADER: Final = 84

_PAPER, _CARD, _INK, _GREY, _RED, _EMPTY = "#eceef1", "#ffffff", "#16181d", "#6b7280", "#b3261e", "#f4f5f7"


def contact_sheet(
    path: Path,
    rows: Sequence[Row],
    seen: Mapping[File, Seen],
    root: Path,
    *,
    title: str,
    subtitle: str,
    num: int = 24,
) -> None:
    """Write the sheet (format by suffix) with at most ``num`` rows, spread over subjects and the set."""
    chosen = choose(rows, seen, num)
    tiles = 2 if any(row.target is not None for row in chosen) else 1
    card_width = tiles * (_TILE + _GAP) + _GAP
    most = (_WIDTH - 2 * _MARGIN + _GAP) // (card_width + _GAP)
    columns = -(-len(chosen) // max(1, -(-len(chosen) // most))) or most  # lines as equal as possible
    cards = [_card(row, seen, root, card_width) for row in chosen]
    heights = [max(card.height for card in cards[at : at + columns]) for at in range(0, len(cards), columns)]
    size = (
        2 * _MARGIN + columns * (card_width + _GAP) - _GAP,
        _HEADER + sum(height + _GAP for height in heights or [60]) + _MARGIN,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), cut(title, 24, size[0] - 2 * _MARGIN), _INK, font(24))
    draw.text((_MARGIN, 54), subtitle, _GREY, font(14))
    for at, card in enumerate(cards):
        line, column = divmod(at, columns)
        corner = (
            _MARGIN + column * (card_width + _GAP),
            _HEADER + sum(height + _GAP for height in heights[:line]),
        )
        box = (*corner, corner[0] + card_width - 1, corner[1] + heights[line] - 1)
        draw.rectangle(box, _CARD)
        sheet.paste(card, corner)
        if row_problem(chosen[at], seen):
            draw.rectangle(box, None, _RED, 2)
    if not cards:
        draw.text((_MARGIN, _HEADER + 20), "no rows", _GREY, font(16))
    save_image(sheet, path)


def choose(rows: Sequence[Row], seen: Mapping[File, Seen], num: int) -> list[Row]:
    """Rows to show: unusable ones first (at most a third of the sheet), then rows of as many subjects as fit."""
    bad = [row for row in rows if row_problem(row, seen)]
    shown = _spread(bad, max(1, num // 3)) if bad else []
    fine = [row for row in rows if not row_problem(row, seen)]
    room = num - len(shown)
    # One row per subject in each round; each subject starts at another of its prompts.
    groups = _spread(groups_of(fine, "individual"), room)
    turned = [group[at % len(group) :] + group[: at % len(group)] for at, group in enumerate(groups)]
    turns = [index for turn in zip_longest(*(_spread(group, room) for group in turned)) for index in turn]
    picked = sorted([index for index in turns if index is not None][:room])
    return shown + [fine[index] for index in picked]


def _spread(items: Sequence[T], num: int) -> list[T]:
    """At most ``num`` items, evenly spaced, including the first."""
    if len(items) <= num:
        return list(items)
    return [items[at * len(items) // num] for at in range(num)]


def _card(row: Row, seen: Mapping[File, Seen], root: Path, width: int) -> Image.Image:
    problem = row_problem(row, seen)
    colour, text = (_RED, problem) if problem else (_INK, row.prompt)
    lines = fold(text, 15, width - 2 * _GAP, most=_TEXT_LINES)
    card = Image.new("RGB", (width, _TILE + 2 * _GAP + _LINE * (len(lines) + 1) + _GAP), _CARD)
    draw = ImageDraw.Draw(card)
    masks = dict(row.pairs())
    card.paste(_references(row, seen, root, masks), (_GAP, _GAP))
    _label(draw, _GAP, "reference" if len(row.references) == 1 else f"{len(row.references)} references")
    if row.target is not None:
        card.paste(_tile(row.target, masks.get(row.target), seen, root, _TILE), (2 * _GAP + _TILE, _GAP))
        _label(draw, 2 * _GAP + _TILE, "target")
    top = _TILE + 2 * _GAP
    head = row.id if not row.subject else f"{row.id}  ·  {row.subject}"
    draw.text((_GAP, top), cut(head, 13, width - 2 * _GAP), _GREY, font(13))
    for number, line in enumerate(lines, start=1):
        draw.text((_GAP, top + _LINE * number), line, colour, font(15))
    return card


def _references(row: Row, seen: Mapping[File, Seen], root: Path, masks: Mapping[str, str]) -> Image.Image:
    """Tile of the references: one fills it, up to four share it."""
    side = _TILE if len(row.references) == 1 else _TILE // 2
    tile = Image.new("RGB", (_TILE, _TILE), _EMPTY)
    for at, name in enumerate(row.references[:4]):
        tile.paste(_tile(name, masks.get(name), seen, root, side), (at % 2 * side, at // 2 * side))
    return tile


def _tile(name: str, mask: str | None, seen: Mapping[File, Seen], root: Path, side: int) -> Image.Image:
    """A whole picture fitted into a square, its background dimmed if there is a mask."""
    tile = Image.new("RGB", (side, side), _EMPTY)
    if seen[name, False].problem:
        draw = ImageDraw.Draw(tile)
        draw.line((0, 0, side, side), _RED, 2)
        draw.line((0, side, side, 0), _RED, 2)
        return tile
    image = load_image(root / name)
    if mask is not None and not seen[mask, True].problem and same_shape(seen[mask, True].size, image.size):
        image = _dimmed(image, fit_mask(load_mask(root / mask), image.size))
    small = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
    tile.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return tile


def _dimmed(image: Image.Image, mask: Image.Image) -> Image.Image:
    faded = Image.blend(ImageOps.grayscale(image).convert("RGB"), Image.new("RGB", image.size, "white"), 0.6)
    inside = mask.point(lambda value: 255 if value > 127 else 0)
    reach = max(3, 2 * (max(image.size) // 200) + 1)
    edge = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(reach)), inside)
    shown = Image.composite(image, faded, inside)
    shown.paste("#e0218a", mask=edge)
    return shown


def _label(draw: ImageDraw.ImageDraw, left: int, text: str) -> None:
    at = (left + 6, _GAP + 5)
    box = draw.textbbox(at, text, font(11))
    draw.rectangle((left, _GAP, box[2] + 6, _GAP + 20), _INK)
    draw.text(at, text, _CARD, font(11))
