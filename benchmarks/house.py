"""Measure the structure of the code from its imports and definitions: `python -m benchmarks.house --json`.

A room is a package. Every import counts, including those inside functions and those for type checkers only. Files are
read, but no code runs.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import networkx as nx

from benchmarks.harness import finish

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pft_core", "pipelines", "cluster", "benchmarks")


def measure(root: Path = ROOT) -> dict[str, float]:
    """Return the figures of a checkout.

    The lines of a function are those of its `def`, with its docstring. core_rooms: direct children of `pft_core`.
    core_floors: the length of the longest chain of imports among these rooms. flat_max: the most modules in one folder,
    without `__init__`.
    """
    files = source_files(root)
    num_lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in files.values()]
    function_lines = [lines for path in files.values() for lines in function_lengths(path)]
    graph = import_graph(root)
    rooms = children(graph, "pft_core")
    modules = Counter(path.parent for path in files.values() if path.name != "__init__.py")
    return {
        "files": len(files),
        "median_file": median(num_lines),
        "max_file": max(num_lines),
        "median_function": median(function_lines),
        "max_function": max(function_lines),
        "cycles": len(circles(graph)),
        "core_rooms": len(rooms),
        "core_floors": 0 if circles(rooms) else nx.dag_longest_path_length(rooms) + 1,
        "flat_max": max(modules.values()),
        "readme_words": len((root / "README.md").read_text(encoding="utf-8").split()),
    }


def source_files(root: Path = ROOT) -> dict[str, Path]:
    """Return the source files by module name; a package's name stands for its `__init__`."""
    return {module_name(path, root): path for top in SOURCES for path in sorted((root / top).rglob("*.py"))}


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def function_lengths(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def import_graph(root: Path = ROOT) -> nx.DiGraph:
    """Return a graph with an edge for each import between the checkout's own modules."""
    files = source_files(root)
    graph = nx.DiGraph()
    graph.add_nodes_from(files)
    for name, path in files.items():
        for base, taken in imports(path):
            target = f"{base}.{taken}" if f"{base}.{taken}" in files else base
            if target in files and target != name:
                graph.add_edge(name, target)
    return graph


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each `from module import name`, and (module, "") of each `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def circles(graph: nx.DiGraph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    return sorted(sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1)


def children(graph: nx.DiGraph, package: str) -> nx.DiGraph:
    """Return the import graph of a package's direct children; each stands for everything inside it."""

    def child(module: str) -> str:
        return ".".join(module.split(".")[: package.count(".") + 2])

    inside = [module for module in graph if module.startswith(f"{package}.")]
    result = nx.DiGraph()
    result.add_nodes_from(map(child, inside))
    edges = ((child(a), child(b)) for a, b in graph.subgraph(inside).edges)
    result.add_edges_from((a, b) for a, b in edges if a != b)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of one line per figure.")
    arguments = parser.parse_args()
    finish(measure(), as_json=arguments.json)


if __name__ == "__main__":
    main()
