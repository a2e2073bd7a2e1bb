"""A user's own objective, source, metric and task work in every job without a change in the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pft_core.errors import UserError
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.objectives.registry import OBJECTIVES
from pipelines.compare import job as compare
from pipelines.compare.suite import load_suite
from pipelines.config import load_config
from pipelines.evaluate import EvaluateConfig
from pipelines.evaluate import job as evaluate
from pipelines.plugins import load_plugins, read_plugins
from pipelines.prepare import job as prepare
from pipelines.train import job as train
from pipelines.validated_yaml import build

PLUGIN = Path(__file__).with_name("sample_plugin.py")
OWN = ("halved", "both_wrong")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin, raw rows in its format, and a recipe and a suite that use its entries."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(PLUGIN, folder / "own.py")
    rows = [
        {"situation": f"The town has plan {n} .", "fast": f"go {n} now", "slow": f"wait {n} more"} for n in range(60)
    ]
    write_lines(folder / "rows.jsonl", rows)
    questions = [
        {"id": f"q{n}", "question": "The a of ?", "answers": ["plan", "job"], "right": n % 2} for n in range(4)
    ]
    write_lines(folder / "questions.jsonl", questions)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def small_run(model: Path) -> dict[str, Any]:
    return {
        "model": str(model),
        "prompt": {"answer": "option"},
        "lora": {"r": 2, "alpha": 4, "dropout": 0.0},
        "train": {
            "objective": "halved", "pairs_per_step": 4, "max_steps": 2, "warmup_steps": 0, "precision": "fp32",
            "checkpoint_every": 0,
        },
        "plugins": ["own.py"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def prepared(folder: Path, ray_cluster: None) -> Path:
    raw = {"source": "two_answers", "input": [str(folder / "rows.jsonl")], "output": str(folder / "data")}
    result = prepare.run(build(prepare.PrepareConfig, {**raw, "plugins": [str(folder / "own.py")]}))
    assert (result["rows_in"], result["rows_out"], result["rejected"]) == (60, 60, 0)
    return folder / "data"


@pytest.mark.ray
def test_an_own_objective_trains_and_an_own_metric_and_task_are_reported(
    folder: Path, prepared: Path, tiny_qwen2: Path
) -> None:
    (folder / "own.yaml").write_text(yaml.safe_dump(small_run(tiny_qwen2)), encoding="utf-8")
    config = load_config(folder / "own.yaml", [f"data={prepared}", f"storage={folder / 'runs'}"])
    run = train.run(config)
    metrics = [json.loads(line) for line in (Path(run["run_dir"]) / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_first", "loss_second"} <= metrics[0].keys()
    asked = {"model": run["model_ref"], "data": str(prepared), "output": str(folder / "report"), "limit_per_axis": 8}
    rows = report_of(evaluate.run(build(EvaluateConfig, asked)))
    assert [row["n"] for row in rows if row["metric"] == "both_wrong"]
    asked |= {"data": str(folder / "questions.jsonl"), "output": str(folder / "trivia"), "task": "trivia"}
    del asked["limit_per_axis"]
    rows = report_of(evaluate.run(build(EvaluateConfig, asked)))
    assert [(row["metric"], row["n"]) for row in rows] == [("trivia", 4)]


def report_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    return list(json.loads(Path(result["report_json"]).read_text())["rows"])


@pytest.mark.ray
def test_a_suite_compares_any_objective_by_any_metric_on_a_prepared_folder(
    folder: Path, prepared: Path, tiny_qwen2: Path
) -> None:
    run = {key: value for key, value in small_run(tiny_qwen2).items() if key not in ("plugins", "model")}
    run["train"] = {key: value for key, value in run["train"].items() if key != "objective"}
    suite = {
        "name": "own",
        "title": "Own methods on own data",
        "methods": ["halved", "pft"],
        "metrics": ["both_right", "both_wrong"],
        "plugins": ["own.py"],
        "sizes": {"tiny": {"data": str(prepared), "base": str(tiny_qwen2), "seeds": [0], "run": run, "forms": ["one"]}},
    }
    (folder / "own_suite.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    result = compare.run(load_suite(str(folder / "own_suite.yaml")), size="tiny", storage=folder / "compare")
    assert (result["cells"], result["failed"]) == (2, 0)
    rows = report_of(result)
    assert {(row["method"], row["metric"]) for row in rows} >= {("halved", "both_wrong"), ("pft", "both_right")}


def test_the_run_key_depends_on_the_code_of_a_plugin(folder: Path, tmp_path: Path) -> None:
    first = read_plugins([str(folder / "own.py")])[0]
    (tmp_path / "own.py").write_text((folder / "own.py").read_text() + "\nMORE = 1\n")
    assert read_plugins([str(tmp_path / "own.py")])[0].digest != first.digest
    assert read_plugins(["json"])[0].digest == read_plugins(["json"])[0].digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module\n", r"mine\.py, line 1: import failed: ModuleNotFoundError"),
        ("x = 1\nx = = 2\n", r"mine\.py, line 2: import failed: SyntaxError"),
        (
            "from pft_core.objectives import OBJECTIVES\n\nOBJECTIVES.add('pft', OBJECTIVES['dpo'])\n",
            r"mine\.py: objective 'pft' is registered already: choose another name",
        ),
    ],
)
def test_a_plugin_that_fails_to_import_or_takes_a_used_name_is_one_clear_error(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load_plugins(read_plugins([str(tmp_path / "mine.py")]))


def test_a_missing_plugin_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plugin .*nowhere\.py: cannot be read"):
        load_config("quickstart", [f"plugins=[{tmp_path}/nowhere.py]"])
    with pytest.raises(UserError, match=r"plugin no\.such: no such module on"):
        load_config("quickstart", ["plugins=[no.such]"])


def test_a_plugin_that_exits_or_whose_package_fails_to_import_is_one_clear_error(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match=r"plugin .*leaves\.py, line 2: import failed: SystemExit: 3"):
        load_plugins(read_plugins([str(tmp_path / "leaves.py")]))
    for name, text, why in [
        ("raises", "raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("typo", "x = = 2", "SyntaxError"),
        ("needs", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ]:
        (tmp_path / f"pkg_{name}").mkdir()
        (tmp_path / f"pkg_{name}" / "__init__.py").write_text(text)
        with pytest.raises(UserError, match=rf"plugin pkg_{name}\.mod: import failed: {why}"):
            read_plugins([f"pkg_{name}.mod"])


@pytest.mark.parametrize("name", ["sys", "_struct"])
def test_a_module_without_python_source_is_not_a_plugin(name: str) -> None:
    with pytest.raises(UserError, match=f"plugin {name}: the module has no Python source: give one written in Python"):
        read_plugins([name])


@pytest.mark.parametrize(
    ("text", "value"), [("", "None"), ("3", "3"), ("own.py", "'own.py'")], ids=["empty", "number", "bare"]
)
def test_plugins_that_are_not_a_list_are_refused_in_suites_and_recipes(tmp_path: Path, text: str, value: str) -> None:
    suite = "name: own\ntitle: own\nmethods: [pft]\nsizes: {tiny: {}}\n"
    (tmp_path / "own.yaml").write_text(f"{suite}plugins: {text}\n")
    with pytest.raises(UserError, match=rf"own\.yaml: plugins={value}: expected a list"):
        load_suite(str(tmp_path / "own.yaml"), [], ["json"])
    with pytest.raises(UserError, match=rf"plugins={value}: expected a list"):
        load_config("quickstart", [f"plugins={text}"])


def test_a_plugin_that_is_named_twice_is_read_once_in_the_order_of_first_mention(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("X = 1\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "mine.py")
    mine, link = str(tmp_path / "mine.py"), str(tmp_path / "link.py")
    assert [plugin.place for plugin in read_plugins([mine, "json", link, "json"])] == [mine, "json"]


def test_a_module_beside_the_recipe_or_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    for folder in ("recipes", "here"):
        (tmp_path / folder / "own_pkg").mkdir(parents=True)
        (tmp_path / folder / "own_pkg" / f"of_{folder}.py").write_text("X = 1\n")
    (tmp_path / "recipes" / "own.yaml").write_text("plugins: [own_pkg.of_recipes]\n")
    monkeypatch.chdir(tmp_path / "here")
    recipe = tmp_path / "recipes" / "own.yaml"
    assert load_config(recipe).plugins == [str(tmp_path / "recipes" / "own_pkg" / "of_recipes.py")]
    given = load_config(recipe, ["plugins=[own_pkg.of_here, json]"]).plugins
    assert given == [str(tmp_path / "here" / "own_pkg" / "of_here.py"), "json"]
    with pytest.raises(UserError, match=r"beside the recipe or in the current folder: .*PYTHONPATH"):
        load_config(recipe, ["plugins=[own_pkg.of_nobody]"])


def test_an_error_of_a_plugin_begins_with_its_name(tmp_path: Path) -> None:
    asked = {"model": "m", "data": "d", "output": "o", "plugins": [str(tmp_path / "nowhere.py")]}
    with pytest.raises(UserError, match=rf"^plugin {tmp_path}/nowhere\.py: cannot be read"):
        build(EvaluateConfig, asked)


def test_a_worker_imports_plugins_from_pickled_settings_without_their_files(tmp_path: Path) -> None:
    # In a subprocess, since the plugin's names must not stay registered here.
    code = f"""
import pickle, sys
from pathlib import Path
from pipelines.config import load_config
path = Path({str(tmp_path)!r}) / "mine.py"
lines = ["from pft_core.objectives import OBJECTIVES as O, ObjectiveEntry", "O.add('mine', ObjectiveEntry(print))"]
path.write_text(chr(10).join(lines))
config = load_config("quickstart", [f"plugins=[{{path}}]", "train.objective=mine"])
sys.stdout.buffer.write(pickle.dumps(config))
path.unlink()
"""
    pickled = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    opened = "import pickle, sys; print(pickle.load(sys.stdin.buffer).train.entry.build.__name__)"
    result = subprocess.run([sys.executable, "-c", opened], input=pickled, capture_output=True, check=True)
    assert result.stdout.decode().strip() == "print"


@pytest.fixture(autouse=True, scope="module")
def registered_here_only() -> Any:
    """Remove the entries of this module's plugin afterwards, since other tests list the shipped names."""
    yield
    from pft_core.data.sources.registry import SOURCES
    from pft_core.evaluation.tasks.registry import TASKS

    registries = {OBJECTIVES: "halved", METRICS: "both_wrong", SOURCES: "two_answers", TASKS: "trivia"}
    for registry, name in registries.items():
        registry._entries.pop(name, None)
