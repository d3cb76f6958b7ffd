"""Renderer of the miniature world: 64 x 64 RGB by signed distance fields, vectorised over n pictures, in torch.

Coordinates run from -1 to 1, x to the right and y downwards; (u, v) are the same in units of the body's radius, around
its centre. Distances are negative inside. Edges are anti-aliased over one pixel.
"""

import math
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from customized_grpo.mini.backdrops import backdrop, hsv, ramp
from customized_grpo.mini.world import CLASSES, PATTERNS, Scenes, Subjects

SIDE: Final = 64
_CENTRE_X: Final = torch.tensor([-0.40, 0.0, 0.40])
_RADIUS: Final = torch.tensor([0.44, 0.64, 0.54])
_GROUND: Final = 0.84
_INK: Final = torch.tensor([0.13, 0.11, 0.16])
_HAT_COLOURS: Final = torch.tensor([[0.0, 0.0, 0.0], [0.90, 0.16, 0.18], [0.16, 0.36, 0.92], [0.99, 0.82, 0.12]])
# Positions on each body shape, in radii: x and y of an ear, y of the hat's brim.
_EAR_X: Final = torch.tensor([0.58, 0.62, 0.42, 0.50, 0.52, 0.46])
_EAR_Y: Final = torch.tensor([-0.78, -0.78, -0.42, -0.52, -0.48, -0.82])
_HAT_Y: Final = torch.tensor([-0.80, -0.76, -0.62, -0.70, -0.66, -0.86])
_FOOT_X: Final = torch.tensor([0.40, 0.45, 0.50, 0.30, 0.50, 0.34])
_FACE_Y: Final = torch.tensor([-0.10, -0.10, 0.22, -0.05, 0.02, -0.20])


def _box(u: Tensor, v: Tensor, a: float, b: float, corner: float) -> Tensor:
    """A rounded rectangle of half-sides a, b."""
    qu, qv = u.abs() - (a - corner), v.abs() - (b - corner)
    return torch.hypot(qu.clamp_min(0), qv.clamp_min(0)) + torch.maximum(qu, qv).clamp_max(0) - corner


def _circle(u: Tensor, v: Tensor, radius: float) -> Tensor:
    return torch.hypot(u, v) - radius


def _triangle(u: Tensor, v: Tensor, half_base: float, apex: float, base: float) -> Tensor:
    """An upright isosceles triangle between v = apex and v = base (bounds of the distance)."""
    height = base - apex
    slope = math.hypot(half_base, height)
    side = (u.abs() * height - (v - apex) * half_base) / slope
    return torch.maximum(side, v - base)


def _star(u: Tensor, v: Tensor, outer: float, inner: float) -> Tensor:
    """A five-pointed star with one point up, by folding the plane into a tenth."""
    angle = torch.atan2(u, -v).abs()
    radius = torch.hypot(u, v)
    fold = (angle / (2 * math.pi / 5)).round() * (2 * math.pi / 5)
    folded = (angle - fold).abs()
    pu, pv = radius * folded.sin(), radius * folded.cos()
    # The edge runs from the tip (0, outer) to the notch at angle pi / 5.
    nu, nv = inner * math.sin(math.pi / 5), inner * math.cos(math.pi / 5)
    length = math.hypot(nu, outer - nv)
    return (pu * (outer - nv) + (pv - outer) * nu) / length


def _body(u: Tensor, v: Tensor, cls: Tensor) -> Float[Tensor, "n h w"]:
    """The body's distance, in radii."""
    shapes = (
        _circle(u, v * 1.03, 0.94),
        _box(u, v, 0.84, 0.84, 0.22),
        _triangle(u, v, 0.72, -0.72, 0.72) - 0.22,
        (u.abs() + v.abs() - 1.06) * 0.7071 - 0.12,
        _star(u, v - 0.06, 0.92, 0.52) - 0.16,
        _box(u, v, 0.64, 0.98, 0.60),
    )
    out = torch.zeros_like(u)
    for index, shape in enumerate(shapes):
        out = torch.where((cls == index)[:, None, None], shape, out)
    return out


def _markings(u: Tensor, v: Tensor, pattern: Tensor, pixel: Tensor) -> Float[Tensor, "n h w"]:
    """Coverage of the second colour on the body, in [0, 1]."""

    def stripes(t: Tensor) -> Tensor:
        return 0.17 - ((t / 0.72 + 0.5) % 1.0 - 0.5).abs() * 0.72

    du = ((u / 0.74 + 0.5) % 1.0 - 0.5) * 0.74
    dv = ((v / 0.74 + 0.5) % 1.0 - 0.5) * 0.74
    masks = {
        "hstripe": stripes(v),
        "vstripe": stripes(u),
        "dots": 0.22 - torch.hypot(du, dv),
        "half": v - 0.15,
        "ring": 0.16 - (torch.hypot(u, v - 0.05) - 0.58).abs(),
    }
    out = torch.full_like(u, -1.0)
    for name, mask in masks.items():
        out = torch.where((pattern == PATTERNS.index(name))[:, None, None], mask, out)
    return ramp(-out / pixel)


def _ears(u: Tensor, v: Tensor, cls: Tensor, ears: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the ears and of their inner part (second colour), in radii."""
    eu, ev = u.abs() - _EAR_X[cls][:, None, None], v - _EAR_Y[cls][:, None, None]
    far = torch.full_like(u, 9.0)
    pointed = _triangle(eu - 0.04, ev, 0.30, -0.42, 0.30) - 0.05
    round_ = _circle(eu, ev - 0.02, 0.33)
    stalk = _box(eu - 0.05 + 0.12 * (ev + 0.1), ev + 0.10, 0.065, 0.30, 0.06)
    bulb = _circle(eu - 0.09, ev + 0.42, 0.18)
    kinds = ((pointed, pointed + 0.13), (round_, round_ + 0.14), (torch.minimum(stalk, bulb), bulb + 0.02))
    outer, inner = far, far
    for index, (shape, inside) in enumerate(kinds, start=1):
        worn = (ears == index)[:, None, None]
        outer, inner = torch.where(worn, shape, outer), torch.where(worn, inside, inner)
    return outer, inner


def _paint(image: Tensor, coverage: Tensor, colour: Tensor) -> Tensor:
    """Blend `colour` ((n, 3) or (n, 3, h, w)) over `image` (n, 3, h, w) by `coverage` (n, h, w)."""
    if colour.ndim == 2:
        colour = colour[:, :, None, None]
    return image + coverage[:, None] * (colour - image)


def _face(image: Tensor, u: Tensor, v: Tensor, face: Tensor, pixel: Tensor) -> Tensor:
    """Eyes and a smile, by kind of face: two dots, two goggles, one big eye."""
    white, ink = torch.full((len(face), 3), 0.99), _INK.expand(len(face), 3)
    two = u.abs() - 0.30
    one = (face == 2)[:, None, None]
    goggles = (face == 1)[:, None, None]
    none = torch.full_like(u, 9.0)
    rim = torch.where(goggles, _circle(two, v, 0.275), torch.where(one, _circle(u, v, 0.42), none))
    ball = torch.where(goggles, _circle(two, v, 0.20), torch.where(one, _circle(u, v, 0.33), none))
    dots = _box(two, v, 0.12, 0.17, 0.12)
    pupil = torch.where(goggles, _circle(two + 0.03, v, 0.115), torch.where(one, _circle(u, v, 0.17), dots))
    image = _paint(image, ramp(rim / pixel), ink)
    image = _paint(image, ramp(ball / pixel), white)
    image = _paint(image, ramp(pupil / pixel), ink)
    glint = _circle(torch.where(one, u + 0.06, two + 0.04), v + 0.07, 0.06)
    image = _paint(image, ramp(glint / pixel) * 0.9, white)
    mouth = torch.maximum((torch.hypot(u, v - 0.34) - 0.20).abs() - 0.055, 0.40 - v)
    return _paint(image, ramp(mouth / pixel), ink)


def _hat(image: Tensor, u: Tensor, v: Tensor, cls: Tensor, hat: Tensor, pixel: Tensor) -> Tensor:
    """A top hat with a band, outlined."""
    hv = v - _HAT_Y[cls][:, None, None]
    worn = (hat > 0)[:, None, None].float()
    crown = _box(u, hv + 0.36, 0.34, 0.36, 0.07)
    brim = _box(u, hv, 0.62, 0.10, 0.08)
    whole = torch.minimum(crown, brim)
    colour = _HAT_COLOURS[hat]
    image = _paint(image, ramp((whole - 0.075) / pixel) * worn, colour * 0.42)
    image = _paint(image, ramp(whole / pixel) * worn, colour)
    band = torch.maximum(crown, (hv + 0.20).abs() - 0.07)
    return _paint(image, ramp(band / pixel) * worn, colour * 0.55)


def render(subjects: Subjects, scenes: Scenes) -> UInt8[Tensor, "n h w 3"]:
    """Pictures as uint8 RGB, channels last. The same input gives the same picture."""
    return _pixels(_critter(_place(subjects, scenes), subjects, scenes)).permute(0, 2, 3, 1).contiguous()


def render_with_masks(subjects: Subjects, scenes: Scenes) -> tuple[UInt8[Tensor, "n h w 3"], UInt8[Tensor, "n h w"]]:
    """What ``render`` gives, and masks: 255 on the critter and its hat, 0 on the place and the shadow."""
    place, black = _place(subjects, scenes), torch.zeros(len(subjects), 3, SIDE, SIDE)
    thrice = torch.arange(len(subjects)).repeat(3)  # one pass of many small steps costs less than three
    painted = _critter(torch.cat([place, black, black + 1]), subjects.take(thrice), scenes.take(thrice))
    picture, on_black, on_white = painted.chunk(3)
    hidden = 1 - (on_white - on_black)[:, 0]  # a layer hides the same share of any ground
    return _pixels(picture).permute(0, 2, 3, 1).contiguous(), _pixels(hidden)


def _pixels(values: Float[Tensor, "n *size"]) -> UInt8[Tensor, "n *size"]:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def _place(subjects: Subjects, scenes: Scenes) -> Float[Tensor, "n 3 h w"]:
    """The place, with the critter's shadow."""
    u, v, _ = _frame(subjects, scenes)
    shadow = torch.hypot(u / 0.95, (v - 1.03) / 0.16) - 1.0
    return backdrop(scenes.place, SIDE) * (1 - 0.33 * ramp(shadow * 1.5)[:, None])


def _frame(
    subjects: Subjects, scenes: Scenes
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"], Float[Tensor, "n 1 1"]]:
    """Coordinates of each pixel from the critter's centre, in radii, and the radius."""
    n = len(subjects)
    assert len(scenes) == n, f"{n} subjects but {len(scenes)} scenes"
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = (t.expand(n, SIDE, SIDE) for t in torch.meshgrid(axis, axis, indexing="ij"))
    radius = (_RADIUS[scenes.size] + 0.02 * scenes.jitter[:, 2])[:, None, None]
    cx = (_CENTRE_X[scenes.position] + 0.04 * scenes.jitter[:, 0])[:, None, None]
    cy = _GROUND + 0.03 * scenes.jitter[:, 1, None, None] - radius
    return (x - cx) / radius, (y - cy) / radius, radius


def _critter(image: Float[Tensor, "n 3 h w"], subjects: Subjects, scenes: Scenes) -> Float[Tensor, "n 3 h w"]:
    """The critter, painted over an image layer by layer."""
    n, cls = len(subjects), subjects.cls
    u, v, radius = _frame(subjects, scenes)
    pixel = (2 / SIDE) / radius  # one pixel, in radii

    body_colour = hsv(subjects.hue, torch.full((n,), 0.68), subjects.value)
    second = hsv(subjects.pattern_hue, torch.full((n,), 0.62), 1.5 - subjects.value)
    ink = body_colour * 0.42

    feet = torch.hypot((u.abs() - _FOOT_X[cls][:, None, None]) / 0.27, (v - 0.93) / 0.17) * 0.2 - 0.2
    image = _paint(image, ramp((feet - 0.06) / pixel), ink)
    image = _paint(image, ramp(feet / pixel), second)
    ears, inner = _ears(u, v, cls, subjects.ears)
    line = 0.075
    image = _paint(image, ramp((ears - line) / pixel), ink)
    image = _paint(image, ramp(ears / pixel), body_colour)
    image = _paint(image, ramp(inner / pixel), second)

    body = _body(u, v, cls)
    marks = _markings(u, v, subjects.pattern, pixel)
    skin = body_colour[:, :, None, None] + marks[:, None] * (second - body_colour)[:, :, None, None]
    light = (1.04 - 0.20 * (0.55 * u + 0.83 * v).clamp(-1, 1)).clamp(0.8, 1.2)[:, None]
    gloss = 0.30 * (1 - torch.hypot(u + 0.38, v + 0.48) / 0.42).clamp_min(0)[:, None]
    skin = (skin * light + gloss).clamp(0, 1)
    image = _paint(image, ramp(body / pixel), ink)
    image = _paint(image, ramp((body + line) / pixel), skin)
    image = _face(image, u, v - _FACE_Y[cls][:, None, None], subjects.face, pixel)
    return _hat(image, u, v, cls, scenes.hat, pixel)


assert len(_EAR_X) == len(CLASSES)
