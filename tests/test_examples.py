"""Each folder of `examples/` works: a cheap path in the default suite, the README's own commands marked `slow`."""

import contextlib
import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.house import ROOT
from pft_core.data.preferences import load_space
from pft_core.evaluation.metrics.outcome import Outcome, always_by_position
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.objectives.build import build_objective
from pft_core.objectives.registry import OBJECTIVES
from pipelines import cli
from pipelines.config import load_config
from tests.serving import LocalServer, serve_config, write_policy

EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy of `examples/`, to write beside it."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    return tmp_path / "examples"


def commands(folder: Path) -> list[str]:
    """Return the lines of the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def python_file(path: Path) -> ModuleType:
    """Import a file by its place."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that a plugin adds leave with the test."""
    for registry in (OBJECTIVES, METRICS):
        monkeypatch.setattr(registry, "_entries", {name: registry[name] for name in registry})  # type: ignore[attr-defined]


@pytest.fixture
def pft(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a verb in this process, on the session's Ray; a training takes two steps."""
    results: list[dict[str, Any]] = []
    monkeypatch.setattr(cli, "reserve_stdout", lambda: (1, results.append))
    monkeypatch.setattr(cli, "catching_signals", contextlib.nullcontext)

    def run(*arguments: str) -> dict[str, Any]:
        words = [found for word in arguments for found in (sorted(glob.glob(word)) if "*" in word else [word])]
        few = ["train.max_steps=2", "train.warmup_steps=0"] if words[0] == "train" else []
        cli.app([*cli.spread_inputs(words), *few], standalone_mode=False)
        return results[-1]

    return run


def test_every_folder_holds_at_most_three_files_and_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in FOLDERS:
        assert len(list((EXAMPLES / name).iterdir())) <= 3, name
        assert f"]({name}/" in listed, name


@pytest.mark.ray
def test_own_data_becomes_parts_that_the_recipe_names(
    examples: Path, pft: Callable[..., dict[str, Any]], ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(examples / "own_data")
    prepare = next(line for line in commands(Path()) if line.startswith("pft prepare"))
    result = pft(*prepare.split()[1:])
    assert (result["rows_in"], result["rejected"]) == (60, 0)
    assert result["parts"]["train"] == str(Path(str(load_config("recipe.yaml").data)).resolve())


def test_an_own_objective_weighs_unlikely_answers_more(examples: Path, own_entries: None) -> None:
    objective = build_objective(load_config(examples / "own_objective" / "recipe.yaml").train, axes=["Risk"])
    # One answer of two tokens for each side: p = 0.5 and 0.1 a token, so (1 - 0.5) * 2 ln 2 and (1 - 0.1) * 2 ln 10.
    batch = SimpleNamespace(num_labels_R=torch.tensor([2, 2]), branch_side=torch.tensor([0, 1]))
    sums = objective.sums(2 * torch.tensor([0.5, 0.1]).log(), batch)
    assert sums.tolist() == pytest.approx([0.6931, 4.1447], abs=1e-4)


def test_an_own_metric_is_the_difference_between_the_preferences(own_entries: None) -> None:
    python_file(EXAMPLES / "own_metric" / "metric.py")
    metric = METRICS["swing"]
    chosen = (frozenset({0}), frozenset({1}))
    outcome = Outcome("id", "s", "Risk", "one", (0, 1), chosen, probabilities=((0.9, 0.1), (0.2, 0.8)))
    assert metric.code(outcome) == pytest.approx((0.7, 1.0))
    assert metric.code(Outcome("id", "s", "Risk", "one", (0, 1), chosen)) == (0.0, 0.0)
    # Position alone takes the first option for the first pole: 1 - 0 if it shows that pole, 0 - 1 if it does not.
    assert metric.code(always_by_position(outcome)) == (1.0, 1.0)
    assert metric.code(always_by_position(replace(outcome, sides=(1, 0)))) == (-1.0, 1.0)


def test_an_own_base_model_is_one_that_the_recipe_takes(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pft_core.policies.model import load_base
    from pft_core.policies.pretrained import load_tokenizer

    monkeypatch.chdir(examples / "own_base_model")
    line = next(line for line in commands(Path()) if line.startswith("python"))
    python_file(Path("make_base.py")).main(*line.split()[2:])
    base = str(load_config("recipe.yaml").model)
    tokenizer = load_tokenizer(base)
    model = load_base(base, precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    ids = tokenizer("A customer asks when the boat will be repaired.", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))


@pytest.fixture(scope="module")
def server(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("client")
    policy = write_policy(root / "policy", tiny_qwen2, seed=0, space=load_space("toyworld"))
    with LocalServer(serve_config(policy, root / "cache")).running() as running:
        yield running


@pytest.mark.parametrize("command", [c for c in commands(EXAMPLES / "serving_client") if "client" in c])
def test_a_client_chooses_and_streams(server: LocalServer, command: str) -> None:
    program, script = command.split()
    found = sys.executable if program == "python" else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    place = EXAMPLES / "serving_client" / script
    done = subprocess.run([found, place, server.url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    daring, careful, written = done.stdout.split("\n", 2)
    assert daring.startswith("Daring chooses: ")
    assert careful.startswith("Careful chooses: ")
    assert len(written.removeprefix("Careful writes: ").strip()) > 0


def cells(notebook: Path) -> list[str]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs() -> None:
    stored = json.loads((EXAMPLES / "notebook" / "pairs_to_plot.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


@pytest.mark.slow
@pytest.mark.ray
def test_the_notebook_goes_from_pairs_to_a_plot(
    examples: Path, pft: Callable[..., dict[str, Any]], ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def in_process(command: list[str], **how: Any) -> Any:
        if command[0] != "pft":  # what the verbs run themselves, such as git
            return run(command, **how)
        return SimpleNamespace(stdout=json.dumps(pft(*command[1:])))

    monkeypatch.chdir(examples / "notebook")
    monkeypatch.setenv("MPLBACKEND", "agg")
    space: dict[str, Any] = {}
    for cell in cells(Path("pairs_to_plot.ipynb")):
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "run", in_process)
            exec(cell, space)
    assert Path("plot.png").stat().st_size > 1000
    assert len(space["steps"]) == 2


@pytest.mark.slow
@pytest.mark.own_ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["own_base_model", "own_data", "own_metric", "own_objective"])
def test_the_commands_of_a_readme_run_as_printed(examples: Path, name: str) -> None:
    run_lines(commands(examples / name), examples / name)
    rows = json.loads((examples / name / "report" / "report.json").read_text())["rows"]
    value = {row["metric"]: row["value"] for row in rows if row["metric"] in ("both_right", "swing")}
    if name == "own_metric":
        assert value["swing"] == pytest.approx(0, abs=0.2)
    else:
        assert value["both_right"] >= 0.8


@pytest.mark.slow
@pytest.mark.own_ray
@pytest.mark.timeout(900)
def test_the_notebook_runs_as_stored(examples: Path) -> None:
    folder = examples / "notebook"
    (folder / "all.py").write_text("\n".join(cells(folder / "pairs_to_plot.ipynb")))
    run_lines(["python all.py"], folder)
    assert (folder / "plot.png").is_file()


def run_lines(lines: list[str], folder: Path) -> None:
    """Run shell commands in a folder, with the programs of this environment."""
    here = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), "MPLBACKEND": "agg"}
    places = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = "\n".join(["set -e", *lines])
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**os.environ, **here, "PYTHONPATH": places},
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
