"""The grid of a search as one panel per metric, alpha down and beta across; each cell shows its value and source."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.reporting import DPI, annotate, blank_figure, chart_style, hint, printable, width_of
from pipelines.tune.drawings.trial_marks import COLORS
from pipelines.tune.search_formats import brief, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.text import Annotation

TILE = (84.0, 44.0)  # pixels, at least
BETAS, LINE, END = (
    41.0,
    18.0,
    18.0,
)  # pixels: beta and its values, a line of a panel's name, other margins
SHADE = 0.7  # of the full color at a share of 1, so that text on it stays readable
MIN_LETTERS, LETTERS_PER_TILE = 48, 9  # letters of a panel's name in one line, at least and per tile
MARK_SIZE, TICK_SIZE = 10, 11  # font sizes in pixels
LETTER = 0.64  # the width of a digit in font sizes


@dataclass(frozen=True)
class Tile:
    """One cell. value: its share, None if it has none. kind: how it is drawn. mark: the source of its value."""

    alpha: float
    beta: float
    value: float | None
    kind: str
    mark: str
    hint: str
    is_picked: bool


@dataclass(frozen=True)
class HeatPanel:
    """One metric for all cells."""

    name: str
    tiles: Sequence[Tile]


@chart_style()
def heat_map_chart(panels: Sequence[HeatPanel], *, panels_per_line: int = 2) -> "Figure":
    """Draw panels of equal size, in percent; stronger shading means a higher value."""
    alphas = sorted({tile.alpha for tile in panels[0].tiles})
    betas = sorted({tile.beta for tile in panels[0].tiles})
    figure, first = blank_figure(*TILE)
    others = [figure.add_axes((0.0, 0.0, 1.0, 1.0), frameon=False) for _ in panels[1:]]
    names = []
    for axes, panel in zip([first, *others], panels, strict=True):
        _scales(axes, alphas, betas)
        for tile in panel.tiles:
            _tile(axes, tile, betas.index(tile.beta), alphas.index(tile.alpha))
        names.append(_name(axes, panel.name, max(MIN_LETTERS, len(betas) * LETTERS_PER_TILE)))
    tile_width = max(TILE[0], 8 + LETTER * MARK_SIZE * max(len(tile.mark) for panel in panels for tile in panel.tiles))
    left = 12 + LETTER * TICK_SIZE * max(len("alpha"), *(len(brief(alpha)) for alpha in alphas))
    lines = max(name.get_text().count("\n") + 1 for name in names)
    box = (left, BETAS + LINE * lines, len(betas) * tile_width, len(alphas) * TILE[1])
    width = left + max(box[2], *(width_of(name) for name in names)) + END
    _place(figure, box, width, panels_per_line)
    return figure


def _place(figure: "Figure", box: tuple[float, float, float, float], width: float, per_line: int) -> None:
    """Size the figure and place its panels in rows. box: left, top, width and height of the tiles in a panel."""
    left, top, inner_width, inner_height = box
    height = top + inner_height + END
    total_width, total_height = width * min(per_line, len(figure.axes)), height * math.ceil(len(figure.axes) / per_line)
    figure.set_size_inches(total_width / DPI, total_height / DPI)
    for i, axes in enumerate(figure.axes):
        x, y = width * (i % per_line) + left, total_height - height * (i // per_line) - top - inner_height
        axes.set_position((x / total_width, y / total_height, inner_width / total_width, inner_height / total_height))


def _scales(axes: "Axes", alphas: Sequence[float], betas: Sequence[float]) -> None:
    axes.set(xlim=(0, len(betas)), ylim=(len(alphas), 0))
    axes.xaxis.tick_top()
    axes.set_xticks([i + 0.5 for i in range(len(betas))], [brief(beta) for beta in betas])
    axes.set_yticks([i + 0.5 for i in range(len(alphas))], [brief(alpha) for alpha in alphas])
    axes.tick_params(top=False)
    axes.tick_params("y", pad=10)
    axes.tick_params("x", pad=4)
    style: dict[str, Any] = {"color": COLORS["soft"], "size": TICK_SIZE}
    annotate(axes, "beta", (0.0, 1.0), (0.0, 23.0), **style)
    annotate(axes, "alpha", (0.0, 1.0), (-10.0, 7.0), ha="right", **style)


def _tile(axes: "Axes", tile: Tile, column: int, line: int) -> None:
    has_value = tile.value is not None
    shade = {"fc": COLORS["heat"], "alpha": SHADE * (tile.value or 0.0)} if has_value else {"fc": COLORS["grid"]}
    hint(_frame(axes, column, line, 1, lw=0, **shade), tile.hint)
    if tile.kind == "trained":
        _frame(axes, column, line, 2, fc="none", ec=COLORS["rule"], lw=1.4)
    if tile.is_picked:
        _frame(axes, column, line, 1, fc="none", ec=COLORS["text"], lw=3, zorder=1.5)
    weight = 700 if tile.kind == "trained" else 400
    axes.text(column + 0.5, line + 0.43, percent(tile.value), ha="center", size=13, weight=weight)
    axes.text(column + 0.5, line + 0.77, tile.mark, ha="center", size=MARK_SIZE, alpha=0.78)


def _frame(axes: "Axes", column: int, line: int, inset: float, **style: Any) -> "Patch":
    """Draw a rectangle `inset` pixels inside a cell."""
    from matplotlib.patches import Rectangle

    dx, dy = inset / TILE[0], inset / TILE[1]
    return axes.add_patch(Rectangle((column + dx, line + dy), 1 - 2 * dx, 1 - 2 * dy, **style))


def _name(axes: "Axes", name: str, letters: int) -> "Annotation":
    """Write a panel's name above its tiles, wrapped at `letters` letters."""
    text = "\n".join(textwrap.wrap(printable(name), letters))
    return annotate(axes, text, (0.0, 1.0), (0.0, BETAS), va="bottom", size=13, weight=700)
