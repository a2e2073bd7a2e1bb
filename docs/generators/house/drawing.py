"""The house: rooms as boxes on floors, from the import graph. Text stays text; lines and text take the page's color."""

from collections.abc import Hashable, Iterator, Mapping
from html import escape
from itertools import pairwise

import networkx as nx

from benchmarks.house import children, import_graph
from docs.generators.api_pages import page_path, room_docstring
from docs.generators.house.layers import floors_of, ordered, with_stops
from docs.generators.public_names import rooms
from docs.generators.source_text import first_sentence

PARTS = ("pipelines", "pft_core")  # from the roof down
JOBS = ("pipelines.cli", "pipelines.quickstart")  # modules that are shown beside the rooms
WIDTH, BOX, HEIGHT, STEP, HEAD, STOP = 960, 104, 34, 74, 30, 18


def house() -> str:
    """Return the drawing of all rooms as SVG in a figure."""
    parts, top = [], 0
    for part in PARTS:
        drawn, height = floors(part, top)
        parts.append(drawn)
        top += height
    legend = "An arrow points to what a room imports; one that follows from two others is left out."
    return "\n".join(
        [
            '<figure class="diagram">',
            f'<svg viewBox="0 0 {WIDTH} {top}" style="min-width: 44em" role="img" aria-label="Rooms by floors" '
            'font-size="13" fill="currentColor" stroke="none">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>',
            *parts,
            "</svg>",
            f"<figcaption>{legend}</figcaption>",
            "</figure>",
        ]
    )


def floors(part: str, top: int) -> tuple[str, int]:
    """Return the floors of a package, and their height."""
    graph = room_graph(part)
    floors = floors_of(graph)
    cut, levels = with_stops(graph, floors)
    rows = ordered(cut, levels)
    height = HEAD + STEP * len(rows)
    places = {
        node: (x, top + height - STEP * (level + 1))
        for level, row in enumerate(rows)
        for node, x in zip(row, across(row), strict=True)
    }
    frame = f'<rect x="1" y="{top + 1}" width="{WIDTH - 2}" height="{height - 10}" rx="6" fill-opacity=".04"/>'
    title = f'<text x="14" y="{top + 22}" font-weight="bold">{part}</text>'
    lines = [line(upper, lower, places) for upper, lower in graph.edges]
    boxes = [box(node, *places[node]) for node in graph]
    return "\n".join([frame, title, *lines, *boxes]), height


def room_graph(part: str) -> nx.DiGraph:
    """Return the rooms of a package and what each imports, without the imports that follow from others."""
    graph, whole = nx.DiGraph(), children(import_graph(), part)
    shown = rooms_of(part)
    graph.add_nodes_from(shown)
    # Also through modules that are no rooms, which are not shown.
    graph.add_edges_from((room, other) for room in shown for other in nx.descendants(whole, room) & set(shown))
    return nx.transitive_reduction(graph)


def rooms_of(part: str) -> list[str]:
    graph = import_graph()
    packages = {name.rpartition(".")[0] for name in graph}
    direct = {name for name in graph if name.rpartition(".")[0] == part}
    return sorted(name for name in direct if name in packages or name in JOBS)


def across(row: list[Hashable]) -> list[float]:
    """Return the middles of a floor's boxes and stops: spread over the width, in their order."""
    widths = [BOX if isinstance(node, str) else STOP for node in row]
    gap = (WIDTH - sum(widths)) / (len(row) + 1)
    found, x = [], 0.0
    for width in widths:
        found.append(round(x + gap + width / 2, 1))
        x += gap + width
    return found


def line(upper: str, lower: str, places: Mapping[Hashable, tuple[float, float]]) -> str:
    """Return the arrow from a room to one below, through the stops between them."""
    stops = sorted(
        (each for each in places if isinstance(each, tuple) and each[:2] == (upper, lower)), key=lambda s: -s[2]
    )
    points = [(places[upper][0], places[upper][1] + HEIGHT)]
    for stop in stops:
        x, y = places[stop]
        points += [(x, y), (x, y + HEIGHT)]
    points.append((places[lower][0], places[lower][1] - 1))
    curve = " ".join(bends(points))
    return f'<path d="{curve}" fill="none" stroke="currentColor" stroke-opacity=".45" marker-end="url(#tip)"/>'


def bends(points: list[tuple[float, float]]) -> Iterator[str]:
    """Yield a path that leaves and reaches every floor upright."""
    yield f"M{points[0][0]:g} {points[0][1]:g}"
    for (x, y), (next_x, next_y) in pairwise(points):
        half = (y + next_y) / 2
        yield f"L{next_x:g} {next_y:g}" if x == next_x else f"C{x:g} {half:g} {next_x:g} {half:g} {next_x:g} {next_y:g}"


def box(room: str, x: float, y: float) -> str:
    """Return a room with its name, its purpose as a tooltip, and a link to its page."""
    name = room.rpartition(".")[2]
    drawn = (
        f'<rect x="{x - BOX / 2:g}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="4" fill-opacity=".1" '
        f'stroke="currentColor" stroke-opacity=".6"/><text x="{x:g}" y="{y + 22}" text-anchor="middle">{name}</text>'
    )
    said = f"<title>{escape(first_sentence(room_docstring(room)))}</title>"
    target = page_path(room).replace(".md", ".html")
    return f'<a href="{target}">{said}{drawn}</a>' if room in rooms() else f"<g>{said}{drawn}</g>"
