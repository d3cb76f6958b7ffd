"""Figures as inline SVG whose colours are the page's CSS variables, so that one drawing serves light and dark.

matplotlib draws with placeholder colours; ``_to_inline`` puts ``var(--...)`` in their place, removes external
references, and makes the ids of each figure unique.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from customized_grpo.evaluation.statistics import Interval

INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES: Final = tuple(f"#0102{i:02x}" for i in range(8))
"""Placeholder colours of the runs, in order; the page's ``--s0`` to ``--s7``."""
_VARIABLES: Final = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    c: f"s{i}" for i, c in enumerate(SERIES)
}
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}

LineStyle = Literal["-", "--", ":", "-."]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve; ``bounds`` draw its intervals where finite, ``faint`` the raw values under a smoothed one."""

    label: str
    x: Sequence[int]
    y: Sequence[float]
    colour: int = 0
    style: LineStyle = "-"
    bounds: Sequence[Interval] = ()
    faint: Sequence[float] = ()
    markers: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Path2D:
    """A run's path in the identity-versus-prompt plane: points (identity, prompt) in order.

    Attributes:
        marks: a label of each point, of a path whose points are alike, without a beginning; empty: it has one.
    """

    label: str
    points: Sequence[tuple[Interval, Interval]]
    colour: int
    marks: Sequence[str] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Point2D:
    """A baseline in the plane; a vertical line if it has no y."""

    label: str
    x: Interval
    y: Interval | None
    published: bool = False


@final
@dataclass(frozen=True, slots=True)
class FigureView:
    """A figure of the page. ``svg`` is safe markup made here; all other fields are plain text."""

    title: str
    svg: str
    caption: str
    alt: str


def smooth(values: Sequence[float]) -> list[float]:
    """A centred running mean over a tenth of the curve; short curves stay as they are."""
    window = len(values) // 10
    if window < 2:
        return list(values)
    data = np.asarray(values, dtype=np.float64)
    known = np.isfinite(data)
    kernel = np.ones(2 * (window // 2) + 1)
    counts = np.convolve(known, kernel, mode="same")
    sums = np.convolve(np.where(known, data, 0.0), kernel, mode="same")
    return [float(v) for v in np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)]


def lines(
    name: str,
    curves: Sequence[Line],
    *,
    x: str,
    y: str,
    zero: bool = False,
    log: bool = False,
    legend: bool = False,
) -> str:
    """Curves over one x axis as an SVG element.

    Args:
        name: prefix of the figure's ids, unique on the page.
        zero: draw the zero line, for quantities with a sign.
        log: a logarithmic y axis.
        legend: name the curves inside; not needed for runs, whose colours the page names once.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, axes = _canvas(3.55, 2.35)
        for curve in curves:
            colour = SERIES[curve.colour % len(SERIES)]
            if curve.faint:
                axes.plot(curve.x, curve.faint, color=colour, linewidth=0.8, alpha=0.25)
            if curve.bounds:
                ends = zip(*((one.low, one.high) for one in curve.bounds), strict=True)
                low, high = (np.where(np.isfinite(end), end, curve.y) for end in ends)
                axes.fill_between(
                    curve.x, low, high, color=colour, alpha=0.16 if len(curves) == 1 else 0.1, linewidth=0
                )
            marker = "o" if curve.markers or len(curve.x) == 1 else ""
            axes.plot(
                curve.x,
                curve.y,
                color=colour,
                linestyle=curve.style,
                linewidth=1.7,
                label=curve.label,
                marker=marker,
                markersize=3.4,
                markeredgewidth=0,
            )
        if zero:
            axes.axhline(0.0, color=MUTED, linewidth=0.8)
        if log:
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _finish(axes, x, y, legend=legend)
        return _to_inline(figure, name)


def plane(name: str, paths: Sequence[Path2D], points: Sequence[Point2D], *, x: str, y: str) -> str:
    """The identity-versus-prompt plane: the base hollow, the last point filled, bars for 95 % intervals."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, axes = _canvas(4.9, 3.5)
        for path in paths:
            colour = SERIES[path.colour % len(SERIES)]
            identity, prompt = ([value.mean for value in values] for values in zip(*path.points, strict=True))
            axes.plot(identity, prompt, color=colour, linewidth=1.4, alpha=0.8, zorder=2)
            if path.marks:
                _marked(axes, path, colour)
                continue
            axes.scatter(identity[1:-1], prompt[1:-1], s=9, color=colour, alpha=0.8, linewidths=0, zorder=3)
            for i in sorted({0, len(path.points) - 1}):
                _bars(axes, *path.points[i], colour)
            if len(path.points) > 1:
                _arrow(axes, (identity[-2], prompt[-2]), (identity[-1], prompt[-1]), colour)
            axes.scatter(identity[:1], prompt[:1], s=46, facecolors=PAPER, edgecolors=colour, linewidths=1.6, zorder=4)
            axes.scatter(identity[-1:], prompt[-1:], s=52, color=colour, linewidths=0, zorder=5, label=path.label)
        for point in points:
            _baseline(axes, point)
        axes.margins(0.09)
        middle = sum(axes.get_xlim()) / 2.0
        for point in points:  # place the label towards the middle, so that it stays inside
            offset, side = ((7, 5), "left") if point.x.mean < middle else ((-7, 5), "right")
            height = axes.get_ylim()[1] if point.y is None else point.y.mean  # a line has its label at its top
            axes.annotate(
                point.label,
                (point.x.mean, height),
                offset,
                textcoords="offset points",
                ha=side,
                fontsize=7.0 if point.published else 8.5,
                color=MUTED if point.published else INK,
            )
        _finish(axes, x, y, legend=False)
        axes.grid(visible=True, axis="both")
        return _to_inline(figure, name)


def _marked(axes: Axes, path: Path2D, colour: str) -> None:
    for mark, (x, y) in zip(path.marks, path.points, strict=True):
        _bars(axes, x, y, colour)
        axes.scatter([x.mean], [y.mean], s=40, color=colour, linewidths=0, zorder=5)
        axes.annotate(mark, (x.mean, y.mean), (7, 5), textcoords="offset points", fontsize=8.5, color=INK)


def _baseline(axes: Axes, point: Point2D) -> None:
    if point.y is None:
        axes.axvline(point.x.mean, color=MUTED, linewidth=1.0, linestyle="--", zorder=1)
        return
    if not point.published:
        _bars(axes, point.x, point.y, MUTED)
    marker, size = ("s", 16) if point.published else ("X", 44)
    axes.scatter([point.x.mean], [point.y.mean], s=size, marker=marker, color=MUTED, linewidths=0, zorder=4)


def _bars(axes: Axes, x: Interval, y: Interval, colour: str) -> None:
    axes.plot((x.low, x.high), [y.mean] * 2, color=colour, linewidth=1.0, alpha=0.65, zorder=2)
    axes.plot([x.mean] * 2, (y.low, y.high), color=colour, linewidth=1.0, alpha=0.65, zorder=2)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    if all(map(math.isfinite, (*start, *end))) and start != end:
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkB": 3.4, "mutation_scale": 9}
        axes.annotate("", xy=end, xytext=start, arrowprops=style, zorder=4)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _finish(axes: Axes, x: str, y: str, *, legend: bool) -> None:
    axes.grid(visible=False, axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x)
    # The y label stands horizontally above the axis.
    axes.set_title(y, loc="left", fontsize=9.0, color=INK, pad=6)
    if legend:
        axes.legend(frameon=False, fontsize=8.5, handlelength=1.6, borderaxespad=0.2, labelcolor=INK)


def _to_inline(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    # Without metadata matplotlib still writes an RDF block full of addresses; it is cut below.
    no_metadata: dict[str, Any] = {"Date": None, "Creator": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(?<=\s)id="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:)?href="#([^"]*)"', rf'href="#{name}-\2"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg viewBox="\1" aria-hidden="true" focusable="false">',
        svg,
        count=1,
    )
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg.strip()
