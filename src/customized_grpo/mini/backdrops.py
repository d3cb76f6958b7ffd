"""Backdrops of the miniature world: eight places as functions of x and y in [-1, 1] (y downwards)."""

from functools import lru_cache
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from customized_grpo.mini.world import PLACES

_HORIZON: Final = 0.22


def ramp(distance: Tensor) -> Tensor:
    """Coverage of a shape from its signed distance in pixels: 1 inside, 0 outside, with a one-pixel ramp."""
    return (0.5 - distance).clamp(0, 1)


def hsv(hue: Float[Tensor, "n"], saturation: Float[Tensor, "n"], value: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
    """HSV in [0, 1] to RGB in [0, 1]."""
    offset = torch.tensor([5.0, 3.0, 1.0])
    k = (offset + hue[:, None] * 6) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _rgb(code: str) -> Tensor:
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])[:, None, None]


def _mix(image: Tensor, coverage: Tensor, code: str) -> Tensor:
    return image + coverage * (_rgb(code) - image)


def _gradient(top: str, bottom: str, t: Tensor) -> Tensor:
    return _rgb(top) + (_rgb(bottom) - _rgb(top)) * t.clamp(0, 1)


def _disc(x: Tensor, y: Tensor, cx: float, cy: float, radius: float, pixel: float) -> Tensor:
    return ramp((torch.hypot(x - cx, y - cy) - radius) / pixel)


def _cloud(image: Tensor, x: Tensor, y: Tensor, cx: float, cy: float, pixel: float) -> Tensor:
    for dx, dy, r in ((-0.16, 0.03, 0.10), (0.0, -0.02, 0.15), (0.17, 0.03, 0.11)):
        image = _mix(image, _disc(x, y, cx + dx, cy + dy, r, pixel), "FFFFFF")
    return image


def _beach(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("7FD0F7", "CDF0FB", (y + 1) / 1.0)
    image = _mix(image, _disc(x, y, 0.66, -0.66, 0.2, p), "FFE36B")
    image = _mix(image, ramp((0.0 - y) / p), "2FA6D6")
    image = _mix(image, ramp((0.26 + 0.03 * torch.sin(7 * x) - y) / p), "FFFFFF")
    return _mix(image, ramp((0.33 + 0.03 * torch.sin(7 * x) - y) / p), "F3D9A0")


def _snow(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("A9BFD6", "DCE7F1", (y + 1) / 1.2)
    for cx, h in ((-0.8, 0.55), (-0.45, 0.4), (0.55, 0.45), (0.85, 0.6)):
        tree = torch.maximum((x - cx).abs() * 2.2 + (-y + 0.2 - h) * 1.0 + 0.0, y - 0.2) / 2.0
        image = _mix(image, ramp(tree / p), "5E8C86")
    image = _mix(image, ramp((0.16 + 0.05 * torch.sin(2.5 * x + 1) - y) / p), "F8FBFF")
    for cx, cy in ((-0.6, -0.75), (-0.15, -0.5), (0.3, -0.8), (0.7, -0.45), (-0.85, -0.35), (0.1, -0.15)):
        image = _mix(image, _disc(x, y, cx, cy, 0.045, p), "FFFFFF")
    return image


def _grass(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("6DB9F2", "C4E6FA", (y + 1) / 1.2)
    image = _cloud(image, x, y, -0.5, -0.62, p)
    image = _cloud(image, x, y, 0.6, -0.45, p)
    image = _mix(image, ramp((0.10 - 0.12 * torch.sin(2.2 * x + 0.6) - y) / p), "8CCB5E")
    return _mix(image, ramp((0.32 + 0.06 * torch.sin(2.8 * x - 0.8) - y) / p), "5FB146")


def _night(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("10123A", "2C2F6B", (y + 1) / 1.3)
    image = _mix(image, _disc(x, y, -0.62, -0.60, 0.2, p), "F6F0C2")
    image = _mix(image, _disc(x, y, -0.53, -0.66, 0.17, p), "191B47")
    for cx, cy in ((-0.2, -0.8), (0.2, -0.55), (0.55, -0.85), (0.8, -0.45), (-0.9, -0.2), (0.5, -0.15)):
        image = _mix(image, _disc(x, y, cx, cy, 0.04, p), "FFFFFF")
    return _mix(image, ramp((_HORIZON + 0.05 * torch.sin(2 * x) - y) / p), "1B2B33")


def _red_floor(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("F4E6CC", "E8D3B0", (y + 1) / 1.2)
    image = _mix(image, ramp(((x - 0.58).abs() - 0.24) / p) * ramp(((y + 0.5).abs() - 0.26) / p), "8A6A4A")
    image = _mix(image, ramp(((x - 0.58).abs() - 0.18) / p) * ramp(((y + 0.5).abs() - 0.20) / p), "A8DCF5")
    image = _mix(image, ramp((0.18 - y) / p), "FFFFFF")
    image = _mix(image, ramp((0.25 - y) / p), "C8342F")
    lines = (((x / (0.55 + 0.6 * (y - 0.25))) * 2.0 + 0.5) % 1.0 - 0.5).abs() / 2.0 * (0.55 + 0.6 * (y - 0.25))
    return _mix(image, ramp((lines - 0.015) / p) * ramp((0.25 - y) / p), "A3231F")


def _water(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("B5E8F5", "E6FAFC", (y + 1) / 0.6)
    water = _gradient("37B3D9", "0E6FAE", (y + 0.3) / 1.3)
    sea = ramp((-0.32 + 0.04 * torch.sin(9 * x) - y) / p)
    image = image + sea * (water - image)
    for row, phase in ((-0.05, 0.0), (0.25, 1.6), (0.55, 0.4), (0.85, 2.1)):
        wave = (y - row - 0.04 * torch.sin(8 * x + phase)).abs() - 0.025
        image = _mix(image, ramp(wave / p) * 0.75, "9FE3F3")
    return image


def _city(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("B9C3CC", "DADFE3", (y + 1) / 1.2)
    for cx, half, top, code in (
        (-0.78, 0.20, -0.55, "6C7684"),
        (-0.36, 0.19, -0.80, "8A7F86"),
        (0.06, 0.20, -0.35, "75808F"),
        (0.46, 0.17, -0.70, "7F747C"),
        (0.84, 0.18, -0.45, "68727F"),
    ):
        block = torch.maximum((x - cx).abs() - half, top - y)
        image = _mix(image, ramp(block / p), code)
        wx = ((((x - cx) / half) * 1.5 + 1.5) % 1.0 - 0.5).abs() - 0.24
        wy = ((y - top) / 0.2 % 1.0 - 0.5).abs() - 0.24
        window = torch.maximum(wx * half / 1.5, wy * 0.2)
        image = _mix(image, ramp(window / p) * ramp((block + 0.05) / p), "F7E3A1")
    image = _mix(image, ramp((0.24 - y) / p), "9AA0A6")
    image = _mix(image, ramp((0.34 - y) / p), "4A4D55")
    dash = torch.maximum((y - 0.66).abs() - 0.03, ((x * 1.6 + 0.5) % 1.0 - 0.5).abs() / 1.6 - 0.17)
    return _mix(image, ramp(dash / p), "E9E6D8")


def _sunset(x: Tensor, y: Tensor, p: float) -> Tensor:
    image = _gradient("6B3FA0", "FF7F5A", (y + 1) / 0.7)
    low = _gradient("FF7F5A", "FFD27A", (y + 0.3) / 0.5)
    image = torch.where(y[None] > -0.3, low, image)
    image = _mix(image, _disc(x, y, 0.0, 0.12, 0.42, p), "FFF0A8")
    image = _mix(image, ramp((0.16 - 0.10 * torch.cos(3.5 * x + 0.7) - y) / p), "8A3B6B")
    return _mix(image, ramp((_HORIZON + 0.08 - y) / p), "5A2A55")


_DRAW: Final = {
    "beach": _beach,
    "snow": _snow,
    "grass": _grass,
    "night": _night,
    "red floor": _red_floor,
    "water": _water,
    "city": _city,
    "sunset": _sunset,
}


@lru_cache(maxsize=4)
def _all_places(side: int) -> Float[Tensor, "places 3 h w"]:
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pixel = 2 / side
    return torch.stack([_DRAW[name](x, y, pixel).expand(3, side, side) for name in PLACES]).clamp(0, 1)


def backdrop(place: Int[Tensor, "n"], side: int) -> Float[Tensor, "n 3 h w"]:
    """Backdrops without subjects, in [0, 1]."""
    return _all_places(side)[place]
