"""A drawing order for a graph of imports: floors, places on a floor that cross few lines, and stops for long lines."""

from collections.abc import Hashable, Mapping, Sequence
from statistics import mean

import networkx as nx

Stop = tuple[str, str, int]  # where the line from one room to another passes a floor
ROUNDS = 24  # of sorting up and down; later ones change nothing


def floors_of(graph: nx.DiGraph) -> dict[str, int]:
    """Return the floor of each node: 0 imports nothing, another lies above everything that it imports."""
    floors: dict[str, int] = {}
    for node in reversed(list(nx.topological_sort(graph))):
        floors[node] = max((floors[below] + 1 for below in graph[node]), default=0)
    return floors


def with_stops(graph: nx.DiGraph, floors: Mapping[str, int]) -> tuple[nx.DiGraph, dict[Hashable, int]]:
    """Return the graph with every line cut at the floors that it passes, and the floors of nodes and stops."""
    cut = nx.DiGraph()
    levels: dict[Hashable, int] = {room: floors[room] for room in graph}
    cut.add_nodes_from(graph)
    for upper, lower in graph.edges:
        stops: list[Stop] = [(upper, lower, level) for level in range(floors[upper] - 1, floors[lower], -1)]
        levels.update({stop: stop[2] for stop in stops})
        nx.add_path(cut, [upper, *stops, lower])
    return cut, levels


def ordered(cut: nx.DiGraph, levels: Mapping[Hashable, int]) -> list[list[Hashable]]:
    """Return the nodes of each floor from left to right: each near the middle of those that it is joined to."""
    rows: list[list[Hashable]] = [[] for _ in range(max(levels.values()) + 1)]
    for node in sorted(cut, key=str):
        rows[levels[node]].append(node)
    for turn in range(ROUNDS):
        neighbors = cut.successors if turn % 2 == 0 else cut.predecessors
        for row in rows if turn % 2 == 0 else reversed(rows):
            places = {node: (i + 0.5) / len(each) for each in rows for i, node in enumerate(each)}
            row.sort(key=lambda node: middle(list(neighbors(node)), places, places[node]))
    return rows


def middle(neighbors: Sequence[Hashable], places: Mapping[Hashable, float], own: float) -> float:
    return mean(places[each] for each in neighbors) if neighbors else own
