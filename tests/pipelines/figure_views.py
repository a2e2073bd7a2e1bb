"""Views of a drawing for tests: its texts, whether they are whole and readable, and its lines by color."""

from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipelines.reporting.drawing import chart_style


def visible_texts(figure: Figure) -> list[Text]:
    """Return the texts that a reader sees."""
    with chart_style():
        figure.draw_without_rendering()
        return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in visible_texts(figure)]


def cut_off(figure: Figure) -> list[str]:
    """Return the texts that are not whole on the canvas."""
    canvas = figure.bbox
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in visible_texts(figure)]
    return [t for t, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > canvas.x1 or b.y1 > canvas.y1]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts that overlap by more than a pixel."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in visible_texts(figure)]
    return [(a, b) for (a, p), (b, q) in combinations(boxes, 2) if _shared(p, q) > 1]


def _shared(p: Any, q: Any) -> float:
    return min(min(p.x1, q.x1) - max(p.x0, q.x0), min(p.y1, q.y1) - max(p.y0, q.y0))


def points(axes: Axes, color: str, *, at_least: int = 2) -> list[list[tuple[float, float]]]:
    """Return the points of the lines of a color."""
    lines = [line for line in axes.lines if line.get_color() == color]
    found = [[(float(x), float(y)) for x, y in line.get_xydata()] for line in lines]
    return [line for line in found if len(line) >= at_least]


def ticks(axis: Any) -> list[tuple[float, str]]:
    """Return the tick places of an axis and their labels."""
    return [
        (float(place), label.get_text())
        for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    ]
