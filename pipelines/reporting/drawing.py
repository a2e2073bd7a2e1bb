"""Shared parts of all charts: a canvas measured in CSS pixels, a style, and room for every label."""

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text

DPI = 72  # at which one point is one pixel
INK = {"text": "#15181d", "soft": "#59616e", "grid": "#e9ecf0"}  # the colors of text and lines
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.labelcolor": INK["soft"],
    "axes.labelsize": 11,
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "figure.dpi": DPI,
    "figure.frameon": False,
    "font.family": "DejaVu Sans",  # wider than the fonts of browsers, so text that fits here fits there
    "font.size": 12,
    "lines.scale_dashes": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "chart",
    "text.color": INK["text"],
    "text.parse_math": False,  # a `$` in a user's label is a `$`
    "xtick.bottom": False,
    "xtick.labelcolor": INK["soft"],
    "xtick.labelsize": 11,
    "ytick.labelcolor": INK["soft"],
    "ytick.labelsize": 11,
    "ytick.left": False,
}
HINT = "hint: "  # prefix of the id of a mark that has a tooltip
LABEL_DISTANCE = 15.0
LABEL_LENGTH = 13  # characters that fit beside a bar
EXTRA_WIDTH = 0.45  # of the font's size: how much wider an East Asian letter is than the box measured for it


@contextmanager
def chart_style() -> Iterator[None]:
    """Draw in the style of the charts, regardless of the user's matplotlib settings."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font may have the glyph
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def blank_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return a figure of this size in pixels, filled by axes without a frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI))
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0), frameon=False)


def hint(artist: "Artist", text: str) -> None:
    """Give a mark a tooltip."""
    artist.set_gid(HINT + printable(text))


def printable(text: str) -> str:
    """Return a text on one line, without characters that XML cannot hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """Cut a label to `length` letters; letters of double width count twice."""
    text = printable(text)
    if len(text) + wide_letters(text) <= length:
        return text
    while text and len(text) + wide_letters(text) > length - 1:
        text = text[:-1]
    return text + "\u2026"


def short_apart(texts: Sequence[str], length: int = LABEL_LENGTH) -> list[str]:
    """Cut the labels of one chart; labels that would look the same keep their ends too."""
    labels = [short(text, length) for text in texts]
    return [
        _ends(text, length) if labels.count(label) > 1 else label for text, label in zip(texts, labels, strict=True)
    ]


def _ends(text: str, length: int) -> str:
    """Cut a label in the middle."""
    text, half = printable(text), (length + 1) // 2
    if len(text) + wide_letters(text) <= length:
        return text
    return short(text, half) + short(text[::-1], half)[-2::-1]


def wide_letters(text: str) -> int:
    return sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def width_of(text: "Text") -> float:
    """Return the width of a text in pixels, without its leader line."""
    from matplotlib.text import Text

    return Text.get_window_extent(text).width + _unmeasured(text)


def _unmeasured(text: "Text") -> float:
    return EXTRA_WIDTH * float(text.get_fontsize()) * wide_letters(text.get_text())


def cut_to(text: "Text", width: float) -> None:
    """Shorten a text until it is at most `width` pixels wide."""
    text.set_text(short(text.get_text(), 80))
    while width_of(text) > width and len(text.get_text()) > 1:
        text.set_text(short(text.get_text().rstrip("\u2026"), len(text.get_text()) - 1))


def fit(axes: "Axes", *, pad: float = 2.0, above: float = 0.0) -> None:
    """Fit the axes and their labels into the figure. above: pixels kept free over them."""
    inner = axes.get_window_extent()
    outer = axes.get_tightbbox() or inner
    width, height = axes.figure.bbox.size
    left, right = (
        inner.x0 - outer.x0 + pad + _missing_width(axes, "right"),
        outer.x1 - inner.x1 + pad + _missing_width(axes, "left"),
    )
    bottom, top = inner.y0 - outer.y0 + pad, outer.y1 - inner.y1 + max(pad, above)
    axes.set_position((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))


def _missing_width(axes: "Axes", alignment: str) -> float:
    """Return the largest unmeasured width, in pixels, among the texts with this alignment."""
    from matplotlib.text import Text

    texts = [
        text for text in axes.findobj(Text) if text.get_horizontalalignment() == alignment and text.get_in_layout()
    ]
    return max(map(_unmeasured, texts), default=0.0)


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that span `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    values = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high if high > low else low + 0.1)
    return [round(float(tick), 12) for tick in values]


def annotate(
    axes: "Axes",
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float],
    *,
    by_value: bool = False,
    **style: Any,
) -> "Annotation":
    """Write a text at an offset in pixels from a place in axes fractions; by_value: y is a data value."""
    coords = axes.get_yaxis_transform() if by_value else "axes fraction"
    return axes.annotate(
        "\n".join(map(printable, text.split("\n"))),
        place,
        offset,
        xycoords=coords,
        textcoords="offset points",
        annotation_clip=False,
        **style,
    )


def fit_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]]) -> None:
    """Fit the axes and label lines at their right ends without overlap. ends: y, name and color."""
    texts = [
        annotate(
            axes, printable(name), (1.0, y), (8.0, 0.0), by_value=True, color=color, weight=700, va="center_baseline"
        )
        for y, name, color in ends
    ]
    fit(axes, above=10.0)
    ys = [float(axes.transData.transform((0.0, y))[1]) for y, *_ in ends]
    low, high = axes.get_window_extent().intervaly
    for text, y, new_y in zip(texts, ys, labels_apart(ys, low=low, high=high), strict=True):
        text.set_position((8.0, new_y - y))


def labels_apart(places: Sequence[float], *, low: float, high: float, distance: float = LABEL_DISTANCE) -> list[float]:
    """Move labels apart, keeping their order: up first, then back down from `high`, and not below `low` if they fit."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    positions = [max(place, low) for place in places]
    for below, i in pairwise(order):
        positions[i] = max(positions[i], positions[below] + distance)
    limit = high
    for i in reversed(order):
        positions[i] = min(positions[i], limit)
        limit = positions[i] - distance
    return positions
