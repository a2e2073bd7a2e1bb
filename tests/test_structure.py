"""The rules that keep the code readable: who may import whom, and a README that tells the truth about the files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module of pft_core imports only modules to its left.
LAYERS = [
    "errors",
    "preferences",
    "conditions",
    "records",
    "record_schema",
    "prompts",
    "artifacts",
    "sources",
    "token_places",
    "encoding",
    "encoded_layer",
    "order",
    "batching",
    "tree_layout",
    "attention",
    "tree_decoder",
    "label_head",
    "scoring",
    "toyworld",
    "text_base",
    "objectives",
    "planning",
    "demonstrations",
    "model",
    "soup",
    "engine",
    "engine_deepspeed",
    "memory",
    "checkpoint",
    "diagnostics",
    "loop",
    "reference",
    "local_context",
    "inference",
    "evaluation",
    "steering",
    "history",
]
FIRST_WITH_TORCH = "batching"
TORCH = {"torch", "transformers", "peft", "deepspeed", "accelerate"}
CLUSTER = {"ray", "mlflow", "vllm"}
JOBS = {"prepare", "train", "evaluate", "quickstart", "tune", "compare", "serve"}
CALLERS_OF_JOBS = {"quickstart", "tune", "compare"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, *, at_load: bool = False) -> Iterator[str]:
    """Yield the dotted names that a module imports; at_load: only those that run when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(ROOT / "pft_core").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules("pft_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_no_cluster_and_no_pipeline(path: Path) -> None:
    forbidden = CLUSTER | {"pipelines", "cluster"}
    assert not {name.split(".")[0] for name in imports(path)} & forbidden


@pytest.mark.parametrize("path", modules("pft_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_is_built_in_layers(path: Path) -> None:
    if layer(path) == "__init__":
        return
    used = {name.split(".")[1] for name in imports(path, at_load=True) if name.startswith("pft_core.")}
    later = {name for name in used if LAYERS.index(name) > LAYERS.index(layer(path))}
    assert not later, f"{path.name} imports {later}, which come after {layer(path)}"


@pytest.mark.parametrize("name", LAYERS[: LAYERS.index(FIRST_WITH_TORCH)])
def test_torch_enters_at_batching(name: str) -> None:
    for path in [p for p in modules("pft_core") if layer(p) == name]:
        assert not {imported.split(".")[0] for imported in imports(path, at_load=True)} & TORCH


@pytest.mark.parametrize("name", sorted(JOBS - CALLERS_OF_JOBS))
def test_jobs_meet_through_artifacts(name: str) -> None:
    path = ROOT / "pipelines" / f"{name}.py"
    if not path.exists():
        pytest.skip(f"there is no {name} job")
    used = {imported.removeprefix("pipelines.").split(".")[0] for imported in imports(path)}
    assert not used & (JOBS - {name})


@pytest.mark.parametrize("path", modules("cluster"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_cluster_side_knows_commands_and_no_internals(path: Path) -> None:
    own = {name for name in imports(path) if name.split(".")[0] in ("pft_core", "pipelines")}
    assert all(name.startswith("pft_core.errors.") for name in own)


def test_help_and_config_load_nothing_heavy() -> None:
    heavy = TORCH | CLUSTER | {"pyarrow", "datasets"}
    for name in ("cli", "config", "strict", "console"):
        loaded = {imported.split(".")[0] for imported in imports(ROOT / "pipelines" / f"{name}.py", at_load=True)}
        assert not loaded & heavy


def tree_of_the_readme() -> list[str]:
    """Return the paths of the README's tree: two spaces of indent for each folder, a name, then what it is."""
    block = re.search(r"## Files\n+```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block, "README.md has no tree under '## Files'"
    paths, folders = [], []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth:] = [name.rstrip("/")]
        paths.append("/".join(folders) + ("/" if name.endswith("/") else ""))
    return paths


def test_everything_in_the_readme_tree_exists() -> None:
    for path in tree_of_the_readme():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_source_file_is_in_the_readme_tree() -> None:
    listed = tree_of_the_readme()
    leaves = [p for p in listed if p.endswith("/") and not any(q != p and q.startswith(p) for q in listed)]
    for package in ("pft_core", "pipelines", "cluster"):
        for path in modules(package):
            name = str(path.relative_to(ROOT))
            covered = name in listed or any(name.startswith(leaf) for leaf in leaves)
            assert covered or path.name == "__init__.py", f"{name} is not in the README's tree"
