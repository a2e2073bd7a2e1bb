"""Rules that keep the code readable: allowed imports, doors of rooms, and a line for every file."""

import ast
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import networkx as nx
import pytest

from benchmarks import house
from benchmarks.house import ROOT, children, circles, import_graph, imports, source_files
from docs.generators import file_tree
from pft_core.lazy import exported_names

FILES = source_files()
GRAPH = import_graph()
PACKAGES = {name for name, path in FILES.items() if path.name == "__init__.py"}
PLUGIN = ROOT / "tests" / "sample_plugin.py"
ROOMS = sorted(name for name in PACKAGES if "." in name)

HEAVY = {"torch", "transformers", "peft", "deepspeed", "accelerate", "ray", "mlflow", "vllm", "datasets", "pyarrow"}
HEAVY |= {"matplotlib"}  # only drawing code waits for it
CLUSTER = {"ray", "mlflow", "vllm"}
# Libraries that only workers use: a driver must not wait for their import.
WORKERS_ONLY = {"torch", "transformers", "peft", "deepspeed", "accelerate", "mlflow", "vllm", "matplotlib"}

# The jobs that each job may import. `train` prepares the embedded data set with `prepare`.
JOBS = {
    "encode": set(),
    "prepare": {"encode"},
    "train": {"encode", "prepare"},
    "evaluate": {"encode"},
    "serve": set(),
    "export": set(),
    "tune": {"encode", "prepare", "train", "evaluate"},
    "compare": {"encode", "prepare", "train", "evaluate"},
    "quickstart": {"encode", "prepare", "train", "evaluate"},
}
# Modules that must import without torch: settings, records and prompts, which drivers and the HTTP server need.
LIGHT = [
    *(name for name in FILES if name.startswith(("pft_core.data", "pft_core.prompts"))),
    *(f"pft_core.encoding.{name}" for name in ("examples", "token_offsets", "tokens", "views", "layer")),
    *(f"pft_core.evaluation.metrics.{name}" for name in ("metric", "measures", "outcome", "registry", "metric_rows")),
    *("pft_core.evaluation.tasks.registry", "pft_core.evaluation.yardsticks.registry"),
    *("pft_core.policies.model_ref", "pft_core.training.order", "pipelines.config"),
    *PACKAGES,
]


def outside(path: Path) -> set[str]:
    """Return the top-level names of all imports of a file."""
    return {module.split(".")[0] for module, _ in imports(path)}


def modules_after(*names: str) -> set[str]:
    """Import modules in a subprocess; return the top-level names of all modules loaded there."""
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint(*{{n.split('.')[0] for n in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_there_are_no_import_cycles() -> None:
    assert circles(GRAPH) == []


def named_in_text(path: Path) -> set[str]:
    """Return the modules of this project that a file names in strings, as in registry entries or `import_module`."""
    texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
    modules = {text.partition(":")[0] for text in texts if isinstance(text, str) and "." in text}
    return modules & FILES.keys()


def test_core_rooms_have_no_cycles_through_module_names_in_strings() -> None:
    whole = GRAPH.copy()
    whole.add_edges_from((name, target) for name, path in FILES.items() for target in named_in_text(path) - {name})
    assert circles(children(whole, "pft_core")) == []


def test_every_import_is_absolute() -> None:
    relative = [
        name
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative, "the rules here read absolute names"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_sibling_rooms_do_not_depend_on_each_other(package: str) -> None:
    assert circles(children(GRAPH, package)) == []


def doors_missed(importer: str, target: str) -> list[str]:
    """Return the rooms that contain the target but not the importer, unless the target is their door or job."""
    inside = [room for room in ROOMS if target.startswith(f"{room}.") and not f"{importer}.".startswith(f"{room}.")]
    return [room for room in inside if target != f"{room}.job" and not (target in PACKAGES and target == inside[0])]


@pytest.mark.parametrize("importer", sorted(FILES))
def test_a_room_is_imported_through_its_door_or_its_job(importer: str) -> None:
    missed = {target: rooms for target in GRAPH[importer] if (rooms := doors_missed(importer, target))}
    assert not missed, f"{importer} imports past a door: import the name from the outermost of {missed}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_door_exports_existing_names_that_others_import(room: str) -> None:
    offered = exported_names(room, FILES[room])
    behind = {name.rpartition(".")[2] for name in FILES if name.rpartition(".")[0] == room}
    assert not set(offered) & behind, "a module hides an exported name of the door"
    assert all(hasattr(import_module(home), name) for name, home in offered.items() if "vllm" not in home)
    # A plugin imports through the same doors.
    taken = {name for path in [*FILES.values(), PLUGIN] for module, name in imports(path) if module == room}
    assert set(offered) <= taken


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("pft_core")])
def test_the_core_imports_no_cluster_and_no_pipeline(name: str) -> None:
    assert not outside(FILES[name]) & (CLUSTER | {"pipelines", "cluster"})


def test_the_core_has_few_rooms_and_a_short_import_chain() -> None:
    measured = house.measure()
    assert measured["core_rooms"] <= 14
    assert measured["core_floors"] <= 7
    assert measured["flat_max"] <= 14
    assert measured["max_function"] <= 40


def test_light_modules_load_no_torch() -> None:
    assert not modules_after(*sorted(LIGHT)) & (HEAVY - {"pyarrow", "datasets"})


def test_help_and_config_load_nothing_heavy() -> None:
    assert not modules_after("pipelines.cli", "pipelines.config", "pipelines.console") & HEAVY


def test_the_driver_of_a_job_loads_no_library_of_its_workers() -> None:
    jobs = [f"pipelines.{room}.job" for room in ("prepare", "train", "evaluate")]
    assert not modules_after(*jobs, "pipelines.quickstart") & WORKERS_ONLY


def test_jobs_communicate_through_artifacts() -> None:
    rooms = children(GRAPH, "pipelines")
    for job, callees in JOBS.items():
        reached = {name.rpartition(".")[2] for name in nx.descendants(rooms, f"pipelines.{job}")}
        assert reached & set(JOBS) <= callees, job


def test_the_cluster_package_imports_no_internals() -> None:
    own = {name for name in GRAPH if name.startswith("cluster")}
    assert {target for name in own for target in GRAPH[name]} - own <= {"pft_core.errors"}


def test_every_file_says_in_a_line_what_it_is() -> None:
    """The documentation's list of files is made of these lines."""
    assert [path for path in file_tree.entries() if not file_tree.line_of(path)] == []


CHECKER = re.compile(r"#\s*(?:type: ignore|(?:ruff: )?noqa)\b(?:\[[\w, -]+\]|: *[A-Z]+\d+(?:, *[A-Z]+\d+)*)?(.*)")


@pytest.mark.parametrize("folder", ["pft_core", "pipelines", "cluster", "docs", "benchmarks"])
def test_every_exception_from_ruff_or_mypy_stands_beside_its_reason(folder: str) -> None:
    lines = [(path, line) for path in (ROOT / folder).rglob("*.py") for line in path.read_text("utf-8").splitlines()]
    found = [(str(path), line, match[1]) for path, line in lines if (match := CHECKER.search(line))]
    assert [(path, line) for path, line, reason in found if not re.search("[a-z]{2}", reason)] == []


def test_every_source_file_is_in_the_list_of_files() -> None:
    listed = set(file_tree.entries())
    sources = {str(path.relative_to(ROOT)) for path in FILES.values() if path.name != "__init__.py"}
    assert sources <= listed


def test_what_makes_the_documentation_keeps_the_house_rules() -> None:
    files = list((ROOT / "docs").rglob("*.py"))
    assert max(lines for path in files for lines in house.function_lengths(path)) <= 40
    assert max(Counter(path.parent for path in files if path.name != "__init__.py").values()) <= 14
